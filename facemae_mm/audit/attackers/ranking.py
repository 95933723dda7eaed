"""How well embeddings rank a person's released faces before those of others."""

import numpy as np

from ...evaluation.embedding_metric import check_embeddings
from .attacker import CannotLearn


def ranking_auc(
    photos: np.ndarray, photo_identities: np.ndarray, released: np.ndarray, released_identities: np.ndarray
) -> float:
    """The chance that a photo lies nearer to a released face of its person than to one of another.

    That is the area under the ROC curve of each photo by itself, which top-K retrieval depends on, averaged over the
    photos. Unlike a top-K rate, it says something where few photos find anybody.

    Args:
        photos: Embeddings (P, D), of any norm.
        photo_identities: Whom each shows, (P,).
        released: Embeddings (R, D), of any norm.
        released_identities: For whom each stands, (R,).

    Returns:
        0 … 1; 0.5 is chance; ties count half.

    Raises:
        CannotLearn: No photo has both a released face of its person and of another.
        ValueError: An embedding is zero or not finite.
    """
    check_embeddings(photos)
    check_embeddings(released)
    photos, released = (rows.astype(np.float64) for rows in (photos, released))
    cosine = (photos / np.linalg.norm(photos, axis=1, keepdims=True)) @ (
        released / np.linalg.norm(released, axis=1, keepdims=True)
    ).T
    areas = []
    for row, person in zip(cosine, photo_identities, strict=True):
        own = released_identities == person
        genuine, impostor = row[own], np.sort(row[~own])
        if len(genuine) and len(impostor):
            below = np.searchsorted(impostor, genuine, 'left') + np.searchsorted(impostor, genuine, 'right')
            areas.append(below.mean() / (2 * len(impostor)))
    if not areas:
        raise CannotLearn(
            'ranking_auc: no photo has released faces of its person and of another. Give more identities.'
        )
    return float(np.mean(areas))
