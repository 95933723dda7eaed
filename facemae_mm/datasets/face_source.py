"""Where faces are stored: one function opens every format and tells them apart by content."""

import os
import stat
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .masked_dataset import INFO, MaskedSource
from .recordio import MAGIC, OLD_MAGIC, RecordSource
from .release_source import RECORDS, ShardedSource, release_parts
from .source_keys import SourceKeys, find_table
from .verification_bin import VerificationBin

#: Extensions of image files, lower case; files are matched in any case.
IMAGE_EXTENSIONS = frozenset({'jpg', 'jpeg', 'png', 'bmp', 'webp', 'ppm', 'pgm', 'tif', 'tiff'})

#: Folders in which an image may lie: its identity's, and that of a view.
DEEPEST = 2

#: First bytes of a .zip, with entries and without.
ZIP_MAGIC = (b'PK\x03\x04', b'PK\x05\x06')

#: Bytes of the largest image that is taken out of a .zip: 64 megapixels, uncompressed.
MAX_UNZIPPED = 1 << 28


class FaceSource(Protocol):
    """A set of stored faces, read one at a time in any order and from any process.

    Attributes:
        path: What `open_faces` was given.
        keys: img_key of each image: relative POSIX path without extension, or decimal record key,
            in ascending order; where an owner's table of a prepared set is there (`SourceKeys`),
            the keys of the original images instead.
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
    """A folder of identity folders of images, or of images alone, whose identities are unknown.

    An identity folder holds images, or folders of views with images (CFP: frontal, profile). Hidden
    files, other files and deeper folders are left alone, and so are images beside identity folders.

    Args:
        path: The folder.
        plain: Refuses links, which may lead out of the folder, and devices.

    Raises:
        ValueError: No images, an identity without images, two files with one key, or names that
            cannot be keys.
    """

    def __init__(self, path: str | Path, plain: bool = False) -> None:
        self.path = Path(path)
        self.keys, self.labels, self.identities, self._names = _arrange(_walk(str(self.path), plain), self.path)
        with os.scandir(self.path) as entries:
            folders = {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith('.')}
        for name in sorted(folders - set(self.identities) if self.identities else ()):
            raise ValueError(
                f'Identity folder {self.path / name} holds no image '
                f'({" ".join(sorted(IMAGE_EXTENSIONS))}). Put its images directly in it, or '
                'remove it.'
            )

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """Returns the bytes of one image file."""
        return (self.path / self._names[index]).read_bytes()


class ZipSource:
    """A `.zip` of a folder, read in place: nothing is unpacked to disk.

    What `FolderSource` takes from a folder; one folder around everything is passed over. Hidden files, what lies in
    hidden or deeper folders, and other files are left alone.

    Args:
        path: The file.

    Raises:
        ValueError: No or a damaged .zip, no images, two entries with one key, or entries that lead
            out of it, are links, are encrypted, are neither stored nor deflated, or unpack to more
            than 256 MiB.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file: zipfile.ZipFile | None = None
        self._process = 0
        names = []
        for entry in self._own_file().infolist():
            if not _image_name(entry.filename) or entry.filename.startswith('__MACOSX/'):  # folders end in /
                continue
            self._check(entry)
            if not any(part.startswith('.') for part in entry.filename.split('/')):
                names.append(entry.filename)
        tops = {name.partition('/')[0] for name in names}
        top = f'{tops.pop()}/' if len(tops) == 1 and all(name.count('/') > 1 for name in names) else ''
        inner = (name.removeprefix(top) for name in names if name.removeprefix(top).count('/') <= DEEPEST)
        self.keys, self.labels, self.identities, self._names = _arrange(inner, self.path)
        self._names = [top + name for name in self._names]

    def __getstate__(self) -> dict:
        return self.__dict__ | dict(_file=None, _process=0)

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """Returns the bytes of one entry.

        Raises:
            ValueError: The entry is damaged.
        """
        name = self._names[index]
        try:
            archive = self._own_file()
            with archive.open(name) as entry:  # as many bytes as it says, whatever it unpacks to
                return entry.read(archive.getinfo(name).file_size)
        except Exception as error:  # damaged bytes raise whatever the decompressor makes of them
            raise ValueError(f'{self.path}: entry {name} cannot be unpacked: {error}. Copy the .zip again.') from error

    def _own_file(self) -> zipfile.ZipFile:
        """This process's own handle: its position is shared by nobody."""
        if self._file is None or self._process != os.getpid():
            try:
                self._file = zipfile.ZipFile(self.path)
            except Exception as error:  # as above
                raise ValueError(f'{self.path} is a damaged .zip: {error}. Copy it again.') from error
            self._process = os.getpid()
        return self._file

    def _check(self, entry: zipfile.ZipInfo) -> None:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        fault = None
        if '\\' in name or name.startswith('/') or {'', '.', '..'} & set(name.split('/')) or ':' in name.split('/')[0]:
            fault = 'leads out of the archive, or is no plain path'
        elif kind not in (0, stat.S_IFREG):
            fault = 'is a link or a device'
        elif entry.flag_bits & 1:
            fault = 'is encrypted'
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # the rest unpack without bound
            fault = f'is compressed by method {entry.compress_type}, neither stored nor deflated'
        elif entry.file_size > MAX_UNZIPPED:
            fault = f'unpacks to {entry.file_size} bytes, more than {MAX_UNZIPPED >> 20} MiB, which no face needs'
        if fault:
            raise ValueError(f'{self.path}: entry {name!r} {fault}. Pack the .zip anew without it.')


