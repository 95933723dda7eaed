"""From a set of photographs, or of aligned faces in another format, to a set of aligned faces."""

import csv
import io
import json
import re
import struct
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from .face_detection import FaceDetector, choose_face, crop_face
from .face_source import FaceSource
from .landmarks import COLUMNS as LANDMARK_COLUMNS
from .landmarks import TABLE as LANDMARKS
from .landmarks import read_landmarks
from .load_face import FORMATS, MAX_PIXELS, MAX_TAGS, LoadFace, decode_face, num_tags
from .masked_dataset import MaskedSource
from .ordered_work import in_order
from .recordio import RecordWriter
from .resumable import PartialFolder, RowLog, faces_digest, write_private
from .source_keys import COLUMNS as KEY_COLUMNS
from .source_keys import TABLE as KEYS
from .source_keys import key_fault
from .verification_bin import VerificationBin

REPORT = 'report.json'
PRIVATE_REPORT = 'report.csv'
RECORDS = 'train.rec'

#: What became of an image.
FACE, NO_FACE, UNREADABLE = 'face', 'no face', 'unreadable'

REPORT_COLUMNS = ['source_key', 'outcome', 'faces', 'score', 'border', 'traits', 'note', *LANDMARK_COLUMNS]

#: EXIF's number of the tag that says how a camera was held; 1 is upright.
ORIENTATION = 0x0112

#: JPEG's markers: any, any in compressed data, start of a scan, end of the picture; and those of segments that are the
#: picture: frames, tables, scans.
MARKER, IN_SCAN = re.compile(rb'\xff+[^\x00\xff]', re.DOTALL), re.compile(rb'\xff[^\x00\xd0-\xd7\xff]', re.DOTALL)
SCAN, END = 0xDA, 0xD9
PICTURE = frozenset({*range(0xC0, 0xD0), SCAN, 0xDB, 0xDD})

#: What says how the picture's values become colours and pixels, by marker: how it begins, how many of its bytes do
#: (JFIF's thumbnail comes after), and what then stands in place of the last of them (a thumbnail of 0 × 0).
MEANING = {0xE0: (b'JFIF\0', 14, bytes(2)), 0xEE: (b'Adobe', 12, b'')}

#: What a picture that cannot be read, found or cropped raises. No OSError: the detector's own models may be missing.
FAILURES = ValueError, MemoryError, cv2.error


@dataclass(frozen=True)
class Prepared:
    """What one image became.

    Attributes:
        outcome: `FACE`, `NO_FACE` or `UNREADABLE`.
        data: The encoded face.
        points: Its landmarks, (5, 2) pixels; None where unknown.
        faces: Faces found in the photograph; None where none were looked for.
        score: The detector's score of the face that was taken.
        border: Border with which it was found, as a fraction of the longer side.
        traits: 'rotated' (EXIF), 'grey', 'alpha', as far as they apply.
        note: Why there is no face.
    """

    outcome: str
    data: bytes = b''
    points: np.ndarray | None = None
    faces: int | None = None
    score: float | None = None
    border: float | None = None
    traits: tuple[str, ...] = ()
    note: str = ''


