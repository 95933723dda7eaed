"""A set of distorted faces, laid out and linked as a release is, so that the same tools measure it."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from .. import __version__
from ..datasets import FaceDistortion, FaceMask, LoadFace
from ..datasets.face_source import FaceSource
from ..datasets.landmarks import read_landmarks
from ..datasets.masked_dataset import MaskedSource
from ..datasets.masking import opaque_order
from ..datasets.ordered_work import in_order
from ..datasets.release_source import FOLDERS
from ..datasets.resumable import PartialFolder, keys_digest, write_private
from ..evaluation.links import LINK_COLUMNS, LINKS
from .layouts import ReleaseWriter, name_digits

#: What a set of distorted faces says of itself.
INFO = 'distortion.json'
FORMAT = 'facemae-distorted'
VERSION = 1
WHAT = (
    'Real faces, distorted: a baseline that reconstructions are compared with. People may be recognised in it; it is '
    'not for publication.'
)


def distort_faces(
    source: FaceSource, out: str | Path, distortion: FaceDistortion, size: int = 112, workers: int = 2
) -> str:
    """Writes the faces of a set, distorted, where `ReconstructionExportHook` would write reconstructions of them.

    Names, labels and order are those of a release whose masks have the same seed, so that the two can be compared face
    by face. `OUT` appears when it is complete: folders of PNGs, `SHA256SUMS`, and `distortion.json`, which says what
    was done. `OUT.private`, for the owner alone, gets `links.csv`. Interrupted, it starts over.

    It is no release: a manifest says which model, φ and mask made the faces, and here there is none.

    Args:
        source: Aligned faces with identities.
        out: Folder to write.
        distortion: What is done to each.
        size: Side that faces must have, pixels.
        workers: Processes that decode, distort and encode; 0 for this one.

    Returns:
        What was written, in a sentence or two.

    Raises:
        ValueError: Faces without identities, an unreadable one, or a source that is masked already.
        FileExistsError: `out`, or a partial one with other settings, exists.
        OSError: A full disk, and the like.
    """
    if isinstance(source, MaskedSource) or not source.identities:
        kind = 'is a masked dataset' if source.identities else 'knows no identities'
        raise ValueError(f'{source.path} {kind}. Give a folder of identity folders, a .zip of one, or a train.rec.')
    labels = np.asarray(source.labels)
    order, ranks = opaque_order(FaceMask(fresh=False, seed=distortion.seed), source.keys, labels, source.identities)
    settings = dict(distortion.describe(), size=size, images=len(source), keys_sha256=keys_digest(source.keys))
    folder = PartialFolder(out, settings, LINKS)
    content = folder.path / 'release'
    landmarks = read_landmarks(source) if distortion.needs_landmarks else None
    distort = _Distorter(source, distortion, size, landmarks)
    with folder.writing():
        shutil.rmtree(content, ignore_errors=True)
        content.mkdir()
        writer = ReleaseWriter(content, FOLDERS, '.png', size, name_digits(ranks), None)
        images = in_order(distort, order.tolist(), workers)
        write_private(folder.private / LINKS, _write(writer, source, order, ranks, images))
        writer.close()
        info = dict(
            format=FORMAT,
            version=VERSION,
            what=WHAT,
            distortion=distortion.describe(),
            size=size,
            images=len(source),
            identities=len(writer.images_by_identity),
            own_landmarks=None if landmarks is None else int((~np.isnan(landmarks).any((1, 2))).sum()),
            versions=dict(facemae_mm=__version__, numpy=np.__version__, opencv=cv2.__version__),
            sha256=writer.shards[0]['sha256'],
        )
        (content / INFO).write_text(json.dumps(info, indent=1) + '\n', encoding='utf-8')
        folder.finish(content)
    return (
        f'{out}: {len(source):,} faces of {info["identities"]:,} identities, {distortion.kind} '
        f'({distortion.meaning}: {distortion.strength}). Its links lie in {folder.private}: for you alone.'
    )


class _Distorter:
    """One face from stored bytes to the PNG of its distortion; runs in worker processes."""

    def __init__(self, source: FaceSource, distortion: FaceDistortion, size: int, landmarks: np.ndarray | None) -> None:
        self.source = source
        self.distortion = distortion
        self.load = LoadFace(size)
        self.landmarks = landmarks

    def __call__(self, image: int) -> bytes:
        key = self.source.keys[image]
        face = self.load(dict(img_bytes=self.source.read(image), img_key=key, img_path=f'{self.source.path}:{key}'))
        if self.landmarks is not None and not np.isnan(self.landmarks[image]).any():
            face['landmarks'] = self.landmarks[image]
        _, data = cv2.imencode('.png', self.distortion(face)['img'])
        return data.tobytes()


def _write(
    writer: ReleaseWriter, source: FaceSource, order: np.ndarray, ranks: np.ndarray, images: Iterable[bytes]
) -> Iterator[tuple]:
    """Rows of the links, as the faces are written one by one."""
    yield LINK_COLUMNS
    last = -1
    with tqdm(total=len(order), desc='distorting', unit='face', mininterval=1) as bar:
        for image, rank, data in zip(order.tolist(), ranks.tolist(), images, strict=True):
            path, label = writer.write(rank != last, data)
            last = rank
            yield path, label, source.keys[image], source.identities[int(source.labels[image])]
            bar.update()
