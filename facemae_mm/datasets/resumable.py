"""Sets that long work writes: under another name until they are complete, so that it can be interrupted and go on."""

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

SETTINGS = 'settings.json'


class PartialFolder:
    """`OUT.partial`, which becomes `OUT` when everything is written, and `OUT.private` beside it, for the owner alone.

    Args:
        out: The folder to write.
        settings: What decides about its content, as JSON holds it; work goes on only with the same.

    Attributes:
        path: `OUT.partial`.
        private: `OUT.private`; made by `write_private`.

    Raises:
        FileExistsError: `out`, or a partial folder with other settings or of other origin, exists.
    """

    def __init__(self, out: str | Path, settings: dict) -> None:
        self.out = Path(out)
        self.path, self.private = (self.out.with_name(f'{self.out.name}.{kind}') for kind in ('partial', 'private'))
        if self.out.exists():
            raise FileExistsError(f'{self.out} exists already. Name another folder, or delete it.')
        file = self.path / SETTINGS
        draft = file.with_suffix('.tmp')
        if file.is_file():
            before, now = json.loads(file.read_text(encoding='utf-8')), json.loads(json.dumps(settings))
            changed = [f'{key}: {before.get(key)} then, {now[key]} now' for key in now if before.get(key) != now[key]]
            if changed:
                raise FileExistsError(
                    f'{self.path} was begun with other settings: {"; ".join(changed)}. Delete it to start anew, or '
                    'give the settings of then.'
                )
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if any(path != draft for path in self.path.iterdir()):
            raise FileExistsError(f'{self.path} holds something else. Name another folder, or move it away.')
        draft.write_text(json.dumps(settings), encoding='utf-8')
        draft.replace(file)

    def write_private(self, name: str, rows: Iterable[Sequence]) -> None:
        """Writes a table that only the owner can read (mode 0600, in a folder of mode 0700)."""
        self.private.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self.private / f'{name}.tmp'
        draft.unlink(missing_ok=True)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, 'w', newline='', encoding='utf-8') as file:
            csv.writer(file, lineterminator='\n').writerows(rows)
        draft.replace(self.private / name)

    def finish(self) -> None:
        """Gives the folder its name."""
        (self.path / SETTINGS).unlink()
        self.path.rename(self.out)


class RowLog:
    """A table that grows by whole rows; a last line that was cut off is dropped when it is opened again.

    Args:
        path: The CSV, without a header.

    Attributes:
        rows: What it holds so far.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        text = self.path.read_bytes() if self.path.exists() else b''
        whole = text[: text.rfind(b'\n') + 1]
        if len(whole) < len(text):
            self.path.write_bytes(whole)
        self.rows = list(csv.reader(whole.decode().splitlines()))
        self._file = None

    def append(self, row: Sequence) -> None:
        """Adds a row, whose fields hold no line breaks, and hands it to the system."""
        if self._file is None:
            self._file = self.path.open('a', newline='', encoding='utf-8')
            self._writer = csv.writer(self._file, lineterminator='\n')
        self._writer.writerow([' '.join(str(field).splitlines()) for field in row])
        self._file.flush()
        self.rows.append([' '.join(str(field).splitlines()) for field in row])

    def close(self) -> None:
        """Closes the file; rows can still be read."""
        if self._file is not None:
            self._file.close()
            self._file = None


def keys_digest(keys: Iterable[str]) -> str:
    """SHA-256 of image keys in their order."""
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f'{key}\n'.encode())
    return digest.hexdigest()
