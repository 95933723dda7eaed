"""Faces with their identities, for MMPretrain's pipelines."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.dataset import Compose
from mmpretrain.registry import DATASETS, TRANSFORMS
from torch.utils.data import Dataset, get_worker_info

from ..randomness import keyed_generators, keyed_seed
from .face_source import FaceSource, open_faces
from .landmarks import read_landmarks

#: How often a training pipeline may drop a face in a row before that counts as an error.
MAX_REFETCH = 100

#: Workers that count for themselves which faces they skip.
MAX_WORKERS = 1024


def part_of(name: str, of: int) -> int:
    """Which of `of` parts a name belongs to: SHA-256(name) mod `of`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest(), 'big') % of


@DATASETS.register_module()
class FaceRecordDataset(Dataset):
    """The faces of one source, whole or the part of some identities.

    A plain torch dataset: MMEngine's BaseDataset would hold a dict for each of 42 million records.
    A sample holds img_bytes, img_path (for messages), img_key, gt_label, identity, role, epoch and
    sample_idx; where a transform of the pipeline asks for them (`needs_landmarks`), also landmarks
    (5, 2) float32 from the table beside the set, None where unknown.

    What transforms draw from Python's, NumPy's and torch's generators in training is a function of
    (seed, epoch, image key), whatever the worker, the batch and the number of processes.

    Args:
        source: What `open_faces` opens and knows identities: a folder of identity folders, a .zip
            of one, a `train.rec` or a masked dataset.
        pipeline: Transforms, from LoadFace to PackInputs.
        subset: dict(part=i, of=n), the i-th of n disjoint parts by the hash of the identity's
            name, which together cover everything; or dict(identities=[names]). Labels are then
            renumbered in the source's order.
        role: 'query' or 'gallery', for `RetrievalLeakage`; copied to every sample.
        images: dict(part=i, of=n), part of the images by the hash of the image key.
        test_mode: Where the pipeline returns None: an error in testing, another face, drawn by
            (seed, epoch, image key), in training. Generators are left alone in testing.
        on_error: What to do in training with a face that cannot be read: 'raise', or 'skip', which
            takes another likewise, counts it in `num_skipped` and warns once in each process.

    Attributes:
        identities: Name of each label.
        labels: (N,) int64 in 0 … C − 1.
        landmarks: (images of the source, 5, 2) float32, NaN where unknown; None where no transform asks for them, or
            the set has no table.

    Raises:
        FileNotFoundError: The source does not exist.
        ValueError: A source without identities or damaged, or a subset that names unknown
            identities or is empty.
    """

    def __init__(
        self,
        source: str,
        pipeline: Sequence = (),
        subset: dict | None = None,
        role: str | None = None,
        images: dict | None = None,
        test_mode: bool = False,
        on_error: str = 'raise',
    ) -> None:
        if on_error not in ('raise', 'skip') or (on_error == 'skip' and test_mode):
            raise ValueError(
                f"FaceRecordDataset: on_error {on_error!r} with {test_mode=}. Choose 'raise' or, in training, 'skip': "
                'a test that passes over faces would give numbers of another set.'
            )
        if role not in (None, 'query', 'gallery'):
            raise ValueError(f"FaceRecordDataset: role {role!r} is unknown. Choose 'query', 'gallery' or None.")
        self.pipeline = Compose([TRANSFORMS.build(t) if isinstance(t, dict) else t for t in pipeline])
        self.role = role
        self.test_mode = test_mode
        self.source: FaceSource = open_faces(source)
        if not self.source.identities:
            raise ValueError(
                f'FaceRecordDataset: {source} knows no identities. Read a verification .bin by VerificationPairs.'
            )
        self._select(subset, images)
        needed = any(getattr(transform, 'needs_landmarks', False) for transform in self.pipeline.transforms)
        self.landmarks = read_landmarks(self.source) if needed else None
        self.on_error = on_error
        # In shared memory, so that persistent workers see set_epoch, and what they skip is seen.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._seed = torch.zeros((), dtype=torch.int64).share_memory_()
        self._skipped = torch.zeros(MAX_WORKERS, dtype=torch.int64).share_memory_()
        self._warned = False

    def _select(self, subset: dict | None, images: dict | None) -> None:
        """Chooses images and numbers their identities anew."""
        source = self.source
        if subset is None and images is None:
            self.indices = range(len(source))
            self.labels, self.identities = source.labels, source.identities
            return
        keep = np.ones(len(source), bool)
        if subset is not None:
            keep &= _chosen_identities(source, subset)[source.labels]
        if images is not None:
            part, of = _check_part('images', images)
            keep &= np.fromiter((part_of(key, of) == part for key in source.keys), bool, len(source))
        self.indices = np.flatnonzero(keep)
        if not len(self.indices):
            raise ValueError(
                f'FaceRecordDataset: {subset=} with {images=} leaves no image of {source.path} '
                f'({len(source.identities)} identities). Choose fewer parts or other identities.'
            )
        present, self.labels = np.unique(source.labels[self.indices], return_inverse=True)
        self.identities = [source.identities[label] for label in present]

    @property
    def metainfo(self) -> dict:
        """Empty: ConcatDataset wants it equal in query and gallery, and MMEngine writes it into
        checkpoints, where no identity's name belongs.
        """
        return {}

    def full_init(self) -> None:
        """For MMEngine, which calls it before use; everything is read at construction already."""

    @property
    def num_skipped(self) -> int:
        """How often a face could not be read and was skipped, in all workers of this process."""
        return int(self._skipped.sum())

    def set_epoch(self, epoch: int, seed: int = 0) -> None:
        """Tells every worker the epoch that samples carry from now on, and the seed of the run."""
        self._epoch.fill_(epoch)
        self._seed.fill_(seed)

    def __len__(self) -> int:
        return len(self.indices)

    def names(self) -> Iterator[tuple[str, str]]:
        """(img_key, identity) of every face, without reading any."""
        for image, label in zip(self.indices, self.labels, strict=True):
            yield self.source.keys[int(image)], self.identities[label]

    def get_data_info(self, idx: int) -> dict:
        """One face before the pipeline, with its bytes."""
        if not 0 <= idx < len(self):
            raise IndexError(f'FaceRecordDataset: index {idx} is not in [0, {len(self)}).')
        image, label = int(self.indices[idx]), int(self.labels[idx])
        key = self.source.keys[image]
        extra = {}
        if self.landmarks is not None:
            points = self.landmarks[image]
            extra['landmarks'] = None if np.isnan(points).any() else points
        return dict(
            **extra,
            img_bytes=self.source.read(image),
            img_path=f'{self.source.path}:{key}',
            img_key=key,
            gt_label=label,
            identity=self.identities[label],
            role=self.role,
            epoch=int(self._epoch),
            sample_idx=idx,
        )

    def __getitem__(self, idx: int) -> dict:
        first = idx
        for attempt in range(1 if self.test_mode else MAX_REFETCH):
            try:
                sample = self._draw(idx)
                fault = 'the pipeline returned None'
            except (ValueError, OSError) as error:
                if self.on_error == 'raise':
                    raise
                sample, fault = None, error
                self._skip(error)
            if sample is not None:
                return sample
            dropped, idx = idx, keyed_seed('another', *self._keys(first), attempt) % len(self)
        raise ValueError(
            f'FaceRecordDataset: {fault} for {self.source.path}:{self.source.keys[int(self.indices[dropped])]}. '
            'Remove the image, or the transform that drops it.'
        )

    def _keys(self, idx: int) -> tuple[int, int, str]:
        """What decides about a face in training."""
        return int(self._seed), int(self._epoch), self.source.keys[int(self.indices[idx])]

    def _draw(self, idx: int) -> dict | None:
        """One face behind the pipeline."""
        sample = self.get_data_info(idx)
        if self.test_mode:
            return self.pipeline(sample)
        with keyed_generators('sample', *self._keys(idx)):
            return self.pipeline(sample)

    def _skip(self, error: Exception) -> None:
        worker = get_worker_info()
        self._skipped[0 if worker is None else worker.id % MAX_WORKERS] += 1  # a place each: nobody else writes it
        if not self._warned:
            warnings.warn(f"FaceRecordDataset, on_error='skip': {error} Further ones are counted only.", stacklevel=3)
            self._warned = True


def _chosen_identities(source: FaceSource, subset: dict) -> np.ndarray:
    """(C,) bool: which identities a subset holds."""
    if set(subset) != {'identities'}:
        part, of = _check_part('subset', subset)
        return np.array([part_of(name, of) == part for name in source.identities])
    wanted = {str(name) for name in subset['identities']}
    unknown = sorted(wanted - set(source.identities))
    if unknown:
        more = f' and {len(unknown) - 3} more' if len(unknown) > 3 else ''
        raise ValueError(
            f'FaceRecordDataset: {source.path} has no identity '
            f'{", ".join(map(repr, unknown[:3]))}{more}. Name those it has, by their folder or '
            "their .rec's own label."
        )
    return np.array([name in wanted for name in source.identities])


def _check_part(option: str, choice: dict) -> tuple[int, int]:
    part, of = choice.get('part'), choice.get('of')
    whole = all(isinstance(number, int) for number in (part, of))
    if set(choice) != {'part', 'of'} or not whole or not 0 <= part < of:
        other = ' or dict(identities=[…])' if option == 'subset' else ''
        raise ValueError(f'FaceRecordDataset: {option}={choice} is no part. Give dict(part=i, of=n), 0 ≤ i < n{other}.')
    return part, of
