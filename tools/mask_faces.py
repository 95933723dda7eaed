"""Mask a set of faces: writes the masks and the visible patches alone, which is all that leaves the owner."""

import argparse
import os

from facemae_mm.datasets.face_mask import REGIONS, FaceMask
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.datasets.masking import mask_faces
from facemae_mm.launch import refuse

EXAMPLES = """\
examples:
  python tools/mask_faces.py data/casia/train.rec data/casia_masked
  python tools/mask_faces.py data/faces data/faces_masked --regions eyes mouth --secret private/mask_secret

The masked dataset is opened wherever faces are: FaceMAE reconstructs it without the originals,
  tools/dist_test.sh configs/export_casia.py CHECKPOINT 8 \\
      --cfg-options deploy_faces=data/casia_masked release_dir=work_dirs/release/casia
and a recogniser trains on it as it is (the '75 % masked' row of the paper).
Its format is described in docs/masked_dataset.md."""


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Started again after an interruption, it goes on where it stopped.',
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('source', help='aligned faces: a folder of identity folders, a .zip of one, or a train.rec')
    parser.add_argument('out', help='folder of the masked dataset; appears when it is complete')
    parser.add_argument('--mask-ratio', type=float, default=0.75, help='share of patches removed (default: 0.75)')
    parser.add_argument(
        '--patch-size', type=int, default=8, help='side of a patch in stored pixels; 8 of 112 is 16 of 224 (default: 8)'
    )
    parser.add_argument('--size', type=int, default=112, help='side that faces must have, pixels (default: 112)')
    parser.add_argument(
        '--regions',
        nargs='+',
        default=[],
        choices=list(REGIONS),
        help='parts of the face that are always removed, from landmarks5.csv where the set has one, else from the '
        'template; random patches fill up to the ratio',
    )
    parser.add_argument('--region-only', action='store_true', help='remove the regions alone, whatever the ratio')
    secret = parser.add_mutually_exclusive_group()
    secret.add_argument(
        '--secret',
        help='file of the mask secret, drawn where it does not exist; keep it, and keep it secret '
        '(default: OUT.private/mask_secret)',
    )
    secret.add_argument('--seed', type=int, help='a number in place of the secret, for tests and tables')
    parser.add_argument(
        '--on-error',
        choices=['raise', 'skip'],
        default='raise',
        help='a face that cannot be read ends the run, or is left out and counted (default: raise)',
    )
    parser.add_argument(
        '--workers', type=int, default=len(os.sched_getaffinity(0)), help='processes (default: one a core)'
    )
    return parser.parse_args()


def main() -> None:
    """Masks one set."""
    args = parse_args()
    secret = args.secret
    if secret is None and args.seed is None:
        secret = f'{args.out.rstrip("/")}.private/mask_secret'
    try:
        mask = FaceMask(
            patch_size=args.patch_size,
            mask_ratio=args.mask_ratio,
            fresh=False,
            secret=secret,
            seed=args.seed,
            regions=args.regions,
            region_only=args.region_only,
        )
        print(mask_faces(open_faces(args.source), args.out, mask, args.size, args.workers, args.on_error))
    except (ValueError, OSError, RuntimeError) as error:
        refuse(f'mask_faces.py: {error}')
    except KeyboardInterrupt:
        refuse(f'mask_faces.py: interrupted. The same command goes on with {args.out}.partial.')


if __name__ == '__main__':
    main()
