"""Distort a set of faces (mask, blur, noise, pixelate, or parts alone): baselines that a release is compared with."""

import argparse
import os

from facemae_mm.datasets.face_distortion import KINDS, FaceDistortion
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.launch import refuse
from facemae_mm.release.distort import distort_faces

EPILOG = """\
kinds, and what --strength is (default, for faces of 112 pixels):
{kinds}

masked keeps the patches that FaceMAE sees with the same seed, the rest grey; parts keeps squares around eyes and mouth
corners, from landmarks5.csv where the set has one, else from the template.

examples:
  python tools/distort_faces.py data/lfw112 work_dirs/blurred --kind blur
  python tools/distort_faces.py casia/train.rec work_dirs/parts --kind parts --strength 20

What is written is measured as a release is: a recogniser trains on OUT, and
  python tools/audit.py data/lfw112 work_dirs/blurred --links work_dirs/blurred.private/links.csv
Names and order follow the seed, as those of a release do that was masked by it. The faces are real ones: not for
publication."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    kinds = '\n'.join(f'  {kind:9} {meaning} ({default})' for kind, (meaning, default) in KINDS.items())
    parser = argparse.ArgumentParser(
        description=f'{__doc__} OUT appears when it is complete; interrupted, it starts over.',
        epilog=EPILOG.format(kinds=kinds),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('source', help='aligned faces: a folder of identity folders, a .zip of one, or a train.rec')
    add('out', help='folder to write; links.csv goes to OUT.private')
    add('--kind', required=True, choices=list(KINDS), help='what is done to each face')
    add('--strength', type=float, help='see below')
    add('--seed', type=int, default=0, help='of masks, noise, names and order (default: 0)')
    add('--size', type=int, default=112, help='side that faces must have, pixels (default: 112)')
    cores = len(os.sched_getaffinity(0))
    add('--workers', type=int, default=cores, help='processes; 0 for this one (default: one a core)')
    return parser.parse_args()


def main() -> None:
    """Distorts one set."""
    args = parse_args()
    try:
        distortion = FaceDistortion(args.kind, args.strength, args.seed)
        print(distort_faces(open_faces(args.source), args.out, distortion, args.size, args.workers))
    except (ValueError, OSError, RuntimeError) as error:
        refuse(f'distort_faces.py: {error}')
    except KeyboardInterrupt:
        refuse('distort_faces.py: interrupted. The same command starts over.')


if __name__ == '__main__':
    main()
