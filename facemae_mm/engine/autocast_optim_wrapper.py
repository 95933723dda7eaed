"""bf16 training on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """OptimWrapper whose forward pass runs under `torch.autocast` in bfloat16, on the device that the model is on.

    bfloat16 has float32's range, so no loss is scaled; weights, gradients and optimiser states stay float32. MMEngine's
    `AmpOptimWrapper` refuses to run without an accelerator.

    Args:
        kwargs: Arguments of `OptimWrapper`: optimizer, accumulative_counts, clip_grad.
    """

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Around the forward pass: autocast, and no synchronisation while gradients accumulate."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
