"""Sets that long work writes: under another name until they are complete, so that it can be interrupted and go on."""

import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from tqdm import tqdm

from ..whole_file import whole_file

if TYPE_CHECKING:
    from .face_source import FaceSource

SETTINGS = 'settings.json'
LOCK = 'lock'


class PartialFolder:
    """`OUT.partial`, which becomes `OUT` when everything is written, and `OUT.private` beside it, for the owner alone.

    How far the work is stands in `OUT.private` (`settings.json` and the caller's `RowLog`), so that one renaming
    completes `OUT`. One process at a time works on it.

    Args:
        out: The folder to write.
        settings: What decides about its content, as JSON holds it, or what gives that, called when nothing else stands
            in the way; work goes on only with the same.
        table: Name of the owner's table that is written to `OUT.private` last and belongs to a complete `OUT`: it is
            never replaced. None where there is no such table.
        accept_complete: An `out` that was made with the same settings is no error.

    Attributes:
        path: `OUT.partial`.
        private: `OUT.private`, of mode 0700 where it is made here.
        begun: Whether earlier work goes on.
        complete: Whether `out` is there already.

    Raises:
        FileExistsError: `out`, a partial folder with other settings or of other origin, or the table of an `out` that
            was moved away exists, or another process is at work.
    """

    def __init__(
        self,
        out: str | Path,
        settings: dict | Callable[[], dict],
        table: str | None = None,
        accept_complete: bool = False,
    ) -> None:
        self.out = Path(out)
        self.path, self.private = (self.out.with_name(f'{self.out.name}.{kind}') for kind in ('partial', 'private'))
        file = self.private / SETTINGS
        self._table = None if table is None else self.private / table
        self._look(accept_complete)  # what is refused leaves nothing behind
        self.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = lock_folder(self.private)
        self._look(accept_complete)  # another process may have been at work until now
        settings = settings() if callable(settings) else settings
        if self.begun or self.complete:
            self._compare(json.loads(file.read_text(encoding='utf-8')), json.loads(json.dumps(settings)))
        if self.complete:
            shutil.rmtree(self.path, ignore_errors=True)  # where `finish` was interrupted
        elif not self.begun:
            with whole_file(file, 'x', private=True) as handle:  # on the disk before any of the content
                handle.write(json.dumps(settings))
            self.path.mkdir(exist_ok=True)

    def _look(self, accept_complete: bool) -> None:
        """How far the work is; refuses what is not of this origin."""
        self.complete = self.out.exists()
        if self.complete and not accept_complete:
            raise FileExistsError(
                f'{self.out} exists already. Name another folder, or delete it and {self.private.name}.'
            )
        self.begun = not self.complete and self.path.exists() and any(self.path.iterdir())
        file = self.private / SETTINGS
        if (self.begun or self.complete) and not file.is_file():
            fault = f'{self.path} holds something else' if self.begun else f'{self.out} exists, and {file} does not'
            raise FileExistsError(f'{fault}. Name another folder, or move it away.')
        if self._table is not None and self._table.exists() and not self.begun and not self.complete:
            raise FileExistsError(
                f'{self._table} belongs to what is not at {self.out} any more, and may be its only copy. Move '
                f'{self.private} to where that is, or delete it; or name another folder.'
            )

    def _compare(self, before: dict, now: dict) -> None:
        changed = [f'{key}: {then} then, {new} now' for key, (then, new) in differences(before, now).items()]
        if changed:
            place, verb = (self.out, 'made') if self.complete else (self.path, 'begun')
            raise FileExistsError(
                f'{place} was {verb} with other settings: {"; ".join(changed)}. Delete it to start anew, name another '
                'folder, or give the settings of then.'
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Says of a full disk, and of the like, where it happened and how to go on.

        Raises:
            OSError: As the block raised it, with that said.
        """
        with resumable_writing(self.path):
            yield

    def log(self, name: str, header: Sequence[str]) -> 'RowLog':
        """A table in `OUT.private` that grows with the work; a new one where no earlier work goes on."""
        if not self.begun:
            (self.private / name).unlink(missing_ok=True)
        return RowLog(self.private / name, header)

    def finish(self, content: Path | None = None) -> None:
        """Gives the folder its name, once all of it is on the disk.

        Args:
            content: A folder in it that holds all of `out`, in its place; the rest is removed.
        """
        os.sync()  # a power cut must not leave a set that has its name, and not its content
        (content or self.path).rename(self.out)
        if content is not None:
            shutil.rmtree(self.path)
        self.close()

    def close(self) -> None:
        """Lets another process work on it."""
        (self.private / LOCK).unlink(missing_ok=True)
        self._lock.close()


def lock_folder(folder: Path) -> TextIO:
    """A file in a folder that this process alone holds until it closes it or ends, and processes that it forks do not.

    Raises:
        FileExistsError: Another process holds it.
    """
    path = folder / LOCK
    while True:
        file = _open_private(path, 'a')
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:  # the process that held it removed it between the two, so it is no lock any more
            pass
        except BlockingIOError:
            file.close()
            raise FileExistsError(f'Another process is at work on {path.parent}. Wait for it, or end it.') from None
        file.close()


@contextmanager
def resumable_writing(place: Path) -> Iterator[None]:
    """Says of a full disk, and of the like, where it happened and that the same command goes on.

    Args:
        place: What is written.

    Raises:
        OSError: As the block raised it, with that said.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f'{error.strerror or error} (while writing {place}). What is finished is kept: free some space, and the '
            'same command goes on.',
        ) from error


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


def differences(before: dict, now: dict) -> dict[str, tuple]:
    """Both values of each key in which settings differ; None of one that is absent."""
    keys = sorted({*before, *now})
    return {key: (before.get(key), now.get(key)) for key in keys if before.get(key) != now.get(key)}


def sha256_file(path: str | Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def faces_digest(source: 'FaceSource', indices: Iterable[int] | None = None) -> str:
    """SHA-256 of faces in their order: keys, whom they show, and stored bytes, all of which are read.

    Args:
        source: The set.
        indices: Which of its faces; None for all.
    """
    digest = hashlib.sha256()
    places = range(len(source)) if indices is None else indices
    for i in tqdm(places, f'look at {source.path.name}', unit='face', mininterval=1, delay=2):
        label = int(source.labels[i])
        try:
            data = hashlib.sha256(source.read(i)).hexdigest()
        except (OSError, ValueError):  # whoever needs the face says what is wrong with it
            data = 'unreadable'
        digest.update(json.dumps([source.keys[i], source.identities[label] if label >= 0 else None, data]).encode())
    return digest.hexdigest()


def keys_digest(keys: Iterable[str]) -> str:
    """SHA-256 of image keys in their order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f'{key}\n'.encode())
    return digest.hexdigest()
