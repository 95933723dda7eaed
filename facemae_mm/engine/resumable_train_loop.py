"""Training by epochs that goes on in the middle of one."""

import logging

from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from mmpretrain.registry import LOOPS
from torch import nn

from ..datasets import ResumableSampler
from ..randomness import run_seed
from .keyed_randomness_hook import face_sets

#: Under which MessageHub, and so every checkpoint, keeps where in its epoch the training is.
POSITION = 'train_position'


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """EpochBasedTrainLoop that goes on from any checkpoint where it was taken, reading nothing that came before it.

    The place in an epoch is counted in samples of all processes, so that another number of processes goes on with the
    next sample of the same order. An epoch is whole steps of the optimiser (see `ResumableSampler`), so that no
    checkpoint at its end falls between accumulated gradients. A validation that a stop may have cut short is done
    again.

    Args:
        kwargs: As for EpochBasedTrainLoop: max_epochs, val_begin, val_interval, dynamic_intervals.

    Raises:
        TypeError: The loader has another sampler.
        ValueError: The set has not enough samples for a step.
        RuntimeError: `KeyedRandomnessHook` is missing, without which faces are not drawn anew.
    """

    def __init__(self, runner, dataloader, max_epochs: int, **kwargs) -> None:
        super().__init__(runner, dataloader, max_epochs, **kwargs)
        self.sampler = self.dataloader.sampler
        if not isinstance(self.sampler, ResumableSampler):
            raise TypeError(
                f'ResumableTrainLoop: {type(self.sampler).__name__} cannot go on in the middle of an epoch. '
                "Set train_dataloader.sampler = dict(type='ResumableSampler', shuffle=True)."
            )
        wrapper = runner.optim_wrapper
        self.accumulated = (
            wrapper._accumulative_counts
            if isinstance(wrapper, OptimWrapper)
            else wrapper.get('accumulative_counts', 1)  # not built yet
        )
        self.batch_size = self.dataloader.batch_sampler.batch_size
        self.sampler.step = self.batch_size * self.accumulated
        self._max_iters = self._max_epochs * len(self.dataloader)

    def run(self) -> nn.Module:
        """Trains from where the checkpoint was taken to the end."""
        resumed = self._iter > 0
        hooks = [type(hook).__name__ for hook in self.runner.hooks]
        if any(face_sets(self.dataloader.dataset)) and 'KeyedRandomnessHook' not in hooks:
            raise RuntimeError(
                'ResumableTrainLoop: without KeyedRandomnessHook every epoch has the same masks and flips. Add to '
                "the recipe's hooks in place of replacing them: custom_hooks = [*_base_.custom_hooks, …]."
            )
        self.sampler.seed = run_seed(self.runner)
        if resumed:
            position = self.runner.message_hub.get_info(POSITION, {})
            if not position and self._iter % len(self.dataloader):
                print_log(
                    f'The checkpoint of iteration {self._iter} does not say where in its epoch it was taken, as those '
                    'of MMEngine’s own loops do not: this epoch is done again from its beginning.',
                    logger='current',
                    level=logging.WARNING,
                )
            self._go_on(position)
        self.runner.call_hook('before_train')
        if resumed and not self.sampler.consumed:
            self._validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            self._validate()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Trains on what is left of the epoch."""
        self.sampler.set_epoch(self._epoch)
        first = len(self.dataloader) - self.sampler.remaining(self.sampler.consumed) // self.batch_size
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        for idx, data_batch in enumerate(self.dataloader, start=first):
            batches = idx + 1 - first
            self._note(self.sampler.consumed + batches * self.batch_size * get_world_size())
            self.run_iter(idx, data_batch)
        self.sampler.consumed = 0
        self._note(0)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1

    def _note(self, samples: int) -> None:
        """Notes, before a checkpoint can be written, how many samples of the epoch are trained on by then."""
        step = [self.batch_size, get_world_size(), self.accumulated]
        self.runner.message_hub.update_info(POSITION, dict(samples=samples, step=step))

    def _go_on(self, position: dict) -> None:
        """Counts from a checkpoint's position, and says what changes with another batch or number of processes."""
        self.sampler.consumed = position.get('samples', 0)
        left = self.sampler.remaining(self.sampler.consumed) // self.batch_size
        epochs = self._max_epochs - self._epoch - 1
        self._max_iters = self._iter + (left + epochs * len(self.dataloader) if epochs >= 0 else 0)
        # Accumulation counts from here, as a checkpoint is at the end of a step.
        self.runner.optim_wrapper.initialize_count_status(self.runner.model, 0, self._max_iters - self._iter)
        now = [self.batch_size, get_world_size(), self.accumulated]
        then = position.get('step', now)
        if now == then:
            return
        text = 'Resumed with batch × processes × accumulated = {}×{}×{}, trained until now with {}×{}×{}.'
        text = text.format(*now, *then) + ' The order of samples goes on.'
        if now[0] * now[1] * now[2] != then[0] * then[1] * then[2]:
            text += ' A step has another number of samples: reconsider the learning rate.'
        if now[0] * now[1] != then[0] * then[1]:
            text += ' Schedules that count iterations keep the counts of then: epochs no longer end where they did.'
        if now[0] != then[0]:
            text += ' IRMLoss relates another number of faces, unless it gathers as many: reconsider β.'
        print_log(text, logger='current', level=logging.WARNING)

    def _validate(self) -> None:
        """Validates where it is due at the end of this epoch."""
        self._decide_current_val_interval()
        due = self._epoch % self.val_interval == 0 or self._epoch == self._max_epochs
        if self.runner.val_loop is not None and self._epoch >= self.val_begin and due:
            self.runner.val_loop.run()
