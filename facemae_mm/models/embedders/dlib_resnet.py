"""dlib's face ResNet, and a reader of the file that its weights come in."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import nn

#: Residual blocks from the input on: (channels, down).
BLOCKS = (
    *[(32, False)] * 3,
    *[(64, True)] + [(64, False)] * 3,
    *[(128, True)] + [(128, False)] * 2,
    *[(256, True)] + [(256, False)] * 2,
    (256, True),
)

#: Most bytes from the end of one layer's values to the name of the next (334 in the public file).
MAX_GAP = 1024


class _DlibStream:
    """What dlib's `serialize` wrote, read as bytes: numbers alone, nothing in it can execute."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.data = self.path.read_bytes()
        self.position = 0

    def error(self, problem: str) -> ValueError:
        return ValueError(
            f"{self.path} is not dlib's face ResNet, or is damaged: {problem} at byte "
            f'{self.position} of {len(self.data)}. Install it anew '
            '(`pip install --force-reinstall face_recognition_models`) and give its '
            'dlib_face_recognition_resnet_model_v1.dat.'
        )

    def integer(self) -> int:
        """A control byte (sign in bit 7, number of bytes in bits 0–3), then them, low first."""
        control = self.data[self.position : self.position + 1]
        count = control[0] & 15 if control else 0
        value = self.data[self.position + 1 : self.position + 1 + count]
        if not 1 <= count <= 8 or len(value) != count:
            raise self.error('no integer')
        self.position += 1 + count
        magnitude = int.from_bytes(value, 'little')
        return -magnitude if control[0] & 0x80 else magnitude

    def tensor(self, layer: str, size: int, skipped: int = 0) -> np.ndarray:
        """Parameters of the next layer of a name.

        Args:
            layer: dlib's name of the layer, with its version.
            size: Number of values it must have.
            skipped: Integers between name and tensor.

        Returns:
            (size,) float64.
        """
        name = b'\x01' + bytes([len(layer)]) + layer.encode()
        start = self.data.find(name, self.position, self.position + MAX_GAP)
        if start < 0:
            raise self.error(f'no layer {layer!r}')
        self.position = start + len(name)
        for _ in range(skipped):
            self.integer()
        version, *shape = [self.integer() for _ in range(5)]
        if version != 2 or np.prod(shape) != size:
            raise self.error(f'{layer!r} has a tensor {shape} of version {version}, not {size} values')
        values = self.data[self.position : self.position + 4 * size]
        if len(values) != 4 * size:
            raise self.error(f'{layer!r} has fewer than {size} values')
        self.position += 4 * size
        return np.frombuffer(values, '<f4').astype(np.float64)


def read_dlib_face_resnet(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads `dlib_face_recognition_resnet_model_v1.dat` into a state dict of `DlibFaceResNet`.

    dlib scales and shifts what each convolution gives: γ(w ∗ x + b) + β. Here γw and γb + β are the
    weights and the bias, folded in float64.

    Args:
        path: The file as dlib wrote it.

    Returns:
        float32 tensors that fit `DlibFaceResNet` strictly.

    Raises:
        ValueError: Another file, or a damaged one.
    """
    with torch.device('meta'):
        network = DlibFaceResNet()
    stream, state = _DlibStream(path), {}
    for name, layer in network.named_modules():  # in the order of the file: input first
        if isinstance(layer, nn.Conv2d):
            shape, channels = layer.weight.shape, layer.out_channels
            values = stream.tensor('con_4', layer.weight.numel() + channels)
            gamma, beta = stream.tensor('affine_', 2 * channels).reshape(2, channels)
            weight = values[:-channels].reshape(shape) * gamma[:, None, None, None]
            state[f'{name}.weight'] = torch.from_numpy(weight).float()
            state[f'{name}.bias'] = torch.from_numpy(values[-channels:] * gamma + beta).float()
        elif isinstance(layer, nn.Linear):
            outputs, inputs = layer.weight.shape
            values = stream.tensor('fc_2', inputs * outputs, skipped=2)
            state[f'{name}.weight'] = torch.from_numpy(values.reshape(inputs, outputs).T).float()
    return state


def _pad(x: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Zeros after the last channel, row and column of (N, C, H, W), up to (C', H', W')."""
    (c, h, w), (_, c_in, h_in, w_in) = size, x.shape
    return F.pad(x, (0, w - w_in, 0, h - h_in, 0, c - c_in))


class DlibBlock(nn.Module):
    """conv, ReLU, conv, plus the shortcut, ReLU; the first conv and the shortcut may halve."""

    def __init__(self, in_channels: int, channels: int, down: bool) -> None:
        super().__init__()
        self.down = down
        stride, padding = (2, 0) if down else (1, 1)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C_in, H, W) -> (N, C, H', W')."""
        out = self.conv2(F.relu(self.conv1(x), inplace=True))
        if self.down:
            x = F.avg_pool2d(x, 2)
            # dlib adds maps of unlike size as if zeros followed each: of 8×8 the convolution
            # leaves 3×3 and the pool 4×4, of 35×35 both leave 17×17.
            size = torch.Size(map(max, out.shape[1:], x.shape[1:]))
            out, x = _pad(out, size), _pad(x, size)
        return F.relu(out + x, inplace=True)


@MODELS.register_module()
class DlibFaceResNet(nn.Module):
    """Embeds 150×150 face chips: dlib's `face_recognition_model_v1`, layer by layer.

    Embeddings of one person lie closer than 0.6 (Euclidean, not normalised). Convolutions carry the
    affine layers that follow them in dlib, and run channels-last: forward and input gradient take
    168 images/s on two cores so, 133 in the default layout.

    Raises:
        ValueError: A chip that is not 150×150.
    """

    input_size = 150
    channel_order = 'rgb'
    mean = (122.782, 117.001, 104.298)
    std = (256.0, 256.0, 256.0)
    embedding_dim = 128
    #: Where the five points of ARCFACE_TEMPLATE lie in a chip, pixels (x, y).
    template = ((47.55, 46.6), (100.5, 46.6), (74.0, 76.6), (50.4, 103.0), (97.6, 103.0))
    #: Reads the checkpoint of this network in place of torch.load.
    read_checkpoint = staticmethod(read_dlib_face_resnet)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 7, stride=2)
        widths = [32, *(channels for channels, _ in BLOCKS)]
        self.blocks = nn.Sequential(*(DlibBlock(width, *block) for width, block in zip(widths, BLOCKS, strict=False)))
        self.fc = nn.Linear(256, self.embedding_dim, bias=False)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds chips.

        Args:
            x: (N, 3, 150, 150) RGB, normalised by `mean` and `std`.

        Returns:
            The embedding (N, 128) alone in a tuple, raw.
        """
        if x.shape[1:] != (3, self.input_size, self.input_size):
            raise ValueError(
                f'DlibFaceResNet: input {tuple(x.shape)} is not (N, 3, {self.input_size}, '
                f'{self.input_size}). Let FaceEmbedder warp aligned faces to it.'
            )
        x = self.conv(x.contiguous(memory_format=torch.channels_last))  # (N, 32, 72, 72)
        x = F.relu(F.max_pool2d(x, 3, 2), inplace=True)  # dlib pools last: the same values, slower
        return (self.fc(self.blocks(x).mean((2, 3))),)
