"""A recipe's model on shapes alone: what it keeps and computes is seen before any weight is made or read."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from .models.embedders import OnnxFaceNet
from .precision import native_bfloat16

#: Side of a stored face, for networks that take any.
FACE_SIZE = 112


class ModelOnShapes:
    """The model of a recipe, built of fake tensors.

    Args:
        config: Recipe, options applied.

    Attributes:
        model: The model, in training mode.

    Raises:
        Exception: Whatever a model raises that cannot be built on shapes.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        network = dict(config.model)
        if config.get('data_preprocessor'):
            network.setdefault('data_preprocessor', config.data_preprocessor)  # as the Runner does
        network = _without_files(network)
        init_default_scope(config.get('default_scope', 'mmpretrain'))
        with _alone(), torch.random.fork_rng(devices=[]), _OnShapes(self.fake):
            self.model = MODELS.build(network)

    @contextmanager
    def running(self, number: int) -> Iterator[tuple[torch.Tensor, list[DataSample]]]:
        """Within it the model runs on shapes, in the precision of the recipe.

        Args:
            number: N.

        Yields:
            Images (N, 3, H, W) as the model takes them, and their samples: labels, and masks as of the recipe.
        """
        size = (
            getattr(self.model.data_preprocessor, 'size', None)
            or _mask_generator(self.config).get('input_size')
            or getattr(getattr(self.model, 'backbone', None), 'img_size', FACE_SIZE)
        )
        height, width = (size, size) if isinstance(size, int) else size
        wrapper = self.config.optim_wrapper
        autocast = wrapper.get('type') == 'AutocastOptimWrapper' and (wrapper.get('emulate') or native_bfloat16('cpu'))
        samples = _samples(self.model, self.config, number)  # their masks are real
        read = mock.patch.object(OnnxFaceNet, '__init__', _for_real(OnnxFaceNet.__init__))
        with _alone(), torch.random.fork_rng(devices=[]), _OnShapes(self.fake), read:
            with torch.autocast('cpu', dtype=torch.bfloat16, enabled=autocast):
                yield torch.empty(number, 3, height, width), samples


@contextmanager
def _alone() -> Iterator[None]:
    """No other process takes part, nothing moves to a device, as fake modules cannot, and nothing warns."""
    stay = mock.patch.object(torch.nn.Module, 'to', lambda module, *_, **__: module)
    single = mock.patch('torch.distributed.is_initialized', lambda: False)
    with stay, single, warnings.catch_warnings(action='ignore'):
        yield


def _without_files(model: dict) -> dict:
    """The config of a model that talks to no other process and reads no file, but for a network that is one (ONNX)."""
    model = copy.deepcopy(model)

    def strip(node: object) -> None:
        if isinstance(node, dict):
            backbone = node.get('backbone')
            is_file = isinstance(backbone, dict) and backbone.get('type') == 'OnnxFaceNet'
            if node.get('type') == 'PartialFCHead':
                _one_process_head(node)
            for key in ('init_cfg', 'pretrained', 'gather', 'cache', *([] if is_file else ['checkpoint'])):
                node.pop(key, None)
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ():
            strip(child)

    strip(model)
    return model


def _one_process_head(head: dict) -> None:
    """Makes PartialFCHead's config one of ArcFaceHead that needs as much memory as a process, or more.

    Of C classes a process of W holds C / W, and of all W batches together takes the sampled ones, which is as much as
    its own batch and the sample of all C.
    """
    rate = head.pop('sample_rate', 1.0)
    head.pop('sparse', None)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    head.update(type='ArcFaceHead', num_classes=math.ceil(head['num_classes'] * max(rate, 1 / processes)))


def _mask_generator(config: Config) -> dict:
    """The transform of the recipe's pipeline that draws masks for a model of MMPretrain; empty where none does."""
    pipeline = config.train_dataloader.dataset.get('pipeline', [])
    return next((step for step in pipeline if step['type'] == 'SimMIMMaskGenerator'), {})


def _samples(model: torch.nn.Module, config: Config, number: int) -> list[DataSample]:
    """Labelled samples that remove as many patches as the recipe's pipeline."""
    pipeline = config.train_dataloader.dataset.get('pipeline', [])
    ratio = next((step.get('mask_ratio', 0.75) for step in pipeline if step['type'] == 'FaceMask'), 0.75)
    patches = getattr(getattr(model, 'backbone', None), 'num_patches', 0)
    mask = (torch.arange(patches) >= int(patches * (1 - ratio))).to(torch.uint8)
    if generator := _mask_generator(config):
        mask = torch.from_numpy(TRANSFORMS.build(generator)({})['mask'])
    samples = [DataSample().set_gt_label(0) for _ in range(number)]
    for sample in samples:
        sample.set_field(mask, 'mask', dtype=torch.Tensor)
    return samples


def _for_real(function: Callable) -> Callable:
    """A function that runs on real tensors wherever it is called."""

    def run(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return run


class _OnShapes(TorchDispatchMode):
    """Runs what touches fake tensors, and what makes new ones, on shapes alone; the rest, such as masks, for real.

    A number read from a fake tensor is 0.
    """

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if tensors and not any(isinstance(tensor, FakeTensor) for tensor in tensors):
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default:
            return torch.zeros((), dtype=tensors[0].dtype).item()
        with self.fake:
            return func(*args, **kwargs)
