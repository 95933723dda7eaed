"""The faces of a release on disk: identity folders or MXNet's records, in one piece or in shards by size."""

import hashlib
from pathlib import Path

import numpy as np

from ..datasets.recordio import RecordWriter
from ..datasets.release_source import FOLDERS, RECORDS
from ..datasets.resumable import sha256_file

#: Of a shard of folders: a line for each face, as `sha256sum --check` takes it.
CHECKSUMS = 'SHA256SUMS'

#: Of a shard of records.
RECORD_FILES = ('train.rec', 'train.idx', 'property')

#: Images of a `train.rec` that its header, two float32, can count.
MOST_RECORDS = 1 << 24


def name_digits(labels: np.ndarray) -> int:
    """Digits of the numbers in names: six, or as many as the largest needs; `labels` (N,) of all faces."""
    counts = np.bincount(labels)
    return max(6, len(str(len(counts))), len(str(counts.max())))


class FolderShard:
    """Identity folders, `000000/000000.png`, …, and the SHA-256 of each face.

    Args:
        folder: Where they lie.
        extension: Of the faces.
        digits: Of the numbers in names.
    """

    def __init__(self, folder: Path, extension: str, digits: int) -> None:
        self.folder = folder
        self.extension = extension
        self.digits = digits
        self._label, self._number = -1, 0
        self._checksums = (folder / CHECKSUMS).open('x', encoding='utf-8')

    def write(self, label: int, image: bytes) -> str:
        """Writes a face and returns its path in the shard."""
        if label != self._label:
            self._label, self._number = label, 0
            (self.folder / f'{label:0{self.digits}d}').mkdir()
        path = f'{label:0{self.digits}d}/{self._number:0{self.digits}d}{self.extension}'
        (self.folder / path).write_bytes(image)
        self._checksums.write(f'{hashlib.sha256(image).hexdigest()}  {path}\n')
        self._number += 1
        return path

    def close(self) -> dict[str, str]:
        """SHA-256 by file; the checksums stand for the faces."""
        self._checksums.close()
        return {CHECKSUMS: sha256_file(self.folder / CHECKSUMS)}


class RecordShard:
    """`train.rec`, `.idx` and `property`, as InsightFace's trainers read them.

    Args:
        folder: Where they lie.
        size: Side of a face, pixels.
        first_label: Of the shard.
    """

    def __init__(self, folder: Path, size: int, first_label: int) -> None:
        self.folder = folder
        self._writer = RecordWriter(folder / RECORD_FILES[0], (size, size), first_label=first_label)

    def write(self, label: int, image: bytes) -> str:
        """Writes a face and returns its key in the shard."""
        return str(self._writer.write(label, image))

    def close(self) -> dict[str, str]:
        """SHA-256 by file."""
        self._writer.close()
        return {name: sha256_file(self.folder / name) for name in RECORD_FILES}


class ReleaseWriter:
    """Faces in the order of the release, identity by identity, into shards.

    A shard ends with the first identity after which it holds `shard_size` bytes of faces, or, of records, half of
    `MOST_RECORDS`, so that nobody's faces are torn apart; each is a set by itself, with labels that go on from shard to
    shard.

    Args:
        folder: Empty; where the faces come to lie, or the shards `shard_00000`, …
        layout: One of `LAYOUTS`.
        extension: Of image files.
        size: Side of a face, pixels.
        digits: Of the numbers in names.
        shard_size: Bytes; None for one piece.

    Attributes:
        shards: What a manifest says of each.
        images_by_identity: Faces of each label.
    """

    def __init__(
        self, folder: Path, layout: str, extension: str, size: int, digits: int, shard_size: int | None
    ) -> None:
        self.folder = folder
        self.layout = layout
        self.extension = extension
        self.size = size
        self.digits = digits
        self.shard_size = shard_size
        self.shards: list[dict] = []
        self.images_by_identity: list[int] = []
        self._shard: FolderShard | RecordShard | None = None

    def write(self, new_identity: bool, image: bytes) -> tuple[str, int]:
        """Writes a face.

        Args:
            new_identity: Whether it is the first of its person.
            image: Encoded.

        Returns:
            Its path in the release, and its label.
        """
        if new_identity:
            if self._shard is not None and self.shard_size and self._is_full(self.shards[-1]):
                self._close_shard()
            self.images_by_identity.append(0)
        label = len(self.images_by_identity) - 1
        if self._shard is None:
            self._open_shard(label)
        about = self.shards[-1]
        name = self._shard.write(label, image)
        self.images_by_identity[-1] += 1
        about['images'] += 1
        about['identities'] = label + 1 - about['first_label']
        about['bytes'] += len(image)
        return name if about['path'] == '.' else f'{about["path"]}/{name}', label

    def close(self) -> None:
        """Completes the last shard."""
        if self._shard is not None:
            self._close_shard()

    def _is_full(self, shard: dict) -> bool:
        many = self.layout == RECORDS and shard['images'] >= MOST_RECORDS // 2
        return many or shard['bytes'] >= self.shard_size

    def _open_shard(self, label: int) -> None:
        path = f'shard_{len(self.shards):05d}' if self.shard_size else '.'
        folder = self.folder / path
        folder.mkdir(exist_ok=True)
        if self.layout == FOLDERS:
            self._shard = FolderShard(folder, self.extension, self.digits)
        else:
            self._shard = RecordShard(folder, self.size, label)
        self.shards.append(dict(path=path, first_label=label, identities=0, images=0, bytes=0, sha256={}))

    def _close_shard(self) -> None:
        self.shards[-1]['sha256'] = self._shard.close()
        self._shard = None
