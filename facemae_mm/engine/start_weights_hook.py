"""Lets a recipe start from, or test, weights that others trained, and none that do not fit."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..models.start_weights import check_start_weights, convert_mae_state, state_of
from .class_shards import whole_state


@HOOKS.register_module()
class StartWeightsHook(Hook):
    """Converts what `load_from` names before the model takes it, and refuses what does not fit.

    Read are checkpoints of MMEngine (this project's, MMPretrain's MAE) and of facebookresearch/mae. MMEngine itself
    loads what fits and logs the rest, so that a decoder would stay random without a word. Resuming is left alone.

    Raises:
        ValueError: Weights are missing, unexpected or of another shape; with the file and what to do.
    """

    priority = 'VERY_HIGH'  # EMAHook copies the weights in the same place

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Puts the converted weights under 'state_dict', where MMEngine looks for them."""
        if runner._resume:
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        try:
            state = convert_mae_state(state_of(checkpoint))
            check_start_weights(state, whole_state(model))
        except ValueError as error:
            raise ValueError(f'load_from {runner._load_from}: {error}') from None
        checkpoint['state_dict'] = state
