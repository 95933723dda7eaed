"""Identities that two sets of faces share, found by their embeddings alone.

An identity is one template, the mean of its images' unit embeddings. Templates of A and B are compared by cosine, and
how close two different people come by chance is learnt from the identities within each set.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .embedding_metric import check_embeddings
from .nearest import nearest_images

#: K of the local scale, as in Zelnik-Manor and Perona, Self-Tuning Spectral Clustering (NIPS 2004).
NEIGHBOUR = 7
#: Identities of a set, drawn with a fixed seed, that chance is learnt from. All are compared nonetheless.
COHORT = 20_000
#: Pairs of different people without which nothing is learnt.
LEAST_PAIRS = 1_000
#: More pairs above a threshold are refused.
MOST_PAIRS = 5_000_000

_BLOCK = 2**23  # distances held at once
_ROUNDING = 1e-6  # of a distance


@dataclass(frozen=True)
class ChanceTail:
    """How many pairs of different people come as close as a distance: a power law, below `start`.

    Peaks over threshold, by the Hill estimator (Annals of Statistics, 1975). The closest tenth is censored (Type II:
    its number counts, its distances do not), as a set holds some people under two names, whose pairs lie there.

    Attributes:
        start: Distance below which the law holds.
        power: Exponent.
        count: Pairs closer than `start`, which it was fitted to.
        seen: Pairs of different people looked at.
    """

    start: float
    power: float
    count: int
    seen: int

    @classmethod
    def fit(cls, closest: np.ndarray, seen: int) -> 'ChanceTail':
        """Fits the law to the closest of `seen` distances, (count + 1,) ascending; the last one is `start`."""
        excess = np.log(closest[-1] / np.maximum(closest[:-1], _ROUNDING))
        censored = len(excess) // 10
        mean_excess = (excess[censored:].sum() + censored * excess[censored]) / (len(excess) - censored)
        return cls(float(closest[-1]), float(1 / mean_excess), len(excess), seen)

    def expected(self, distance: np.ndarray, pairs: int) -> np.ndarray:
        """How many of `pairs` pairs of different people are expected to be at least as close."""
        return pairs * self.count / self.seen * (distance / self.start) ** self.power


@dataclass(frozen=True)
class IdentityPairs:
    """Pairs of identities, closest first.

    Attributes:
        a, b: Rows of the templates, (M,) each.
        similarity: Cosine of both templates, (M,).
        expected_false: How many pairs of different people, of all |A| · |B|, are expected to be at least as close,
            (M,); None without calibration, as the rest.
        tail: What that comes from.
        impostors: The same for the closest pairs within the sets, (tail.count,) ascending. Each stands for
            |A| · |B| / tail.seen pairs: where the law fits, the m-th is m times that.
    """

    a: np.ndarray
    b: np.ndarray
    similarity: np.ndarray
    expected_false: np.ndarray | None = None
    tail: ChanceTail | None = None
    impostors: np.ndarray | None = None


def identity_templates(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Mean of each identity's unit embeddings, normalised: (C, D) float32.

    Args:
        embeddings: Of images (N, D), any norm.
        labels: Their identities (N,), 0 … C − 1, each with an image.

    Raises:
        ValueError: An embedding, or an identity's sum, that is zero or not finite.
    """
    check_embeddings(embeddings)
    order = np.argsort(labels, kind='stable')
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    sums = np.add.reduceat(_unit(embeddings[order]), starts, axis=0)
    check_embeddings(sums, [f'sum of identity {label}' for label in range(len(sums))])
    return _unit(sums).astype(np.float32)


def pairs_above(a: np.ndarray, b: np.ndarray, threshold: float) -> IdentityPairs:
    """Pairs of templates (A, D) and (B, D) with a cosine of at least `threshold`, without calibration.

    Raises:
        ValueError: They are more than `MOST_PAIRS`.
    """
    i, j, _ = _closer_than(a, b, np.ones(len(a)), np.ones(len(b)), 1 - threshold + _ROUNDING)
    return IdentityPairs(i, j, _cosines(a[i], b[j]))


