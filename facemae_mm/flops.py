"""What the network of a recipe computes for a face, counted on shapes; no weights are made or read."""

from math import prod
from typing import NamedTuple
from unittest import mock

import torch
from mmengine.config import Config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .models.irm_loss import IRMLoss
from .on_shapes import ModelOnShapes

#: Faces that are counted together: relation matching needs two.
FACES = 2


class TrainingFlops(NamedTuple):
    """Floating-point operations for one face: of products of matrices and convolutions, two a multiplication and sum.

    Attributes:
        step: Forward and backward pass, φ(original) apart.
        originals: φ(original), which a cache leaves to the first sight of a face; 0 without φ.
        parameters: Trained numbers of the network.
    """

    step: float
    originals: float
    parameters: int


def count_training(config: Config) -> TrainingFlops:
    """Counts what the recipe's network computes for one face in training.

    Args:
        config: Recipe, options applied.

    Raises:
        Exception: Whatever a model raises that cannot run on shapes.
    """
    shapes = ModelOnShapes(config)
    originals, whole = _counter(), _counter()

    @torch.no_grad()
    def features(loss: IRMLoss, phi: torch.nn.Module, images, *_) -> torch.Tensor:
        with originals:
            return phi(images())[-1]

    with (
        shapes.running(FACES) as (images, samples),
        sdpa_kernel(SDPBackend.MATH),  # whose products are counted
        mock.patch.object(IRMLoss, '_original_features', features),
        whole,
    ):
        losses = shapes.model(images, samples, mode='loss')
        sum(value for name, value in losses.items() if 'loss' in name).backward()
    own = originals.get_total_flops()
    parameters = sum(p.numel() for p in shapes.model.parameters() if p.requires_grad)
    return TrainingFlops((whole.get_total_flops() - own) / FACES, own / FACES, parameters)


def count_prediction(config: Config) -> float:
    """Counts what the recipe's network computes for one face in a test; see `count_training`."""
    shapes = ModelOnShapes(config)
    shapes.model.eval()
    with (
        shapes.running(FACES) as (images, samples),
        sdpa_kernel(SDPBackend.MATH),
        torch.no_grad(),
        _counter() as counter,
    ):
        shapes.model(images, samples, mode='predict')
    return counter.get_total_flops() / FACES


def _counter() -> FlopCounterMode:
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.convolution_backward: _convolution_backward_flops}
    )


def _convolution_backward_flops(grad: tuple, x: tuple, weight: tuple, *args, out_shape: object) -> int:
    """Either gradient costs what the forward pass does; torch's own count leaves groups out."""
    transposed, mask = args[4], args[-1]
    places = prod((x if transposed else grad)[2:])
    return 2 * grad[0] * places * prod(weight) * sum(mask[:2])
