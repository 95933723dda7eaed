"""Five points of each face, from the table beside a set."""

import csv
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .source_keys import SourceKeys

if TYPE_CHECKING:
    from .face_source import FaceSource

TABLE = 'landmarks5.csv'
COLUMNS = ('path', 'lex', 'ley', 'rex', 'rey', 'nx', 'ny', 'lmx', 'lmy', 'rmx', 'rmy')


def find_landmarks(path: str | Path) -> Path | None:
    """The table of a set: `landmarks5.csv` in its folder (that of its .rec), or `NAME.landmarks5.csv` beside it."""
    path = Path(path).absolute()
    folder = path if path.is_dir() else path.parent
    places = folder / TABLE, path.with_name(f'{path.name}.{TABLE}'), path.with_name(f'{path.stem}.{TABLE}')
    return next((place for place in places if place.is_file()), None)


def landmarks_digest(landmarks: np.ndarray | None) -> str | None:
    """SHA-256 of the points of a set, (N, 5, 2); None of none."""
    return None if landmarks is None else hashlib.sha256(landmarks.reshape(-1)).hexdigest()


def read_landmarks(source: 'FaceSource') -> np.ndarray | None:
    """The five points of each face of a `FaceSource`.

    Args:
        source: The set; its table's `path` is the set's own key, with any extension or none.

    Returns:
        (N, 5, 2) float32, pixels (x, y) of the stored face, NaN where the table has no row; None where the set has no
        table.

    Raises:
        ValueError: Another header, a row twice, values that are no finite numbers, or rows of none of its faces.
    """
    table = find_landmarks(source.path)
    if table is None:
        return None
    own = source.keys.own if isinstance(source.keys, SourceKeys) else source.keys
    index = {key: i for i, key in enumerate(own)}
    points = np.full((len(source), 5, 2), np.nan, np.float32)
    number = 1
    try:
        with table.open(newline='', encoding='utf-8') as file:
            rows = csv.reader(file)
            if tuple(next(rows, ())) != COLUMNS:
                raise ValueError(f'its first line is not {",".join(COLUMNS)}')
            for number, row in enumerate(rows, 2):
                place = index.get(row[0], index.get(row[0].rpartition('.')[0])) if len(row) == len(COLUMNS) else None
                try:
                    values = np.array(row[1:], float).reshape(5, 2)
                    fault = len(row) != len(COLUMNS) or not (np.abs(values) < 1e6).all()
                except ValueError:
                    fault = True
                if fault:
                    raise ValueError(f'line {number} does not hold a path and ten finite numbers')
                if place is None:  # a face that the set has no longer
                    continue
                if not np.isnan(points[place, 0, 0]):
                    raise ValueError(f'line {number}: {row[0]} stands there twice')
                points[place] = values
            if number > 1 and np.isnan(points[:, 0, 0]).all():
                raise ValueError(f'none of its {number - 1} paths is one of the set, such as {own[0]}')
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f'{table} is no table of landmarks: {error}. Write it anew, or move it away: masks then follow the '
            'template.'
        ) from error
    return points
