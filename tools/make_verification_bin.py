"""Packs a set of faces and a list of pairs into a verification .bin, as InsightFace's arcface_torch reads it."""

import argparse
import os
import pickle
import sys
from pathlib import Path

from tqdm import tqdm

from facemae_mm.datasets import open_faces
from facemae_mm.datasets.load_face import decode_face
from facemae_mm.datasets.verification_bin import MAX_BYTES
from facemae_mm.datasets.verification_pairs import match_pairs
from facemae_mm.launch import refuse

EXAMPLES = """\
PAIRS is LFW's pairs.txt, lines of two paths and 0 or 1, a CSV of key1,key2,same, or CFP's folder Protocol.

  LFW     make_verification_bin.py data/lfw112 pairs.txt lfw.bin
  CFP     make_verification_bin.py data/cfp112 cfp-dataset/Protocol cfp_fp.bin --protocol FP
  AgeDB   make_verification_bin.py data/agedb112 agedb_pairs.txt agedb_30.bin
          with lines such as: 10086_BenKingsley_55_m.jpg 10113_BenKingsley_66_m.jpg 1

Faces must be aligned already; their bytes are packed as they are. OUT appears when it is complete."""


def make_verification_bin(
    faces: str | Path,
    pairs: str | Path,
    out: str | Path,
    protocol: str | None = None,
    size: int = 112,
    overwrite: bool = False,
) -> str:
    """Writes the pickle (protocol 4) of (list of encoded images, list of bools); all or nothing.

    Images 2i and 2i + 1 are pair i. An image that stands in several pairs is stored once.

    Args:
        faces: What `open_faces` opens.
        pairs: What `read_pairs` reads.
        out: The file to write.
        protocol: 'FP' or 'FF' for CFP's protocol, where None is 'FP'.
        size: Side that faces must have, pixels.
        overwrite: Replace `out` where it exists.

    Returns:
        What was written, in a line.

    Raises:
        FileExistsError: `out` exists.
        ValueError: A damaged source or list, an image of another size, or more than 1 GiB of images.
        OSError: `out` cannot be written.
        pickle.UnpicklingError: `faces` is a damaged .bin.
    """
    out = Path(out)
    if out.exists() and not overwrite:
        raise FileExistsError(f'{out} exists already. Name another file, or give --overwrite.')
    source = open_faces(faces)
    images, same = match_pairs(source, pairs, protocol)
    if out.exists() and (not out.is_file() or out.samefile(faces) or out.samefile(pairs)):
        raise FileExistsError(f'{out} is no plain file, or is what was to be read. Name another file.')
    encoded, total = {}, 0
    for image in tqdm(dict.fromkeys(images.tolist()), 'reading faces', unit='image', file=sys.stdout, mininterval=1):
        name, data = f'{source.path}:{source.keys[image]}', source.read(image)
        height, width = decode_face(data, name).shape[:2]
        if (height, width) != (size, size):
            raise ValueError(
                f'{name} is {width}×{height} pixels, not {size}×{size}. Align the faces to {size}×{size} first, or '
                'give --size.'
            )
        total += len(data)
        if total > MAX_BYTES:
            raise ValueError(f'{faces} has more than {MAX_BYTES:,} bytes of images, too many for a .bin. Pack fewer.')
        encoded[image] = data
    _dump_whole(([encoded[image] for image in images.tolist()], same.tolist()), out)
    return (
        f'{out}: {len(same)} pairs ({same.sum()} same), {len(images)} images ({len(encoded)} different), '
        f'{out.stat().st_size:,} bytes'
    )


def _dump_whole(content: object, out: Path) -> None:
    """Pickles to a temporary file beside `out`, which takes its name when complete."""
    draft = out.with_name(f'.{out.name}.{os.getpid()}')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            with draft.open('wb') as file:
                pickle.dump(content, file, protocol=4)
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f'{out} cannot be written: {error.strerror}. Free space, or name another file.') from error


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('faces', metavar='SOURCE', help='folder of aligned faces, .zip, train.rec or .bin')
    parser.add_argument('pairs', metavar='PAIRS', help="list of pairs, or CFP's folder Protocol")
    parser.add_argument('out', metavar='OUT.bin', help='file to write')
    parser.add_argument('--protocol', choices=['FP', 'FF'], help='of CFP: frontal-profile (default) or frontal-frontal')
    parser.add_argument('--size', type=int, default=112, help='side of the faces, pixels (default: %(default)s)')
    parser.add_argument('--overwrite', action='store_true', help='replace OUT.bin where it exists')
    args = parser.parse_args()
    try:
        print(make_verification_bin(**vars(args)))
    except (OSError, ValueError, pickle.UnpicklingError) as error:
        refuse(f'make_verification_bin.py: {error}')
    except KeyboardInterrupt:
        sys.exit('make_verification_bin.py: interrupted, nothing written')


if __name__ == '__main__':
    main()
