"""Distortions in the place of a reconstruction: what Table 1 and the paper's introduction compare FaceMAE with."""

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS

from ..alignment import ARCFACE_SIZE, ARCFACE_TEMPLATE
from ..randomness import keyed_seed
from .face_mask import BLANK, FaceMask

#: Where eyes and mouth corners stand among the five points of a face.
PARTS = [0, 1, 3, 4]

#: Of each kind, what `strength` is, and its default for faces of 112 pixels.
KINDS = dict(
    masked=('share of patches removed', 0.75),
    blur=('standard deviation, pixels', 4.0),
    noise=('standard deviation, grey levels', 64.0),
    pixelate=('side of a block, pixels', 8),
    parts=('side of a part, pixels', 28),
)


def blur(img: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur of (H, W, 3) uint8, rounded; `sigma` in pixels, borders mirrored, nothing beyond 4 σ."""
    blurred = cv2.GaussianBlur(img.astype(np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)
    return np.rint(blurred).astype(np.uint8)  # of 8 bits OpenCV rounds the weights too


def add_noise(img: np.ndarray, sigma: float, key: int) -> np.ndarray:
    """Adds Gaussian noise to (H, W, 3) uint8, rounds and clips to [0, 255].

    Args:
        img: The face.
        sigma: Grey levels; each pixel and channel draws its own.
        key: Of the counter-based generator (Philox), 64 bits.
    """
    noise = np.random.Generator(np.random.Philox(key=key)).standard_normal(img.shape, np.float32)
    return np.rint(img + np.float32(sigma) * noise).clip(0, 255).astype(np.uint8)


def pixelate(img: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 with every block of side × side pixels at its mean, halves to even; the side divides H and W."""
    height, width = img.shape[0] // side, img.shape[1] // side
    blocks = img.reshape(height, side, width, side, 3)
    means = np.rint(blocks.mean((1, 3))).astype(np.uint8)
    return means.repeat(side, 0).repeat(side, 1)


def keep_parts(img: np.ndarray, points: np.ndarray, side: int) -> np.ndarray:
    """(H, W, 3) uint8 with nothing but squares around some points; the rest is grey, 127.5 as 8 bits hold it: 128.

    Args:
        img: The face.
        points: Centres of the squares (P, 2), pixels (x, y), pixel centres at integers.
        side: Of a square, pixels; what would lie outside the image is cut off.
    """
    kept = np.full_like(img, round(BLANK))
    for x, y in np.rint(np.asarray(points, float) - (side - 1) / 2).astype(int):
        part = slice(max(y, 0), max(y + side, 0)), slice(max(x, 0), max(x + side, 0))
        kept[part] = img[part]
    return kept


@TRANSFORMS.register_module()
class FaceDistortion(BaseTransform):
    """Distorts a face, by its key and the seed alone, whatever the batch, the worker or the order.

    - 'masked': `FaceMask` with patches of 8 pixels and removed ones grey, by the masks that FaceMAE's release with the
      same seed has. The default removes 75 %, as Table 1.
    - 'blur', 'noise', 'pixelate': the introduction's. Defaults blur over half a patch of the paper's 14×14 grid, add
      noise of a quarter of all grey levels, and leave one colour in each patch.
    - 'parts': squares around both eyes and both mouth corners, where they are, and nothing else, as FaceCrowd (Kou et
      al. 2022) shares parts of faces. The default keeps a quarter of 112×112 pixels, as many as 75 % masking.

    Paper gap: the paper gives no strength, and of FaceCrowd neither the shape nor the size of the parts. With these
    defaults InsightFace's MobileFaceNet told 194 people of the miniature's W apart (`separation`, 566 faces) at an AUC
    of 0.53, 0.90, 0.88, 0.60 and 0.96 in the order above, 1.00 without distortion.

    **Required Keys:**

    - img (H, W, 3) uint8
    - img_key
    - landmarks (5, 2), pixels, or None ('parts', optional: the template's where unknown)

    **Modified Keys:**

    - img (uint8)

    Args:
        kind: One of `KINDS`.
        strength: What `KINDS` says; None for its default.
        seed: Of masks and noise. Whoever guesses it and the key of an image knows them, and can take noise away.

    Raises:
        ValueError: Another kind, a strength out of range, an image that blocks do not divide, that was flipped before,
            or whose patches are removed already.
    """

    def __init__(self, kind: str, strength: float | None = None, seed: int = 0) -> None:
        if kind not in KINDS:
            raise ValueError(f'FaceDistortion: kind {kind!r} is none of {", ".join(KINDS)}.')
        self.meaning, default = KINDS[kind]
        strength = default if strength is None else strength
        if kind in ('pixelate', 'parts'):
            if not float(strength).is_integer() or strength < 1:
                raise ValueError(f'FaceDistortion: {kind} of {strength} ({self.meaning}) is no whole number from 1 on.')
            strength = int(strength)
        elif kind != 'masked' and not 0 < strength <= 255:
            raise ValueError(f'FaceDistortion: {kind} of {strength} ({self.meaning}) is not above 0 and at most 255.')
        self.kind = kind
        self.strength = strength
        self.seed = seed
        self.mask = FaceMask(mask_ratio=strength, fresh=False, seed=seed) if kind == 'masked' else None

    @property
    def needs_landmarks(self) -> bool:
        """Whether samples should carry the landmarks of the face."""
        return self.kind == 'parts'

    def describe(self) -> dict:
        """What the record of a distorted set says of it."""
        return dict(kind=self.kind, strength=self.strength, meaning=self.meaning, seed=self.seed)

    def transform(self, results: dict) -> dict:
        """Distorts the image."""
        key, img = results['img_key'], results['img']
        if 'mask' in results or results.get('flip'):
            fault = 'has its patches removed already' if 'mask' in results else 'was flipped before'
            raise ValueError(f'FaceDistortion: {key!r} {fault}. Give whole faces, and flip behind this transform.')
        if self.kind == 'masked':
            results['img'] = np.rint(self.mask.transform(dict(results))['img']).astype(np.uint8)
        elif self.kind == 'blur':
            results['img'] = blur(img, self.strength)
        elif self.kind == 'noise':
            results['img'] = add_noise(img, self.strength, keyed_seed('noise', self.seed, key))
        elif self.kind == 'pixelate':
            if img.shape[0] % self.strength or img.shape[1] % self.strength:
                raise ValueError(
                    f'FaceDistortion: image size {img.shape[:2]} of {key!r} is not divided by blocks of '
                    f'{self.strength} pixels. Choose a divisor, such as 7, 8, 14 or 16 of 112.'
                )
            results['img'] = pixelate(img, self.strength)
        else:
            points = results.get('landmarks')
            if points is None:
                points = (ARCFACE_TEMPLATE + 0.5) * (len(img) / ARCFACE_SIZE) - 0.5
            results['img'] = keep_parts(img, points[PARTS], self.strength)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(kind={self.kind!r}, strength={self.strength}, seed={self.seed})'
