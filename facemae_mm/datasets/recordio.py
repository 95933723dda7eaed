"""MXNet's image records (`train.rec`, `train.idx`, `property`), read and written without MXNet."""

import io
import math
import os
import re
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

#: First four bytes of a record, and between the parts of one: u32 0xced7230a, little-endian.
MAGIC = struct.pack('<I', 0xCED7230A)
MAGIC_PATTERN = re.compile(re.escape(MAGIC))

#: What an early revision of the format had in its place.
OLD_MAGIC = struct.pack('<I', 0x3ED7230A)

#: Flag, label and two ids before an image; `flag` float32 labels follow where flag > 0.
IMAGE_HEADER = struct.Struct('<IfQQ')

#: An identity header or range: `IMAGE_HEADER` and two array labels.
RANGE = struct.Struct('<IfQQ2f')

#: Cflag and length of a part.
PART = struct.Struct('<I')

#: Longest part of a record: its length has 29 bits.
MAX_PART = (1 << 29) - 1

#: Bytes that one read asks for: an aligned face of 112 × 112 fits.
READ_AHEAD = 1 << 14

#: Bytes of a record of which its labels are told: frame, image header, two array labels.
HEAD = 8 + RANGE.size

#: Bytes that a writer hands to the system at once.
BUFFER = 1 << 20

#: Records whose heads are looked at together, and lines of an index.
BLOCK = 1 << 16

WHOLE, FIRST, MIDDLE, LAST = range(4)

Numbers = np.ndarray | range


