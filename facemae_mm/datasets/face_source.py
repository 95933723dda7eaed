"""Where faces are stored: one function opens every format and tells them apart by content."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .recordio import MAGIC, OLD_MAGIC, RecordSource
from .verification_bin import VerificationBin

#: Extensions of image files, lower case; files are matched in any case.
IMAGE_EXTENSIONS = frozenset({'jpg', 'jpeg', 'png', 'bmp', 'webp', 'ppm', 'pgm', 'tif', 'tiff'})


class FaceSource(Protocol):
    """A set of stored faces, read one at a time in any order and from any process.

    Attributes:
        path: What `open_faces` was given.
        keys: img_key of each image, in ascending order: relative POSIX path without extension, or
            decimal record key.
        labels: (N,) int64 in 0 … C − 1; −1 throughout where a source knows no identities.
        identities: Name of each label, C long: the folder's name, or a .rec's own label in decimal.
    """

    path: Path
    keys: Sequence[str]
    labels: np.ndarray
    identities: list[str]

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Returns image `index` as it is stored, encoded (JPEG, PNG, …)."""
        ...


class FolderSource:
    """A folder of identity folders of images.

    Hidden files, other files and deeper folders are left alone.

    Args:
        path: The folder.

    Raises:
        ValueError: No identity folders, one without images, or two files with one key.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.identities = self._identity_folders()
        keys, extensions, labels = [], [], []
        for label, name in enumerate(self.identities):
            images = self._images(name)
            keys += [f'{name}/{stem}' for stem in images]
            extensions += images.values()
            labels += [label] * len(images)
        order = sorted(range(len(keys)), key=keys.__getitem__)
        self.keys = [keys[i] for i in order]
        self.labels = np.array(labels, np.int64)[order]
        self._extensions = [extensions[i] for i in order]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """Returns the bytes of one image file."""
        return (self.path / f'{self.keys[index]}.{self._extensions[index]}').read_bytes()

    def _identity_folders(self) -> list[str]:
        with os.scandir(self.path) as entries:
            entries = [entry for entry in entries if not entry.name.startswith('.')]
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        if folders:
            return folders
        names = {entry.name for entry in entries}
        if 'train.rec' in names:
            raise ValueError(f'{self.path} holds no identity folders. Give {self.path / "train.rec"} itself.')
        found = 'images but' if any(map(_image_name, names)) else 'no images and'
        raise ValueError(
            f'{self.path} holds {found} no identity folders. Put the images of each person in a '
            'folder of their own: NAME/*.jpg.'
        )

    def _images(self, identity: str) -> dict[str, str]:
        """Stem → extension of the images of one identity."""
        images = {}
        with os.scandir(self.path / identity) as entries:
            for entry in entries:
                name = _image_name(entry.name)
                if name is None or entry.is_dir():
                    continue
                stem, extension = name
                if stem in images:
                    raise ValueError(
                        f'{self.path / identity} holds {stem}.{images[stem]} and {entry.name}, '
                        f'which share the key {identity}/{stem}. Rename or remove one of them.'
                    )
                images[stem] = extension
        if not images:
            raise ValueError(
                f'Identity folder {self.path / identity} holds no image '
                f'({" ".join(sorted(IMAGE_EXTENSIONS))}). Put its images directly in it, or '
                'remove it.'
            )
        return images


def _image_name(name: str) -> tuple[str, str] | None:
    """Stem and extension of an image file's name; None for hidden and other files."""
    stem, _, extension = name.rpartition('.')
    if stem and not name.startswith('.') and extension.lower() in IMAGE_EXTENSIONS:
        return stem, extension
    return None


def open_faces(path: str | Path) -> FaceSource:
    """Opens a set of faces of any kind, told apart by content and not by name.

    Args:
        path: A folder of identity folders, a `train.rec` (its `.idx` beside it), or a verification
            `.bin`.

    Returns:
        The source. That of a `.bin` has `same` (pairs,) bool in addition and knows no identities.

    Raises:
        FileNotFoundError: The path, or the `.idx` beside a `.rec`, does not exist.
        ValueError: Nothing that can be read, or damaged.
        pickle.UnpicklingError: A `.bin` that asks for anything but images and bools.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f'{path} does not exist. Give a folder of identity folders, a train.rec or a verification .bin.'
        )
    if path.is_dir():
        return FolderSource(path)
    with path.open('rb') as file:
        head = file.read(4)
    if head in (MAGIC, OLD_MAGIC):
        return RecordSource(path)
    if head[:1] == b'\x80':  # a pickle of protocol 2 or later
        return VerificationBin(path)
    found = f'starts with the bytes {head.hex(" ")}' if head else 'is empty'
    raise ValueError(
        f'{path} {found}: it is no record file ({MAGIC.hex(" ")}) and no verification .bin (80). '
        'Give a folder of identity folders, a train.rec or a .bin, and copy a damaged file again.'
    )
