"""Two dimensions of embeddings to look at."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Projection:
    """The two principal components of some embeddings; the same axes for whatever is projected.

    Attributes:
        mean: (D,) float64.
        axes: (2, D) float64, of length 1, with their largest coefficient above 0, so that one fit has one picture.
        explained: Share of the variance along each, in [0, 1], (2,).
    """

    mean: np.ndarray
    axes: np.ndarray
    explained: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray) -> 'Projection':
        """Fits the components to (N, D) float64, N and D ≥ 2.

        Raises:
            ValueError: All rows are equal.
        """
        mean = rows.mean(0)
        values, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean))
        if not values[-1] > 1e-12 * len(rows):
            raise ValueError('All faces have one embedding: there is nothing to project. Check the embedder.')
        axes = vectors[:, [-1, -2]].T
        largest = axes[np.arange(2), np.abs(axes).argmax(1)]
        return cls(mean, axes * np.sign(largest)[:, None], values[[-1, -2]] / values.sum())

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings (N, D) in the plane, (N, 2)."""
        return (rows - self.mean) @ self.axes.T
