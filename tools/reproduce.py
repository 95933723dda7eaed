"""The paper's tables and figures, each by one command."""

import argparse
import os
import re
import shlex
import signal
import sys
from pathlib import Path

from facemae_mm.launch import refuse
from facemae_mm.reproduction.miniature import Embedder, Miniature
from facemae_mm.reproduction.page import write_page
from facemae_mm.reproduction.run import StageError, duration, run_stages, to_run
from facemae_mm.reproduction.store import Store
from facemae_mm.reproduction.tables import FIGURES, TABLES, Cells, stages_of

ROOT = Path(__file__).resolve().parents[1]

EPILOG = """\
--scale mini trains everything anew on LFW, small (configs/mini): --lfw FOLDER holds the 13,233 faces, aligned to the
ArcFace template at 112×112, a folder a person (tools/prepare_faces.py makes them of the photographs), --pairs FILE is
LFW's list of 6,000 pairs. The ten folds share no person: folds 1 to 5 train FaceMAE, 6 to 8 are released, the pairs of
9 and 10 verify, the people whom no pair names train the start.

A table is a graph of ordinary commands. What a stage made is kept in --cache by the hash of all that it depends on, its
numbers as JSON in --results: tables share work, a killed run goes on with the same command, a changed setting redoes
only what it touches. --list shows what would run, and how long; the page is RESULTS/README.md.

examples:
  python tools/reproduce.py table2 --lfw data/lfw112 --pairs data/lfw_pairs.txt --list
  python tools/reproduce.py table2 fig3 --lfw data/lfw112 --pairs data/lfw_pairs.txt --seeds 1
  python tools/reproduce.py all --lfw data/lfw112 --pairs data/lfw_pairs.txt --unseen mobilefacenet=weights/buffalo_sc
"""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        'what',
        nargs='+',
        choices=[*TABLES, *FIGURES, 'all'],
        metavar='WHAT',
        help=', '.join([*TABLES, *FIGURES, 'all']),
    )
    add('--lfw', type=Path, metavar='FOLDER', required=True, help='LFW aligned, 112×112, a folder a person')
    add('--pairs', type=Path, metavar='FILE', required=True, help="LFW's pairs.txt")
    add(
        '--unseen',
        metavar='NAME=EMBEDDER[:MEAN:STD]',
        nargs='+',
        default=[],
        help='embedders that no training here sees, as judges of utility beside one trained on folds 1 to 5, and the '
        'first of them as a second attacker; MEAN and STD as three numbers with slashes, where the file does not tell',
    )
    add('--seeds', type=int, default=3, metavar='N', help='runs of each cell (default: 3)')
    cores = len(os.sched_getaffinity(0))
    add('--jobs', type=int, default=cores, metavar='N', help=f'stages at once, a thread each (default: {cores})')
    add(
        '--cache',
        type=Path,
        default=ROOT / '.cache' / 'mini',
        metavar='FOLDER',
        help='of outputs (default: .cache/mini)',
    )
    add(
        '--results',
        type=Path,
        default=ROOT / 'results' / 'mini',
        metavar='FOLDER',
        help='of numbers and the page (default: results/mini)',
    )
    add('--list', action='store_true', help='only list what would run')
    add('--page', action='store_true', help='only write the page anew, from the numbers that are there')
    args = parser.parse_args()
    if min(args.seeds, args.jobs) < 1:
        parser.error('--seeds and --jobs must be 1 or more')
    return args


def read_unseen(texts: list[str]) -> dict[str, tuple[str, Embedder]]:
    """NAME=EMBEDDER[:MEAN:STD] by name.

    Raises:
        ValueError: Another form, or a name twice.
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r'([a-z]\w*)=([^:]+)(?::([\d./]+):([\d./]+))?', text)
        if match is None or match[1] in found or match[1] in ('own', 'lfw', 'pairs'):
            raise ValueError(
                f'--unseen {text!r}: write NAME=EMBEDDER or NAME=EMBEDDER:M/M/M:S/S/S with a name of small letters, '
                'digits and _, each once, and not own, lfw or pairs.'
            )
        found[match[1]] = match[2], Embedder(match[3], match[4])
    return found


def run(args: argparse.Namespace) -> None:
    """Runs what is asked for, and writes the page."""
    sources = dict(lfw=args.lfw.absolute(), pairs=args.pairs.absolute())
    unseen = read_unseen(args.unseen)
    sources |= {name: Path(path).absolute() for name, (path, _) in unseen.items()}
    graph = Miniature({name: embedder for name, (_, embedder) in unseen.items()})
    cells = Cells(graph, args.seeds)
    tables = {name: table(cells) for name, table in TABLES.items()}
    asked = list(TABLES) if 'all' in args.what else [name for name in args.what if name in TABLES]
    figures = {name: stages(cells) for name, stages in FIGURES.items()}
    targets = stages_of([tables[name] for name in asked])
    targets += [stage for name, stages in figures.items() if {name, 'all'} & set(args.what) for stage in stages]
    store = Store(graph.stages, sources, args.cache.absolute(), args.results.absolute() / 'stages')
    os.chdir(ROOT)  # where stages find tools/ and configs/
    for name, path in sources.items():
        if not path.exists():
            raise FileNotFoundError(f'{name}: {path} does not exist. {"Look at --help." if name != "pairs" else ""}')
    if args.list:
        todo = to_run(store, targets)
        for stage in todo:
            print(f'{duration(stage.seconds):>8}  {stage.name:<56}  {stage.title}')
        print(f'{len(todo)} stages, {args.jobs} at once: {duration(sum(stage.seconds for stage in todo) / args.jobs)}')
        return
    try:
        if not args.page:
            run_stages(store, targets, args.jobs, lambda line: print(line, flush=True))
    finally:
        command = shlex.join(['python', 'tools/reproduce.py', *args.what, '--scale', 'mini'])
        page = write_page(args.results.absolute(), store, tables, [*unseen, 'own'], command)
        print(f'Page: {page}')


def main() -> None:
    """Reproduces."""
    args = parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # stages end with this process
    try:
        run(args)
    except (OSError, ValueError, StageError) as error:
        refuse(f'reproduce.py: {error}')
    except KeyboardInterrupt:
        refuse('reproduce.py: interrupted. The same command goes on.')


if __name__ == '__main__':
    main()
