"""Where the regions of a face lie, and what a made face keeps of the original's detail there (Figure 4)."""

import cv2
import numpy as np
from skimage.metrics import structural_similarity

from ..alignment import ARCFACE_SIZE, ARCFACE_TEMPLATE
from ..datasets.face_mask import REGIONS
from ..evaluation.intervals import resampled_identities

#: Least side of a box, pixels.
LEAST_SIDE = 8

#: Mean square of a 4-neighbour Laplacian (squared coefficients: 20) of what rounding to 8 bits adds, 1/12 a pixel.
ROUNDING = 20 / 12

#: What is measured, in the order of `region_detail`.
MEASURES = ('ssim', 'detail', 'match')


def region_box(region: str, points: np.ndarray | None, size: int) -> tuple[int, int, int, int]:
    """The pixels of a region: the smallest box around its ellipses, which Table 7's masks have too (`REGIONS`).

    Args:
        region: Its name.
        points: The five points of the face (5, 2), pixels (x, y); None or NaN for the template's.
        size: Side of the face, pixels.

    Returns:
        Left, top, right and bottom, the last two not included, within the face; `LEAST_SIDE` pixels or more each way.
    """
    if points is None or np.isnan(points).any():
        points = (ARCFACE_TEMPLATE + 0.5) * (size / ARCFACE_SIZE) - 0.5
    scale = np.hypot(*(points[1] - points[0]))
    centres = np.array([points[list(corners)].mean(0) for corners, _, _ in REGIONS[region]])
    halves = np.array([(along, across) for _, along, across in REGIONS[region]]) * scale
    low, high = (centres - halves).min(0), (centres + halves).max(0)
    first, last = np.floor(low + 0.5).astype(int), np.ceil(high + 0.5).astype(int)  # pixel i reaches from i ± 0.5
    first = np.clip(first, 0, size - LEAST_SIDE)
    return (*first.tolist(), *np.clip(last, first + LEAST_SIDE, size).tolist())


def region_detail(original: np.ndarray, made: np.ndarray, boxes: list[tuple[int, int, int, int]]) -> np.ndarray:
    """How like the original a made face is in some boxes, and how much detail it has, without an embedder.

    All of luma (0.299 R + 0.587 G + 0.114 B). SSIM is that of Wang et al. (2004), Gaussian window of σ 1.5; detail is
    the Laplacian (4 neighbours), which sees what changes from pixel to pixel.

    Args:
        original: (H, H, 3) BGR, [0, 255].
        made: Likewise.
        boxes: As of `region_box`.

    Returns:
        (boxes, 3) float64: mean SSIM, [−1, 1]; log2 of the mean squared Laplacian over the original's, with what
        rounding to 8 bits adds in both; correlation of both Laplacians, [−1, 1], 0 where one is constant.
    """
    luma = (cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2GRAY) for image in (original, made))
    real, other = (image.astype(np.float64) for image in luma)
    options = dict(data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True)
    similarity = structural_similarity(real, other, **options)[1]
    details = [cv2.Laplacian(image, cv2.CV_64F, borderType=cv2.BORDER_REFLECT_101) for image in (real, other)]
    found = np.empty((len(boxes), len(MEASURES)))
    for row, (left, top, right, bottom) in zip(found, boxes):
        place = np.s_[top:bottom, left:right]
        a, b = (detail[place] for detail in details)
        energy = [np.square(part).mean() + ROUNDING for part in (a, b)]
        a, b = a - a.mean(), b - b.mean()
        product = np.sqrt(np.square(a).sum() * np.square(b).sum())
        row[:] = similarity[place].mean(), np.log2(energy[1] / energy[0]), (a * b).sum() / product if product else 0.0
    return found


def means_by_person(values: np.ndarray, people: np.ndarray, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Means over faces with 95 % intervals that resample people, the same ones for all columns.

    Args:
        values: (N, …).
        people: Whom each face shows, (N,), any names.
        resamples: Of people.
        seed: Of the resamples.

    Returns:
        (3, …): mean, low, high; NaN for the latter two of one person, who says nothing of others.
    """
    names, person = np.unique(people, return_inverse=True)
    flat = values.reshape(len(values), -1)
    sums = np.stack([np.bincount(person, column) for column in flat.T], 1)
    faces = np.bincount(person)
    if len(names) < 2:
        return np.stack([values.mean(0), *(np.full(values.shape[1:], np.nan) for _ in range(2))])
    drawn = [times @ sums / (times @ faces) for times in resampled_identities(len(names), resamples, seed)]
    return np.vstack([flat.mean(0), *np.percentile(drawn, (2.5, 97.5), axis=0)]).reshape(3, *values.shape[1:])


def rounded(values: np.ndarray) -> list[float | None]:
    """Numbers for a record: five decimals, None for NaN."""
    return [None if np.isnan(value) else round(value, 5) for value in values.tolist()]
