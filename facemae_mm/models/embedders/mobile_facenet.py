"""The small recognition network of InsightFace's arcface_torch, to the state-dict key."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn

from .iresnet import refuse_other_sizes
from .training_layers import PReLU, lay_out


class ConvBlock(nn.Module):
    """Convolution without bias, BN and, unless `linear`, PReLU."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel: int = 1,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        layers = [
            nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False),
            nn.BatchNorm2d(channels),
        ]
        self.layers = nn.Sequential(*layers, *([] if linear else [PReLU(channels)]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, H', W')."""
        return self.layers(x)


class DepthWise(nn.Module):
    """Widens to `groups` channels, convolves each by itself, narrows without activation; adds its input where asked."""

    def __init__(self, in_channels: int, channels: int, groups: int, stride: int = 2, residual: bool = False) -> None:
        super().__init__()
        self.residual = residual
        self.layers = nn.Sequential(
            ConvBlock(in_channels, groups),
            ConvBlock(groups, groups, 3, stride, 1, groups),
            ConvBlock(groups, channels, linear=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out = self.layers(x)
        return x + out if self.residual else out


class Residual(nn.Module):
    """Blocks of one width, each with its shortcut."""

    def __init__(self, channels: int, num_blocks: int, groups: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(DepthWise(channels, channels, groups, 1, True) for _ in range(num_blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return self.layers(x)


class GlobalDepthWise(nn.Module):
    """One 7×7 filter a channel over the whole map, then Linear and BN: the embedding."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvBlock(512, 512, kernel=7, groups=512, linear=True),
            nn.Flatten(),
            nn.Linear(512, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 512, 7, 7) -> (N, D)."""
        return self.layers(x)


@MODELS.register_module()
class MobileFaceNet(BaseModule):
    """Embeds ArcFace-aligned faces: arcface_torch's `mbf` and `mbf_large`, whose checkpoints load strictly.

    Args:
        blocks: Residual blocks of the four stages: (1, 4, 6, 2) is `mbf`, (2, 8, 12, 4) `mbf_large`.
        scale: Width of the maps over 64 and 128 channels: 2 in `mbf`, 4 in `mbf_large`. What is between a block's
            two narrow ends stays as wide.
        embedding_dim: D.
        init_cfg: MMEngine's initialisation. Without it convolutions and the Linear start from Kaiming's normal
            distribution (fan_out), as in arcface_torch.

    Raises:
        ValueError: Not four stages, or a face that is not 112×112.
    """

    input_size = 112
    channel_order = 'rgb'
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    template = None

    def __init__(
        self,
        blocks: Sequence[int] = (1, 4, 6, 2),
        scale: int = 2,
        embedding_dim: int = 512,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if len(blocks) != 4 or min(blocks) < 1 or scale < 1:
            raise ValueError(
                f'MobileFaceNet: {blocks=} and {scale=} must be four numbers and one, all above 0. '
                'arcface_torch has blocks=(1, 4, 6, 2), scale=2 (mbf) and blocks=(2, 8, 12, 4), scale=4 (mbf_large).'
            )
        self.embedding_dim = embedding_dim
        narrow, wide = 64 * scale, 128 * scale
        first = ConvBlock(narrow, narrow, 3, 1, 1, groups=64) if blocks[0] == 1 else Residual(narrow, blocks[0], 128)
        self.layers = nn.ModuleList(
            [
                ConvBlock(3, narrow, 3, 2, 1),
                first,
                DepthWise(narrow, narrow, 128),
                Residual(narrow, blocks[1], 128),
                DepthWise(narrow, wide, 256),
                Residual(wide, blocks[2], 256),
                DepthWise(wide, wide, 512),
                Residual(wide, blocks[3], 256),
            ]
        )
        self.conv_sep = ConvBlock(wide, 512)
        self.features = GlobalDepthWise(embedding_dim)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        self.memory_format = lay_out(self, 64)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds normalised faces.

        Args:
            x: (N, 3, 112, 112), normalised.

        Returns:
            The embedding (N, D) alone in a tuple: raw, float32, also under autocast.
        """
        refuse_other_sizes(self, x)
        x = x.contiguous(memory_format=self.memory_format)
        for layer in self.layers:
            x = layer(x)  # (N, 128·scale, 7, 7) at the end
        with torch.autocast(x.device.type, enabled=False):  # arcface_torch's policy
            return (self.features(self.conv_sep(x.float())),)
