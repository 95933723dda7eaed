"""From a set of faces to its masked dataset: the owner's side of the deployment (section 3.1)."""

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .face_mask import FaceMask
from .face_source import FaceSource
from .landmarks import read_landmarks
from .load_face import LoadFace
from .masked_dataset import FACES, FORMAT, INFO, KEYS, VERSION, MaskedSource, encode_masked
from .ordered_work import in_order
from .recordio import RecordSource, RecordWriter
from .source_keys import COLUMNS
from .source_keys import TABLE as SOURCE_KEYS

SETTINGS = 'settings.json'
SKIPPED = 'skipped.csv'


def mask_faces(
    source: FaceSource, out: str | Path, mask: FaceMask, size: int = 112, workers: int = 2, on_error: str = 'raise'
) -> str:
    """Writes the masked dataset of a set of faces.

    Faces come identity by identity, both in the order of keyed hashes, so that order and names carry nothing of the
    source. `OUT.private`, for the owner alone, gets `keys.csv` (key,source_key) and `skipped.csv`. Until everything is
    written, all of it lies in `OUT.partial`; another call with the same settings goes on there.

    Args:
        source: Aligned faces with identities.
        out: Folder to write.
        mask: Draws the masks; not fresh.
        size: Side that faces must have, pixels.
        workers: Processes that decode, mask and encode; 0 for this one.
        on_error: 'raise', or 'skip' faces that cannot be read.

    Returns:
        What was written, in a sentence or two.

    Raises:
        ValueError: Faces without identities, an unreadable one, or a source that is masked already.
        FileExistsError: `out`, or a partial one with other settings, exists.
    """
    out = Path(out)
    partial, private = (out.with_name(f'{out.name}.{kind}') for kind in ('partial', 'private'))
    if isinstance(source, MaskedSource) or not source.identities:
        kind = 'is a masked dataset already' if source.identities else 'knows no identities'
        raise ValueError(f'{source.path} {kind}. Give a folder of identity folders, a .zip of one, or a train.rec.')
    if out.exists():
        raise FileExistsError(f'{out} exists already. Name another folder, or delete it.')
    order = _order(source, mask)
    names = hashlib.sha256()
    for key in source.keys:
        names.update(f'{key}\n'.encode())
    settings = dict(mask=mask.describe(size), on_error=on_error, images=len(source), keys_sha256=names.hexdigest())
    _start(partial, settings)
    landmarks = read_landmarks(source) if mask.needs_landmarks else None
    masker = _Masker(source, mask, size, landmarks, on_error)
    if not (partial / FACES).exists():
        with RecordWriter(partial / FACES, (size, size), resume=True) as writer:
            _write(writer, partial, order, source, masker, workers)
    skipped = _skipped_keys(partial)
    keys = [key for key in map(source.keys.__getitem__, order) if key not in skipped]
    identities = RecordSource(partial / FACES).identities
    rows = [(mask.image_pseudonym(key), key) for key in keys]
    (partial / KEYS).write_bytes(b''.join(bytes.fromhex(key) for key, _ in rows))
    info = dict(
        format=FORMAT,
        version=VERSION,
        images=len(keys),
        identities=len(identities),
        skipped=len(skipped),
        mask=settings['mask'],
        sha256={name: _sha256(partial / name) for name in (FACES, KEYS)},
    )
    (partial / INFO).write_text(json.dumps(info, indent=1) + '\n', encoding='utf-8')
    _write_private(private, rows, partial)
    (partial / SETTINGS).unlink()
    partial.rename(out)
    stored = sum(path.stat().st_size for path in out.iterdir())
    lost = f', {len(skipped)} faces that could not be read were left out ({private / SKIPPED})' if skipped else ''
    return (
        f'{out}: {len(keys)} faces of {len(identities)} identities, {stored:,} bytes, {stored / len(keys):,.0f} a '
        f'face{lost}. For you alone: {private}.'
    )