class FacePreparer:
    """One photograph to one encoded aligned face; runs in worker processes.

    Args:
        source: Photographs, or aligned faces.
        detector: Finds the faces; None takes them as aligned already: size × size, kept as they are stored.
        size: Side of a face, pixels.
        select: Which face of several, as `choose_face`.
        jpeg: Quality of JPEG, 1 to 100; None writes PNG.
        keep_metadata: Aligned faces keep EXIF and comments, byte for byte.
        on_error: 'raise', or 'skip' images that cannot be read.
    """

    def __init__(
        self,
        source: FaceSource,
        detector: FaceDetector | None,
        size: int = 112,
        select: str = 'central',
        jpeg: int | None = None,
        keep_metadata: bool = False,
        on_error: str = 'raise',
    ) -> None:
        self.source = source
        self.detector = detector
        self.size = size
        self.select = select
        self.jpeg = jpeg
        self.keep_metadata = keep_metadata
        self.on_error = on_error
        self.landmarks = read_landmarks(source) if detector is None else None

    def describe(self) -> dict:
        """What decides about the faces that are written."""
        detector = dict(detector=None) if self.detector is None else self.detector.describe()
        names = 'size', 'select', 'jpeg', 'keep_metadata'
        return detector | {name: getattr(self, name) for name in names}

    def __call__(self, image: int) -> Prepared:
        """The face of one image of the source.

        Raises:
            ValueError: It cannot be read or searched, unless `on_error` is 'skip'.
        """
        name = f'{self.source.path}:{self.source.keys[image]}'
        try:
            data = self.source.read(image)
            traits = image_traits(data)
            if self.detector is None:
                return self._keep(image, data, name, traits)
            photograph = decode_face(data, name)
            photograph = photograph[..., 0] if 'grey' in traits else photograph
        except (*FAILURES, OSError) as error:
            return self._unreadable(str(error), error)
        try:
            found = self.detector.find(photograph)
            if not found:
                return Prepared(NO_FACE, faces=0, traits=traits)
            chosen = choose_face(found, photograph.shape, self.select)
            face, points = crop_face(photograph, chosen.points, self.size)
            return Prepared(FACE, self._encode(face), points, len(found), chosen.score, chosen.border, traits)
        except FAILURES as error:
            height, width = photograph.shape[:2]
            note = f'{name}: no face can be looked for or cropped in {width}×{height} pixels: {error!r}.'
            return self._unreadable(note, error)

    def _unreadable(self, note: str, error: Exception) -> Prepared:
        if self.on_error == 'raise':
            raise ValueError(f'{note} Or leave out what cannot be read (--on-error skip).') from error
        return Prepared(UNREADABLE, note=note)

    def _keep(self, image: int, data: bytes, name: str, traits: tuple[str, ...]) -> Prepared:
        face = LoadFace(self.size)(dict(img_bytes=data, img_path=name))['img']
        points = None if self.landmarks is None else self.landmarks[image]
        points = None if points is None or np.isnan(points).any() else points
        if not self.keep_metadata:
            jpeg = data.startswith(b'\xff\xd8') and 'rotated' not in traits
            data = strip_jpeg(data) if jpeg else self._encode(face)
        return Prepared(FACE, data, points, traits=traits)

    def _encode(self, face: np.ndarray) -> bytes:
        options = [] if self.jpeg is None else [cv2.IMWRITE_JPEG_QUALITY, self.jpeg]
        return cv2.imencode('.png' if self.jpeg is None else '.jpg', face, options)[1].tobytes()


def image_traits(data: bytes) -> tuple[str, ...]:
    """What is particular about an encoded image: 'rotated' by EXIF, 'grey', 'alpha'; () where it cannot be told.

    Nothing is decoded, and nothing told of what `decode_face` refuses by its header.
    """
    try:
        if num_tags(data) > MAX_TAGS:
            return ()
        with Image.open(io.BytesIO(data), formats=FORMATS) as header:
            if header.width * header.height > MAX_PIXELS:
                return ()
            if 'exif' not in header.info and (exif := _png_exif(data)):
                header.info['exif'] = exif
            traits = dict(
                rotated=Image.Image.getexif(header).get(ORIENTATION, 1) in range(2, 9),
                grey=header.mode in ('1', 'L', 'LA', 'I', 'I;16', 'F'),
                alpha=header.mode in ('LA', 'RGBA', 'PA') or 'transparency' in header.info,
            )
    except Exception:  # decoding, which follows, says what is wrong
        return ()
    return tuple(name for name, there in traits.items() if there)


def _png_exif(data: bytes) -> bytes | None:
    """A PNG's EXIF, wherever it stands; PIL would decode the picture to look behind it."""
    place = 8
    while data.startswith(b'\x89PNG') and place + 8 <= len(data):
        size, kind = struct.unpack_from('>I4s', data, place)
        if kind == b'eXIf':
            return b'Exif\0\0' + data[place + 8 : place + 8 + size]
        place += size + 12
    return None


def strip_jpeg(data: bytes) -> bytes:
    """A JPEG without EXIF, comments, thumbnails, other metadata and what follows the picture, whose bytes stay.

    Raises:
        ValueError: Its segments do not add up.
    """
    kept, place = [data[:2]], 2
    while match := MARKER.match(data, place):
        marker, start = data[match.end() - 1], match.end() - 2
        if marker == END:
            return b''.join([*kept, data[start : match.end()]])
        place = match.end() + int.from_bytes(data[match.end() : match.end() + 2], 'big')
        if marker == SCAN:  # compressed data, up to the next marker
            follows = IN_SCAN.search(data, place)
            place = follows.start() if follows else len(data)
        if marker in PICTURE:
            kept.append(data[start:place])
        elif marker in MEANING:
            kept.append(_meaning(marker, data[start + 4 : place]))
    raise ValueError('a JPEG whose segments do not add up. Copy the image again, or leave it out.')


