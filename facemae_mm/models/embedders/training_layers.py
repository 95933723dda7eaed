"""Layers with the values and gradients of torch's, whose gradients cost less on a CPU."""

import torch
import torch.nn.functional as F
from torch import nn

#: Side of a map from which oneDNN takes the gradient of a 3×3 filter sooner from planes than from channels-last.
LARGE = 64


def lay_out(network: nn.Module, width: int) -> torch.memory_format:
    """Lays the filters of a network out as its maps train best, in place.

    That is channels-last, but for narrow maps: oneDNN of torch 2.14.1 writes outside its memory in the gradient of a
    1×1 filter of stride 2 over four channels, with AVX-512 over eight as well.

    Args:
        network: With convolutions.
        width: Of which each map's channels are a multiple.

    Returns:
        The order in memory that its input should have.
    """
    order = torch.contiguous_format if width % 16 else torch.channels_last
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # not by `to`, which fails where memory is estimated without tensors
            module.weight = nn.Parameter(module.weight.detach().contiguous(memory_format=order))
    return order


def _on_cpu(module: nn.Module, x: torch.Tensor) -> bool:
    """Whether a layer trains on a CPU in the type of its weight."""
    in_half = torch.is_autocast_enabled(x.device.type)
    return module.training and x.device.type == 'cpu' and x.dtype == module.weight.dtype and not in_half


class _PReLU(torch.autograd.Function):
    """`torch.prelu`, whose own backward is not vectorised."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, slope: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, slope)
        return torch.prelu(x, slope)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, slope = ctx.saved_tensors
        positive = torch.ops.aten.threshold_backward(grad, x, 0)
        negative = grad - positive
        slope_grad = (negative * x).sum((0, 2, 3)) if ctx.needs_input_grad[1] else None
        return positive.addcmul_(negative, slope.view(-1, 1, 1)), slope_grad


class _LargeConv2d(torch.autograd.Function):
    """3×3 convolution of stride 1 that keeps the size; the gradient of its filter is computed from planes."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, padding=1)

    @staticmethod
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, weight = ctx.saved_tensors
        x_grad = torch.nn.grad.conv2d_input(x.shape, weight, grad, padding=1) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return x_grad, None
        weight_grad = torch.nn.grad.conv2d_weight(x.contiguous(), weight.shape, grad.contiguous(), padding=1)
        return x_grad, torch.empty_like(weight).copy_(weight_grad)  # in the order of the weight, as DDP's buckets are


class PReLU(nn.PReLU):
    """`nn.PReLU` with one slope a channel, for maps."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return _PReLU.apply(x, self.weight) if _on_cpu(self, x) else super().forward(x)


class Conv3x3(nn.Conv2d):
    """3×3 convolution without bias that keeps the size, or halves it with stride 2."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__(in_channels, channels, 3, stride, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        large = self.stride == (1, 1) and self.in_channels > 3 and min(x.shape[2:]) > LARGE
        return _LargeConv2d.apply(x, self.weight) if large and _on_cpu(self, x) else super().forward(x)
