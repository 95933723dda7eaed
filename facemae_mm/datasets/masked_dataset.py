"""The masked dataset: masks and visible patches alone, which is what leaves the owner (docs/masked_dataset.md)."""

import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from ..json_file import read_json
from .face_mask import BLANK
from .recordio import ProcessFile, RecordSource

#: File that makes a folder a masked dataset, and what it must say of itself.
INFO = 'facemasked.json'
FORMAT = 'facemae-masked'
VERSION = 1

#: The files beside it: records of visible patches, and a keyed hash of each one's image key.
FACES = 'faces.rec'
KEYS = 'keys.bin'
KEY_BYTES = 32

#: Before a masked face: magic, version, patch size, patches along a side, one unused byte.
HEADER = struct.Struct('<4sBBBx')
MAGIC = b'FaMk'

#: A face with a longer side is refused before its pixels are made.
MAX_SIDE = 4096

#: OpenCV's WebP quality above which it is lossless.
LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 101)


def encode_masked(img: np.ndarray, mask: np.ndarray, patch_size: int) -> bytes:
    """The visible patches of a face, and the mask that says where they lie.

    Patches stand side by side in one strip, in reading order, compressed without loss (WebP).

    Args:
        img: Face (H, H, 3) uint8, BGR; H at most 255 patches.
        mask: (L,) uint8, 1 = removed; at least one patch stays.
        patch_size: Side of a patch, pixels, at most 255.

    Returns:
        Bytes that depend on visible pixels and the mask alone; `decode_masked` reads them.
    """
    grid = len(img) // patch_size
    patches = img.reshape(grid, patch_size, grid, patch_size, 3).transpose(1, 0, 2, 3, 4)  # (p, grid, grid, p, 3)
    strip = patches.reshape(patch_size, grid * grid, patch_size, 3)[:, mask == 0].reshape(patch_size, -1, 3)
    return HEADER.pack(MAGIC, VERSION, patch_size, grid) + np.packbits(mask).tobytes() + _encode_strip(strip)


