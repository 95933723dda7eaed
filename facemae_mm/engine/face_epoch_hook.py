"""Tells the training set its epoch, from which masks are drawn afresh."""

from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class FaceEpochHook(Hook):
    """Calls `dataset.set_epoch(epoch)` before each training epoch, where the training set has it.

    Raises:
        RuntimeError: The loop counts iterations: then masks would repeat without a word.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Sets the epoch before the loader's workers start on it."""
        if not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise RuntimeError(
                f'FaceEpochHook: masks are drawn afresh in each epoch, and {type(runner.train_loop).__name__} has '
                "none. Set train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=…)."
            )
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Says how many faces were skipped so far, where the training set skips any."""
        skipped = getattr(runner.train_dataloader.dataset, 'num_skipped', 0)
        if skipped:
            runner.logger.warning(f'{skipped} faces could not be read so far and were replaced by others.')
