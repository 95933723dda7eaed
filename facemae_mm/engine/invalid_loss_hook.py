"""Stops a run whose loss is no number."""

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Stops at the first iteration whose loss is NaN or infinite, before any checkpoint of it is written.

    Raises:
        FloatingPointError: Says where, the terms of the loss, the last checkpoint and what to try.
    """

    priority = 'VERY_HIGH'

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Looks at the loss of the iteration that just ended."""
        loss = outputs['loss']
        if torch.isfinite(loss).all():
            return
        terms = {
            name.removeprefix('train/'): scalar.current()
            for name, scalar in runner.message_hub.log_scalars.items()
            if name.startswith('train/irm_')
        }
        last = runner.message_hub.get_info('last_ckpt') if 'last_ckpt' in runner.message_hub.runtime_info else 'none'
        raise FloatingPointError(
            f'Loss is {loss.item()} at epoch {runner.epoch + 1}, iteration {runner.iter + 1} {terms or ""}. '
            f'Last checkpoint: {last}. Lower the learning rate or clip gradients '
            '(optim_wrapper.clip_grad), then go on with --resume.'
        )