def _meaning(marker: int, content: bytes) -> bytes:
    """A segment of what belongs to the picture in JFIF's or Adobe's; nothing of another one."""
    begins, size, end = MEANING[marker]
    if not content.startswith(begins) or len(content) < size:  # decoders pass over shorter ones
        return b''
    return struct.pack('>BBH', 0xFF, marker, 2 + size) + content[: size - len(end)] + end


def prepare_faces(
    preparer: FacePreparer, out: str | Path, records: bool = False, keep_names: bool = False, workers: int = 2
) -> dict:
    """Writes a set of aligned faces.

    `out` gets the faces (`000000/000000.png`, …, or `train.rec` with `.idx` and `property`), `landmarks5.csv` and
    `report.json` (counts, no names). `OUT.private`, for the owner alone, gets `keys.csv` (key,source_key) and
    `report.csv` (what became of each image, as it happens). Until everything is written, the faces lie in
    `OUT.partial`; another call with the same settings goes on there.

    Args:
        preparer: Makes the faces.
        out: Folder to write.
        records: Writes `train.rec` in place of identity folders.
        keep_names: Faces keep the source's names; what a format cannot hold goes to `keys.csv` in `out`.
        workers: Processes; 0 for this one.

    Returns:
        The report.

    Raises:
        ValueError: An image that cannot be read; no face at all; a source of another kind, or with keys that cannot
            be names of files, or, where they are, that come twice.
        FileExistsError: `out`, or a partial one with other settings, exists.
    """
    source = preparer.source
    if isinstance(source, VerificationBin | MaskedSource):
        kind = 'verification .bin' if isinstance(source, VerificationBin) else 'masked dataset'
        raise ValueError(f'{source.path} is a {kind}. Give a folder of images, a .zip of one, or a train.rec.')
    if records and not source.identities:
        raise ValueError(
            f'{source.path} knows no identities, which a .rec needs. Put the images of each person in a folder of '
            'their own, or write a folder.'
        )
    order = np.argsort(source.labels, kind='stable').tolist()
    _check_keys(source, order, keep_names and not records)
    settings = preparer.describe() | dict(records=records, keep_names=keep_names)
    folder = PartialFolder(out, lambda: settings | dict(images=len(source), faces_sha256=faces_digest(source)), KEYS)
    log = folder.log(PRIVATE_REPORT, REPORT_COLUMNS)
    with folder.writing():
        _write_faces(preparer, folder.path, log, order, _Naming(source, records, keep_names), workers)
        report = settings | _count(log.rows, source.labels[order].tolist())
        _write_tables(folder, log.rows, report)
        folder.finish()
    return report


def _check_keys(source: FaceSource, order: list[int], become_names: bool) -> None:
    """Refuses keys that lead elsewhere, or two faces of one name, before anything is written."""
    naming, keys = _Naming(source, False, True), {}
    for image in order:
        key = source.keys[image]
        fault = key_fault(key)
        if fault:
            raise ValueError(f'{source.path}: the image key {key!r} {fault}. Rename the image.')
        if become_names:
            name = naming(image)
            if name in keys:
                raise ValueError(
                    f'{source.path}: two of its images, {keys[name]} and {key}, would both be {name}, and names are '
                    'to be kept. Correct the table of its original keys (keys.csv), move it away, or leave out '
                    '--keep-names: faces are then numbered.'
                )
            keys[name] = key


def _write_faces(
    preparer: FacePreparer, folder: Path, log: RowLog, order: list[int], naming: '_Naming', workers: int
) -> None:
    """Writes the faces that are still to come. Each image adds a row of the log, which tells how far."""
    keys, done, counts = preparer.source.keys, len(log.rows), Counter(row[1] for row in log.rows)
    for image, row in zip(order, log.rows):
        if row[1] == FACE:
            naming(image)
    writer = nullcontext()
    if naming.records and not (folder / RECORDS).exists():
        writer = RecordWriter(folder / RECORDS, (preparer.size, preparer.size), resume=True)
        writer.truncate(naming.count)
    with writer, tqdm(total=len(order), initial=done, desc='preparing faces', unit='image', mininterval=1) as bar:
        for image, prepared in zip(order[done:], in_order(preparer, order[done:], workers), strict=True):
            path = ''
            if prepared.outcome == FACE:
                path = naming(image)
                if naming.records:
                    writer.write(naming.label, prepared.data)
                    writer.flush()
                else:
                    path += _extension(prepared.data)
                    (folder / path).parent.mkdir(parents=True, exist_ok=True)
                    (folder / path).write_bytes(prepared.data)
            log.append(_row(keys[image], prepared, path))
            counts[prepared.outcome] += 1
            bar.set_postfix({NO_FACE: counts[NO_FACE], UNREADABLE: counts[UNREADABLE]}, refresh=False)
            bar.update()
        if not counts[FACE]:
            raise ValueError(
                f'{preparer.source.path}: no face in any of {len(order)} images. Try another detector or border.'
            )


