"""A copy of a frozen embedder that trains."""

import copy
import math

import torch
from torch import nn

from ...models.embedders import FaceEmbedder
from ...models.embedders.frozen_layers import FrozenBatchNorm2d, FrozenConv2d, FrozenPReLU, freeze_layers
from ...models.embedders.training_layers import lay_out

#: What `freeze_layers` makes of each kind, undone.
THAWED = {FrozenConv2d: nn.Conv2d, FrozenPReLU: nn.PReLU, FrozenBatchNorm2d: nn.BatchNorm2d}


def trainable_copy(embedder: FaceEmbedder) -> FaceEmbedder:
    """An embedder of the same weights whose `backbone` has parameters with gradients; the original shares none of it.

    Alignment and normalisation stay. So does eval mode: batch normalisation keeps the statistics of the photos that the
    network was trained on, which few owned faces would only blur.

    Args:
        embedder: Of any network: its layers are thawed, the rest of it is as it was.
    """
    trained = copy.copy(embedder)
    trained._buffers = dict(embedder._buffers)  # a move of one must not take the other's along
    network = copy.deepcopy(embedder.backbone)
    for module in network.modules():
        module.__class__ = THAWED.get(type(module), type(module))
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    for layer in convolutions:  # the strides of a frozen 1×1 filter say channels-last, which no reordering takes away
        layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)
    lay_out(network, math.gcd(*(layer.in_channels for layer in convolutions if layer.in_channels > 3)))
    trained._backbone = (network.requires_grad_(True),)
    return trained


def frozen_again(trained: FaceEmbedder) -> FaceEmbedder:
    """Ends the training of a copy, in place."""
    freeze_layers(trained.backbone.requires_grad_(False))
    return trained
