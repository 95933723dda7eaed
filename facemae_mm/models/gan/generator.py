"""From an identity code and noise to a face."""

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import Tensor, nn


class StyledConv(nn.Module):
    """3×3 convolution, each channel of a face normalised, scaled and shifted by its style, leaky ReLU."""

    def __init__(self, in_channels: int, channels: int, style_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.style = nn.Linear(style_dim, 2 * channels)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """(N, C_in, H, W), (N, S) -> (N, C, H, W)."""
        scale, shift = self.style(style)[:, :, None, None].chunk(2, 1)
        x = self.conv(x)
        variance, mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        factor = (1 + scale) * torch.rsqrt(variance + 1e-5)
        return F.leaky_relu(x * factor + (shift - mean * factor), 0.2)


@MODELS.register_module()
class FaceGenerator(BaseModule):
    """G(z, c): a face of an identity code c, whose pose, expression and light follow from z.

    Both become a style that scales and shifts every layer (as StyleGAN's, Karras et al., 2019), and the first map.

    Args:
        z_dim: Dimension of z.
        code_dim: Dimension of c.
        style_dim: Dimension of the style.
        channels: Of the maps at 7 × 7, 14 × 14, …; the last one's side, 7·2^(n − 1), is the face's.
    """

    def __init__(
        self,
        z_dim: int = 32,
        code_dim: int = 128,
        style_dim: int = 128,
        channels: tuple[int, ...] = (96, 64, 32, 16),
    ) -> None:
        super().__init__()
        self.z_dim, self.code_dim = z_dim, code_dim
        self.size = 7 * 2 ** (len(channels) - 1)
        self.mapping = nn.Sequential(
            nn.Linear(z_dim + code_dim, style_dim),
            nn.LeakyReLU(0.2),
            nn.Linear(style_dim, style_dim),
            nn.LeakyReLU(0.2),
        )
        self.start = nn.Linear(style_dim, channels[0] * 49)
        widths = (channels[0], *channels)
        self.layers = nn.ModuleList(StyledConv(*pair, style_dim) for pair in zip(widths, channels, strict=False))
        self.to_rgb = nn.Conv2d(channels[-1], 3, 3, padding=1)

    def forward(self, z: Tensor, code: Tensor) -> Tensor:
        """Draws faces.

        Args:
            z: (N, z_dim), standard normal.
            code: Unit rows (N, code_dim).

        Returns:
            (N, 3, size, size) RGB in [−1, 1].
        """
        style = self.mapping(torch.cat([z, code * self.code_dim**0.5], 1))  # values of c as large as those of z
        x = self.start(style).unflatten(1, (-1, 7, 7))
        for number, layer in enumerate(self.layers):
            x = layer(F.interpolate(x, scale_factor=2.0) if number else x, style)
        return self.to_rgb(x).tanh()
