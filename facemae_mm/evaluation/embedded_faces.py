"""Faces as retrieval sees them: an embedding, who it is, and which photo it was made from."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class EmbeddedFaces:
    """Embeddings of a set of faces, on one numbering of people and photos with the sets that it is compared with.

    Attributes:
        embeddings: (N, D) float32, of any norm, finite and not zero; in memory or mapped from a file.
        identity: Whom each image shows or stands for, (N,) int64; −1 where unknown, or in no other set.
        source: Number of the real photo that it was made from, (N,) int64; a real photo's own number; −1 where unknown.
    """

    embeddings: np.ndarray
    identity: np.ndarray
    source: np.ndarray

    def __len__(self) -> int:
        return len(self.embeddings)
