"""Utility without training: how well an embedder tells the people of a set apart."""

import numpy as np

from .embedding_metric import check_embeddings
from .intervals import bootstrap_interval, resampled_identities
from .unit_rows import unit_rows


def separation_by_person(embeddings: np.ndarray, identity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUC of each person with two images or more: how often two of his images are nearer than one of his and another's.

    Over all couples of a same and a different pair that share the person, by cosine in float64, ties counted half.

    Args:
        embeddings: (N, D), not normalised.
        identity: Whom each image shows, (N,), any numbers or names.

    Returns:
        The people (P,), sorted, and their AUCs (P,).

    Raises:
        ValueError: Embeddings without direction, nobody with two images, or one person alone.
    """
    check_embeddings(embeddings)
    rows = unit_rows(np.asarray(embeddings, np.float64))
    people, person = np.unique(identity, return_inverse=True)
    images = np.bincount(person)
    asked = np.flatnonzero(images > 1)
    if not asked.size or len(people) < 2:
        raise ValueError(
            f'{len(people)} people, {asked.size} of them with two images or more: separation needs two people, one of '
            'them with two images. Give more faces.'
        )
    aucs = np.empty(len(asked))
    for place, number in enumerate(asked):
        own = person == number
        cosines = rows[own] @ rows.T
        same = cosines[:, own][np.triu_indices(own.sum(), 1)]
        different = np.sort(cosines[:, ~own], axis=None)
        below, upto = (np.searchsorted(different, same, side) for side in ('left', 'right'))
        aucs[place] = (below + upto).mean() / (2 * len(different))
    return people[asked], aucs


def separation(embeddings: np.ndarray, identity: np.ndarray) -> dict:
    """Mean of `separation_by_person`, with a 95 % interval that resamples people 1,000 times.

    Args:
        embeddings: (N, D), not normalised.
        identity: Whom each image shows, (N,).

    Returns:
        `auc` [mean, low, high], `people`, `images`, and `by_person`, in the order of the sorted identities.

    Raises:
        ValueError: As `separation_by_person`.
    """
    people, aucs = separation_by_person(embeddings, identity)
    means = [drawn @ aucs / len(aucs) for drawn in resampled_identities(len(aucs))]
    mean = float(aucs.mean())
    return dict(
        auc=[mean, *bootstrap_interval(means, mean, len(aucs))],
        people=len(people),
        images=len(embeddings),
        by_person=[round(float(auc), 5) for auc in aucs],
    )