class _Masker:
    """One face from stored bytes to the bytes of its visible patches; runs in worker processes."""

    def __init__(
        self, source: FaceSource, mask: FaceMask, size: int, landmarks: np.ndarray | None, on_error: str
    ) -> None:
        self.source = source
        self.mask = mask
        self.load = LoadFace(size)
        self.landmarks = landmarks
        self.on_error = on_error

    def __call__(self, image: int) -> bytes | str:
        """The bytes, or what keeps the face from being read."""
        key = self.source.keys[image]
        try:
            data = self.source.read(image)
            img = self.load(dict(img_bytes=data, img_key=key, img_path=f'{self.source.path}:{key}'))['img']
            points = None if self.landmarks is None else self.landmarks[image]
            mask = self.mask.draw(key, len(img), None if points is None or np.isnan(points).any() else points)
        except (ValueError, OSError) as error:
            if self.on_error == 'raise':
                raise
            return str(error)
        return encode_masked(img, mask, self.mask.patch_size)


def _order(source: FaceSource, mask: FaceMask) -> list[int]:
    """Images identity by identity, each in the order of what only the owner can compute."""
    rank = np.argsort(np.argsort([mask.identity_pseudonym(name) for name in source.identities]))
    digests = np.empty((len(source), 2), '>u8')
    for image, key in enumerate(source.keys):
        digests[image] = np.frombuffer(bytes.fromhex(mask.image_pseudonym(key))[:16], '>u8')
    return np.lexsort((digests[:, 1], digests[:, 0], rank[source.labels])).tolist()


def _start(partial: Path, settings: dict) -> None:
    """Makes the partial folder, or checks that the one that is there was made with the same settings."""
    file = partial / SETTINGS
    if file.is_file():
        before = json.loads(file.read_text(encoding='utf-8'))
        now = json.loads(json.dumps(settings))
        if before != now:
            changed = [f'{key}: {before.get(key)} then, {now[key]} now' for key in now if before.get(key) != now[key]]
            raise FileExistsError(
                f'{partial} was begun with other settings: {"; ".join(changed)}. Delete it to start anew, or give the '
                'settings of then.'
            )
        return
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    draft = file.with_suffix('.tmp')
    draft.write_text(json.dumps(settings), encoding='utf-8')
    draft.replace(file)


def _write(
    writer: RecordWriter, partial: Path, order: list[int], source: FaceSource, masker: _Masker, workers: int
) -> None:
    """Writes the faces that are still to come. Each one adds a record or a line of SKIPPED, so both tell how far."""
    skipped = _skipped_keys(partial)
    with (partial / SKIPPED).open('a', newline='', encoding='utf-8') as file:
        done = writer.count + len(skipped)
        last, label = None, -1
        for image in order[:done]:
            if source.keys[image] not in skipped and source.labels[image] != last:
                last, label = source.labels[image], label + 1
        log = csv.writer(file, lineterminator='\n')
        bar = tqdm(total=len(order), initial=done, desc='masking', unit='face', mininterval=1)
        for image, result in zip(order[done:], in_order(masker, order[done:], workers, _one_thread), strict=True):
            if isinstance(result, str):
                log.writerow([source.keys[image], result])
                file.flush()
            else:
                if source.labels[image] != last:
                    last, label = source.labels[image], label + 1
                writer.write(label, result)
                writer.flush()
            bar.update()
        bar.close()


def _one_thread() -> None:
    cv2.setNumThreads(0)


def _skipped_keys(partial: Path) -> set[str]:
    """Keys of the faces that were left out so far; a last line that was cut off is taken out of the file."""
    file = partial / SKIPPED
    text = file.read_bytes() if file.exists() else b''
    whole = text[: text.rfind(b'\n') + 1]
    if len(whole) < len(text):
        file.write_bytes(whole)
    return {row[0] for row in csv.reader(whole.decode().splitlines())}


def _write_private(private: Path, rows: list[tuple[str, str]], partial: Path) -> None:
    """What the owner alone keeps: which face is whose, and what was left out."""
    private.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = private / f'{SOURCE_KEYS}.tmp'
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), 'w', newline='', encoding='utf-8') as file:
        csv.writer(file, lineterminator='\n').writerows([COLUMNS, *rows])
    draft.replace(private / SOURCE_KEYS)
    skipped = partial / SKIPPED
    if skipped.read_bytes():
        skipped.chmod(0o600)
        shutil.move(skipped, private / SKIPPED)
    else:
        skipped.unlink()


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()
