"""A long search, shared out over processes and kept in files on the way, so that an interrupted one goes on."""

from pathlib import Path

import numpy as np
from mmengine.dist import all_gather_object, barrier, get_dist_info
from tqdm import tqdm

from ..datasets.resumable import resumable_writing
from ..whole_file import whole_file
from .embedding_parts import load_rows, private_rows
from .nearest import QUERIES, NearestImages


def search_to_file(
    queries: np.ndarray,
    gallery: np.ndarray,
    k: int,
    folder: str | Path,
    key: str,
    labels: tuple[np.ndarray, np.ndarray] | None = None,
    title: str = 'search',
) -> np.ndarray:
    """The k nearest images of each query, as `NearestImages` finds them, mapped from a file on every process.

    Processes of a group take blocks of queries in turn; each block has the same result on any number of them.

    Args:
        queries: Embeddings (Q, D), in memory or mapped from a file.
        gallery: Embeddings (G, D), likewise.
        k: How many, at most G.
        folder: Of the files, seen by every process; it exists.
        key: What tells this search from others in one folder: a file's name.
        labels: Whom the queries and the gallery show, (Q,) and (G,): as `NearestImages` takes them.
        title: Of the progress bar, which tells the time left.

    Returns:
        Indices into the gallery, (Q, k) int32, read-only.

    Raises:
        OSError: On every process, where one of them cannot write.
        ValueError: A file is damaged.
    """
    rank, processes = get_dist_info()
    file = Path(folder) / f'{key}.npy'
    barrier()  # nobody looks before everybody is here
    error = None
    if not file.is_file():
        starts = range(0, len(queries), QUERIES)
        parts = {start: file.with_name(f'{key}-{start:09d}.part.npy') for start in starts}
        try:
            search = None
            with tqdm(total=len(queries), desc=title, unit='query', mininterval=1, disable=rank > 0) as bar:
                for number, start in enumerate(starts):
                    stop = min(start + QUERIES, len(queries))
                    if number % processes == rank and not parts[start].is_file():
                        search = search or NearestImages(gallery, labels=None if labels is None else labels[1])
                        own = None if labels is None else labels[0][start:stop]
                        with resumable_writing(parts[start]), whole_file(parts[start], private=True) as out:
                            np.save(out, search(queries[start:stop], k, own).astype(np.int32))
                    bar.update(stop - start)  # the others are as far
        except (OSError, ValueError) as caught:
            error = caught
        errors = [found for found in all_gather_object(error) if found]
        if errors:
            raise errors[0]
        if rank == 0:
            draft = file.with_suffix('.partial')
            nearest = private_rows(draft, np.int32, (len(queries), k))
            for start, part in parts.items():
                rows = load_rows(part, min(start + QUERIES, len(queries)) - start)
                nearest[start : start + len(rows)] = rows
            nearest.flush()
            draft.replace(file)
        barrier()
    if rank == 0:
        for part in file.parent.glob(f'{key}-*.part.npy'):
            part.unlink()
    return load_rows(file, len(queries))
