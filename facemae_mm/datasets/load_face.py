"""From stored bytes to pixels."""

import io
import re
import struct

import cv2
import numpy as np
import simplejpeg
from mmcv.transforms import BaseTransform
from mmpretrain.registry import TRANSFORMS
from PIL import Image

from .masked_dataset import MAGIC as MASKED_MAGIC
from .masked_dataset import decode_masked

#: What PIL calls the formats of `face_source.IMAGE_EXTENSIONS`.
FORMATS = ('JPEG', 'PNG', 'BMP', 'WEBP', 'PPM', 'TIFF')

#: An image of more pixels is refused before it is decoded.
MAX_PIXELS = 64_000_000

#: A JPEG of more scans is refused: each passes over all pixels, and takes eleven bytes.
MAX_SCANS = 100

#: How a PPM or PGM begins, up to the number that stands for white.
PNM_HEADER = re.compile(rb'P[2356]' + rb'(?:\s|#[^\r\n]*[\r\n])+(\d+)' * 3)

#: A TIFF of more tags is refused: each may take the whole file's size of memory.
MAX_TAGS = 100


@TRANSFORMS.register_module()
class LoadFace(BaseTransform):
    """Decodes a face to three 8-bit channels, BGR.

    Grey images and those with alpha become BGR too, and EXIF rotation is applied. A sample that has
    `img` already is only brought to three channels. A face of a masked dataset comes as `FaceMask`
    leaves it: float32, removed pixels at 127.5, with its mask.

    **Required Keys:**

    - img_bytes, or img (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) uint8, BGR
    - img_path or img_key (for messages, optional)

    **Added Keys:**

    - img (H, W, 3) uint8, BGR
    - img_shape (H, W)
    - ori_shape (H, W)
    - mask (L,) uint8, 1 = removed (of a masked dataset only)

    Args:
        size: Side that faces must have, pixels; None for any.

    Raises:
        ValueError: The image is empty, damaged, of an unknown format or above 64 megapixels, or
            not size × size.
    """

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def transform(self, results: dict) -> dict:
        """Adds the image."""
        name = results.get('img_path') or results.get('img_key') or 'an image without name'
        if 'img' in results:
            img = _three_channels(results['img'], name)
        elif results['img_bytes'].startswith(MASKED_MAGIC):
            img, results['mask'] = decode_masked(results['img_bytes'], name)
        else:
            img = decode_face(results['img_bytes'], name)
        height, width = img.shape[:2]
        if self.size is not None and (height, width) != (self.size, self.size):
            raise ValueError(
                f'{name} is {width}×{height} pixels, not {self.size}×{self.size}. Align the faces '
                f'to {self.size}×{self.size} first: tools/prepare_faces.py does it.'
            )
        results['img'] = img
        results['img_shape'] = results['ori_shape'] = (height, width)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(size={self.size})'


def decode_face(data: bytes, name: str) -> np.ndarray:
    """Decodes one encoded image.

    Args:
        data: JPEG, PNG, BMP, WebP, PPM, PGM or TIFF.
        name: What to call it in messages.

    Returns:
        (H, W, 3) uint8, BGR.

    Raises:
        ValueError: Empty, damaged, of an unknown format (such as PFM, whose values have no range), or above 64
            megapixels, 100 scans or 100 tags.
    """
    if not data:
        raise ValueError(f'{name} is empty (0 bytes). Copy the image again, or remove it from the set.')
    damaged = (
        f'{name} ({len(data)} bytes) is damaged, cut off or no image ({", ".join(FORMATS)}). '
        'Copy it again, or remove it from the set.'
    )
    if data.startswith(MASKED_MAGIC):
        raise ValueError(f'{name} is a face of a masked dataset, without its removed patches. Give the original set.')
    # simplejpeg gives OpenCV's pixels (tested) and spares PIL's look at the header; it does not turn by EXIF.
    jpeg = data.startswith(b'\xff\xd8')
    plain_jpeg = jpeg and b'Exif\0' not in data
    try:
        tags = num_tags(data)
        if not tags > MAX_TAGS and _num_pixels(data, jpeg) > MAX_PIXELS:
            raise Image.DecompressionBombError
    except Image.DecompressionBombError:
        raise ValueError(
            f'{name} has more than {MAX_PIXELS // 1_000_000} megapixels, which no face needs. '
            'Remove it from the set, or reduce it first.'
        ) from None
    except Exception as error:  # damaged headers raise nearly anything
        raise ValueError(damaged) from error
    scans = data.count(b'\xff\xda') if jpeg else 0
    for count, limit, what in ((scans, MAX_SCANS, 'scans'), (tags, MAX_TAGS, 'TIFF tags')):
        if count > limit:
            raise ValueError(
                f'{name} has more than {limit} {what}, which no face needs. Remove it from the set, or store it anew.'
            )
    if plain_jpeg:
        try:
            return simplejpeg.decode_jpeg(data, 'BGR')
        except Exception:  # what it refuses, such as CMYK or bytes after the end, is OpenCV's to judge
            pass
    # Before version 5, OpenCV decoded a JPEG that is cut off and left the rest grey.
    cut_off = jpeg and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda')
    white = _unscaled_white(data)
    try:
        if cut_off or data.startswith(b'Pf'):
            raise ValueError(damaged)
        img = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if white else 0))
        if img is None:
            raise ValueError(damaged)
        return cv2.convertScaleAbs(img, alpha=255 / white) if white else img
    except cv2.error as error:
        raise ValueError(damaged) from error


def _unscaled_white(data: bytes) -> int | None:
    """The value of white in a PPM or PGM that OpenCV leaves as dark as it is stored; None for other files.

    It takes a byte as of 255, and of two bytes the first.
    """
    header = PNM_HEADER.match(data)
    if header is None or (data[1:2] in b'23' and int(header[3]) <= 255):  # it scales those in letters
        return None
    return None if int(header[3]) in (255, 65535) else int(header[3])


def num_tags(data: bytes) -> int:
    """How many tags a TIFF's first directory has; 0 for other files."""
    order = {b'II*\0': '<', b'MM\0*': '>', b'II+\0': '<', b'MM\0+': '>'}.get(data[:4])
    if order is None:
        return 0
    big = b'+' in data[:4]
    (offset,) = struct.unpack_from(order + ('Q' if big else 'I'), data, 8 if big else 4)
    return struct.unpack_from(order + ('Q' if big else 'H'), data, offset)[0]


def _num_pixels(data: bytes, jpeg: bool) -> int:
    """How many pixels the header promises; nothing is decoded."""
    if jpeg:
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(data)
            return height * width
        except Exception:  # chroma subsampling that it has no name for, which OpenCV decodes
            pass
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        width, height = header.size
    return height * width


def _three_channels(img: np.ndarray, name: str) -> np.ndarray:
    channels = 1 if img.ndim == 2 else img.shape[-1]
    if img.dtype != np.uint8 or img.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise ValueError(
            f'{name}: img is {img.dtype} of shape {img.shape}, not uint8 of shape (H, W), '
            '(H, W, 3) or (H, W, 4). Give 8-bit BGR pixels.'
        )
    if channels == 3:
        return img
    return cv2.cvtColor(img, cv2.COLOR_GRAY2BGR if channels == 1 else cv2.COLOR_BGRA2BGR)