def decode_masked(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A face as `FaceMask` leaves it in deployment, from `encode_masked`'s bytes.

    Args:
        data: The bytes.
        name: What to call it in messages.

    Returns:
        The face (H, H, 3) float32, BGR, removed pixels at 127.5, and the mask (L,) uint8.

    Raises:
        ValueError: Damaged, or of another version.
    """
    if len(data) < HEADER.size:
        raise _damaged(name, f'it has {len(data)} bytes')
    _, version, p, grid = HEADER.unpack_from(data)
    if version != VERSION:
        raise ValueError(
            f'{name}: a masked face of version {version}; this program reads {VERSION}. Install the FaceMAE-MM that '
            'wrote it, or mask the faces anew.'
        )
    start = HEADER.size + -(-grid * grid // 8)
    if not p or not grid or len(data) <= start:
        raise _damaged(name, 'its mask is cut off')
    if grid * p > MAX_SIDE:
        raise _damaged(name, f'it has sides of {grid * p} pixels, more than {MAX_SIDE}')
    mask = np.unpackbits(np.frombuffer(data[HEADER.size : start], np.uint8), count=grid * grid)
    visible = np.flatnonzero(mask == 0)
    strip = _decode_strip(data[start:], (p, p * len(visible), 3), name)
    img = np.full((grid * grid, p, p, 3), BLANK, np.float32)
    img[visible] = strip.reshape(p, len(visible), p, 3).transpose(1, 0, 2, 3)
    img = img.reshape(grid, grid, p, p, 3).transpose(0, 2, 1, 3, 4).reshape(grid * p, grid * p, 3)
    return img, mask


def _encode_strip(strip: np.ndarray) -> bytes:
    ok, data = cv2.imencode('.webp', np.ascontiguousarray(strip), LOSSLESS)
    if not ok:  # WebP holds 16,383 pixels in a row
        raise ValueError(
            f'Visible patches {strip.shape} could not be compressed. Use larger patches, or a higher ratio.'
        )
    return data.tobytes()


def _decode_strip(data: bytes, shape: tuple[int, int, int], name: str) -> np.ndarray:
    """The strip of visible patches, whose size is checked before anything is decoded."""
    # RIFF size WEBP VP8L size 0x2f, then 14 bits each of width − 1 and height − 1: the lossless form without frills.
    if len(data) < 25 or data[:4] != b'RIFF' or data[8:16] != b'WEBPVP8L' or data[20] != 0x2F:
        raise _damaged(name, 'its patches are no lossless WebP')
    bits = int.from_bytes(data[21:25], 'little')
    size = (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1, 3
    if size != shape:
        raise _damaged(name, f'its patches are {size[:2]} pixels, not {shape[:2]}')
    try:
        strip = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:
        strip = None
    if strip is None or strip.shape != shape:
        raise _damaged(name, 'its patches cannot be decoded')
    return strip


def _damaged(name: str, fault: str) -> ValueError:
    return ValueError(f'{name} is a damaged masked face: {fault}. Copy the masked dataset again.')


class HexKeys(Sequence):
    """Keys of `KEY_BYTES` each in a file, as hexadecimal strings, read when asked for from any process.

    Args:
        path: The file.
    """

    def __init__(self, path: str | Path) -> None:
        self._file = ProcessFile(path)

    def __len__(self) -> int:
        return self._file.size // KEY_BYTES

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._file.read_at(range(len(self))[index] * KEY_BYTES, KEY_BYTES).hex()


class MaskedSource:
    """Faces of a masked dataset; a `FaceSource`. The originals are not needed.

    `LoadFace` makes of what `read` returns exactly what `LoadFace` and `FaceMask` make of the
    original. Keys are keyed hashes of the original keys, identities are numbers.

    Args:
        path: The folder.

    Attributes:
        info: What `facemasked.json` says.

    Raises:
        ValueError: Another format or version, or files that do not fit each other.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.info = _read_info(self.path / INFO)
        self._source = RecordSource(self.path / FACES)
        self.keys = HexKeys(self.path / KEYS)
        self.labels = self._source.labels
        self.identities = [f'{int(name):06d}' for name in self._source.identities]
        counts = dict(
            facemasked=(self.info['images'], self.info['identities']),
            faces=(len(self._source), len(self.identities)),
            keys=(len(self.keys), len(self.identities)),
        )
        if len(set(counts.values())) > 1 or self.keys._file.size % KEY_BYTES:
            raise ValueError(
                f'{self.path}: images and identities are {counts["facemasked"]} in {INFO}, {counts["faces"]} in '
                f'{FACES} and {counts["keys"]} in {KEYS}. Copy the masked dataset again.'
            )

    def __len__(self) -> int:
        return len(self._source)

    def read(self, index: int) -> bytes:
        """Returns the mask and the visible patches of one face, as `decode_masked` takes them."""
        return self._source.read(index)


def _read_info(path: Path) -> dict:
    """facemasked.json, its version and the values that reading relies on checked."""
    info = read_json(path, 'Copy the masked dataset again.')
    if not isinstance(info, dict) or info.get('format') != FORMAT:
        raise ValueError(f"{path} does not say 'format': '{FORMAT}'. Give a folder that tools/mask_faces.py wrote.")
    if info.get('version') != VERSION:
        raise ValueError(
            f'{path} has version {info.get("version")!r}; this program reads {VERSION}. Install the FaceMAE-MM that '
            'wrote it, or mask the faces anew.'
        )
    numbers = [info.get('images'), info.get('identities')]
    if not all(type(number) is int and number > 0 for number in numbers) or not isinstance(info.get('mask'), dict):
        raise ValueError(f'{path} lacks the numbers of images and identities, or its mask. Copy it again.')
    return info