def read_index(path: str | Path) -> tuple[Numbers, np.ndarray]:
    """Reads an `.idx` file of lines key, tab, offset.

    Args:
        path: The file.

    Returns:
        Keys, ascending, and the byte offset (N,) int64 of each one's record. Keys that count up by
        one, which is the rule, come as a range, others as (N,) int64: 42 million records take
        320 MiB.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: No entries, a line of another form, or two keys alike.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path} does not exist. A .rec is read through its .idx: copy it beside the .rec.')
    with path.open('rb') as file:
        lines = sum(block.count(b'\n') for block in iter(lambda: file.read(1 << 24), b'')) + 1
    keys, offsets, rows = None, np.empty(lines, np.int64), 0  # keys: while they count up, only the first is kept
    first = 0
    for block in _index_blocks(path):
        end = rows + len(block)
        offsets[rows:end] = block[:, 1]
        if not rows:
            first = int(block[0, 0])
        if keys is None and not np.array_equal(block[:, 0], np.arange(first + rows, first + end)):
            keys = np.empty(lines, np.int64)
            keys[:rows] = np.arange(first, first + rows)
        if keys is not None:
            keys[rows:end] = block[:, 0]
        rows = end
    if not rows:
        raise ValueError(f'{path} is empty, so no record can be found. Copy it again from where the .rec comes.')
    if keys is None:
        return range(first, first + rows), offsets[:rows]
    order = np.argsort(keys[:rows], kind='stable')
    keys, offsets = keys[order], offsets[order]
    twice = np.flatnonzero(keys[1:] == keys[:-1])
    if len(twice):
        raise ValueError(f'{path} has key {keys[twice[0]]} twice. Write the .idx anew from its .rec.')
    return keys, offsets


def _index_blocks(path: Path) -> Iterator[np.ndarray]:
    """The lines of an index, (n, 2) int64 at a time."""
    with path.open('rb') as file:
        while block := file.read(1 << 22):
            rest = file.readline(64)
            if len(rest) == 64 and not rest.endswith(b'\n'):
                raise ValueError(f'{path} is no list of lines key<TAB>offset: a line is too long. Copy it again.')
            block += rest
            if not block.strip():
                continue
            try:
                rows = np.loadtxt(io.BytesIO(block), np.int64, comments=None, delimiter='\t', ndmin=2)
                if rows.shape[1] != 2:
                    raise ValueError(f'{rows.shape[1]} columns')
            except ValueError as error:
                raise ValueError(f'{path} is no list of lines key<TAB>offset: {error}. Copy it again.') from error
            yield rows


class ProcessFile:
    """A file that is read at absolute positions; each process opens it for itself at its first read.

    So it may be shared by forked and spawned workers.

    Args:
        path: The file.

    Attributes:
        size: Bytes, when it was opened first.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size = self.path.stat().st_size
        self._file: BinaryIO | None = None
        self._process = 0

    def __getstate__(self) -> dict:
        return self.__dict__ | dict(_file=None, _process=0)

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset`; fewer where the file ends."""
        return os.pread(self.fileno(), size, offset)

    def fileno(self) -> int:
        """Descriptor of this process's own handle."""
        if self._file is None or self._process != os.getpid():
            self._file = self.path.open('rb', buffering=0)
            self._process = os.getpid()
        return self._file.fileno()


class RecordFile(ProcessFile):
    """Random access to the records of one file."""

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
        parts, known = [], 0
        allowed = (WHOLE, FIRST)
        while True:
            head = self.read_at(offset, 8 + (READ_AHEAD if limit is None else limit))
            flag, length = self._part(head, key, offset)
            if flag not in allowed:
                fault = f'part flag {flag} where {allowed[0]} or {allowed[1]} must stand'
                raise self.error(key, offset, f'{fault}. Write the .idx anew from the .rec')
            data = head[8 : 8 + length]
            if limit is None and len(data) < length:
                data += self.read_at(offset + len(head), length - len(data))
                if len(data) < length:
                    fault = f'{len(data)} of {length} bytes could be read'
                    raise self.error(key, offset, f'{fault}. Copy the file again')
            parts.append(data)
            known += len(data) + (len(MAGIC) if len(parts) > 1 else 0)
            if flag in (WHOLE, LAST) or (limit is not None and known >= limit):
                return MAGIC.join(parts)[:limit]
            allowed = (MIDDLE, LAST)
            offset += 8 + length + -length % 4

    def end(self, key: int, offset: int) -> int:
        """Where the record after this one starts, bytes."""
        while True:
            flag, length = self._part(self.read_at(offset, 8), key, offset)
            offset += 8 + length + -length % 4
            if flag in (WHOLE, LAST):
                return offset

    def _part(self, head: bytes, key: int, offset: int) -> tuple[int, int]:
        """Flag and length of the part that starts with `head`."""
        if head[:4] == OLD_MAGIC:
            fault = 'magic 0x3ed7230a, an old revision of the format'
            raise self.error(key, offset, f'{fault}. Pack the set anew with a current im2rec')
        if len(head) >= 8 and head[:4] != MAGIC:
            fault = f'magic {int.from_bytes(head[:4], "little"):#010x} instead of 0xced7230a'
            raise self.error(key, offset, f'{fault}. Copy the .idx that belongs to this .rec')
        word = int.from_bytes(head[4:8], 'little')
        flag, length = word >> 29, word & MAX_PART
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

    def __init__(self, numbers: Numbers) -> None:
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
    array[0] − 1, and the records from there on are the identities' ranges of keys. Otherwise every
    key is an image (im2rec). An image's identity is its label, or the first of its array of labels.

    Labels come from the identities' ranges where these cover all images, else from every record:
    one pass through the file. A record that is read later and has another label is an error.

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
        if offsets.min() < 0 or offsets.max() >= self._records.size:
            first = int(((offsets < 0) | (offsets >= self._records.size)).argmax())
            raise ValueError(
                f'{self._index_path}: key {keys[first]} points at byte {offsets[first]}, but '
                f'{self.path} has {self._records.size} bytes. The .rec is cut off or belongs to '
                'another .idx: copy both again.'
            )
        self._all_keys, self._all_offsets = keys, offsets
        images = self._image_keys()
        self._keys, self._offsets = keys[images], offsets[images]
        self.keys: Sequence[str] = DecimalKeys(self._keys)
        labels = None if images == slice(None) else self._labels_by_ranges(images.stop)
        starts, labels = (None, self._read_labels(np.arange(len(self._keys)))) if labels is None else labels
        self._own_labels, self.labels = _renumbered(labels)
        if starts is not None:
            self.labels = np.repeat(self.labels, np.diff(starts, append=len(self._keys)))
        last = int(offsets.argmax())
        self._records.end(int(keys[last]), int(offsets[last]))  # may be a range, and cut off
        del self._all_keys, self._all_offsets
        self.identities = [str(label) for label in self._own_labels]

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, index: int) -> bytes:
        """Returns the encoded image of one record."""
        key, offset = int(self._keys[index]), int(self._offsets[index])
        record = self._records.read(key, offset)
        start = IMAGE_HEADER.size + 4 * self._num_array_labels(key, offset, record)
        if start >= len(record):
            raise self._records.error(
                key, offset, 'no image follows its labels. Remove the record or pack the set anew'
            )
        label = self._label(key, offset, record)
        expected = self._own_labels[self.labels[index]]
        if label != expected:
            raise self._records.error(
                key,
                offset,
                f"label {label:g}, but the ranges of the file's identities give it {expected}. Pack the set anew",
            )
        return record[start:]

    def _image_keys(self) -> slice:
        """Which entries of the index are images."""
        keys, offsets = self._all_keys, self._all_offsets
        head = self._head(0, int(offsets[0])) if keys[0] == 0 else b''
        if keys[0] != 0 or self._num_array_labels(0, int(offsets[0]), head) == 0:
            return slice(None)
        (end,) = struct.unpack_from('<f', head, IMAGE_HEADER.size)
        if not (math.isfinite(end) and end >= 2):
            raise ValueError(
                f'{self.path}: its identity header says that images end before key {end}, which '
                'must be 2 or more. Copy the file again.'
            )
        end = self._exact_end(int(end))
        missing = _first_missing(keys[:end])
        if missing < end:
            raise ValueError(
                f'{self._index_path} lacks key {missing}, but the identity header of {self.path} '
                f'promises images 1 … {end - 1}. Copy both again.'
            )
        return slice(1, end)

    def _exact_end(self, end: int) -> int:
        """The first key that is no image: the header's float32 knows it to within `_rounding` only."""
        unsure = _rounding(end)
        for key in range(end - unsure, min(end + unsure + 1, len(self._all_keys))) if unsure else ():
            offset = int(self._all_offsets[key])
            if self._num_array_labels(key, offset, self._head(key, offset)) == 2:
                return key
        return end

    def _labels_by_ranges(self, end: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Where a new label may start among the images, ascending from 0, and the label from there on.

        None where the ranges do not cover the images, or the labels at both ends of one differ.
        """
        offsets = self._all_offsets[end:]
        if not len(offsets) or _first_missing(self._all_keys) < len(self._all_keys):
            return None
        heads = self._heads(offsets)
        ranges = heads[:, 32:40].copy().view('<f4')
        if not (_words(heads)[:, 2] == 2).all() or not np.isfinite(ranges).all():
            return None
        unsure = _rounding(end)
        first, last = ranges[:, 0].astype(np.int64), ranges[:, 1].astype(np.int64)
        follow = np.array_equal(first[1:], last[:-1]) and (first <= last).all()  # of few images, both may round alike
        if not follow or first[0] != 1 or abs(last[-1] - end) > unsure:
            return None
        bounds = np.concatenate([first, [end]])
        starts = labels = np.empty(0, np.int64)
        found = []
        for begin in range(0, len(bounds), BLOCK):
            keys = bounds[begin : begin + BLOCK]
            unsure = _rounding(int(keys[-1]))
            around = np.arange(-unsure - 1, unsure + 1)  # the last image before a start, and the first from it on
            images = np.unique((keys[:, None] - 1 + around).clip(0, end - 2))  # keys count from 1
            images = images[np.searchsorted(images, starts[-1:], 'right')[0] :] if found else images
            starts = np.concatenate([starts[-1:], images])
            labels = np.concatenate([labels[-1:], self._read_labels(images)])
            changes = np.flatnonzero(labels[1:] != labels[:-1]) + 1
            if (starts[changes] - starts[changes - 1] > 1).any():
                return None
            changes = changes if found else np.concatenate([[0], changes])
            found.append((starts[changes], labels[changes]))
        starts, labels = (np.concatenate(column) for column in zip(*found))
        return starts, labels

    def _read_labels(self, images: np.ndarray) -> np.ndarray:
        """Own labels of some images, (n,) int64."""
        labels = np.empty(len(images), np.int64)
        for start in range(0, len(images), BLOCK):
            block = images[start : start + BLOCK]
            offsets = self._offsets[block]
            heads = self._heads(offsets)
            words = _words(heads)
            flag, length = words[:, 1] >> 29, (words[:, 1] & MAX_PART).astype(np.int64)
            in_array = words[:, 2] > 0
            floats = words.view('<f4')
            label = np.where(in_array, floats[:, 8], floats[:, 3]).astype(np.float64)
            plain = (words[:, 0] == int.from_bytes(MAGIC, 'little')) & (flag == WHOLE)
            plain &= (length >= IMAGE_HEADER.size + 4 * in_array) & (offsets + 8 + length <= self._records.size)
            plain &= (label >= 0) & (label < 2**62) & (label == np.floor(label))
            for i in np.flatnonzero(~plain):  # in several parts, or damaged
                key, offset = int(self._keys[block[i]]), int(offsets[i])
                label[i] = self._label(key, offset, self._head(key, offset))
            labels[start : start + BLOCK] = label
        return labels

    def _heads(self, offsets: np.ndarray) -> np.ndarray:
        """The first bytes of some records, (n, HEAD) uint8; zeros beyond the end of the file."""
        read, fd = os.pread, self._records.fileno()
        heads = np.zeros((len(offsets), HEAD), np.uint8)
        for start in range(0, len(offsets), BLOCK):
            found = [read(fd, HEAD, offset) for offset in offsets[start : start + BLOCK].tolist()]
            joined = b''.join(head if len(head) == HEAD else head.ljust(HEAD, b'\0') for head in found)
            heads[start : start + BLOCK] = np.frombuffer(joined, np.uint8).reshape(-1, HEAD)
        return heads

    def _label(self, key: int, offset: int, record: bytes) -> float:
        """A record's label, or the first of its array of labels."""
        in_array = self._num_array_labels(key, offset, record) > 0
        (label,) = struct.unpack_from('<f', record, IMAGE_HEADER.size if in_array else 4)
        if not (0 <= label < 2**62 and label == int(label)):
            raise self._records.error(
                key,
                offset,
                f'label {label} is no class number (0, 1, …). Remove the image or pack anew',
            )
        return label

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


def _words(heads: np.ndarray) -> np.ndarray:
    """Heads (n, HEAD) uint8 as (n, HEAD / 4) little-endian u32."""
    return heads.view('<u4')


def _first_missing(keys: Numbers) -> int:
    """The first of 0, 1, … that ascending keys lack."""
    if isinstance(keys, range):
        return len(keys) if not len(keys) or keys[0] == 0 else 0
    differ = np.flatnonzero(keys != np.arange(len(keys)))
    return int(differ[0]) if len(differ) else len(keys)


def _rounding(key: int) -> int:
    """By how much a key may be off that went through float32: 0 up to 2²⁴, 2 at 42 million."""
    return int(np.spacing(np.float32(key)) // 2)


def _renumbered(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """np.unique with its inverse, (C,) and (N,) int64, without sorting N numbers where they are small."""
    top = int(labels.max())
    if top > 4 * len(labels) + 1_000_000:
        own, new = np.unique(labels, return_inverse=True)
        return own, new.astype(np.int64, copy=False)
    present = np.zeros(top + 1, bool)
    present[labels] = True
    return np.flatnonzero(present), (np.cumsum(present) - 1)[labels]


class RecordWriter:
    """Writes `train.rec`, `train.idx` and `property` as InsightFace packs them, with the identity header.

    Images come identity by identity, labels counting up; keys count up from 1. The files are
    named `NAME.partial` until `close`; as a context manager it closes where no error is raised, and
    otherwise leaves the partial files for `resume`.

    Args:
        path: The `.rec` to write; its `.idx` and `property` come to lie beside it.
        size: Height and width for `property`, pixels.
        resume: Goes on with the partial files of a writer that was interrupted, where they are.
        first_label: Label of the first identity, where the set is one of several shards.

    Attributes:
        count: Images written so far.

    Raises:
        FileExistsError: `path` exists already.
        ValueError: Partial files that are damaged.
    """

    def __init__(
        self, path: str | Path, size: tuple[int, int] = (112, 112), resume: bool = False, first_label: int = 0
    ) -> None:
        self.path = Path(path)
        self.size = size
        self.first_label = first_label
        if self.path.exists():
            raise FileExistsError(f'{self.path} exists already. Name another file, or delete it.')
        self._finals = self.path, self.path.with_suffix('.idx'), self.path.with_name('property')
        self._partials = [final.with_name(f'{final.name}.partial') for final in self._finals]
        self.count = 0
        self._first_keys: list[int] = []  # of each identity
        rec, idx = self._partials[:2]
        if resume and rec.is_file() and self._finals[1].is_file() and not idx.exists():  # `close` was interrupted
            self._finals[1].replace(idx)
        go_on = resume and rec.is_file() and idx.is_file() and idx.stat().st_size > 0
        mode = 'r+b' if go_on else 'w+b'
        self._rec, self._idx = (partial.open(mode, BUFFER) for partial in self._partials[:2])
        self._end = 0  # of the .rec
        if go_on:
            self._restore()
        else:
            self._frame(0, bytes(RANGE.size))  # the identity header, known at the end

    def write(self, label: int, image: bytes) -> int:
        """Appends one encoded image and returns its key.

        Raises:
            ValueError: An empty image, or a label that is neither the last one nor the next.
            OSError: The disk is full; the writer may be resumed.
        """
        identities = len(self._first_keys)
        number = label - self.first_label
        if number not in (identities - 1, identities) or number < 0:
            raise ValueError(
                f'RecordWriter: label {label} after {identities} identities. Write the images identity by identity, '
                f'with labels {self.first_label}, {self.first_label + 1}, ….'
            )
        if not image:
            raise ValueError(f'RecordWriter: image {self.count + 1} is empty. Leave it out.')
        key = self.count + 1
        self._frame(key, IMAGE_HEADER.pack(0, label, key, 0) + image)
        if number == identities:
            self._first_keys.append(key)
        self.count = key
        return key

    def flush(self) -> None:
        """Hands everything written so far to the system, the index last."""
        self._rec.flush()
        self._idx.flush()

    def truncate(self, count: int) -> None:
        """Drops every image after the first `count`.

        Raises:
            ValueError: Fewer were written: the partial files are damaged, as a power cut may leave them.
        """
        if count > self.count:
            raise ValueError(
                f'{self._partials[0]} is damaged: it holds {self.count} of {count} images. Delete its folder and start '
                'again.'
            )
        self.flush()
        lines = self._partials[1].read_bytes().split(b'\n')[: count + 2]
        offset = int(lines[-1].split(b'\t')[1]) if count < self.count else self._end
        index = b''.join(line + b'\n' for line in lines[: count + 1])
        for file, end in ((self._rec, offset), (self._idx, len(index))):
            file.seek(end)
            file.truncate()
        self._first_keys = [key for key in self._first_keys if key <= count]
        self.count, self._end = count, offset

    def close(self) -> None:
        """Writes the identities' ranges, the header and `property`, and gives the files their names.

        Raises:
            ValueError: Nothing was written.
        """
        if not self.count:
            self.abandon()
            raise ValueError(f'RecordWriter: no image was written to {self.path}. A record file needs one at least.')
        end = self.count + 1
        starts = [*self._first_keys, end]
        for number, (first, last) in enumerate(zip(starts[:-1], starts[1:], strict=True)):
            self._frame(end + number, RANGE.pack(2, 0, end + number, 0, first, last))
        identities = len(self._first_keys)
        self._rec.seek(8)
        self._rec.write(RANGE.pack(2, 0, 0, 0, end, end + identities))
        for file in (self._rec, self._idx):
            file.flush()
            os.fsync(file.fileno())
            file.close()
        height, width = self.size
        self._partials[2].write_text(f'{identities},{height},{width}\n')
        for partial, final in zip(reversed(self._partials), reversed(self._finals), strict=True):
            partial.replace(final)  # the .rec last: where it is, all is

    def abandon(self) -> None:
        """Closes the partial files as they are."""
        for file in (self._rec, self._idx):
            try:
                file.close()
            except OSError:  # what could not be flushed before cannot be now
                pass

    def __enter__(self) -> 'RecordWriter':
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        try:
            if kind is None:
                self.close()
        finally:
            self.abandon()

    def _frame(self, key: int, data: bytes) -> None:
        """Appends a record and its line of the index; parts end where the magic stands aligned in the data."""
        cuts = [match.start() for match in MAGIC_PATTERN.finditer(data) if match.start() % 4 == 0]
        starts, ends = [0, *(cut + len(MAGIC) for cut in cuts)], [*cuts, len(data)]
        if len(data) > MAX_PART and max(end - start for start, end in zip(starts, ends)) > MAX_PART:
            raise ValueError(f'RecordWriter: record {key} has {len(data)} bytes; a part holds {MAX_PART} at most.')
        self._idx.write(b'%d\t%d\n' % (key, self._end))
        for number, (start, end) in enumerate(zip(starts, ends)):
            size = end - start
            flag = WHOLE if not cuts else FIRST if number == 0 else LAST if number == len(cuts) else MIDDLE
            self._rec.write(b'%b%b%b%b' % (MAGIC, PART.pack(flag << 29 | size), data[start:end], bytes(-size % 4)))
            self._end += 8 + size + -size % 4

    def _restore(self) -> None:
        """Takes up the whole images of the partial files and cuts off what follows them."""
        size = self._partials[0].stat().st_size
        records = RecordFile(self._partials[0])
        whole, end, index = 0, 0, 0
        for line in self._idx.read().split(b'\n')[:-1]:
            key, offset = map(int, line.split(b'\t'))
            if key != whole or offset != end or offset + 8 > size:
                break
            try:
                after = records.end(key, offset)
                flag, label, *_ = IMAGE_HEADER.unpack_from(records.read(key, offset, IMAGE_HEADER.size))
            except ValueError:  # cut off
                break
            if after > size or (key and flag):  # cut off, or a range of an identity: `close` was interrupted
                break
            if key and label == self.first_label + len(self._first_keys):
                self._first_keys.append(key)
            whole, end, index = key + 1, after, index + len(line) + 1
        if not whole:
            raise ValueError(f'{self._partials[0]} is damaged. Delete it and start again.')
        for file, position in ((self._rec, end), (self._idx, index)):
            file.seek(position)
            file.truncate()
        self.count, self._end = whole - 1, end
