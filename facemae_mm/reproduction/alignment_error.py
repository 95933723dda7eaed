"""How well faces that were made from photos are still found and aligned (Table 7: masked eyes or mouth hinder it)."""

from itertools import combinations

import numpy as np

from ..evaluation.intervals import rate_by_identity
from .face_regions import means_by_person, rounded

#: What is measured of a set.
ALIGNMENT = ('found', 'landmark_error')


def alignment_error(points: np.ndarray, people: np.ndarray, names: list[str], seed: int) -> dict:
    """How well faces are found and aligned, with 95 % intervals that resample people.

    Args:
        points: Five points that a detector found in the photos and in the faces that each set made from them, (photos,
            1 + sets, 5, 2), any unit, the eyes first; NaN where it found no face.
        people: Whom each photo shows, (photos,).
        names: Of the sets but the originals.
        seed: Of the resamples.

    Returns:
        `photos`, and those `aligned`, found in the original and in every set; `original`: the share `found` there;
        `sets`: by name, the share `found` and `landmark_error`, the mean distance of the points from the original's
        over the distance of its eyes, of aligned photos, each [value, low, high], None without any; `differences`: of
        every two sets `a`, `b`, those of a less those of b, paired. Of one person means have no interval: low and high
        are None.
    """
    found = ~np.isnan(points).any((2, 3))  # (photos, 1 + sets)
    aligned = found.all(1)
    eyes = np.linalg.norm(points[aligned, :1, 1] - points[aligned, :1, 0], axis=-1)
    errors = np.linalg.norm(points[aligned, 1:] - points[aligned, :1], axis=-1).mean(-1) / eyes  # (aligned, sets)

    def interval(values: np.ndarray, whose: np.ndarray) -> list[float] | None:
        return rounded(means_by_person(values, whose, seed=seed)) if len(values) else None

    def share(k: int) -> list[float]:
        return [round(value, 5) for value in rate_by_identity(found[:, k], people, seed=seed)]

    def measured(share: list[float] | None, distances: np.ndarray) -> dict:
        return dict(zip(ALIGNMENT, (share, interval(distances, people[aligned]))))

    shares = found.astype(float)
    return dict(
        photos=len(points),
        aligned=int(aligned.sum()),
        original=dict(found=share(0)),
        sets={name: measured(share(k), errors[:, k - 1]) for k, name in enumerate(names, 1)},
        differences=[
            dict(a=a, b=b)
            | measured(interval(shares[:, i] - shares[:, j], people), errors[:, i - 1] - errors[:, j - 1])
            for (i, a), (j, b) in combinations(enumerate(names, 1), 2)
        ],
    )
