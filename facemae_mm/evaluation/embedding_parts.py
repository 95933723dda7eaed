"""Embeddings of a large set, kept in files on the way, so that an interrupted run goes on."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.dist import broadcast_object_list, get_dist_info
from torch.utils.data import Dataset, Subset

from ..datasets.resumable import resumable_writing
from ..models.embedders import FaceEmbedder
from ..whole_file import whole_file
from .embed_faces import embed_faces

#: Images in a file: what an interrupted run can lose.
PART = 8192


def embed_in_parts(
    faces: Dataset,
    phi: FaceEmbedder,
    folder: str | Path,
    key: str,
    flip: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    title: str = 'embed',
) -> tuple[np.ndarray, np.ndarray] | None:
    """What `embed_faces` gives, from files as far as they are there; the rest is embedded and kept.

    Args:
        faces: As for `embed_faces`.
        phi: As for `embed_faces`.
        folder: Of the files, as the first process sees it; made where it does not exist, for the owner alone:
            embeddings are biometric data.
        key: What tells these embeddings from others in one folder: a file's name.
        flip: As for `embed_faces`.
        batch_size: As for `embed_faces`.
        workers: As for `embed_faces`.
        title: As for `embed_faces`.

    Raises:
        ValueError: As `embed_faces`; a file is damaged or holds another number of images.
    """
    embeddings = norms = None
    for part, rows in _parts(faces, phi, folder, key, flip, batch_size, workers, title):
        if rows is None:  # another process than the first
            continue
        if embeddings is None:
            embeddings = np.empty((len(faces), rows[0].shape[1]), np.float32)
            norms = np.empty(len(faces), np.float32)
        embeddings[part.start : part.stop], norms[part.start : part.stop] = rows
    return None if embeddings is None else (embeddings, norms)


def embed_to_file(faces: Dataset, phi: FaceEmbedder, folder: str | Path, key: str, **options) -> np.ndarray:
    """What `embed_faces` gives, mapped from a file on every process, so that it may be larger than memory.

    An interrupted run goes on as with `embed_in_parts`; the file takes the place of the parts.

    Args:
        faces: As for `embed_faces`.
        phi: As for `embed_faces`.
        folder: As for `embed_in_parts`, seen by every process.
        key: Likewise.
        options: `flip`, `batch_size`, `workers` and `title`, as for `embed_faces`.

    Returns:
        Raw embeddings (N, D) float32, read-only.

    Raises:
        ValueError: As `embed_in_parts`; a file that holds another number of images.
    """
    file = Path(folder) / f'{key}.npy'
    there = [file.is_file()]
    broadcast_object_list(there)
    if not there[0]:
        draft, embeddings = file.with_suffix('.partial'), None
        for part, rows in _parts(faces, phi, folder, key, **options):
            if rows is None:
                continue
            if embeddings is None:
                embeddings = private_rows(draft, np.float32, (len(faces), rows[0].shape[1]))
            embeddings[part.start : part.stop] = rows[0]
        if embeddings is not None:
            embeddings.flush()
            draft.replace(file)
        broadcast_object_list(there)  # the others wait for it
    if get_dist_info()[0] == 0:
        for part in file.parent.glob(f'{key}-*.npz'):
            part.unlink()
    return load_rows(file, len(faces))


def private_rows(file: Path, dtype: type, shape: tuple[int, int]) -> np.memmap:
    """An array to fill, in a new file of mode 0600 whose room on the disk is taken.

    Raises:
        OSError: The disk is full.
    """
    file.unlink(missing_ok=True)
    with resumable_writing(file), open(os.open(file, os.O_CREAT | os.O_RDWR | os.O_EXCL, 0o600), 'wb') as handle:
        header = dict(descr=np.dtype(dtype).str, fortran_order=False, shape=shape)
        np.lib.format.write_array_header_2_0(handle, header)
        start = handle.tell()
        size = start + math.prod(shape) * np.dtype(dtype).itemsize
        os.posix_fallocate(handle.fileno(), 0, size)  # a full disk says so; a write into the map would end the process
    return np.memmap(file, dtype, 'r+', start, shape)


def load_rows(file: Path, rows: int) -> np.ndarray:
    """An array (rows, …) mapped from a file, read-only.

    Raises:
        ValueError: Damaged, or of another length.
    """
    try:
        array = np.load(file, mmap_mode='r', allow_pickle=False)
        if array.ndim != 2 or len(array) != rows:
            raise ValueError(f'it has the shape {array.shape}, not ({rows}, …)')
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f'{file} is damaged: {error}. Delete it; it is made anew.') from error
    return array


def _part_file(folder: str | Path, key: str, part: range) -> Path:
    return Path(folder) / f'{key}-{part.start:09d}-{part.stop:09d}.npz'


def _parts(
    faces: Dataset,
    phi: FaceEmbedder,
    folder: str | Path,
    key: str,
    flip: bool = True,
    batch_size: int = 64,
    workers: int = 0,
    title: str = 'embed',
) -> Iterator[tuple[range, tuple[np.ndarray, np.ndarray] | None]]:
    """Part after part of the images with its embeddings and norms; None in their place on other processes."""
    step = batch_size * max(PART // batch_size, 1)  # batches as without parts
    for start in range(0, len(faces), step):
        part = range(start, min(start + step, len(faces)))
        file = _part_file(folder, key, part)
        found = [file.is_file()]
        broadcast_object_list(found)
        if found[0]:
            rows = _read(file, len(part)) if get_dist_info()[0] == 0 else None
        else:
            rows = embed_faces(
                Subset(faces, part), phi, flip, batch_size, workers, f'{title} {part.stop:,} of {len(faces):,}'
            )
            if rows is not None:
                file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                with resumable_writing(file), whole_file(file, private=True) as out:
                    np.savez(out, embeddings=rows[0], norms=rows[1])
        yield part, rows


def _read(file: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            embeddings, norms = arrays['embeddings'], arrays['norms']
        if embeddings.ndim != 2 or len(embeddings) != images or norms.shape != (images,):
            raise ValueError(f'it holds {len(embeddings)} images, not {images}')
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f'{file} holds no embeddings of this set: {error}. Delete it; it is made anew.') from error
    return embeddings, norms
