"""From a set of faces to its masked dataset: the owner's side of the deployment (section 3.1)."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .face_mask import FaceMask
from .face_source import FaceSource
from .landmarks import landmarks_digest, read_landmarks
from .load_face import LoadFace
from .masked_dataset import FACES, FORMAT, INFO, KEYS, MAX_SIDE, VERSION, MaskedSource, encode_masked
from .ordered_work import in_order
from .recordio import RecordSource, RecordWriter
from .resumable import PartialFolder, RowLog, faces_digest, sha256_file, write_private
from .source_keys import COLUMNS
from .source_keys import TABLE as SOURCE_KEYS

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
        ValueError: Faces without identities, an unreadable one, a source that is masked already, or patches that the
            format does not hold.
        FileExistsError: `out`, or a partial one with other settings, exists.
    """
    if isinstance(source, MaskedSource) or not source.identities:
        kind = 'is a masked dataset already' if source.identities else 'knows no identities'
        raise ValueError(f'{source.path} {kind}. Give a folder of identity folders, a .zip of one, or a train.rec.')
    grid, rest = divmod(size, mask.patch_size)
    visible = int(grid * grid * (1 - mask.mask_ratio))
    if rest or not 0 < grid < 256 or mask.patch_size > 255 or size > MAX_SIDE or not (visible or mask.region_only):
        raise ValueError(
            f'Faces of {size} pixels in patches of {mask.patch_size}, of which mask_ratio {mask.mask_ratio} leaves '
            f'{visible} visible: patches must divide faces of at most {MAX_SIDE} pixels, into at most 255 along a '
            'side, of at most 255 pixels, and one must stay. Change patch size, size or ratio.'
        )
    described = mask.describe(size)
    landmarks = read_landmarks(source) if mask.needs_landmarks else None
    settings = dict(mask=described, images=len(source), landmarks_sha256=landmarks_digest(landmarks))
    folder = PartialFolder(out, lambda: settings | dict(faces_sha256=faces_digest(source)), SOURCE_KEYS)
    masker = _Masker(source, mask, size, landmarks, on_error)
    order = opaque_order(mask, source.keys, source.labels, source.identities)[0].tolist()
    skipped = folder.log(SKIPPED, ['source_key', 'note'])
    faces = folder.path / FACES
    with folder.writing():
        if not faces.exists():
            with RecordWriter(faces, (size, size), resume=True) as writer:
                writer.flush()  # a file that can be resumed, before the first face takes its time
                _write(writer, skipped, order, source, masker, workers)
        left_out = {row[0] for row in skipped.rows}
        rows = [(mask.image_pseudonym(key), key) for key in map(source.keys.__getitem__, order) if key not in left_out]
        records = RecordSource(faces)
        if len(records) != len(rows):  # a power cut may lose what was written before it
            raise ValueError(
                f'{folder.path} is damaged: {len(records)} faces written, {len(left_out)} left out, of {len(order)}. '
                'Delete it and start again.'
            )
        (folder.path / KEYS).write_bytes(b''.join(bytes.fromhex(key) for key, _ in rows))
        info = dict(
            format=FORMAT,
            version=VERSION,
            images=len(rows),
            identities=len(records.identities),
            skipped=len(left_out),
            mask=described,
            sha256={name: sha256_file(folder.path / name) for name in (FACES, KEYS)},
        )
        (folder.path / INFO).write_text(json.dumps(info, indent=1) + '\n', encoding='utf-8')
        write_private(folder.private / SOURCE_KEYS, [COLUMNS, *rows])
        folder.finish()
    stored = sum(path.stat().st_size for path in folder.out.iterdir())
    lost = f', {len(left_out)} faces that could not be read were left out ({folder.private / SKIPPED})' * bool(left_out)
    return (
        f'{out}: {len(rows)} faces of {info["identities"]} identities, {stored:,} bytes, {stored / len(rows):,.0f} a '
        f'face{lost}. For you alone: {folder.private}.'
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
                raise ValueError(f'{error} Or leave out what cannot be read (--on-error skip).') from error
            return str(error)
        return encode_masked(img, mask, self.mask.patch_size)


def opaque_order(
    mask: FaceMask, keys: Iterable[str], labels: np.ndarray, identities: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Images identity by identity, both in the order of what only the owner can compute.

    Args:
        mask: Knows the secret.
        keys: img_key of each image.
        labels: (N,), of each image.
        identities: Name of each label.

    Returns:
        The images in that order, and their labels renumbered from 0 by it, both (N,) int64.
    """
    people = _first_bits(map(mask.identity_pseudonym, identities), len(identities))
    rank = np.argsort(np.lexsort((people[:, 1], people[:, 0])))[labels]
    images = _first_bits(map(mask.image_pseudonym, keys), len(labels))
    order = np.lexsort((images[:, 1], images[:, 0], rank))
    return order, rank[order]


def _first_bits(pseudonyms: Iterable[str], count: int) -> np.ndarray:
    """The first 128 bits of so many hexadecimal digests, (count, 2) u64: millions of strings would take gigabytes."""
    bits = np.empty((count, 2), '>u8')
    for number, digest in enumerate(pseudonyms):
        bits[number] = np.frombuffer(bytes.fromhex(digest)[:16], '>u8')
    return bits


def _write(
    writer: RecordWriter, skipped: RowLog, order: list[int], source: FaceSource, masker: _Masker, workers: int
) -> None:
    """Writes the faces that are still to come. Each one adds a record or a row of `skipped`, so both tell how far."""
    left_out = {row[0] for row in skipped.rows}
    done = writer.count + len(skipped.rows)
    last, label = None, -1
    for image in order[:done]:
        if source.keys[image] not in left_out and source.labels[image] != last:
            last, label = source.labels[image], label + 1
    with tqdm(total=len(order), initial=done, desc='masking', unit='face', mininterval=1) as bar:
        for image, result in zip(order[done:], in_order(masker, order[done:], workers), strict=True):
            if isinstance(result, str):
                skipped.append([source.keys[image], result])
            else:
                if source.labels[image] != last:
                    last, label = source.labels[image], label + 1
                writer.write(label, result)
                writer.flush()
            bar.update()
