"""AdaFace's recognition networks, to the state-dict key, and a reader of their Lightning checkpoints."""

import pickle
from pathlib import Path

import torch
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn

from .face_embedder import read_torch_checkpoint
from .iresnet import STAGE_BLOCKS, refuse_other_sizes
from .training_layers import Conv3x3, PReLU, lay_out

#: Whose classes a checkpoint of AdaFace's training may name: Lightning 1.4 keeps a callback's state under its class.
NAMED_PACKAGES = ('pytorch_lightning', 'lightning', 'lightning_fabric')


class _Inert:
    """Stands for a class that a checkpoint names; none of it is imported, and nothing runs."""


def read_adaface_checkpoint(path: str | Path) -> dict[str, torch.Tensor]:
    """State dict of `AdaFaceIR` from a file of AdaFace or CVLface.

    Args:
        path: AdaFace's Lightning `.ckpt` (`state_dict` with `model.…` beside `head.…`), CVLface's `model.pt` (`net.…`),
            or a bare state dict.

    Raises:
        ValueError: The file is damaged, or holds anything but tensors, plain values and names of Lightning's classes.
    """
    try:
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError):  # read_torch_checkpoint says why
        named = []
    inert = [(_Inert, name) for name in named if name.partition('.')[0] in NAMED_PACKAGES]
    with torch.serialization.safe_globals(inert):
        state = read_torch_checkpoint(path)
    for prefix in ('model.', 'net.'):
        if any(key.startswith(prefix) for key in state):
            return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    return state


class SqueezeExcite(nn.Module):
    """Scales each channel by a sigmoid of all channels' means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // reduction, 1, bias=False)
        self.fc2 = nn.Conv2d(channels // reduction, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H, W)."""
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class IRBlock(nn.Module):
    """BN, conv, BN, PReLU, conv (stride), BN and, where asked, channel scaling, plus the shortcut.

    Where the width stays, the shortcut of a halving block takes every second pixel as it is.
    """

    def __init__(self, in_channels: int, channels: int, stride: int, squeeze_excite: bool) -> None:
        super().__init__()
        if in_channels == channels:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            Conv3x3(in_channels, channels),
            nn.BatchNorm2d(channels),
            PReLU(channels),
            Conv3x3(channels, channels, stride),
            nn.BatchNorm2d(channels),
        )
        if squeeze_excite:
            self.res_layer.add_module('se_block', SqueezeExcite(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        return self.res_layer(x) + self.shortcut_layer(x)


@MODELS.register_module()
class AdaFaceIR(BaseModule):
    """Embeds ArcFace-aligned faces: AdaFace's `ir_18`, `ir_34`, `ir_50`, `ir_101` and `ir_se_50`, which load strictly.

    Its weights expect BGR. AdaFace's own network ends in the normalised embedding and its norm; here it is raw.

    Args:
        depth: 18, 34, 50, or 101 (which has 100 layers).
        squeeze_excite: Channel scaling in every block, as `ir_se_50` has.
        base_channels: Width of the stem and the first stage; 64 is AdaFace's.
        embedding_dim: D.
        dropout: Probability that an input of the last Linear is zeroed in training.
        init_cfg: MMEngine's initialisation. Without it convolutions and the Linear start from Kaiming's normal
            distribution (fan_out), as in AdaFace.

    Raises:
        ValueError: Unknown depth, or a face that is not 112×112.
    """

    input_size = 112
    channel_order = 'bgr'
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    template = None
    #: Reads the checkpoint of this network in place of torch.load.
    read_checkpoint = staticmethod(read_adaface_checkpoint)

    def __init__(
        self,
        depth: int = 50,
        squeeze_excite: bool = False,
        base_channels: int = 64,
        embedding_dim: int = 512,
        dropout: float = 0.4,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if depth not in (18, 34, 50, 101):
            raise ValueError(f'AdaFaceIR: depth {depth!r} is unknown. Take 18, 34, 50 or 101.')
        self.embedding_dim = embedding_dim
        width = base_channels
        self.input_layer = nn.Sequential(Conv3x3(3, width), nn.BatchNorm2d(width), PReLU(width))
        blocks = []
        for stage, num_blocks in enumerate(STAGE_BLOCKS[100 if depth == 101 else depth]):
            channels = base_channels << stage
            blocks.append(IRBlock(width, channels, 2, squeeze_excite))
            blocks += [IRBlock(channels, channels, 1, squeeze_excite) for _ in range(num_blocks - 1)]
            width = channels
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(width),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(width * 7 * 7, embedding_dim),
            nn.BatchNorm1d(embedding_dim, affine=False),
        )
        self.body = nn.Sequential(*blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        nn.init.zeros_(self.output_layer[3].bias)
        self.memory_format = lay_out(self, base_channels)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds normalised faces.

        Args:
            x: (N, 3, 112, 112) BGR, normalised.

        Returns:
            The embedding (N, D) alone in a tuple: raw, float32, also under autocast.
        """
        refuse_other_sizes(self, x)
        x = self.body(self.input_layer(x.contiguous(memory_format=self.memory_format)))  # (N, 8·base_channels, 7, 7)
        with torch.autocast(x.device.type, enabled=False):
            return (self.output_layer(x.float()),)
