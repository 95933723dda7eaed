"""Where the five points of an aligned face lie, and the similarity that takes them there."""

import numpy as np

#: Left eye, right eye, nose, left and right mouth corner in a 112×112 crop, pixels (x, y); as InsightFace has them.
ARCFACE_TEMPLATE = np.array(
    [
        [38.2946, 51.6963],
        [73.5318, 51.5014],
        [56.0252, 71.7366],
        [41.5493, 92.3655],
        [70.7299, 92.2041],
    ]
)

#: Side of the crop that `ARCFACE_TEMPLATE` is given in, pixels.
ARCFACE_SIZE = 112


def similarity_transform(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Least-squares similarity (rotation, scale, shift; no reflection) from one set of points to another.

    Args:
        source: Points (N, 2), N ≥ 2, pixels (x, y).
        target: Where they should lie, (N, 2).

    Returns:
        (2, 3) matrix A, float64, with ``target ≈ A @ [x, y, 1]``.

    Raises:
        ValueError: Where the source points coincide, so that no scale exists.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    centre, goal = source.mean(0), target.mean(0)
    z, w = ((p - c) @ [1, 1j] for p, c in ((source, centre), (target, goal)))
    spread = np.vdot(z, z).real
    if spread == 0:
        raise ValueError(f'similarity_transform: the source points coincide at {centre}. Check the landmarks.')
    factor = np.vdot(z, w) / spread  # a rotation and scale is one complex factor
    rotation = np.array([[factor.real, -factor.imag], [factor.imag, factor.real]])
    return np.column_stack([rotation, goal - rotation @ centre])
