"""Exact nearest neighbours by cosine: faiss proposes in float32, float64 decides."""

import numpy as np

#: Cosines closer than this count as equal; equal ones are ordered by index.
TIE = 1e-7

_BLOCK = 2**24  # float64 numbers held at once, 128 MiB


def import_faiss():
    """The module `faiss`, or an ImportError that says how to install it."""
    try:
        import faiss
    except ImportError as error:
        raise ImportError('Retrieval needs faiss: `pip install faiss-cpu` (or faiss-gpu, never both).') from error
    return faiss


def nearest_images(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """The k gallery images with the largest cosine to each query, nearest first.

    Exact in float64. In the order of cosines, neighbours closer than `TIE` form a tie, which is
    ordered by index.

    faiss finds candidates by float32 inner products of the unit vectors. Each of those is off by
    at most (D + 3)·2⁻²⁴ and terms of second order, however it is summed: D roundings of products
    and sums, two of the inputs, and Σ|xᵢyᵢ| ≤ 1. A query is done when nothing outside its
    candidates can, by twice that bound, reach the tie in which the k-th place lies; else the
    search widens, in the end to the whole gallery.

    Args:
        queries: Embeddings (Q, D), finite and not zero, of any norm.
        gallery: Embeddings (G, D), likewise.
        k: Number of images to find, 1 ≤ k ≤ G.

    Returns:
        Indices into the gallery, (Q, k) int64.

    Raises:
        ImportError: Where faiss is missing.
    """
    assert 1 <= k <= len(gallery), f'{k} nearest of {len(gallery)}'
    dimension = gallery.shape[1]
    error = 2 * (dimension + 3) * 2.0**-24
    norms = _norms(gallery)
    index = import_faiss().IndexFlatIP(dimension)
    for rows in _blocks(np.arange(len(gallery)), dimension):
        index.add((gallery[rows] / norms[rows, None]).astype(np.float32))

    nearest = np.empty((len(queries), k), np.int64)
    remaining = np.arange(len(queries))
    width = k + 8
    while remaining.size and 4 * width < len(gallery):
        unproven = []
        for rows in _blocks(remaining, width * dimension):
            unit = _unit(queries[rows])
            scores, candidates = index.search(unit.astype(np.float32), width)
            cosines = gallery[candidates].astype(np.float64) @ unit[:, :, None]  # (q, width, 1)
            cosines = cosines[..., 0] / norms[candidates]
            nearest[rows], lowest = _first(cosines, candidates, k)
            unproven.append(rows[scores[:, -1] + error >= lowest - TIE])
        remaining = np.concatenate(unproven)
        width *= 8
    if remaining.size:
        everything = gallery.astype(np.float64).T
        for rows in _blocks(remaining, len(gallery)):
            cosines = _unit(queries[rows]) @ everything / norms
            candidates = np.broadcast_to(np.arange(len(gallery)), cosines.shape)
            nearest[rows], _ = _first(cosines, candidates, k)
    return nearest


def _first(cosines: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k candidates (q, k), and the lowest cosine in the tie of the k-th (q,)."""
    order = np.argsort(-cosines, axis=1)
    cosines = np.take_along_axis(cosines, order, 1)
    candidates = np.take_along_axis(candidates, order, 1)
    tie = np.zeros(cosines.shape, np.int64)
    np.cumsum(cosines[:, :-1] - cosines[:, 1:] >= TIE, axis=1, out=tie[:, 1:])
    order = np.argsort(tie * (candidates.max() + 1) + candidates, axis=1)[:, :k]
    lowest = np.where(tie == tie[:, [k - 1]], cosines, np.inf).min(1)
    return np.take_along_axis(candidates, order, 1), lowest


def _norms(embeddings: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum('nd,nd->n', embeddings, embeddings, dtype=np.float64))


def _unit(embeddings: np.ndarray) -> np.ndarray:
    return embeddings / _norms(embeddings)[:, None]


def _blocks(rows: np.ndarray, numbers_per_row: int) -> list[np.ndarray]:
    step = max(1, _BLOCK // numbers_per_row)
    return [rows[start : start + step] for start in range(0, len(rows), step)]
