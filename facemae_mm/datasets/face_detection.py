"""From a photograph to an aligned face: detection, five points, the crop."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from facemae_mm.alignment import ARCFACE_SIZE, ARCFACE_TEMPLATE, similarity_transform

#: Views tried in turn until one shows a face: border in the image's mean colour, as a fraction of the longer side, and
#: the shorter side in pixels, without border, to which smaller images are enlarged.
Attempts = tuple[tuple[float, int], ...]

#: No picture is enlarged to a view of more pixels. Where its view would have more, the border is that of a picture at
#: most so many times as long as it is wide: a strip of 20×3000 would take gigabytes, and hardly a photograph is longer.
MAX_ENLARGED, MAX_RATIO = 4096 * 4096, 3

#: No view has a longer side: from some 70,000 pixels on, dlib writes beyond its memory.
MAX_SIDE = 32_767

#: Of the 68 points of `shape_predictor_68_face_landmarks.dat`: outlines of the eyes (the one on the
#: image's left first), tip of the nose, corners of the mouth. dlib's five-point model has no mouth.
FIVE_OF_68 = (slice(36, 42), slice(42, 48), slice(30, 31), slice(48, 49), slice(54, 55))


@dataclass(frozen=True)
class DetectedFace:
    """A face in an image.

    Attributes:
        box: x1, y1, x2, y2 in pixels of the image, (4,) float64; may reach beyond it.
        points: Left eye, right eye, nose, left and right mouth corner, (5, 2) pixels (x, y); left is the image's left.
        score: The detector's own; comparable within one detector.
        border: Of the view in which it was found, as a fraction of the longer side.
    """

    box: np.ndarray
    points: np.ndarray
    score: float
    border: float


class FaceDetector:
    """Finds the faces of an image, looking again with another border where it sees none.

    Tightly cropped faces are too large for detectors, and reach over the edge of what they were trained on; a border
    makes them findable. Deterministic; models are loaded on the first use, once in each process.

    Args:
        border: Fraction of the longer side that is added on each side; None tries the class's `ATTEMPTS` in turn.
    """

    ATTEMPTS: Attempts

    def __init__(self, border: float | None = None) -> None:
        self.border = border
        self.attempts = self.ATTEMPTS if border is None else ((border, self.ATTEMPTS[0][1]),)
        self._models = None

    def __getstate__(self) -> dict:
        return self.__dict__ | dict(_models=None)

    def find(self, image: np.ndarray) -> list[DetectedFace]:
        """All faces that the first view with any shows.

        Args:
            image: Photograph, (H, W, 3) BGR or (H, W) grey, uint8. With a side of more than 32,767 pixels it shows
                none.

        Raises:
            ImportError: The detector's package is not installed.
            FileNotFoundError: Its models are not there.
            ValueError: The image is of another shape or type.
        """
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (3,)):
            raise ValueError(
                f'{type(self).__name__}: an image must be (H, W, 3) BGR or (H, W) grey of uint8, '
                f'not {image.shape} of {image.dtype}. Read it with cv2.imread.'
            )
        self.load()
        if max(image.shape) > MAX_SIDE:  # a strip: of 64 megapixels, it is at most 1,953 wide
            return []
        for border, side in self.attempts:
            view, scale, pad = _prepare(image, border, side)
            # cv2.resize keeps the outer edges in place, half a pixel beyond the outer centres.
            faces = [
                DetectedFace(*((xy + 0.5) / scale - 0.5 - pad for xy in (box, points)), score, border)
                for box, points, score in self._detect(view)
            ]
            if faces:
                return faces
        return []

    def load(self) -> None:
        """Loads the models, where they are not loaded yet."""
        if self._models is None:
            self._models = self._load()

    def describe(self) -> dict:
        """What decides about the faces found, for reports."""
        return dict(detector=type(self).__name__, attempts=[list(attempt) for attempt in self.attempts])

    def _load(self) -> object:
        raise NotImplementedError

    def _detect(self, view: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
        """Boxes (4,), points (5, 2) and scores in pixels of the view."""
        raise NotImplementedError


class InsightFaceDetector(FaceDetector):
    """The detector of an InsightFace pack (SCRFD or RetinaFace with keypoints), at 640×640.

    Args:
        pack: Name of the pack, as `FaceAnalysis` takes it; one that InsightFace knows is downloaded by it.
        root: Folder with `models/PACK/*.onnx`.
        border: As `FaceDetector`.
    """

    #: Of LFW's 13,233 tight crops of 112×112 SCRFD-500M found 135 without a border, 13,228 with 0.25, the other 5 with
    #: 1.0. Without one, faces that are small in a large photograph stay larger.
    ATTEMPTS = ((0.25, 0), (0.0, 0), (1.0, 0))

    def __init__(self, pack: str = 'buffalo_l', root: str = '~/.insightface', border: float | None = None) -> None:
        super().__init__(border)
        self.pack = pack
        self.root = root

    def describe(self) -> dict:
        """As `FaceDetector`, with the pack."""
        return super().describe() | dict(pack=self.pack)

    def _load(self) -> object:
        import onnxruntime
        from insightface.app import FaceAnalysis

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # processes work side by side
        folder = Path(self.root).expanduser() / 'models' / self.pack
        try:
            app = FaceAnalysis(self.pack, self.root, allowed_modules=['detection'], sess_options=options)
            app.prepare(ctx_id=0, det_size=(640, 640))
        except Exception as error:  # no network, no such pack, no detector in it, a damaged model
            raise FileNotFoundError(
                f"InsightFace's pack {self.pack!r} cannot be loaded from {folder}: {type(error).__name__} {error}. "
                'Put its .onnx files there, or name another pack and root.'
            ) from error
        return app.det_model

    def _detect(self, view: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
        boxes, points = self._models.detect(view if view.ndim == 3 else cv2.cvtColor(view, cv2.COLOR_GRAY2BGR))
        if points is None:
            raise FileNotFoundError(
                f"The detector of InsightFace's pack {self.pack!r} gives no keypoints, without which no face can be "
                'aligned. Name a pack whose detector has them (bnkps in its name).'
            )
        return [(box[:4].astype(float), five.astype(float), float(box[4])) for box, five in zip(boxes, points)]


class DlibDetector(FaceDetector):
    """dlib's frontal face detector and 68 landmarks, from PyPI's dlib-bin and face_recognition_models."""

    #: dlib sees no face below 80 pixels and few at the very edge; its pyramid goes in steps of 6/5, so that another
    #: size may show what the first one hid.
    ATTEMPTS = ((0.25, 200), (1.0, 220), (0.5, 400))

    def _load(self) -> object:
        try:
            import dlib
        except ImportError as error:
            raise ImportError('Detecting faces needs dlib, which is missing: pip install dlib-bin') from error
        return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(landmark_model()))

    def _detect(self, view: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, float]]:
        detector, predictor = self._models
        view = cv2.cvtColor(view, cv2.COLOR_BGR2RGB) if view.ndim == 3 else view
        faces = []
        rectangles, scores, _ = detector.run(view, 0, 0.0)
        for rectangle, score in zip(rectangles, scores):
            points = np.array([[point.x, point.y] for point in predictor(view, rectangle).parts()], float)
            box = np.array([rectangle.left(), rectangle.top(), rectangle.right(), rectangle.bottom()], float)
            faces.append((box, np.stack([points[part].mean(0) for part in FIVE_OF_68]), float(score)))
        return faces


def load_detector(
    name: str, pack: str = 'buffalo_l', root: str = '~/.insightface', border: float | None = None
) -> FaceDetector:
    """A detector that is ready, or an error that tells what is missing.

    Args:
        name: 'dlib' or 'insightface'.
        pack: As `InsightFaceDetector`.
        root: Likewise.
        border: As `FaceDetector`.

    Raises:
        FileNotFoundError: No such pack.
        ImportError: A package is missing.
    """
    detector = DlibDetector(border) if name == 'dlib' else InsightFaceDetector(pack, root, border)
    detector.load()
    return detector


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


def choose_face(faces: list[DetectedFace], shape: tuple[int, ...], rule: str = 'central') -> DetectedFace:
    """The face that a photograph is about.

    Args:
        faces: At least one.
        shape: (H, W, …) of the image.
        rule: 'largest' box, or 'central': InsightFace's own, area less twice the squared distance from the middle.
    """
    middle = np.array(shape[1::-1]) / 2

    def weight(face: DetectedFace) -> float:
        size, centre = face.box[2:] - face.box[:2], (face.box[2:] + face.box[:2]) / 2
        return float(size.prod() - (2 * ((centre - middle) ** 2).sum() if rule == 'central' else 0))

    return max(faces, key=weight)


def crop_face(image: np.ndarray, points: np.ndarray, size: int = ARCFACE_SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Warps a face to the ArcFace template as InsightFace's ``norm_crop`` does: bilinear, border 0.

    Args:
        image: (H, W, 3) BGR or (H, W) grey, uint8.
        points: Left eye, right eye, nose, left and right mouth corner, (5, 2) pixels (x, y); left
            is the image's left.
        size: Side of the crop, pixels; the template grows with it.

    Returns:
        The face, (size, size, 3) BGR uint8, black beyond the photograph's edge, and its five points in
        pixels (x, y) of the face, (5, 2).
    """
    matrix = similarity_transform(points, ARCFACE_TEMPLATE * (size / ARCFACE_SIZE))
    face = cv2.warpAffine(image, matrix, (size, size))
    face = face if face.ndim == 3 else cv2.cvtColor(face, cv2.COLOR_GRAY2BGR)
    return face, points @ matrix[:, :2].T + matrix[:, 2]


def _view_size(height: int, width: int, border: float, side: int) -> tuple[float, int]:
    """How far an image is enlarged, and its border in pixels of the image, within `MAX_ENLARGED` and `MAX_SIDE`."""
    short, long = sorted((height, width))
    pad, scale = round(border * long), max(1.0, side / short)
    if (height + 2 * pad) * (width + 2 * pad) * scale**2 > MAX_ENLARGED:
        pad = min(round(border * min(long, MAX_RATIO * short)), (MAX_SIDE - long) // 2)
        area = (height + 2 * pad) * (width + 2 * pad)
        scale = max(1.0, min(scale, (MAX_ENLARGED / area) ** 0.5, MAX_SIDE / (long + 2 * pad)))
    return scale, pad


def _prepare(image: np.ndarray, border: float, side: int) -> tuple[np.ndarray, float, int]:
    """The image bordered in its mean colour and enlarged; scale; border in pixels of the image."""
    scale, pad = _view_size(*image.shape[:2], border, side)
    mean = image.mean((0, 1)).round().tolist()
    view = cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_CONSTANT, value=mean)
    if scale > 1:
        view = cv2.resize(view, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return view, scale, pad
