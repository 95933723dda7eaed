"""Files that appear under their name only when they are complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

#: What the name of a file ends with until it is complete.
PARTIAL = '.partial'


@contextmanager
def whole_file(path: Path, mode: str = 'xb', private: bool = False) -> Iterator[IO]:
    """Opens a file to write, which takes the place of an older one when the block ends without error.

    Its bytes are on the disk before it has its name, and the name before this returns, so that a process that is
    killed or a machine that loses power leaves the old file or the new one.

    Args:
        path: Its name; `path` + '.partial' until then.
        mode: 'xb', or 'x' for text in UTF-8 without translated line ends.
        private: The owner alone may read it (mode 0600).
    """
    draft = path.with_name(path.name + PARTIAL)
    draft.unlink(missing_ok=True)
    text = {} if 'b' in mode else dict(newline='', encoding='utf-8')
    rights = 0o600 if private else 0o666
    try:
        with open(draft, mode, opener=lambda name, flags: os.open(name, flags, rights), **text) as file:
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
