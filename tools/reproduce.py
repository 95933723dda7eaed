"""The paper's tables and figures, each by one command."""

import argparse
import os
import re
import shlex
import signal
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from facemae_mm.command_line import without_folders
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.launch import refuse
from facemae_mm.reproduction.data_flow import DataFlow, Embedder, Size
from facemae_mm.reproduction.miniature import Miniature
from facemae_mm.reproduction.page import write_page
from facemae_mm.reproduction.paper_size import BINS, SOURCES, PaperSize, count_bins, count_parts
from facemae_mm.reproduction.plan import needed, plan, with_seconds
from facemae_mm.reproduction.run import StageError, duration, run_stages, to_run
from facemae_mm.reproduction.store import Store
from facemae_mm.reproduction.tables import FIGURES, TABLES, Cells, stages_of

ROOT = Path(__file__).resolve().parents[1]

EPILOG = """\
--scale mini (the default) trains everything anew on LFW, small (configs/mini): --lfw FOLDER holds the 13,233 faces,
aligned to the ArcFace template at 112×112, a folder a person under its name (tools/prepare_faces.py PHOTOS OUT
--keep-names makes them), --pairs FILE is LFW's list of 6,000 pairs. The ten folds share no person: folds 1 to 5 train
FaceMAE, 6 to 8 are released, the pairs of 9 and 10 verify, the people whom no pair names train the start.

--scale paper runs the recipes of the paper's size on GPUs: FaceMAE on a tenth of WebFace260M, released CASIA-WebFace,
recognisers on it, verified on LFW, CFP-FP and AgeDB. With --list, or where a source is missing, it prints the plan: a
shell script of all commands with what each costs, the totals, and what is missing. This project has not run it.

A table is a graph of ordinary commands. What a stage made is kept in --cache by the hash of all that it depends on, its
numbers as JSON in --results: tables share work, a killed run goes on with the same command, a changed setting redoes
only what it touches. The page is RESULTS/README.md. The numbers that came with this project lie in results/mini; with
--results results/mini those stay whose files, versions and device are the same, and others are replaced.

examples:
  python tools/reproduce.py table2 --lfw data/lfw112 --pairs data/lfw_pairs.txt --list
  python tools/reproduce.py table2 fig3 --lfw data/lfw112 --pairs data/lfw_pairs.txt --seeds 1
  python tools/reproduce.py all --lfw data/lfw112 --pairs data/lfw_pairs.txt \\
      --unseen mobilefacenet=weights/pack --bins cfp_fp=data/cfp_fp.bin agedb_30=data/agedb_30.bin \\
      --synthetic data/synface
  python tools/reproduce.py all --scale paper --list
  python tools/reproduce.py table1 --scale paper --webface webface/train.rec --casia casia/train.rec --phi r50.pth \\
      --bins lfw=data/lfw.bin cfp_fp=data/cfp_fp.bin agedb_30=data/agedb_30.bin --gpus 8
"""

#: Options of one scale alone.
OF_SCALE = dict(mini=('lfw', 'pairs', 'jobs'), paper=('webface', 'casia', 'phi', 'gpus', 'tflops'))

#: Runs of each cell by scale.
SEEDS = dict(mini=3, paper=1)

