"""Faces as the report's page holds them."""

import base64

import cv2
import numpy as np

BLURRED = 6
_LARGEST = 224


def picture(face: np.ndarray, show: bool) -> str:
    """A face as data: URI of a PNG: 6×6 pixels, of which nothing can be sharpened again, or as it is.

    Args:
        face: (H, W, 3) uint8, BGR.
        show: The face itself, of at most 224 pixels a side, in place of the average colours of its 6×6 parts.

    Raises:
        ValueError: No such array.
    """
    if not (isinstance(face, np.ndarray) and face.dtype == np.uint8 and face.ndim == 3 and face.shape[2] == 3):
        what = f'{face.dtype} {face.shape}' if isinstance(face, np.ndarray) else type(face).__name__
        raise ValueError(f'a picture is (H, W, 3) uint8 in BGR, not {what}')
    height, width = face.shape[:2]
    if not show:
        face = cv2.resize(face, (BLURRED, BLURRED), interpolation=cv2.INTER_AREA)
    elif max(height, width) > _LARGEST:
        scale = _LARGEST / max(height, width)
        size = max(1, round(width * scale)), max(1, round(height * scale))
        face = cv2.resize(face, size, interpolation=cv2.INTER_AREA)
    written, data = cv2.imencode('.png', face)
    if not written:
        raise ValueError(f'OpenCV could not write a picture of {width}×{height} pixels as PNG')
    return 'data:image/png;base64,' + base64.b64encode(data.tobytes()).decode()
