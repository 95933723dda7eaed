"""A network that turns released faces back into photos, and an embedder behind it."""

import hashlib

import torch
import torch.nn.functional as F
from torch import nn

from ...alignment import ARCFACE_SIZE
from ...models.embedders import FaceEmbedder

#: Channels from the 56×56 map of 2×2 pixels down to the 7×7 map.
WIDTHS = (24, 48, 96, 128)


def _convolution(in_channels: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False), nn.GroupNorm(8, channels), nn.GELU()
    )


class DemaskingNetwork(nn.Module):
    """A small U-Net (Ronneberger et al. 2015) over 2×2 pixels, which adds to a face what it lacks.

    Each level halves the map, to 7×7; on the way up the maps of the way down join. At first it adds nothing, so that an
    attack by it starts from the released face as it is. 0.7 million parameters; forward and gradients of a face take
    22 ms on one core.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first = _convolution(12, WIDTHS[0])
        pairs = list(zip(WIDTHS, WIDTHS[1:]))
        self.down = nn.ModuleList(nn.Sequential(_convolution(a, b, 2), _convolution(b, b)) for a, b in pairs)
        self.up = nn.ModuleList(_convolution(a + b, a) for a, b in reversed(pairs))
        self.last = nn.Conv2d(WIDTHS[0], 12, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        """Released faces (N, 3, 112, 112) -> restored ones, likewise; RGB, [0, 255], not clamped."""
        x = self.first(F.pixel_unshuffle(faces / 127.5 - 1, 2).contiguous(memory_format=torch.channels_last))
        passed = []
        for level in self.down:
            passed.append(x)
            x = level(x)
        for level in self.up:
            x = level(torch.cat([F.interpolate(x, scale_factor=2.0), passed.pop()], 1))
        return faces + 127.5 * F.pixel_shuffle(self.last(x), 2)


class DemaskingEmbedder(nn.Module):
    """Embeds released faces after turning them back into photos.

    Args:
        network: What turns them back.
        embedder: What embeds the result.
    """

    def __init__(self, network: DemaskingNetwork, embedder: FaceEmbedder) -> None:
        super().__init__()
        self.network = network
        self.embedder = embedder

    @property
    def mean(self) -> torch.Tensor:
        """The embedder's, on the device of both."""
        return self.embedder.mean

    def fingerprint(self, device: torch.device) -> str:
        """SHA-256, hexadecimal, of both: see `FaceEmbedder.fingerprint`."""
        digest = hashlib.sha256(f'DemaskingEmbedder {self.embedder.fingerprint(device)}'.encode())
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def restore(self, faces: torch.Tensor) -> torch.Tensor:
        """Released faces (N, 3, H, H) -> restored ones (N, 3, 112, 112), RGB in [0, 255], not clamped."""
        return self.network(to_crop(faces))

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor]:
        """Released faces (N, 3, H, H) RGB in [0, 255] -> the embedding (N, D) alone in a tuple, raw."""
        return self.embedder(self.restore(faces))


def to_crop(faces: torch.Tensor) -> torch.Tensor:
    """Faces (N, 3, H, H) of any size and type at the size of the ArcFace crop, float32."""
    faces = faces.float()
    if faces.shape[-1] == ARCFACE_SIZE:
        return faces
    return F.interpolate(faces, size=(ARCFACE_SIZE, ARCFACE_SIZE), mode='bilinear', align_corners=False)