#: Names that no embedder may have.
RESERVED = ('out', 'own', 'pairs', *SOURCES)


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
    add('--scale', choices=list(OF_SCALE), default='mini', help='see below (default: mini)')
    add('--lfw', type=Path, metavar='FOLDER', help='mini: LFW aligned, 112×112, a folder a person')
    add('--pairs', type=Path, metavar='FILE', help="mini: LFW's pairs.txt")
    for name in ('webface', 'casia', 'phi'):
        option, what = SOURCES[name]
        add(f'--{name}', type=Path, metavar=option.split()[1], help=f'paper: {what}')
    add(
        '--bins',
        metavar='NAME=FILE',
        nargs='+',
        default=[],
        help="InsightFace's verification sets: cfp_fp and agedb_30, on which recognisers are verified beside LFW's "
        'pairs; paper: lfw too',
    )
    add('--synthetic', type=Path, metavar='PATH', help=f'one more row of Table 1: {SOURCES["synthetic"][1]}')
    add(
        '--unseen',
        metavar='NAME=EMBEDDER[:MEAN:STD]',
        nargs='+',
        default=[],
        help='embedders that no training here sees, as judges of utility beside one trained on W, and the first of '
        'them as a second attacker; MEAN and STD as three numbers with slashes, where the file does not tell',
    )
    add('--seeds', type=int, metavar='N', help='runs of each cell that are run (default: 3; paper: 1)')
    cores = len(os.sched_getaffinity(0))
    add('--jobs', type=int, metavar='N', help=f'mini: stages at once, a thread each (default: {cores})')
    add('--gpus', type=int, metavar='N', help='paper: of this machine, 1, 2, 4 or 8 (default: 8)')
    add('--tflops', type=float, metavar='T', help='paper: that a GPU sustains, for the plan (default: 100)')
    add('--cache', type=Path, metavar='FOLDER', help='of outputs (default: .cache/SCALE)')
    add('--results', type=Path, metavar='FOLDER', help='of numbers and the page (default: work_dirs/SCALE)')
    add('--list', action='store_true', help='only list what would run, and how long; paper: the plan')
    add('--page', action='store_true', help='only write the page anew, from the numbers that are there')
    args = parser.parse_args()
    for scale, names in OF_SCALE.items():
        given = [name for name in names if getattr(args, name) is not None]
        if scale != args.scale and given:
            parser.error(f'--{given[0]} is for --scale {scale}, not {args.scale}')
    if args.scale == 'mini' and None in (args.lfw, args.pairs):
        parser.error('--scale mini needs --lfw FOLDER and --pairs FILE')
    defaults = dict(
        seeds=SEEDS[args.scale],
        jobs=cores if args.scale == 'mini' else 1,
        gpus=8,
        tflops=100.0,
        cache=ROOT / '.cache' / args.scale,
        results=ROOT / 'work_dirs' / args.scale,
    )
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(args.seeds, args.jobs) < 1 or args.tflops <= 0:
        parser.error('--seeds and --jobs must be 1 or more, --tflops above 0')
    return args


def read_unseen(texts: list[str]) -> dict[str, tuple[str, Embedder]]:
    """NAME=EMBEDDER[:MEAN:STD] by name.

    Raises:
        ValueError: Another form, or a name twice.
    """
    found = {}
    for text in texts:
        match = re.fullmatch(r'([a-z]\w*)=([^:]+)(?::([\d./]+):([\d./]+))?', text)
        if match is None or match[1] in found or match[1] in RESERVED:
            raise ValueError(
                f'--unseen {text!r}: write NAME=EMBEDDER or NAME=EMBEDDER:M/M/M:S/S/S with a name of small letters, '
                f'digits and _, each once, and none of {", ".join(RESERVED)}.'
            )
        found[match[1]] = match[2], Embedder(match[3], match[4])
    return found


def read_bins(texts: list[str], scale: str) -> dict[str, Path]:
    """NAME=FILE by name.

    Raises:
        ValueError: Another form, a name twice, or one that the scale does not verify on.
    """
    names = [name for name in BINS if scale == 'paper' or name != 'lfw']
    found = {}
    for text in texts:
        name, _, file = text.partition('=')
        if name not in names or not file or name in found:
            raise ValueError(f'--bins {text!r}: write NAME=FILE, each name once, of {", ".join(names)}.')
        found[name] = Path(file)
    return found


def read_sources(args: argparse.Namespace) -> dict[str, Path]:
    """What is given, by name, whether it is there or not."""
    given = {name: getattr(args, name) for name in ('lfw', 'pairs', 'webface', 'casia', 'phi', 'synthetic')}
    given |= read_bins(args.bins, args.scale)
    given |= {name: Path(path) for name, (path, _) in read_unseen(args.unseen).items()}
    return {name: path.absolute() for name, path in given.items() if path is not None}


def make_graph(args: argparse.Namespace, sources: Mapping[str, Path]) -> DataFlow:
    """The scale's data flow."""
    unseen = {name: embedder for name, (_, embedder) in read_unseen(args.unseen).items()}
    if args.scale == 'paper':
        sizes, bins = count_parts(sources), count_bins(sources)
        return PaperSize(unseen, 'synthetic' in sources, sizes, bins, args.gpus)
    synthetic = None
    if 'synthetic' in sources:
        faces = open_faces(sources['synthetic'])
        synthetic = Size(len(faces.identities), len(faces))
    return Miniature(unseen, read_bins(args.bins, args.scale), synthetic)


