"""Embeddings of a large set, kept in files on the way, so that an interrupted run goes on."""

from pathlib import Path

import numpy as np
from mmengine.dist import broadcast_object_list, get_dist_info
from torch.utils.data import Dataset, Subset

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
    folder = Path(folder)
    step = batch_size * max(PART // batch_size, 1)  # batches as without parts
    embeddings = norms = None
    for start in range(0, len(faces), step):
        part = range(start, min(start + step, len(faces)))
        file = folder / f'{key}-{start:09d}.npz'
        found = [file.is_file()]
        broadcast_object_list(found)
        if found[0]:
            rows = _read(file, len(part)) if get_dist_info()[0] == 0 else None
        else:
            rows = embed_faces(
                Subset(faces, part), phi, flip, batch_size, workers, f'{title} {part.stop:,} of {len(faces):,}'
            )
            if rows is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with whole_file(file, private=True) as out:
                    np.savez(out, embeddings=rows[0], norms=rows[1])
        if rows is not None:
            if embeddings is None:
                embeddings = np.empty((len(faces), rows[0].shape[1]), np.float32)
                norms = np.empty(len(faces), np.float32)
            embeddings[start : part.stop], norms[start : part.stop] = rows
    return None if embeddings is None else (embeddings, norms)


def _read(file: Path, images: int) -> tuple[np.ndarray, np.ndarray]:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            embeddings, norms = arrays['embeddings'], arrays['norms']
        if embeddings.ndim != 2 or len(embeddings) != images or norms.shape != (images,):
            raise ValueError(f'it holds {len(embeddings)} images, not {images}')
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(f'{file} holds no embeddings of this set: {error}. Delete it; it is made anew.') from error
    return embeddings, norms
