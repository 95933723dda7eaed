"""MXNet's image records (`train.rec`, `train.idx`), read without MXNet."""

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

#: First four bytes of a record, and between the parts of one: u32 0xced7230a, little-endian.
MAGIC = struct.pack('<I', 0xCED7230A)

#: What an early revision of the format had in its place.
OLD_MAGIC = struct.pack('<I', 0x3ED7230A)

#: Flag, label and two ids before an image; `flag` float32 labels follow where flag > 0.
IMAGE_HEADER = struct.Struct('<IfQQ')

#: Bytes that one read asks for: an aligned face of 112 × 112 fits.
READ_AHEAD = 1 << 14

WHOLE, FIRST, MIDDLE, LAST = range(4)


def read_index(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Reads an `.idx` file of lines key, tab, offset.

    Args:
        path: The file.

    Returns:
        Keys (N,) int64, ascending, and the byte offset (N,) int64 of each one's record.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: No entries, a line of another form, or two keys alike.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist. A .rec is read through its .idx: copy it beside the .rec.')
    if path.stat().st_size == 0:
        raise ValueError(f'{path} is empty, so no record can be found. Copy it again from where the .rec comes.')
    try:
        keys, offsets = np.loadtxt(path, np.int64, comments=None, delimiter='\t', ndmin=2, unpack=True)
    except ValueError as error:
        raise ValueError(f'{path} is no list of lines key<TAB>offset: {error}. Copy it again.') from error
    order = np.argsort(keys, kind='stable')
    keys, offsets = keys[order], offsets[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise ValueError(f'{path} has key {keys[twice[0]]} twice. Write the .idx anew from its .rec.')
    return keys, offsets


class RecordFile:
    """Random access to the records of one file.

    Each process opens the file for itself at its first read and reads at absolute positions, so
    that a file may be shared by forked and spawned workers.

    Args:
        path: The `.rec` file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        self._file: BinaryIO | None = None
        self._process = 0

    def __getstate__(self) -> dict:
        return self.__dict__ | dict(_file=None, _process=0)

    def read(self, key: int, offset: int, limit: int | None = None) -> bytes:
        """Returns the data of one record, its parts rejoined.

        Args:
            key: Record key, for messages.
            offset: Where the record starts, bytes.
            limit: Reads no more parts once it has so many bytes, and returns at most these.

        Raises:
            ValueError: The record is cut off, starts with another magic, or its parts do not
                follow each other.
        """
        file = self._own_file()
        parts, known = [], 0
        allowed = (WHOLE, FIRST)
        while True:
            head = os.pread(file.fileno(), 8 + (READ_AHEAD if limit is None else limit), offset)
            flag, length = self._part(head, key, offset)
            if flag not in allowed:
                fault = f'part flag {flag} where {allowed[0]} or {allowed[1]} must stand'
                raise self.error(key, offset, f'{fault}. Write the .idx anew from the .rec')
            data = head[8 : 8 + length]
            if limit is None and len(data) < length:
                data += os.pread(file.fileno(), length - len(data), offset + len(head))
                if len(data) < length:
                    fault = f'{len(data)} of {length} bytes could be read'
                    raise self.error(key, offset, f'{fault}. Copy the file again')
            parts.append(data)
            known += len(data)
            if flag in (WHOLE, LAST) or (limit is not None and known >= limit):
                return MAGIC.join(parts)[:limit]
            allowed = (MIDDLE, LAST)
            offset += 8 + length + -length % 4

    def _own_file(self) -> BinaryIO:
        """This process's own handle."""
        file = self._file
        if file is None or self._process != os.getpid():
            file = self._file = self.path.open('rb', buffering=0)
            self._process = os.getpid()
        return file

    def _part(self, head: bytes, key: int, offset: int) -> tuple[int, int]:
        """Flag and length of the part that starts with `head`."""
        if head[:4] == OLD_MAGIC:
            fault = 'magic 0x3ed7230a, an old revision of the format'
            raise self.error(key, offset, f'{fault}. Pack the set anew with a current im2rec')
        if len(head) >= 8 and head[:4] != MAGIC:
            fault = f'magic {int.from_bytes(head[:4], "little"):#010x} instead of 0xced7230a'
            raise self.error(key, offset, f'{fault}. Copy the .idx that belongs to this .rec')
        word = int.from_bytes(head[4:8], 'little')
        flag, length = word >> 29, word & (1 << 29) - 1
        if len(head) < 8 or offset + 8 + length > self.size:
            fault = f'it goes beyond the end of the file, byte {self.size}: the file is cut off'
            raise self.error(key, offset, f'{fault}. Copy the .rec and its .idx again')
        return flag, length

    def error(self, key: int, offset: int, message: str) -> ValueError:
        """What is wrong with a record and what to do, with its place before it."""
        return ValueError(f'{self.path}, record {key} at byte {offset}: {message}.')


class DecimalKeys(Sequence):
    """Decimal strings of numbers, made when asked for: millions cost no more than the numbers.

    Args:
        numbers: (N,) integers.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int | slice) -> 'str | DecimalKeys':
        if isinstance(index, slice):
            return DecimalKeys(self.numbers[index])
        return str(self.numbers[index])


class RecordSource:
    """Faces of a `train.rec`, by the `.idx` beside it; a `FaceSource`.

    Where record 0 holds an array, it is InsightFace's identity header: images are the keys 1 …
    array[0] − 1, and the records from there on are the identities' ranges, which are not needed.
    Otherwise every key is an image (im2rec). An image's identity is its label, or the first of its
    array of labels. All labels are read and checked at the start, the images' bytes are not.

    Args:
        path: The `.rec` file.

    Raises:
        FileNotFoundError: The `.idx` is missing.
        ValueError: Index and records do not fit, a damaged record, or a label that is no number of
            a class.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._index_path = self.path.with_suffix('.idx')
        self._records = RecordFile(self.path)
        keys, offsets = read_index(self._index_path)
        beyond = (offsets < 0) | (offsets >= self._records.size)
        if beyond.any():
            first = beyond.argmax()
            raise ValueError(
                f'{self._index_path}: key {keys[first]} points at byte {offsets[first]}, but '
                f'{self.path} has {self._records.size} bytes. The .rec is cut off or belongs to '
                'another .idx: copy both again.'
            )
        images = self._image_keys(keys, offsets)
        self._keys, self._offsets = keys[images], offsets[images]
        self.keys = DecimalKeys(self._keys)
        own_labels, self.labels = np.unique(self._read_labels(), return_inverse=True)
        self.labels = self.labels.astype(np.int64, copy=False)
        self.identities = [str(label) for label in own_labels]

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, index: int) -> bytes:
        """Returns the encoded image of one record."""
        key, offset = int(self._keys[index]), int(self._offsets[index])
        record = self._records.read(key, offset)
        return record[self._image_start(key, offset, record) :]

    def _image_keys(self, keys: np.ndarray, offsets: np.ndarray) -> slice:
        """Which entries of the index are images."""
        head = self._head(0, int(offsets[0])) if keys[0] == 0 else b''
        if keys[0] != 0 or self._num_array_labels(0, int(offsets[0]), head) == 0:
            return slice(None)
        (end,) = struct.unpack_from('<f', head, IMAGE_HEADER.size)
        if not (math.isfinite(end) and end >= 2):
            raise ValueError(
                f'{self.path}: its identity header says that images end before key {end}, which '
                'must be 2 or more. Copy the file again.'
            )
        end = int(end)
        missing = np.flatnonzero(keys[:end] != np.arange(len(keys[:end])))
        if len(missing) or end > len(keys):
            first = missing[0] if len(missing) else len(keys)
            raise ValueError(
                f'{self._index_path} lacks key {first}, but the identity header of {self.path} '
                f'promises images 1 … {end - 1}. Copy both again.'
            )
        return slice(1, end)

    def _read_labels(self) -> np.ndarray:
        """Each image's own label, (N,) int64, in one pass through the file."""
        labels = np.empty(len(self._keys), np.int64)
        for i in np.argsort(self._offsets):
            key, offset = int(self._keys[i]), int(self._offsets[i])
            head = self._head(key, offset)
            in_array = self._num_array_labels(key, offset, head) > 0
            (label,) = struct.unpack_from('<f', head, IMAGE_HEADER.size if in_array else 4)
            if not (math.isfinite(label) and label >= 0 and label == int(label)):
                raise self._records.error(
                    key,
                    offset,
                    f'label {label} is no class number (0, 1, …). Remove the image or pack anew',
                )
            labels[i] = label
        return labels

    def _head(self, key: int, offset: int) -> bytes:
        """A record's header and its first array label, if it has one."""
        return self._records.read(key, offset, IMAGE_HEADER.size + 4)

    def _num_array_labels(self, key: int, offset: int, record: bytes) -> int:
        """Length of a record's array of labels, 0 for one plain label."""
        flag = int.from_bytes(record[:4], 'little')
        if len(record) < IMAGE_HEADER.size + (4 if flag else 0):
            fault = f'{len(record)} bytes are too few for the header of an image'
            raise self._records.error(key, offset, f'{fault}. Pack the set anew with im2rec')
        return flag

    def _image_start(self, key: int, offset: int, record: bytes) -> int:
        """Where the image starts in a record."""
        start = IMAGE_HEADER.size + 4 * self._num_array_labels(key, offset, record)
        if start >= len(record):
            raise self._records.error(
                key, offset, 'no image follows its labels. Remove the record or pack the set anew'
            )
        return start
