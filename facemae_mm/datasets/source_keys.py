"""The owner's table that says which original image each image of a prepared set is."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .recordio import ProcessFile

TABLE = 'keys.csv'
COLUMNS = ['key', 'source_key']


class SourceKeys(Sequence):
    """Original image keys, by the place of an image in a prepared set.

    The table is a CSV of `key,source_key`: a row for each image of the set, in the order of its
    keys. Rows are read when asked for, from any process; only their places are kept (8 bytes each).

    Args:
        path: The table.
        own: The set's own keys.

    Raises:
        ValueError: Another header, or another number of rows than the set has images.
    """

    def __init__(self, path: str | Path, own: Sequence[str]) -> None:
        self.own = own
        self._file = ProcessFile(path)
        header = f'{",".join(COLUMNS)}\n'.encode()
        ends, size = [], 0
        with self._file.path.open('rb') as file:
            while block := file.read(1 << 24):
                ends.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord('\n')) + size)
                size += len(block)
        ends = np.concatenate(ends) if ends else np.empty(0, np.int64)
        if self._file.read_at(0, len(header)) != header or len(ends) != len(own) + 1 or ends[-1] + 1 != size:
            raise ValueError(
                f'{path} is no table of {",".join(COLUMNS)} with a row for each of {len(own)} images: it has '
                f'{max(len(ends) - 1, 0)}. Copy it again, or move it away: images then have the keys of the set itself.'
            )
        self._starts = ends + 1

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, index: int | slice) -> 'str | list[str]':
        """One original key, or a list for a slice.

        Raises:
            ValueError: The row is damaged, belongs to another image, or holds what can be no key of an image.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = self._starts[index], self._starts[index + 1]
        line = self._file.read_at(int(start), int(end - start))
        try:
            key, source_key = next(csv.reader([line.decode()]))
        except (ValueError, csv.Error, StopIteration):
            key = None
        if key != self.own[index]:
            raise ValueError(
                f'{self._file.path}, line {index + 2}: {line[:80]!r} is no row key,source_key of image '
                f'{self.own[index]}. Copy the table that belongs to the set, or move it away.'
            )
        fault = key_fault(source_key)
        if fault:
            raise ValueError(
                f'{self._file.path}, line {index + 2}: source_key {source_key[:200]!r} {fault}, and keys become names '
                'of files. Get the table from whom you trust, or move it away: images then have the keys of the set '
                'itself.'
            )
        return source_key


def key_fault(key: str) -> str | None:
    """What keeps an image key from naming a file within a folder, whatever the folder; None where nothing does."""
    if {'', '.', '..'} & set(key.split('/')):  # of an absolute path, the first part is empty
        return 'is no plain path below a folder'
    if '\\' in key:
        return 'holds a backslash'
    return None if key.isprintable() else 'is no readable Unicode'


def find_table(folder: Path) -> Path | None:
    """Where the table of a set lies: in its folder, or in `FOLDER.private`, which its owner keeps."""
    private = folder.with_name(f'{folder.name}.private')
    return next((table for place in (folder, private) if (table := place / TABLE).is_file()), None)
