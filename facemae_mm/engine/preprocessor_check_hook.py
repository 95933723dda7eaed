"""Refuses a training whose loss undoes another normalisation than the one that was applied."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..models import IRMLoss


@HOOKS.register_module()
class PreprocessorCheckHook(Hook):
    """Compares mean, std and channel order of every `IRMLoss` with those of the model's data preprocessor.

    Where they differ φ is shown wrong colours, and nothing else would say so. Faces are loaded as BGR, so a
    preprocessor that swaps channels hands out RGB.

    Raises:
        ValueError: They differ; with both values.
    """

    def before_train(self, runner: Runner) -> None:
        """Looks once, before the first iteration."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        losses = [module for module in model.modules() if isinstance(module, IRMLoss)]
        if not losses:
            return
        preprocessor = model.data_preprocessor
        zeros, ones = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        normalised = preprocessor._enable_normalize
        applied = dict(
            mean=(preprocessor.mean if normalised else zeros).flatten().tolist(),
            std=(preprocessor.std if normalised else ones).flatten().tolist(),
            channel_order='rgb' if preprocessor._channel_conversion else 'bgr',
        )
        for loss in losses:
            undone = dict(
                mean=loss.mean.flatten().tolist(), std=loss.std.flatten().tolist(), channel_order=loss.channel_order
            )
            differing = [
                f'{name}={undone[name]}, not {applied[name]}' for name in applied if undone[name] != applied[name]
            ]
            if differing:
                raise ValueError(
                    f'IRMLoss undoes another normalisation than {type(preprocessor).__name__} applied: '
                    f'{"; ".join(differing)}. Set them in head.loss as in data_preprocessor.'
                )
