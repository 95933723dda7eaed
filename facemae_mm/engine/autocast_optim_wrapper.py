"""Mixed precision on any device, and classes that are sharded over processes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmpretrain.registry import OPTIM_WRAPPERS
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.nn import Parameter

from ..models.class_shard import class_shard
from ..precision import native_bfloat16


@OPTIM_WRAPPERS.register_module()
class AutocastOptimWrapper(OptimWrapper):
    """OptimWrapper whose forward pass runs under `torch.autocast`, on the device that the model is on.

    bfloat16 has float32's range, so no loss is scaled; float16 scales it, and an overflow in one process skips the step
    in all. Weights, gradients and optimiser states stay float32. A device that does not multiply in that type itself
    runs in float32, and the log says so: see `native_bfloat16`. MMEngine's `AmpOptimWrapper` refuses to run without an
    accelerator.

    Class weights (`ArcFaceHead`, `PartialFCHead`) are no part of the norm by which gradients are clipped, and are not
    clipped, as in `arcface_torch`: with shards the norm, and so the backbone, would differ between processes. The
    states that the optimiser keeps for shards are left out of `state_dict()`, except while a Runner saves a checkpoint:
    then those of all processes are in it.

    Args:
        dtype: 'bfloat16' or 'float16'.
        loss_scale: Options of `torch.amp.GradScaler`, for float16: init_scale, growth_interval, …; 'dynamic' or None
            are its own.
        emulate: Run in that type also where the device has none, to compare numbers, not for speed.
        kwargs: Arguments of `OptimWrapper`: optimizer, accumulative_counts, clip_grad.

    Raises:
        ValueError: Another dtype, another loss_scale, or one with bfloat16.
    """

    def __init__(
        self, *, dtype: str = 'bfloat16', loss_scale: dict | str | None = None, emulate: bool = False, **kwargs
    ) -> None:
        super().__init__(**kwargs)
        if dtype not in ('bfloat16', 'float16'):
            raise ValueError(f"AutocastOptimWrapper: dtype must be 'bfloat16' or 'float16', not {dtype!r}.")
        if loss_scale is not None and dtype == 'bfloat16':
            raise ValueError("AutocastOptimWrapper: bfloat16 needs no loss_scale. Leave it out or set dtype='float16'.")
        if not isinstance(loss_scale, dict) and loss_scale not in (None, 'dynamic'):
            raise ValueError(
                f"AutocastOptimWrapper: loss_scale={loss_scale!r} is neither 'dynamic' nor options of GradScaler. Set "
                'loss_scale=dict(init_scale=…).'
            )
        self.dtype = getattr(torch, dtype)
        self.emulate = emulate
        self.loss_scaler = None
        if dtype == 'float16':
            device = next(self._parameters()).device.type
            kind = ShardedGradScaler if get_world_size() > 1 else torch.amp.GradScaler
            self.loss_scaler = kind(
                device, **(loss_scale if isinstance(loss_scale, dict) else {}), enabled=self._native(device)
            )
        #: The optimiser's states for shards of all processes, on the first one while a checkpoint is saved.
        self.gathered_states = {}
        self._told = False

    def _native(self, device: torch.device | str) -> bool:
        """Whether the forward pass runs in the low precision there."""
        device = torch.device(device)
        fast = native_bfloat16(device) if self.dtype == torch.bfloat16 else device.type != 'cpu'
        return self.emulate or fast

    @contextmanager
    def optim_context(self, model: torch.nn.Module) -> Iterator[None]:
        """Around the forward pass: autocast, and no synchronisation while gradients accumulate."""
        device = next(model.parameters()).device
        enabled = self._native(device)
        if not enabled and not self._told:
            name = str(self.dtype).removeprefix('torch.')
            print_log(f'This {device.type} does not multiply {name}: training runs in float32.', logger='current')
            self._told = True
        with super().optim_context(model), torch.autocast(device.type, dtype=self.dtype, enabled=enabled):
            yield

    def backward(self, loss: torch.Tensor, **kwargs) -> None:
        """Gradients of the loss, scaled for float16."""
        super().backward(loss if self.loss_scaler is None else self.loss_scaler.scale(loss), **kwargs)

    def step(self, **kwargs) -> None:
        """Clips gradients where asked and takes a step, unless one of them overflowed, in whatever process."""
        if self.loss_scaler is None:
            super().step(**kwargs)
            return
        overflow = False
        if self.loss_scaler.is_enabled():
            self.loss_scaler.unscale_(self.optimizer)  # here processes tell each other of overflows
            found = self.loss_scaler._found_inf_per_device(self.optimizer).values()
            overflow = any(float(value) > 0 for value in found)
        if self.clip_grad_kwargs:
            self._clip_grad()
        if not overflow:  # a fused step would take a flag that several processes added up for none
            self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()

    def _clip_grad(self) -> None:
        """Clips all gradients but those of class weights; MMEngine's own takes whatever the optimiser holds."""
        weights = [parameter for parameter in self._parameters() if class_shard(parameter)]
        gradients = [weight.grad for weight in weights]
        for weight in weights:
            weight.grad = None
        super()._clip_grad()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient

    def state_dict(self) -> dict:
        """MMEngine's, with the loss's scale, and without shards or with all of them (see above)."""
        state = super().state_dict()
        for index, _ in self.shards():
            state['state'].pop(index, None)
        state['state'].update(self.gathered_states)
        if self.loss_scaler is not None:
            state['loss_scaler'] = self.loss_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Takes what `state_dict` gave, of this process's classes alone."""
        state_dict = dict(state_dict, state=dict(state_dict['state']))
        scale = state_dict.pop('loss_scaler', None)
        if scale and self.loss_scaler is not None:
            self.loss_scaler.load_state_dict(scale)
        for index, parameter in self.shards():
            shard = class_shard(parameter)
            states = state_dict['state'].get(index, {})
            state_dict['state'][index] = {
                name: shard.cut(value).clone() if _per_class(value, shard.num_classes) else value
                for name, value in states.items()
            }
        super().load_state_dict(state_dict)

    @contextmanager
    def gathered_shards(self) -> Iterator[None]:
        """While `state_dict()` is to hold the states of all processes' classes; all processes enter together."""
        gathered = {}
        for index, parameter in self.shards():
            shard = class_shard(parameter)
            gathered[index] = {
                name: shard.gather(value) if _per_class(value, shard.num_local) else value
                for name, value in self.optimizer.state.get(parameter, {}).items()
            }
        try:
            if not (dist.is_initialized() and dist.get_rank()):
                self.gathered_states = gathered
            yield
        finally:
            self.gathered_states = {}

    def shards(self) -> Iterator[tuple[int, Parameter]]:
        """Class weights of which other processes hold more, with their numbers in the optimiser's state dict."""
        for index, parameter in enumerate(self._parameters()):
            shard = class_shard(parameter)
            if shard is not None and not shard.whole:
                yield index, parameter

    def _parameters(self) -> Iterator[Parameter]:
        for group in self.optimizer.param_groups:
            yield from group['params']


def _per_class(value: object, classes: int) -> bool:
    """Whether an optimiser keeps a row for each class in it."""
    return torch.is_tensor(value) and value.ndim > 0 and len(value) == classes
