"""The paper's tables and figures, each by one command."""

import argparse
import os
import re
from pathlib import Path

from facemae_mm.launch import refuse
from facemae_mm.reproduction.miniature import Embedder, Miniature
from facemae_mm.reproduction.run import StageError, duration, run_stages, to_run
from facemae_mm.reproduction.store import Store
from facemae_mm.reproduction.tables import TABLES, Cells, stages_of

ROOT = Path(__file__).resolve().parents[1]


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('what', nargs='+', choices=[*TABLES, 'all'], help='what to reproduce')
    add('--lfw', type=Path, metavar='FOLDER', help='LFW aligned, 112×112')
    add('--pairs', type=Path, metavar='FILE', help="LFW's pairs.txt")
    add('--unseen', metavar='NAME=EMBEDDER[:MEAN:STD]', nargs='+', default=[], help='judges')
    add('--seeds', type=int, default=3)
    add('--jobs', type=int, default=len(os.sched_getaffinity(0)))
    add('--cache', type=Path, default=ROOT / '.cache' / 'mini')
    add('--results', type=Path, default=ROOT / 'results' / 'mini')
    add('--list', action='store_true')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    sources = dict(lfw=args.lfw.absolute(), pairs=args.pairs.absolute())
    unseen = {}
    for text in args.unseen:
        match = re.fullmatch(r'(\w+)=([^:]+)(?::([\d./]+):([\d./]+))?', text)
        name, path, *numbers = match.groups()
        sources[name] = Path(path).absolute()
        unseen[name] = Embedder(*numbers)
    graph = Miniature(unseen)
    cells = Cells(graph, args.seeds)
    wanted = TABLES if 'all' in args.what else args.what
    tables = [TABLES[name](cells) for name in wanted]
    targets = stages_of(tables)
    store = Store(graph.stages, sources, args.cache.absolute(), args.results.absolute() / 'stages')
    os.chdir(ROOT)
    if args.list:
        todo = to_run(store, targets)
        for stage in todo:
            print(f'{stage.name:<60} {duration(stage.seconds):>8}  {stage.title}')
        print(len(todo), duration(sum(stage.seconds for stage in todo) / args.jobs))
        return
    try:
        run_stages(store, targets, args.jobs, lambda line: print(line, flush=True))
    except (OSError, ValueError, StageError) as error:
        refuse(f'reproduce.py: {error}')
    except KeyboardInterrupt:
        refuse('reproduce.py: interrupted. The same command goes on.')


if __name__ == '__main__':
    main()
