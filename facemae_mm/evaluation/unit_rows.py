"""Embeddings of unit length."""

import numpy as np


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (N, D) of any norm but 0, normalised: float32."""
    norms = np.sqrt(np.einsum('nd,nd->n', embeddings, embeddings, dtype=np.float64))
    return (embeddings / norms[:, None]).astype(np.float32)
