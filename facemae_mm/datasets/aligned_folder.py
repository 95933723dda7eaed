"""Writes aligned faces as a set: identity folders, and the table of landmarks beside them."""

import csv
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from tqdm import tqdm

LANDMARKS = 'landmarks5.csv'
COLUMNS = ('path', 'lex', 'ley', 'rex', 'rey', 'nx', 'ny', 'lmx', 'lmy', 'rmx', 'rmy')

Aligner = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray] | None]


def write_aligned_folder(
    images: Iterable[tuple[str, np.ndarray]],
    out: str | Path,
    aligner: Aligner,
    total: int | None = None,
) -> dict[str, list[str]]:
    """Aligns images and writes the faces found as ``identity/name.png``, all or nothing.

    They are written into a temporary folder beside `out`, which takes its name when complete.

    Args:
        images: Image key ('identity/name') and image (as `aligner` takes it), in the table's order.
        out: Folder to write; must not exist.
        aligner: Gives the face, (H, W, 3) BGR uint8, and its five points, (5, 2) pixels (x, y) of
            the face, or None where no face is found.
        total: Number of images, for the progress bar.

    Returns:
        For each identity the keys of the images without a face; these are left out of the folder.

    Raises:
        FileExistsError: `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise FileExistsError(f'{out} exists already. Name another folder, or delete it.')
    out.parent.mkdir(parents=True, exist_ok=True)
    missed: dict[str, list[str]] = defaultdict(list)
    with TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as temporary:
        draft = Path(temporary, out.name)
        draft.mkdir()
        with open(draft / LANDMARKS, 'w', newline='', encoding='utf-8') as file:
            table = csv.writer(file, lineterminator='\n')
            table.writerow(COLUMNS)
            for key, image in tqdm(images, 'aligning faces', total, unit='image', file=sys.stdout, mininterval=1):
                found = aligner(image)
                lost = missed[key.split('/')[0]]
                if found is None:
                    lost.append(key)
                    continue
                face, points = found
                path = draft / f'{key}.png'
                path.parent.mkdir(parents=True, exist_ok=True)
                if not cv2.imwrite(str(path), face):
                    raise OSError(f'{path} could not be written. Is the disk full?')
                table.writerow([f'{key}.png', *(f'{value:.2f}' for value in points.flat)])
        draft.rename(out)
    return dict(missed)


def is_complete(out: str | Path) -> bool:
    """Whether a folder that `write_aligned_folder` wrote is there with all its faces.

    Raises:
        FileExistsError: Something else is there, or faces are missing from it.
    """
    out = Path(out)
    if not out.exists():
        return False
    table = out / LANDMARKS
    if not table.is_file():
        raise FileExistsError(f'{out} exists but has no {LANDMARKS}. Name another folder, or delete it.')
    with open(table, newline='', encoding='utf-8') as file:
        gone = [row['path'] for row in csv.DictReader(file) if not (out / row['path']).is_file()]
    if gone:
        raise FileExistsError(f'{out} lacks {len(gone)} of its faces, {gone[0]} first. Delete it and run this again.')
    return True
