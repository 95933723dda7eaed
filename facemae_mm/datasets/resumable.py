"""Sets that long work writes: under another name until they are complete, so that it can be interrupted and go on."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ..whole_file import whole_file

SETTINGS = 'settings.json'


class PartialFolder:
    """`OUT.partial`, which becomes `OUT` when everything is written, and `OUT.private` beside it, for the owner alone.

    How far the work is stands in `OUT.private` (`settings.json` and the caller's `RowLog`), so that one renaming
    completes `OUT`.

    Args:
        out: The folder to write.
        settings: What decides about its content, as JSON holds it; work goes on only with the same.

    Attributes:
        path: `OUT.partial`.
        private: `OUT.private`, of mode 0700 where it is made here.
        begun: Whether earlier work goes on.

    Raises:
        FileExistsError: `out`, or a partial folder with other settings or of other origin, exists.
    """

    def __init__(self, out: str | Path, settings: dict) -> None:
        self.out = Path(out)
        self.path, self.private = (self.out.with_name(f'{self.out.name}.{kind}') for kind in ('partial', 'private'))
        file = self.private / SETTINGS
        if self.out.exists():
            raise FileExistsError(f'{self.out} exists already. Name another folder, or delete it.')
        self.begun = self.path.exists() and any(self.path.iterdir())
        if self.begun:
            if not file.is_file():
                raise FileExistsError(f'{self.path} holds something else. Name another folder, or move it away.')
            before, now = json.loads(file.read_text(encoding='utf-8')), json.loads(json.dumps(settings))
            changed = [f'{key}: {before.get(key)} then, {now[key]} now' for key in now if before.get(key) != now[key]]
            if changed:
                raise FileExistsError(
                    f'{self.path} was begun with other settings: {"; ".join(changed)}. Delete it to start anew, or '
                    'give the settings of then.'
                )
            return
        self.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _open_private(file, 'w') as handle:
            handle.write(json.dumps(settings))
        self.path.mkdir(exist_ok=True)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Says of a full disk, and of the like, where it happened and how to go on.

        Raises:
            OSError: As the block raised it, with that said.
        """
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f'{error.strerror or error} (while writing {self.path}). What is finished is kept: free some space, '
                'and the same command goes on.',
            ) from error

    def log(self, name: str, header: Sequence[str]) -> 'RowLog':
        """A table in `OUT.private` that grows with the work; a new one where no earlier work goes on."""
        if not self.begun:
            (self.private / name).unlink(missing_ok=True)
        return RowLog(self.private / name, header)

    def finish(self) -> None:
        """Gives the folder its name."""
        self.path.rename(self.out)


class RowLog:
    """A table that grows by whole rows; a last line that was cut off is dropped when it is opened again.

    Args:
        path: The CSV; made with the first row, for its owner alone.
        header: Its columns.

    Attributes:
        rows: What it holds so far, without the header.
    """

    def __init__(self, path: Path, header: Sequence[str]) -> None:
        self.path = path
        self.header = list(header)
        text = path.read_bytes() if path.exists() else b''
        whole = text[: text.rfind(b'\n') + 1]
        if len(whole) < len(text):
            path.write_bytes(whole)
        self.rows = list(csv.reader(whole.decode().splitlines()))[1:]
        self._writer = None
        self._has_header = bool(whole)

    def append(self, row: Sequence) -> None:
        """Adds a row and hands it to the system. Line breaks within its fields become blanks."""
        if self._writer is None:
            self._file = _open_private(self.path, 'a')
            self._writer = csv.writer(self._file, lineterminator='\n')
            if not self._has_header:
                self._writer.writerow(self.header)
        self.rows.append([' '.join(str(field).splitlines()) for field in row])
        self._writer.writerow(self.rows[-1])
        self._file.flush()


def _open_private(path: Path, mode: str) -> TextIO:
    """A text file of mode 0600."""
    return open(path, mode, newline='', encoding='utf-8', opener=lambda name, flags: os.open(name, flags, 0o600))


def write_private(path: Path, rows: Iterable[Sequence]) -> None:
    """Writes a table that only the owner can read: mode 0600, in a folder of mode 0700 where it makes one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with whole_file(path, 'x', private=True) as file:
        csv.writer(file, lineterminator='\n').writerows(rows)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def keys_digest(keys: Iterable[str]) -> str:
    """SHA-256 of image keys in their order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f'{key}\n'.encode())
    return digest.hexdigest()
