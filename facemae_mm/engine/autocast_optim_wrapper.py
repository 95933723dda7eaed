"""bf16 training on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS

from ..precision import native_bfloat16


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """OptimWrapper whose forward pass runs under `torch.autocast` in bfloat16, on the device that the model is on.

    bfloat16 has float32's range, so no loss is scaled; weights, gradients and optimiser states stay float32. A device
    that does not multiply bfloat16 itself runs in float32, and the log says so: see `native_bfloat16`. MMEngine's
    `AmpOptimWrapper` refuses to run without an accelerator.

    Args:
        emulate: Run in bfloat16 also where the device has none, to compare numbers, not for speed.
        kwargs: Arguments of `OptimWrapper`: optimizer, accumulative_counts, clip_grad.
    """

    def __init__(self, *, emulate: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.emulate = emulate
        self._told = False

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Around the forward pass: autocast, and no synchronisation while gradients accumulate."""
        device = next(model.parameters()).device
        enabled = self.emulate or native_bfloat16(device)
        if not enabled and not self._told:
            print_log(f'This {device.type} does not multiply bfloat16: training runs in float32.', logger='current')
            self._told = True
        with super().optim_context(model), torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled):
            yield
