"""Refuses a training in which φ would be shown something else than the faces."""

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..models import IRMLoss
from ..models.irm_loss import NEEDS_PIXELS


@HOOKS.register_module()
class IRMTargetCheckHook(Hook):
    """Looks at the model around every `IRMLoss`, once, before the first iteration.

    Mean, std and channel order must be those of the data preprocessor, else φ sees wrong colours and nothing says so.
    Faces are loaded as BGR, so a preprocessor that swaps channels hands out RGB. Targets must be the images themselves,
    not what a target generator makes of them.

    Raises:
        ValueError: They are not; with both values.
    """

    def before_train(self, runner: Runner) -> None:
        """Looks at the model."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        losses = [module for module in model.modules() if isinstance(module, IRMLoss)]
        if not losses:
            return
        generator = getattr(model, 'target_generator', None)
        if generator is not None:
            raise ValueError(
                f'IRMLoss: the targets of {type(model).__name__} are what {type(generator).__name__} makes of the '
                f'faces. {NEEDS_PIXELS}'
            )
        preprocessor = model.data_preprocessor
        normalised = preprocessor._enable_normalize
        applied = dict(
            mean=(preprocessor.mean if normalised else torch.zeros(3)).flatten().tolist(),
            std=(preprocessor.std if normalised else torch.ones(3)).flatten().tolist(),
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
