"""Sharded classes in MMEngine's Runner: what it must be given, and checkpoints that hold all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ..models.partial_fc_head import PartialFCHead
from .autocast_optim_wrapper import AutocastOptimWrapper


def sharded_heads(model: nn.Module) -> dict[str, PartialFCHead]:
    """Heads of a model whose classes are shared out over several processes, by their names."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PartialFCHead) and not module.shard.whole
    }


def whole_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Names and shapes of what a checkpoint of a model holds: its state dict, and all classes of sharded heads."""
    shapes = {
        f'{name}.weight': torch.empty(head.num_classes, *head.weight.shape[1:], device='meta')
        for name, head in sharded_heads(model).items()
    }
    return {**model.state_dict(), **shapes}


def check_sharding(runner: Runner) -> None:
    """Refuses what would make shards copies of each other, or backbones drift apart, without a word.

    Raises:
        TypeError: Another wrapper of the optimiser than `AutocastOptimWrapper`.
        ValueError: DDP would average the shards.
    """
    heads = sharded_heads(runner.model.module if is_model_wrapper(runner.model) else runner.model)
    if heads and not isinstance(runner.optim_wrapper, AutocastOptimWrapper):
        raise TypeError(
            f'PartialFCHead: {type(runner.optim_wrapper).__name__} clips by a norm that differs between processes and '
            "loses the states of all but the first one. Set optim_wrapper.type='AutocastOptimWrapper'."
        )
    ignored = getattr(runner.model, 'parameters_to_ignore', ())
    for name in heads:
        if f'{name}.weight' not in ignored:
            raise ValueError(
                f'PartialFCHead: {type(runner.model).__name__} averages {name}.weight over processes, which hold '
                'different classes. Put the head into a FaceRecognizer, which tells DDP.'
            )


@contextmanager
def gathered_classes(runner: Runner) -> Iterator[None]:
    """While a checkpoint is to hold all classes; all processes enter together, and the first one has them."""
    models = [runner.model, *(hook.ema_model for hook in runner.hooks if isinstance(hook, EMAHook))]
    heads = [head for model in models for head in sharded_heads(model).values()]
    if not heads:
        yield
        return
    try:
        for head in heads:
            head.gathered_weight = head.shard.gather(head.weight)
        with runner.optim_wrapper.gathered_shards():
            yield
    finally:
        for head in heads:
            head.gathered_weight = None
