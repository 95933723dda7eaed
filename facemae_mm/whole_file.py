"""Files that appear under their name only when they are complete."""

import fcntl
import glob
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO

#: What the name of a file ends with until it is complete.
PARTIAL = '.partial'

#: Such a name: that of the file, the writer's process, and what tells its drafts apart.
DRAFT = re.compile(rf'(.+)\.\d+-[0-9a-f]{{16}}{re.escape(PARTIAL)}', re.DOTALL)


@contextmanager
def whole_file(path: Path, mode: str = 'xb', private: bool = False) -> Iterator[IO]:
    """Opens a file to write, which takes the place of an older one when the block ends without error.

    Its bytes are on the disk before it has its name, and the name before this returns, so that a process that is
    killed or a machine that loses power leaves the old file or the new one. Of several that write it at once, each
    has a draft of its own, and the last one to end counts. What killed ones left of theirs is removed.

    Args:
        path: Its name; `path` + '.NUMBERS.partial' until then.
        mode: 'xb', or 'x' for text in UTF-8 without translated line ends.
        private: The owner alone may read it (mode 0600).
    """
    sweep_drafts(path.parent, glob.escape(path.name))
    draft, file = _open_draft(path, mode, 0o600 if private else 0o666)
    try:
        with file:  # named before it is closed, which ends the lock
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)  # of a full disk it would keep what the next try needs
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def sweep_drafts(folder: Path, names: str) -> list[Path]:
    """Removes the drafts of writers that ended, whatever machine they ran on; where files cannot be locked, none.

    Args:
        folder: Where they lie.
        names: Pattern of the files that they were to become, as of `fnmatch`.

    Returns:
        What was removed.
    """
    removed = []
    for name in os.listdir(folder):
        found = DRAFT.fullmatch(name)
        if found is None or not fnmatchcase(found[1], names):
            continue
        path = folder / name
        with suppress(OSError):  # it is being written, is complete by now, or is another user's
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed.append(path)
            finally:
                os.close(file)
    return removed


def _open_draft(path: Path, mode: str, rights: int) -> tuple[Path, IO]:
    """A new draft of a file, which this process holds until it closes it or ends."""
    text = {} if 'b' in mode else dict(newline='', encoding='utf-8')
    while True:
        draft = path.with_name(f'{path.name}.{os.getpid()}-{secrets.token_hex(8)}{PARTIAL}')
        file = open(draft, mode, opener=lambda name, flags: os.open(name, flags, rights), **text)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if draft.exists():  # else another process swept it before it was locked
            return draft, file
        file.close()
