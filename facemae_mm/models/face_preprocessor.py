"""From stored faces to the network's input: channel order, normalisation, and each patch enlarged alone."""

import torch
import torch.nn.functional as F
from mmpretrain.models import SelfSupDataPreprocessor
from mmpretrain.registry import MODELS


def enlarge_patches(images: torch.Tensor, grid: int, size: int) -> torch.Tensor:
    """Enlarges each of grid × grid patches by itself, bilinearly, with its own edges replicated.

    No value of one patch reaches another, so visible patches carry nothing of removed ones.

    Args:
        images: (N, C, h, h), h divisible by `grid`.
        grid: Patches along a side.
        size: Side of the result, divisible by `grid`.

    Returns:
        (N, C, size, size).
    """
    n, c, h, _ = images.shape
    p = h // grid
    x = images.reshape(n, c, grid, p, grid, p).permute(0, 2, 4, 1, 3, 5).reshape(-1, c, p, p)
    x = F.interpolate(x, size=size // grid, mode='bilinear', align_corners=False)
    x = x.reshape(n, grid, grid, c, size // grid, size // grid)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(n, c, size, size)


@MODELS.register_module()
class FacePreprocessor(SelfSupDataPreprocessor):
    """Normalises faces and brings them to the network's size without mixing patches.

    Args:
        size: Side of the network's input, pixels.
        patch_size: Side of the network's patch; size // patch_size patches stand along a side, stored or enlarged.
        kwargs: mean, std (RGB, [0, 255]), to_rgb and the rest of MMPretrain's `SelfSupDataPreprocessor`.

    Raises:
        ValueError: Patches do not divide the network's or the stored size, or faces are stored larger than it.
    """

    def __init__(self, size: int = 224, patch_size: int = 16, **kwargs) -> None:
        super().__init__(**kwargs)
        if size % patch_size:
            raise ValueError(
                f'FacePreprocessor: size {size} is not divisible by patch_size {patch_size}. Change one of them.'
            )
        self.size = size
        self.patch_size = patch_size

    def forward(self, data: dict, training: bool = False) -> dict:
        """Batch of samples → dict(inputs (N, 3, size, size), data_samples)."""
        batch = super().forward(data, training)
        stored, grid = batch['inputs'].shape[-2:], self.size // self.patch_size
        if stored[0] != stored[1] or stored[0] % grid or stored[0] > self.size:
            raise ValueError(
                f'FacePreprocessor: faces of size {tuple(stored)} cannot be enlarged to {self.size} in {grid}×{grid} '
                f'patches. Store them at {self.size} or at a smaller multiple of {grid} (112 for a 14×14 grid).'
            )
        if stored[0] != self.size:
            batch['inputs'] = enlarge_patches(batch['inputs'], grid, self.size)
        return batch