def _walk(folder: str, plain: bool, deepest: int = DEEPEST) -> Iterator[str]:
    """Images in a folder and the folders in it, as relative POSIX paths; see `FolderSource`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith('.'):
                continue
            if plain and not (entry.is_file(follow_symlinks=False) or entry.is_dir(follow_symlinks=False)):
                raise _not_plain(entry.path)
            if not entry.is_dir():
                yield entry.name
            elif deepest:
                yield from (f'{entry.name}/{inner}' for inner in _walk(entry.path, plain, deepest - 1))


def _not_plain(path: str | Path) -> ValueError:
    return ValueError(
        f'{path} is a link or a device, which a release does not hold: it may lead anywhere. Get the release again '
        'from where it comes, or put the file itself there.'
    )


def _arrange(names: Iterable[str], place: Path) -> tuple[list[str], np.ndarray, list[str], list[str]]:
    """Keys, labels, identities and names of the images among files.

    Args:
        names: Relative POSIX paths.
        place: Of the set, for messages.

    Raises:
        ValueError: See `FolderSource`.
    """
    stems = {}
    found_rec = False
    for name in names:
        found_rec |= name == 'train.rec'
        stem = _image_name(name)
        if stem is None:
            continue
        if stem in stems:
            raise ValueError(
                f'{place} holds {stems[stem]} and {name}, which share the key {stem}. Rename or remove one of them.'
            )
        stems[stem] = name
    deep = {stem: name for stem, name in stems.items() if '/' in stem}
    stems = deep or stems
    if not stems:
        if found_rec:
            raise ValueError(f'{place} holds no identity folders. Give {place / "train.rec"} itself.')
        raise ValueError(
            f'{place} holds no images and no identity folders with images. Put the images of each person in a '
            f'folder of their own: NAME/*.jpg ({" ".join(sorted(IMAGE_EXTENSIONS))}).'
        )
    keys = sorted(stems)
    for key in keys:
        if not key.isprintable():  # control characters, and what is no UTF-8
            raise ValueError(
                f'{place} holds an image with the name {stems[key]!r}, which is no readable Unicode. Rename it.'
            )
    if not deep:
        return keys, np.full(len(keys), -1, np.int64), [], [stems[key] for key in keys]
    people = [key.split('/') for key in keys]
    identities = sorted({person[0] for person in people})
    views = {person[1] for person in people if len(person) == 3}
    if len(views) >= max(len(identities), 2) or (views and len(identities) == 1):
        raise ValueError(
            f'{place} holds images two folders deep, in {len(views)} folders of {len(identities)} folders. Give the '
            f'folder whose folders are the identities, such as {place / identities[0]}.'
        )
    label = {name: number for number, name in enumerate(identities)}
    labels = np.array([label[person[0]] for person in people], np.int64)
    return keys, labels, identities, [stems[key] for key in keys]


def _image_name(path: str) -> str | None:
    """The path of an image file without its extension; None for hidden and other files."""
    name = path.rpartition('/')[2]
    stem, _, extension = name.rpartition('.')
    if stem and not name.startswith('.') and extension.lower() in IMAGE_EXTENSIONS:
        return path[: -len(extension) - 1]
    return None


def open_faces(path: str | Path) -> FaceSource:
    """Opens a set of faces of any kind, told apart by content and not by name.

    Args:
        path: A folder of identity folders or of images, a `.zip` of one, a `train.rec` (its `.idx`
            beside it), a verification `.bin`, a masked dataset, or a release.

    Returns:
        The source. That of a `.bin` has `same` (pairs,) bool in addition; that of a masked dataset
        has `info`.

    Raises:
        FileNotFoundError: The path, or the `.idx` beside a `.rec`, does not exist.
        ValueError: Nothing that can be read, or damaged.
        pickle.UnpicklingError: A `.bin` that asks for anything but images and bools.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(
            f'{path} does not exist. Give a folder of identity folders, a train.rec, a .zip of a folder, a '
            'verification .bin or a masked dataset.'
        )
    if path.is_dir():
        if (path / INFO).is_file():
            return MaskedSource(path)
        return _open_release(path) or _with_source_keys(FolderSource(path), path)
    with path.open('rb') as file:
        head = file.read(4)
    if head in (MAGIC, OLD_MAGIC):
        return _with_source_keys(RecordSource(path), path.absolute().parent)
    if head in ZIP_MAGIC:
        return ZipSource(path)
    if head[:1] == b'\x80':  # a pickle of protocol 2 or later
        return VerificationBin(path)
    found = f'starts with the bytes {head.hex(" ")}' if head else 'is empty'
    raise ValueError(
        f'{path} {found}: it is no record file ({MAGIC.hex(" ")}), no .zip (50 4b 03 04) and no verification .bin '
        '(80). Give a folder of identity folders, a train.rec, a .zip or a .bin, and copy a damaged file again.'
    )


def _open_release(folder: Path) -> FaceSource | None:
    """The faces of a release; None where a folder is none."""
    parts = release_parts(folder)
    if parts is None:
        return None
    layout, shards = parts

    def open_shard(path: Path) -> FaceSource:
        if path != folder and path.is_symlink():
            raise _not_plain(path)
        if layout != RECORDS:
            return FolderSource(path, plain=True)
        for file in (path / 'train.rec', path / 'train.idx'):
            if file.is_symlink() or (file.exists() and not file.is_file()):
                raise _not_plain(file)
        return RecordSource(path / 'train.rec')

    return open_shard(folder) if shards == ['.'] else ShardedSource(folder, shards, open_shard)


def _with_source_keys(source: FolderSource | RecordSource, folder: Path) -> FaceSource:
    """The source with the keys of the original images, where the owner's table is there."""
    table = find_table(folder.absolute())
    if table is not None:
        source.keys = SourceKeys(table, source.keys)
    return source