def closest_pairs(a: np.ndarray, b: np.ndarray, labelled: Sequence[bool] = (True, True)) -> IdentityPairs:
    """Pairs of A and B that lie in the tail of chance, each with the false matches expected up to it.

    The distance is 1 − cosine over the geometric mean of both templates' distances to their `NEIGHBOUR`-th nearest in
    the cohort of both sets (local scaling): a blurred face is near to many, and must come nearer than others. How
    near different people come is learnt from the pairs within A and within B. Every pair of A and B is compared.

    Args:
        a: Templates of set A (A, D), unit length.
        b: Of set B (B, D).
        labelled: Whether the rows of each set are different people; if not, nothing is learnt from the set.

    Returns:
        Those with `expected_false` up to |A| · |B| · tail.count / tail.seen.

    Raises:
        ValueError: Fewer than `LEAST_PAIRS` pairs of different people to learn from, or most embedded alike.
    """
    rng = np.random.default_rng(0)
    rows = [np.sort(rng.permutation(len(x))[: COHORT if known else 0]) for x, known in zip((a, b), labelled)]
    seen = sum(len(r) * (len(r) - 1) // 2 for r in rows)
    if seen < LEAST_PAIRS:
        raise ValueError(
            f'The sets hold {seen} pairs of people known to differ; {LEAST_PAIRS} are needed (46 identities) to learn '
            'how alike different people are. Give a threshold on the cosine instead (--threshold).'
        )
    cohort = np.concatenate([a[rows[0]], b[rows[1]]])
    scales = [_local_scale(x, cohort, r) for x, r in zip((a, b), rows)]
    if np.median(np.concatenate(scales)) ** 2 <= 2 * _ROUNDING:
        raise ValueError('Most identities have the same embedding. Check the weights of φ, and look at the faces.')

    count, closest = min(2 * len(cohort), seen // 10), np.empty(0, np.float32)
    for x, scale, r in zip((a, b), scales, rows):
        for start, block in _distances(x[r], x[r], scale[r], scale[r]):
            once = np.arange(start, start + len(block))[:, None] < np.arange(len(r))
            closest = np.sort(np.concatenate([closest, block[once]]))[: count + 1]
    tail = ChanceTail.fit(closest.astype(np.float64), seen)

    i, j, distance = _closer_than(a, b, *scales, tail.start)
    expected, impostors = (tail.expected(d, len(a) * len(b)) for d in (distance, closest[:-1].astype(np.float64)))
    return IdentityPairs(i, j, _cosines(a[i], b[j]), expected, tail, impostors)


def _local_scale(x: np.ndarray, cohort: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Square root of each template's distance to its `NEIGHBOUR`-th nearest other; `members` are the cohort's own."""
    nearest = nearest_images(x, cohort, NEIGHBOUR + 1)
    place = np.full(len(x), NEIGHBOUR - 1)
    place[members] += 1  # they find themselves first
    return np.sqrt(np.maximum(1 - _cosines(x, cohort[nearest[np.arange(len(x)), place]]), _ROUNDING))


def _closer_than(a, b, scale_a, scale_b, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of a and of b, and distance, of every pair up to a limit, closest first."""
    found, total = [], 0
    for start, block in _distances(a, b, scale_a, scale_b):
        i, j = np.nonzero(block <= limit)
        found.append((i + start, j, block[i, j].astype(np.float64)))
        total += len(i)
        if total > MOST_PAIRS:
            raise ValueError(f'More than {MOST_PAIRS:,} pairs pass the threshold. Raise it (--threshold).')
    i, j, distance = (np.concatenate(column) for column in zip(*found))
    order = np.argsort(distance, kind='stable')
    return i[order], j[order], distance[order]


def _distances(a, b, scale_a, scale_b) -> Iterator[tuple[int, np.ndarray]]:
    """First row and distances (rows, B), float32, of some rows of a to all of b, block by block."""
    step = max(1, _BLOCK // max(len(b), 1))
    for start in range(0, len(a), step):
        block = np.maximum(1 - a[start : start + step] @ b.T, 0)
        yield start, block / np.float32(scale_b) / np.float32(scale_a[start : start + step, None])


def _cosines(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.einsum('nd,nd->n', x, y, dtype=np.float64)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
