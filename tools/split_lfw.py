"""Cuts LFW into the parts of the miniature: who trains, whose faces are released, who is verified."""

import argparse
from pathlib import Path

from facemae_mm.config import load_config
from facemae_mm.launch import refuse
from facemae_mm.reproduction.lfw_parts import split_lfw

SPLIT = Path(__file__).resolve().parents[1] / 'configs' / 'mini' / 'split.py'


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} People of different parts differ, but where the split says otherwise (Table 4).',
        epilog='example: python tools/split_lfw.py data/lfw112 data/lfw_pairs.txt work_dirs/mini/parts',
    )
    parser.add_argument('faces', type=Path, help='LFW aligned to the ArcFace template, 112×112, a folder a person')
    parser.add_argument('pairs', type=Path, help="LFW's pairs.txt, 6,000 pairs in ten folds")
    parser.add_argument('out', type=Path, help='folder of the parts; appears when it is complete')
    parser.add_argument('--split', default=SPLIT, help='recipe of the parts (default: configs/mini/split.py)')
    return parser.parse_args()


def main() -> None:
    """Splits."""
    args = parse_args()
    try:
        counts = split_lfw(args.faces, args.pairs, load_config(args.split), args.out)
    except (OSError, ValueError) as error:
        refuse(f'split_lfw.py: {error}')
    for name, (people, images) in counts.items():
        print(f'{name:<14}{people:>6} people{images:>7} images')


if __name__ == '__main__':
    main()
