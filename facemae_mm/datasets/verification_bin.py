"""Verification sets as InsightFace publishes them: a pickle, read without running its code."""

import io
import math
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np


class VerificationBin:
    """Image pairs of a `.bin` (lfw, cfp_fp, agedb_30, …); a `FaceSource`.

    The file is the pickle of (encoded images, bools). Pair i is images 2i and 2i + 1. Keys are the
    images' numbers. Identities are unknown.

    Args:
        path: The `.bin` file.

    Attributes:
        same: (pairs,) bool, True where both images show one person.

    Raises:
        pickle.UnpicklingError: The pickle is damaged or asks for anything but images and bools.
        ValueError: It holds something else than a list of images and half as many bools.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        content = load_images_and_bools(self.path)
        if not (_is_list(content) and len(content) == 2 and all(map(_is_list, content))):
            raise self._error('it does not hold two lists')
        images, same = content
        for i, image in enumerate(images):
            if not isinstance(image, (bytes, _Array)):
                raise self._error(f'image {i} is {type(image).__name__}, not bytes')
        for i, value in enumerate(same):
            if not isinstance(value, bool):
                raise self._error(f'entry {i} of the second list is {type(value).__name__}, not bool')
        if not same or len(images) != 2 * len(same):
            raise self._error(f'{len(images)} images do not make {len(same)} pairs')
        self._images = [image.data if isinstance(image, _Array) else image for image in images]
        self.same = np.array(same, bool)
        self.keys = [str(i) for i in range(len(images))]
        self.labels = np.full(len(images), -1, np.int64)
        self.identities = []

    def __len__(self) -> int:
        return len(self._images)

    def read(self, index: int) -> bytes:
        """Returns one encoded image."""
        return self._images[index]

    def _error(self, fault: str) -> ValueError:
        return ValueError(
            f'{self.path} is no verification set: {fault}. A .bin is the pickle of (list of '
            'encoded images, list of bools), two images to a bool. Download it again.'
        )


def load_images_and_bools(path: str | Path) -> object:
    """Loads a pickle of lists, tuples, bytes, bools and byte arrays; none of its code runs.

    NumPy's arrays are taken apart by stand-ins of our own, so that no foreign bytes reach NumPy's
    own loading.

    Args:
        path: The file. Files by Python 2 are read too: its strings become bytes.

    Returns:
        The pickle's object; arrays as objects with `data`, the bytes they hold.

    Raises:
        pickle.UnpicklingError: Damaged, or asking for anything else, by name.
    """
    path = Path(path)
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding='bytes').load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        raise pickle.UnpicklingError(
            f'{path} cannot be read as a verification set: {error}. Download it from a source you '
            'trust, or make it anew from bytes and bools.'
        ) from error


def _is_list(value: object) -> bool:
    return isinstance(value, (list, tuple))


class _Array:
    """Stands for an array of encoded bytes, of shape (n,) or (n, 1)."""

    __slots__ = ('data',)

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, data = state
        if not isinstance(dtype, _Uint8) or not isinstance(data, bytes):
            raise pickle.UnpicklingError('an array does not hold bytes (uint8)')
        if math.prod(shape) != len(data) or max(shape) != len(data):
            raise pickle.UnpicklingError(
                f'an array of shape {shape} is no encoded image, which is (bytes,) or (bytes, 1)'
            )
        self.data = data


class _Reconstruct:
    """Stands for the function that makes an empty array."""

    __slots__ = ()

    def __call__(self, *arguments: object) -> _Array:
        return _Array()


class _Uint8:
    """Stands for the dtype uint8; its state (byte order and the like) says nothing more."""

    __slots__ = ()

    def __setstate__(self, state: tuple) -> None:
        pass


class _MakeDtype:
    """Stands for the class of dtypes."""

    __slots__ = ()

    def __call__(self, name: str | bytes, *flags: object) -> _Uint8:
        if name not in ('u1', b'u1'):
            raise pickle.UnpicklingError(f'an array has dtype {name!r}, but encoded images are uint8')
        return _Uint8()


class _Ndarray:
    """Stands for the class of arrays, which is named and never called."""

    __slots__ = ()


class _Unpickler(pickle.Unpickler):
    # Instances without attributes: a pickle can set nothing on them that the next one would meet.
    admitted: ClassVar = {
        ('numpy.core.multiarray', '_reconstruct'): _Reconstruct,
        ('numpy._core.multiarray', '_reconstruct'): _Reconstruct,  # NumPy 2's name of it
        ('numpy', 'ndarray'): _Ndarray,
        ('numpy', 'dtype'): _MakeDtype,
    }

    def find_class(self, module: str, name: str) -> object:
        stand_in = self.admitted.get((module, name))
        if stand_in is None:
            raise pickle.UnpicklingError(
                f'it asks for {module}.{name}, but only lists, tuples, bytes, bools and uint8 arrays are admitted'
            )
        return stand_in()
