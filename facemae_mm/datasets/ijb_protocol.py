"""The official lists of IJB-B and IJB-C: which image belongs to which template, what is compared with what."""

import csv
import re
import warnings
from array import array
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np

#: End of the name of the list of faces, by which a folder is known; what stands before is 'ijbb' or 'ijbc'.
FACES = '_name_5pts_score.txt'

#: Galleries of the 1:N lists, as each set calls them.
GALLERIES = dict(ijbb=('S1', 'S2'), ijbc=('G1', 'G2'))

#: Lines of the list of pairs that are read at once.
CHUNK = 1 << 20

#: Template, media and subject ids lie below.
MAX_ID = 1 << 31

REMEDY = 'Copy the list anew from where you have the set'


def is_ijb(path: str | Path) -> bool:
    """Whether a path is a folder of IJB-B or IJB-C, told by the list of faces in its meta/."""
    return next(Path(path).glob(f'meta/ijb[bc]{FACES}'), None) is not None


class IJBProtocol:
    """Templates, media, pairs, galleries and probes of IJB-B or IJB-C, from the lists in FOLDER/meta.

    With `ijbc` or `ijbb` for ijb?, as InsightFace publishes them beside the licensed images:

    - `ijb?_name_5pts_score.txt`: image, x and y of the five points, the detector's score; a line for each face;
    - `ijb?_face_tid_mid.txt`: image, template, medium (a photograph, or the video that a frame is of), in that order;
    - `ijb?_template_pair_label.txt`: template, template, 1 (one person) or 0: the pairs of 1:1;
    - `ijbc_1N_gallery_G1.csv`, `…_G2.csv` (`S1` and `S2` of IJB-B), `ijb?_1N_probe_mixed.csv`: a line that names the
      columns, then template, subject and whatever else: 1:N. A template may stand in several lines, one an image.

    The lists of faces and templates are read at once, the others when they are asked for.

    Args:
        path: The folder that holds meta/.

    Attributes:
        path: The folder.
        name: 'ijbb' or 'ijbc'.
        images: File name of each face, N.
        points: Left eye, right eye, nose, left and right mouth corner, (N, 5, 2) float32, pixels (x, y) of the image.
        scores: Of the detector, (N,) float32, at least 0.
        template_ids: As the lists have them, (T,) int64, ascending.
        templates: Template of each face, (N,) int64 in 0 … T − 1.
        media: Medium id of each face, (N,) int64; one id in two templates is two media.

    Raises:
        FileNotFoundError: A list is missing.
        ValueError: No folder of IJB-B or IJB-C; a line of another shape; a number that is not finite; points that
            coincide; an image that stands twice; lists that name other images than one another.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        found = sorted(self.path.glob(f'meta/ijb[bc]{FACES}'))
        if len(found) != 1:
            names = ' and '.join(file.name for file in found) or 'no'
            raise ValueError(
                f'{self.path} is no folder of IJB-B or IJB-C: it has {names} list meta/ijb?{FACES}, and needs one. '
                'Give the folder IJBB or IJBC itself, with loose_crop/ and meta/ in it.'
            )
        self.name = found[0].name.removesuffix(FACES)
        self.images, self.points, self.scores = _read_faces(found[0])
        templates, self.media = self._read_templates()
        self.template_ids, self.templates = np.unique(templates, return_inverse=True)

    def _list(self, name: str) -> Path:
        path = self.path / 'meta' / f'{self.name}_{name}'
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist. {REMEDY}; its name must be exactly this.')
        return path

    def _read_templates(self) -> tuple[np.ndarray, np.ndarray]:
        path = self._list('face_tid_mid.txt')
        rows = np.empty((len(self.images), 2), np.int64)
        number = 0
        for number, fields in _lines(path):
            name = self.images[number - 1] if number <= len(self.images) else 'none, as it ends before'
            if len(fields) != 3 or (ids := _ids(fields[1:])) is None:
                raise ValueError(f'{path}, line {number}: not an image, a template and a medium. {REMEDY}.')
            if fields[0] != name:
                raise ValueError(
                    f'{path}, line {number}: image {fields[0]}, but line {number} of {self.name}{FACES} has {name}. '
                    f'The lists go line by line. {REMEDY}, both from one place.'
                )
            rows[number - 1] = ids
        if number < len(self.images):
            raise ValueError(
                f'{path} ends behind line {number}; {self.name}{FACES} has {len(self.images)}. {REMEDY}, both from '
                'one place.'
            )
        return rows[:, 0], rows[:, 1]

    @property
    def has_pairs(self) -> bool:
        """Whether the list of 1:1 is there."""
        return (self.path / 'meta' / f'{self.name}_template_pair_label.txt').is_file()

    @property
    def has_search(self) -> bool:
        """Whether any list of 1:N is there."""
        return next(self.path.glob(f'meta/{self.name}_1N_*.csv'), None) is not None

    def read_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The pairs of 1:1, in the order of their list.

        A pair that stands in several lines counts as often, as in InsightFace's evaluation.

        Returns:
            First and second template, (P,) int32 in 0 … T − 1 each, and whether they are one person, (P,) bool.

        Raises:
            FileNotFoundError: The list is missing.
            ValueError: A line of another shape, a template that no face belongs to, a pair that is one person in one
                line and two in another, or pairs of one kind only.
        """
        path = self._list('template_pair_label.txt')
        first, second, same = [], [], []
        for start, rows in _number_chunks(path):
            if (wrong := (rows[:, 2] != 0) & (rows[:, 2] != 1)).any():
                _refuse_line(path, start + int(wrong.argmax()), 'the label is neither 1 (one person) nor 0')
            pair = np.minimum(np.searchsorted(self.template_ids, rows[:, :2]), len(self.template_ids) - 1)
            if (unknown := (self.template_ids[pair] != rows[:, :2]).any(1)).any():
                _refuse_line(path, start + int(unknown.argmax()), f'no face of {self.name}_face_tid_mid.txt is of it')
            first.append(pair[:, 0].astype(np.int32))
            second.append(pair[:, 1].astype(np.int32))
            same.append(rows[:, 2] == 1)
        first, second, same = (np.concatenate(part) if part else np.empty(0, int) for part in (first, second, same))
        if not same.any() or same.all():
            raise ValueError(f'{path}: {len(same)} pairs, {int(same.sum())} of one person. {REMEDY}: both kinds count.')
        self._check_labels(path, first, second, same)
        return first, second, same

    def _check_labels(self, path: Path, first: np.ndarray, second: np.ndarray, same: np.ndarray) -> None:
        def key(pairs: np.ndarray | slice) -> np.ndarray:
            a, b = first[pairs].astype(np.int64), second[pairs].astype(np.int64)
            return np.minimum(a, b) * len(self.template_ids) + np.maximum(a, b)

        genuine = np.unique(key(same))
        for start in range(0, len(same), CHUNK):
            part = slice(start, start + CHUNK)
            keys = key(part)
            place = np.minimum(np.searchsorted(genuine, keys), len(genuine) - 1)
            if (contrary := (genuine[place] == keys) & ~same[part]).any():
                reason = 'another line has the same two templates with label 1'
                _refuse_line(path, start + int(contrary.argmax()), reason)

    def read_search(self) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], tuple[np.ndarray, np.ndarray]]:
        """The galleries and the probes of 1:N.

        Returns:
            Galleries by name ('G1' and 'G2', or 'S1' and 'S2'), and the probes. Each is templates (M,) int64 in
            0 … T − 1, ascending, and the subject id of each, (M,) int64.

        Raises:
            FileNotFoundError: A list is missing.
            ValueError: No line of columns, a line of another shape, a template that no face belongs to or that has two
                subjects, a subject with two templates in one gallery, or an empty list.
        """
        galleries = {}
        for name in GALLERIES[self.name]:
            path = self._list(f'1N_gallery_{name}.csv')
            templates, subjects = galleries[name] = self._read_subjects(path)
            values, counts = np.unique(subjects, return_counts=True)
            if (counts > 1).any():
                subject = values[counts.argmax()]
                of = self.template_ids[templates[subjects == subject][:2]]
                raise ValueError(
                    f'{path}: subject {subject} has the templates {of[0]} and {of[1]}; a gallery has one a subject. '
                    f'{REMEDY}.'
                )
        return galleries, self._read_subjects(self._list('1N_probe_mixed.csv'))

    def _read_subjects(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        index = {int(template): i for i, template in enumerate(self.template_ids)}
        subjects: dict[int, int] = {}
        with path.open(newline='', encoding='utf-8-sig') as file:
            rows = csv.reader(file)
            try:
                columns = next(rows, [])
                if len(columns) < 2 or _ids(columns[:1]) is not None:
                    raise ValueError('its first line must name the columns, template and subject first')
                for row in rows:
                    if not row:
                        continue
                    if (ids := _ids(row[:2])) is None or len(row) < 2:
                        raise ValueError('not a template and a subject')
                    template, subject = ids
                    if template not in index:
                        raise ValueError(f'template {template}: no face of {self.name}_face_tid_mid.txt is of it')
                    if subjects.setdefault(index[template], subject) != subject:
                        raise ValueError(f'template {template} is of subject {subject} here, of another before')
                if not subjects:
                    raise ValueError('it holds no template')
            except (ValueError, csv.Error) as error:
                raise ValueError(f'{path}, line {max(rows.line_num, 1)}: {error}. {REMEDY}.') from None
        templates = np.array(sorted(subjects), np.int64)
        return templates, np.array([subjects[template] for template in templates.tolist()], np.int64)


def _read_faces(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Images, points (N, 5, 2) and scores (N,)."""
    images: list[str] = []
    values = array('f')
    lines: dict[str, int] = {}
    for number, (image, *numbers) in _lines(path):
        try:
            row = [float(text) for text in numbers]
        except ValueError:
            row = []
        if len(row) != 11:
            raise ValueError(f'{path}, line {number}: not an image, ten coordinates and a score. {REMEDY}.')
        if not (all(-1e6 < value < 1e6 for value in row) and row[10] >= 0):  # NaN fails every comparison
            raise ValueError(
                f'{path}, line {number}: image {image} has a coordinate or a score that is no finite number, or a '
                f'negative score. {REMEDY}, or detect the face anew.'
            )
        if (first := lines.setdefault(image, number)) != number:
            raise ValueError(f'{path}, line {number}: image {image} stands in line {first} already. {REMEDY}.')
        images.append(image)
        values.extend(row)
    if not images:
        raise ValueError(f'{path} names no image. {REMEDY}.')
    table = np.array(values).reshape(-1, 11)
    points = table[:, :10].reshape(-1, 5, 2)
    if (point := (points == points[:, :1]).all((1, 2))).any():
        number = int(point.argmax())
        raise ValueError(f'{path}, line {number + 1}: the five points of image {images[number]} coincide. {REMEDY}.')
    return images, points, table[:, 10]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of each line, from 1, and its fields; blank ones are allowed at the end alone."""
    number, blank = 0, None
    try:
        with path.open(encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if fields and blank is None:
                    yield number, fields
                elif fields:
                    raise ValueError(f'{path}, line {blank}: it is blank. {REMEDY}.')
                else:
                    blank = blank or number
    except UnicodeDecodeError as error:
        raise ValueError(f'{path}, behind line {number}: no text in UTF-8 ({error.reason}). {REMEDY}.') from None


def _ids(fields: list[str]) -> list[int] | None:
    """Numbers from 0; None where one is none."""
    if not all(re.fullmatch('[0-9]{1,10}', field) for field in fields):
        return None
    ids = [int(field) for field in fields]
    return ids if max(ids) < MAX_ID else None


def _number_chunks(path: Path) -> Iterator[tuple[int, np.ndarray]]:
    """Lines of three whole numbers, many at a time: how many lines stand before them, and (n, 3) int64."""
    start = 0
    with path.open(encoding='ascii', errors='replace') as file:
        while lines := list(islice(file, CHUNK)):
            count = len(lines)
            while lines and not lines[-1].strip():
                lines.pop()
            if len(lines) < count and next(file, None) is not None:
                _refuse_line(path, start + len(lines), 'it is blank')
            rows = _numbers(lines)
            if rows.shape != (len(lines), 3):
                fields = [line.split() for line in lines]
                wrong = next((i for i, f in enumerate(fields) if len(f) != 3 or _ids(f) is None), 0)
                _refuse_line(path, start + wrong, 'not two templates and a label')
            yield start, rows
            start += count


def _numbers(lines: list[str]) -> np.ndarray:
    """Whole numbers of lines (n, k) int64; (0, 0) where they are none."""
    try:
        with warnings.catch_warnings(action='error'):  # numbers with a decimal point are read, with a warning
            return np.loadtxt(lines, np.int64, comments=None, ndmin=2) if lines else np.empty((0, 3), np.int64)
    except (ValueError, OverflowError, Warning):
        return np.empty((0, 0))


def _refuse_line(path: Path, index: int, reason: str) -> NoReturn:
    """Raises with the line `index`, counted from 0."""
    with path.open(encoding='ascii', errors='replace') as file:
        line = next(islice(file, index, None), '').rstrip('\n')
    raise ValueError(f'{path}, line {index + 1} ({line[:60]!r}): {reason}. {REMEDY}.')
