"""Stops a run whose loss or weights are no numbers, or whose loss has gone up for good."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NoReturn

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..randomness import run_seed
from ..whole_file import whole_file

#: Under which MessageHub, and so every checkpoint, keeps the first and the lowest level of the loss.
LEVELS = 'loss_levels'

REMEDY = 'Lower the learning rate or clip gradients (optim_wrapper.clip_grad), then go on with --resume.'


@HOOKS.register_module()
class DivergenceHook(Hook):
    """Stops training where going on only spoils it, leaves a report, and lets no checkpoint of it be written.

    That is: at the first loss that is NaN or infinite; before a checkpoint whose weights or optimiser are; and where
    the level of the loss, its median over `window` iterations, is above `factor` times its lowest level so far and has
    lost half of what it had gained since its first level. A median does not see spikes, nor those of half the
    iterations; noise does not triple a median of 200; and a loss near 0, as a recogniser's at its end, which may triple
    by chance, does not come back half way to where it began.

    The report, `stopped_iter_N_rank_R.json` in the work folder, holds the last losses, terms, learning rate, norm of
    the gradients where they are clipped, the keys of the images of the last batch (so only its owner can read it), the
    last checkpoint and what to try.

    Args:
        factor: Above 1; None leaves a loss that goes up alone.
        window: Iterations, at least 1.

    Raises:
        ValueError: Another factor or window.
        FloatingPointError: The run is stopped; says where and why.
    """

    priority = 'VERY_HIGH'

    def __init__(self, factor: float | None = 3.0, window: int = 200) -> None:
        if (factor is not None and factor <= 1) or window < 1:
            raise ValueError(
                f'DivergenceHook: {factor=} must be above 1 or None, {window=} 1 or more. The defaults are 3 and 200.'
            )
        self.factor = factor
        self.window = window
        self._losses = []
        self._samples = []

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Looks at the loss of the iteration that just ended."""
        loss = float(outputs['loss'].detach())
        self._losses = [*self._losses[-self.window + 1 :], loss] if self.window > 1 else [loss]
        self._samples = data_batch.get('data_samples') or [] if isinstance(data_batch, dict) else []
        if not math.isfinite(loss):
            self._stop(runner, f'Loss is {loss}')
        if self.factor is None or (runner.iter + 1) % self.window or len(self._losses) < self.window:
            return
        level = median(self._losses)
        first, lowest = runner.message_hub.get_info(LEVELS, [level, level])
        if 0 < self.factor * lowest < level and level > (first + lowest) / 2:
            self._stop(
                runner,
                f'Loss has diverged: its median over {self.window} iterations is {level:.4g}, after {lowest:.4g} at '
                f'best and {first:.4g} at first',
            )
        runner.message_hub.update_info(LEVELS, [first, min(lowest, level)])

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Looks at what is to be saved."""
        for name, value in _tensors(dict(weights=checkpoint['state_dict'], optimizer=checkpoint.get('optimizer', {}))):
            if value.is_floating_point() and not torch.isfinite(value).all():
                self._stop(runner, f'{name} is no longer finite, so no checkpoint of it is written')

    def _stop(self, runner: Runner, what: str) -> NoReturn:
        """Writes the report and ends the run."""
        scalars = runner.message_hub.log_scalars
        now = {name.removeprefix('train/'): s.current() for name, s in scalars.items() if name.startswith('train/')}
        terms = {name: float(value) for name, value in now.items() if name.startswith(('irm_', 'loss', 'phi_'))}
        record = Path(runner.work_dir) / 'last_checkpoint'  # names none that is not complete
        last = record.read_text(encoding='utf-8').strip() if record.is_file() else 'none'
        report = dict(
            what=what,
            epoch=runner.epoch + 1,
            iteration=runner.iter + 1,
            rank=get_rank(),
            seed=run_seed(runner),
            losses=self._losses,
            terms=terms,
            lr=sorted({rate for rates in runner.optim_wrapper.get_lr().values() for rate in rates}),
            grad_norm=now.get('grad_norm'),
            images=[sample.get('img_key') for sample in self._samples],
            last_checkpoint=last,
            remedy=REMEDY,
        )
        path = Path(runner.work_dir) / f'stopped_iter_{runner.iter + 1}_rank_{get_rank()}.json'
        with whole_file(path, 'x', private=True) as file:
            json.dump(_plain(report), file, indent=1, allow_nan=False)
        values = ', '.join(f'{name} {value:.4g}' for name, value in terms.items())
        raise FloatingPointError(
            f'{what}, at epoch {runner.epoch + 1}, iteration {runner.iter + 1} ({values}). '
            f'Last checkpoint: {last}. Report: {path}. {REMEDY}'
        )


def _tensors(node: object, name: str = '') -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in nested dicts and lists, with the way to it."""
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, dict | list | tuple):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _tensors(value, f'{name}.{key}' if name else str(key))


def _plain(node: object) -> object:
    """As JSON has it: numbers that are none, as text."""
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    if hasattr(node, 'item'):
        node = node.item()
    return str(node) if isinstance(node, float) and not math.isfinite(node) else node
