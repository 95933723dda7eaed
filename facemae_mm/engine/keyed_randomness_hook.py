"""Makes every random number of a training a function of the seed and of what it is for."""

from collections.abc import Iterator

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS
from torch.utils.data import Dataset

from ..datasets import FaceRecordDataset
from ..randomness import keyed_seed, run_seed, seed_generators


@HOOKS.register_module()
class KeyedRandomnessHook(Hook):
    """Tells every `FaceRecordDataset` of the training set epoch and seed, and seeds the generators for each iteration.

    Flips, masks and whatever else the pipeline draws then depend on (seed, epoch, image), and what the model draws
    (drop path, masks of its own) on (seed, iteration, rank): neither on the number of workers nor on what was drawn
    before, so that a run that goes on draws as if it had not stopped.

    Raises:
        RuntimeError: The loop counts iterations: then masks would repeat without a word.
    """

    priority = 'VERY_HIGH'

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets the epoch before the loader's workers start on it."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise RuntimeError(
                f'KeyedRandomnessHook: masks are drawn afresh in each epoch, and {type(runner.train_loop).__name__} '
                "has none. Set train_cfg = dict(type='ResumableTrainLoop', max_epochs=…)."
            )
        for dataset in face_sets(runner.train_dataloader.dataset):
            dataset.set_epoch(runner.epoch, run_seed(runner))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: dict | None = None) -> None:
        """Seeds the generators of all devices."""
        parts = 'model', run_seed(runner), runner.iter, get_rank()
        seed_generators(*parts)
        if torch.cuda.is_available():
            torch.cuda.manual_seed_all(keyed_seed(*parts))

    def after_train_epoch(self, runner: Runner) -> None:
        """Says how many faces were skipped so far, where the training set skips any."""
        skipped = sum(dataset.num_skipped for dataset in face_sets(runner.train_dataloader.dataset))
        if skipped:
            runner.logger.warning(f'{skipped} faces could not be read so far and were replaced by others.')


def face_sets(dataset: Dataset) -> Iterator[FaceRecordDataset]:
    """Every FaceRecordDataset in a dataset, whatever wraps it."""
    if isinstance(dataset, FaceRecordDataset):
        yield dataset
        return
    wrapped = [getattr(dataset, name) for name in ('dataset', '_dataset') if hasattr(dataset, name)]
    for inner in wrapped + list(getattr(dataset, 'datasets', [])):
        yield from face_sets(inner)
