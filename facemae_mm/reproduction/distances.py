"""Distances between two sets of embeddings: Fréchet's between Gaussians, as of FID, and the squared MMD."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

#: Rows of a kernel matrix at once.
_ROWS = 512


@dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of embeddings.

    Attributes:
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, times: np.ndarray | None = None) -> 'Gaussian':
        """Fits a Gaussian.

        Args:
            rows: (N, D) float64.
            times: How often each row counts, (N,), at least two in all; None for once each.
        """
        times = np.ones(len(rows)) if times is None else np.asarray(times, np.float64)
        total = times.sum()
        mean = times @ rows / total
        centred = (rows - mean) * np.sqrt(times / (total - 1))[:, None]
        return cls(mean, centred.T @ centred)

    @cached_property
    def root(self) -> np.ndarray:
        """The symmetric square root of the covariance, (D, D)."""
        values, vectors = np.linalg.eigh(self.covariance)
        return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """‖μ_a − μ_b‖² + tr(Σ_a + Σ_b − 2 (Σ_a^½ Σ_b Σ_a^½)^½), squared as FID is; ≥ 0.

    Of Gaussians fitted to N samples it is too large by about a term in 1/N, which grows with D: compare numbers of one
    N alone, and beside what two samples of one distribution give at it.
    """
    product = a.root @ b.covariance @ a.root
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    means = np.square(a.mean - b.mean).sum()
    return float(max(means + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross, 0.0))


def median_bandwidth(rows: np.ndarray) -> float:
    """Median Euclidean distance between two rows of (N, D) float64, N ≥ 2: σ of the Gaussian kernel.

    Raises:
        ValueError: More than half of the pairs are equal.
    """
    first, second = np.triu_indices(len(rows), 1)
    squares = np.square(rows).sum(1)
    distance = squares[first] + squares[second] - 2 * (rows @ rows.T)[first, second]
    median = float(np.sqrt(np.maximum(np.median(distance), 0)))
    if not median > 1e-6:
        raise ValueError('More than half of the originals have one embedding. Give real faces, and check the embedder.')
    return median


def kernel_sums(
    a: np.ndarray, b: np.ndarray, people_a: np.ndarray, people_b: np.ndarray, bandwidth: float
) -> np.ndarray:
    """Sums of k(x, y) = exp(−‖x − y‖² / (2 σ²)) over the faces of every person of a and every one of b.

    Args:
        a: (N, D) float64.
        b: (M, D) float64.
        people_a: Number of the person on each face, (N,), 0 … P − 1, each at least once.
        people_b: Likewise, (M,), 0 … Q − 1.
        bandwidth: σ.

    Returns:
        (P, Q) float64.
    """
    sums = np.zeros((people_a.max() + 1, people_b.max() + 1))
    squares = np.square(b).sum(1)
    order = np.argsort(people_b, kind='stable')
    starts = np.searchsorted(people_b[order], np.arange(sums.shape[1]))
    for start in range(0, len(a), _ROWS):
        rows = a[start : start + _ROWS]
        distance = np.maximum(np.square(rows).sum(1)[:, None] + squares - 2 * rows @ b.T, 0)
        kernel = np.exp(distance / (-2 * bandwidth**2))
        np.add.at(sums, people_a[start : start + _ROWS], np.add.reduceat(kernel[:, order], starts, axis=1))
    return sums


@dataclass(frozen=True)
class PeopleKernels:
    """All that MMD² between two sets of faces needs, person by person; no person is in both.

    Attributes:
        within_a: `kernel_sums` of a with itself, (P, P).
        within_b: Of b with itself, (Q, Q).
        between: Of a with b, (P, Q).
        faces_a: Of each person of a, (P,).
        faces_b: Of each person of b, (Q,).
    """

    within_a: np.ndarray
    within_b: np.ndarray
    between: np.ndarray
    faces_a: np.ndarray
    faces_b: np.ndarray

    def mmd2(self, times_a: np.ndarray, times_b: np.ndarray) -> float:
        """MMD², unbiased: E k(x, x′) + E k(y, y′) − 2 E k(x, y) over faces of different people.

        Faces of one person resemble each other, so that the usual estimate, which leaves out only a face with itself,
        is too large; pairs of one person are left out here. It may be negative.

        Args:
            times_a: How often each person of a counts, (P,), at least two of them.
            times_b: Likewise of b, (Q,).
        """
        within = _mean_of_others(self.within_a, self.faces_a, times_a)
        within += _mean_of_others(self.within_b, self.faces_b, times_b)
        between = times_a @ self.between @ times_b / ((times_a @ self.faces_a) * (times_b @ self.faces_b))
        return float(within - 2 * between)


def _mean_of_others(sums: np.ndarray, faces: np.ndarray, times: np.ndarray) -> float:
    """Mean of the kernel over faces of two different people."""
    own = np.square(times)
    weighed = times * faces
    pairs = weighed.sum() ** 2 - np.square(weighed).sum()
    return (times @ sums @ times - own @ np.diag(sums)) / pairs