def typed_command() -> str:
    """This command as it was typed, the scale named, of each path its last part alone."""
    words = [without_folders(word) for word in sys.argv[1:]]
    scale = [] if any(word.startswith('--scale') for word in words) else ['--scale', 'mini']
    return shlex.join(['python', 'tools/reproduce.py', *words, *scale])


def print_plan(args: argparse.Namespace, graph: PaperSize, targets: list[str], sources: Mapping[str, Path]) -> None:
    """The plan, and what is missing."""
    cache = args.cache.absolute()
    cache = cache.relative_to(ROOT) if cache.is_relative_to(ROOT) else cache
    for line in plan(graph, targets, sources, cache, args.tflops):
        print(line, flush=True)
    missing = missing_sources(graph, targets, sources)
    print('# Every source is there.' if not missing else '# Missing:')
    for name in missing:
        option, what = SOURCES.get(name, (f'--unseen {name}=EMBEDDER', 'an embedder that no training saw'))
        print(f'#   {option}: {what}' + (f'; {sources[name]} does not exist' if name in sources else ''))


def missing_sources(graph: DataFlow, targets: list[str], sources: Mapping[str, Path]) -> list[str]:
    """Sources that targets need and that are not given, or not there."""
    inputs = {name for stage in needed(graph.stages, targets) for name in stage.inputs} - graph.stages.keys()
    return [
        name
        for name in dict.fromkeys([*SOURCES, *sorted(inputs)])
        if name in inputs and not (name in sources and sources[name].exists())
    ]


def run(args: argparse.Namespace) -> None:
    """Runs what is asked for, and writes the page."""
    sources, command = read_sources(args), typed_command()
    os.chdir(ROOT)  # where stages find tools/ and configs/
    paper = args.scale == 'paper'
    absent = [name for name, path in sources.items() if not path.exists()]
    if absent and not paper:
        name = absent[0]
        raise FileNotFoundError(f'{name}: {sources[name]} does not exist. Look at --help.')
    graph = make_graph(args, sources)
    cells = Cells(graph, args.seeds)
    asked = list(TABLES) if 'all' in args.what else [name for name in args.what if name in TABLES]
    figures = {name: stages(cells) for name, stages in FIGURES.items()}
    targets = stages_of([TABLES[name](cells) for name in asked])
    targets += [stage for name, stages in figures.items() if {name, 'all'} & set(args.what) for stage in stages]
    shown = Cells(graph, max(args.seeds, SEEDS[args.scale]))  # other commands may have run more
    tables = {name: table(shown) for name, table in TABLES.items()}
    for name in sources.keys() & graph.stages.keys():
        raise ValueError(f'--unseen {name}=…: a stage is called {name}. Choose another name.')
    if paper:
        missing = missing_sources(graph, targets, sources)
        if args.list or (missing and not args.page):
            print_plan(args, graph, targets, sources)
        if args.list:
            return
        if missing:
            options = ', '.join(SOURCES[name][0] if name in SOURCES else f'--unseen {name}=…' for name in missing)
            raise FileNotFoundError(f'{len(missing)} sources are missing: give {options}.')
        if not args.page:
            graph.stages = with_seconds(graph, targets, args.tflops)
    store = Store(graph.stages, sources, args.cache.absolute(), args.results.absolute() / 'stages')
    if args.list:
        todo = to_run(store, targets)
        for stage in todo:
            print(f'{duration(stage.seconds):>8}  {stage.name:<56}  {stage.title}')
        print(f'{len(todo)} stages, {args.jobs} at once: {duration(sum(stage.seconds for stage in todo) / args.jobs)}')
        return
    with nullcontext() if args.page else store.lock():
        try:
            if not args.page:
                run_stages(store, targets, args.jobs, lambda line: print(line, flush=True), one_thread=not paper)
        finally:
            print(f'Page: {write_page(args.results.absolute(), store, graph, tables, command)}')


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
