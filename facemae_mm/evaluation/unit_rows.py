"""Embeddings of unit length."""

import numpy as np


def row_norms(embeddings: np.ndarray) -> np.ndarray:
    """Lengths of embeddings (N, D): (N,) float64."""
    return np.sqrt(np.einsum('nd,nd->n', embeddings, embeddings, dtype=np.float64))


def unit_rows(embeddings: np.ndarray) -> np.ndarray:
    """Embeddings (N, D) of any norm but 0, normalised: float32."""
    return (embeddings / row_norms(embeddings)[:, None]).astype(np.float32)