class _Naming:
    """Keys of the faces that are written, one after the other, and labels without gaps."""

    def __init__(self, source: FaceSource, records: bool, keep_names: bool) -> None:
        self.source = source
        self.records = records
        self.keep_names = keep_names
        self.digits = max(6, len(str(len(source))))
        self.label = -1
        self.count = 0
        self._identity, self._of_identity = None, 0

    def __call__(self, image: int) -> str:
        """The key of the next face, which comes from that image of the source."""
        identity, key = int(self.source.labels[image]), self.source.keys[image]
        if identity != self._identity:
            self._identity, self._of_identity, self.label = identity, 0, self.label + 1
        number = f'{self._of_identity:0{self.digits}d}'
        self._of_identity += 1
        self.count += 1
        if self.records:
            return str(self.count)
        if self.keep_names:
            return key if '/' in key or identity < 0 else f'{self.source.identities[identity]}/{key}'
        return number if identity < 0 else f'{self.label:0{self.digits}d}/{number}'


def _row(key: str, prepared: Prepared, path: str) -> list:
    """A row of the report."""
    score = '' if prepared.score is None else f'{prepared.score:.4f}'
    faces, border = ('' if value is None else value for value in (prepared.faces, prepared.border))
    points = [''] * 10 if prepared.points is None else [f'{value:.2f}' for value in prepared.points.flat]
    return [key, prepared.outcome, faces, score, border, ' '.join(prepared.traits), prepared.note, path, *points]


def _extension(data: bytes) -> str:
    """The usual extension of an encoded image, by its first bytes."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as header:
        return {'JPEG': '.jpg', 'MPO': '.jpg', 'TIFF': '.tif'}.get(header.format, f'.{header.format.lower()}')


def _count(rows: list[list[str]], labels: list[int]) -> dict:
    """Counts for the report."""
    outcomes = Counter(row[1] for row in rows)
    traits = Counter(trait for row in rows for trait in row[5].split())
    borders = Counter(row[4] for row in rows if row[4])
    people, left = set(labels), {label for label, row in zip(labels, rows) if row[1] == FACE}
    return dict(
        images=len(rows),
        faces=outcomes[FACE],
        no_face=outcomes[NO_FACE],
        unreadable=outcomes[UNREADABLE],
        several_faces=sum(row[2].isdigit() and int(row[2]) > 1 for row in rows),
        found_with_border=dict(sorted(borders.items(), key=lambda item: -item[1])),
        **{trait: traits[trait] for trait in ('rotated', 'grey', 'alpha')},
        identities=len(left - {-1}),
        identities_without_face=len(people - left),
    )


def _write_tables(folder: PartialFolder, rows: list[list[str]], report: dict) -> None:
    """The tables beside the faces and those for the owner alone."""
    faces = [row for row in rows if row[1] == FACE]
    points = [row[7:] for row in faces if row[8]]
    if points:
        with (folder.path / LANDMARKS).open('w', newline='', encoding='utf-8') as file:
            csv.writer(file, lineterminator='\n').writerows([LANDMARK_COLUMNS, *points])
    keys = [(row[7] if report['records'] else row[7].rpartition('.')[0], row[0]) for row in faces]
    if not report['records']:
        keys.sort()  # as the folder's own keys
    if not report['keep_names']:
        write_private(folder.private / KEYS, [KEY_COLUMNS, *keys])
    elif any(key != source_key for key, source_key in keys):
        with (folder.path / KEYS).open('w', newline='', encoding='utf-8') as file:
            csv.writer(file, lineterminator='\n').writerows([KEY_COLUMNS, *keys])
    (folder.path / REPORT).write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
