"""The recognition network of InsightFace's arcface_torch, to the state-dict key."""

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn

from .training_layers import Conv3x3, PReLU, lay_out

#: Blocks in each of the four stages, by depth.
STAGE_BLOCKS = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 14, 3),
    100: (3, 13, 30, 3),
    200: (6, 26, 60, 6),
}


def refuse_other_sizes(network: nn.Module, x: torch.Tensor) -> None:
    """Raises ValueError where a batch is not (N, 3, S, S) with S the network's `input_size`."""
    size = network.input_size
    if x.shape[1:] != (3, size, size):
        raise ValueError(
            f'{type(network).__name__}: input {tuple(x.shape)} is not (N, 3, {size}, {size}). '
            f'Align the faces to {size}×{size} {network.channel_order.upper()}.'
        )


class IBasicBlock(nn.Module):
    """BN, conv, BN, PReLU, conv (stride), BN, plus the shortcut; nothing after the addition."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = Conv3x3(in_channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)
        self.prelu = PReLU(channels)
        self.conv2 = Conv3x3(channels, channels, stride)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False),
                nn.BatchNorm2d(channels),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        out = self.bn3(self.conv2(out))
        return out + (x if self.downsample is None else self.downsample(x))


@MODELS.register_module()
class IResNet(BaseModule):
    """Embeds ArcFace-aligned faces: InsightFace's IResNet, whose checkpoints load strictly.

    Where a face is normalised is the caller's matter: `mean`, `std` and `channel_order` declare
    what arcface_torch's weights expect (AdaFace's and CVLface's expect BGR).

    Args:
        depth: 18, 34, 50, 100 or 200.
        base_channels: Width of the stem and the first stage; the stages have 1, 2, 4 and 8 times
            as many. 64 is InsightFace's; fewer make a small network with the same keys.
        embedding_dim: D.
        dropout: Probability that an input of the last Linear is zeroed in training.
        init_cfg: MMEngine's initialisation, for weights by config. Without it convolutions start
            from N(0, 0.1), as in arcface_torch.

    Raises:
        ValueError: Unknown depth, or a face that is not 112×112.
    """

    input_size = 112
    channel_order = 'rgb'
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    template = None

    def __init__(
        self,
        depth: int = 50,
        base_channels: int = 64,
        embedding_dim: int = 512,
        dropout: float = 0.0,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth not in STAGE_BLOCKS:
            raise ValueError(f'IResNet: depth {depth!r} is unknown. Take one of {sorted(STAGE_BLOCKS)}.')
        self.embedding_dim = embedding_dim
        self.conv1 = Conv3x3(3, base_channels)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.prelu = PReLU(base_channels)
        width = base_channels
        for stage, num_blocks in enumerate(STAGE_BLOCKS[depth]):
            channels = base_channels << stage
            blocks = [IBasicBlock(width, channels, stride=2)]
            blocks += [IBasicBlock(channels, channels, stride=1) for _ in range(num_blocks - 1)]
            setattr(self, f'layer{stage + 1}', nn.Sequential(*blocks))
            width = channels
        self.bn2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(width * 7 * 7, embedding_dim)
        self.features = nn.BatchNorm1d(embedding_dim)
        self.features.weight.requires_grad_(False)  # stays at 1: only the bias is trained
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0, 0.1)
        self.memory_format = lay_out(self, base_channels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds normalised faces.

        Args:
            x: (N, 3, 112, 112), normalised.

        Returns:
            The embedding (N, D) alone in a tuple: raw, float32, also under autocast.
        """
        refuse_other_sizes(self, x)
        x = self.prelu(self.bn1(self.conv1(x.contiguous(memory_format=self.memory_format))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (N, 8·base_channels, 7, 7)
        x = self.dropout(self.bn2(x).flatten(1))
        # arcface_torch's policy: half precision up to here, the Linear and the last BN in float32.
        with torch.autocast(x.device.type, enabled=False):
            return (self.features(self.fc(x.float())),)
