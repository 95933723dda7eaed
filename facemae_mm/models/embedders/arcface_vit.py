"""The vision transformers of InsightFace's arcface_torch, to the state-dict key."""

import numpy as np
import torch
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from mmpretrain.registry import MODELS
from torch import nn
from torch.utils.checkpoint import checkpoint

from .iresnet import refuse_other_sizes

#: arcface_torch's networks by name: embed_dims, depth, drop_path_rate, mask_ratio, with_cp. Its `random_masking` is
#: called without the ratio, so any but 0 trained with 0.1, the `mask_005` of a name notwithstanding.
ARCHITECTURES = {
    'vit_t': (256, 12, 0.1, 0.1, False),
    'vit_t_dp005_mask0': (256, 12, 0.05, 0.0, False),
    'vit_s': (512, 12, 0.1, 0.1, False),
    'vit_s_dp005_mask_0': (512, 12, 0.05, 0.0, False),
    'vit_b': (512, 24, 0.1, 0.1, True),
    'vit_b_dp005_mask_005': (512, 24, 0.05, 0.1, True),
    'vit_l_dp005_mask_005': (768, 24, 0.05, 0.1, True),
    'vit_h': (1024, 48, 0.1, 0.0, True),
}

NUM_HEADS = 8


class Attention(nn.Module):
    """Self-attention whose products and softmax stay float32 under autocast."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(dims, 3 * dims, bias=False)
        self.proj = nn.Linear(dims, dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, L, C)."""
        n, tokens, dims = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, NUM_HEADS, dims // NUM_HEADS).permute(2, 0, 3, 1, 4)
        with torch.autocast(x.device.type, enabled=False):
            x = nn.functional.scaled_dot_product_attention(*qkv.float())
        return self.proj(x.transpose(1, 2).reshape(n, tokens, dims))


class FeedForward(nn.Module):
    """Linear, ReLU6, Linear, four times as wide between."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dims, 4 * dims)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(4 * dims, dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, L, C)."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and feed-forward, each behind LN, each dropped as a whole with a probability."""

    def __init__(self, dims: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dims)
        self.attn = Attention(dims)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dims)
        self.mlp = FeedForward(dims)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, L, C) -> (N, L, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


@MODELS.register_module()
class ArcFaceViT(BaseModule):
    """Embeds ArcFace-aligned faces: arcface_torch's `vit_*`, whose checkpoints load strictly.

    Patches of 9 pixels in 112 leave 4 unread at the right and the bottom: 144 tokens, no class token. In training a
    share of them is left out of the blocks and comes back as the mask token. The head reads all tokens at once: Linear,
    BN, Linear, BN.

    Args:
        arch: A name of `ARCHITECTURES`, as in arcface_torch.
        embedding_dim: D.
        embed_dims: In place of the architecture's width; a multiple of 8.
        depth: In place of its number of blocks.
        drop_path_rate: In place of its probability of dropping the last block; it grows from 0 at the first.
        mask_ratio: In place of its share of tokens left out in training, 0 … 1.
        with_cp: In place of its choice to recompute blocks in the backward pass.
        init_cfg: MMEngine's initialisation. Without it weights start from N(0, 0.02), cut off at ±2, as in
            arcface_torch.

    Raises:
        ValueError: Unknown arch, a width that 8 heads do not divide, or a face that is not 112×112.
    """

    input_size = 112
    channel_order = 'rgb'
    mean = (127.5, 127.5, 127.5)
    std = (127.5, 127.5, 127.5)
    template = None
    patch_size = 9

    def __init__(
        self,
        arch: str = 'vit_t',
        embedding_dim: int = 512,
        embed_dims: int | None = None,
        depth: int | None = None,
        drop_path_rate: float | None = None,
        mask_ratio: float | None = None,
        with_cp: bool | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in ARCHITECTURES:
            raise ValueError(f'ArcFaceViT: arch {arch!r} is unknown. Take one of {", ".join(ARCHITECTURES)}.')
        given = (embed_dims, depth, drop_path_rate, mask_ratio, with_cp)
        dims, depth, drop_path_rate, self.mask_ratio, self.with_cp = (
            default if value is None else value for value, default in zip(given, ARCHITECTURES[arch], strict=True)
        )
        if dims % NUM_HEADS:
            raise ValueError(f'ArcFaceViT: embed_dims {dims} is no multiple of {NUM_HEADS}, the number of heads.')
        self.embedding_dim = embedding_dim
        tokens = (self.input_size // self.patch_size) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, dims))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dims))
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, dims, self.patch_size, self.patch_size)
        rates = np.linspace(0, drop_path_rate, depth).tolist()
        self.blocks = nn.ModuleList(Block(dims, rate) for rate in rates)
        self.norm = nn.LayerNorm(dims)
        self.feature = nn.Sequential(
            nn.Linear(dims * tokens, dims, bias=False),
            nn.BatchNorm1d(dims, eps=2e-5),
            nn.Linear(dims, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds normalised faces.

        Args:
            x: (N, 3, 112, 112), normalised.

        Returns:
            The embedding (N, D) alone in a tuple: raw, float32, also under autocast.
        """
        refuse_other_sizes(self, x)
        # arcface_torch's policy: the blocks in half precision, what is before and behind them in float32.
        with torch.autocast(x.device.type, enabled=False):
            x = self.patch_embed.proj(x.float()).flatten(2).transpose(1, 2) + self.pos_embed  # (N, 144, C)
        masked = self.training and self.mask_ratio > 0
        if masked:
            x, restore = self._leave_out(x)
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.with_cp and self.training else block(x)
        with torch.autocast(x.device.type, enabled=False):
            x = self.norm(x.float())
            if masked:
                fill = self.mask_token.expand(len(x), restore.shape[1] - x.shape[1], -1)
                x = torch.cat([x, fill], 1).gather(1, restore[:, :, None].expand(-1, -1, x.shape[2]))
            return (self.feature(x.flatten(1)),)

    def _leave_out(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keeps a random ⌊L · (1 − mask_ratio)⌋ tokens of each face; also where each of all L lies then, (N, L)."""
        n, tokens, dims = x.shape
        shuffle = torch.rand(n, tokens, device=x.device).argsort(1)
        kept = shuffle[:, : int(tokens * (1 - self.mask_ratio)), None].expand(-1, -1, dims)
        return x.gather(1, kept), shuffle.argsort(1)
