"""Layers with cheaper gradients on a CPU: torch's own values, gradients, state dicts; where they step aside."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from facemae_mm.models.embedders import AdaFaceIR, IResNet, MobileFaceNet
from facemae_mm.models.embedders.frozen_layers import FrozenConv2d, FrozenPReLU, freeze_layers
from facemae_mm.models.embedders.training_layers import Conv3x3, PReLU

FORMATS = pytest.mark.parametrize('memory_format', [torch.channels_last, torch.contiguous_format])


def both(own: nn.Module, torchs: nn.Module, x: torch.Tensor) -> None:
    """Same output and gradients; the layers' own code runs."""
    torchs.load_state_dict(own.state_dict(), strict=True)
    results = []
    for layer in (own.train(), torchs.train()):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(True)
        out = layer(leaf)
        out.backward(torch.sin(torch.arange(out.numel()).reshape(out.shape).to(out)))
        results.append((out.detach(), leaf.grad, layer.weight.grad, out.grad_fn.name()))
    for mine, other in zip(results[0][:3], results[1][:3], strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * float(other.abs().max()))
    assert results[0][3] != results[1][3]


@FORMATS
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_prelu_is_torchs(memory_format, dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 5, 9, 7, dtype=dtype).to(memory_format=memory_format)
    x[0, 0] = 0  # where the slope has two sides
    layer = PReLU(5).to(dtype)
    nn.init.normal_(layer.weight)
    both(layer, nn.PReLU(5).to(dtype), x)


@FORMATS
def test_convolution_of_a_large_map_is_torchs(memory_format):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 70, 65).to(memory_format=memory_format)
    both(Conv3x3(6, 4), nn.Conv2d(6, 4, 3, padding=1, bias=False), x)


def test_prelus_gradients_are_slopes():
    torch.manual_seed(0)
    layer = PReLU(3).double()
    torch.nn.init.uniform_(layer.weight, -1, 1)
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, _: layer(x), (x, layer.weight))


@pytest.mark.parametrize('layer, x', [(PReLU(4), torch.randn(2, 4, 5, 5)), (Conv3x3(4, 4), torch.randn(1, 4, 80, 80))])
def test_torchs_own_layers_run_elsewhere(layer, x):
    """In eval mode, as exporters trace it, and under autocast."""
    with torch.autocast('cpu', torch.bfloat16):
        out = layer.train()(x)
    plain = nn.PReLU(4) if isinstance(layer, PReLU) else nn.Conv2d(4, 4, 3, padding=1, bias=False)
    plain.load_state_dict(layer.state_dict())
    with torch.autocast('cpu', torch.bfloat16):
        expected = plain(x)
    assert out.grad_fn.name() == expected.grad_fn.name() and out.dtype == expected.dtype
    assert torch.equal(out, expected)
    assert layer.eval()(x).grad_fn.name() == plain(x).grad_fn.name()


def test_small_maps_colours_and_strides_are_torchs():
    for layer, x in (
        (Conv3x3(4, 4), torch.randn(1, 4, 64, 64)),
        (Conv3x3(3, 4), torch.randn(1, 3, 80, 80)),
        (Conv3x3(4, 4, 2), torch.randn(1, 4, 80, 80)),
    ):
        assert 'Convolution' in layer(x).grad_fn.name()


@pytest.mark.parametrize(
    'build',
    [
        lambda: IResNet(18, base_channels=8, embedding_dim=16),
        lambda: MobileFaceNet((1, 1, 1, 1), 1, 16),
        lambda: AdaFaceIR(18, base_channels=8, embedding_dim=16, dropout=0.0),
    ],
)
def test_networks_train_as_with_torchs_layers(build):
    torch.manual_seed(0)
    own = build()
    plain = copy.deepcopy(own)
    for module in plain.modules():
        if isinstance(module, PReLU):
            module.__class__ = nn.PReLU
        elif isinstance(module, Conv3x3):
            module.__class__ = nn.Conv2d
    own, plain = own.double(), plain.double()  # rounding would show through the normalisation of few faces
    faces = torch.randn(4, 3, 112, 112, dtype=torch.float64)
    gradients = []
    for network in (own, plain):
        with torch.autocast('cpu', enabled=False):
            x = faces
            for name, module in network.named_children():
                if name in ('fc', 'features', 'dropout', 'output_layer', 'conv_sep'):
                    continue
                if isinstance(module, nn.ModuleList):
                    for layer in module:
                        x = layer(x)
                else:
                    x = module(x)
        x.square().mean().backward()
        gradients.append({key: value.grad for key, value in network.named_parameters() if value.grad is not None})
    assert len(gradients[0]) == len(gradients[1]) > 20
    for key, value in gradients[1].items():
        torch.testing.assert_close(gradients[0][key], value, rtol=1e-8, atol=1e-8 * float(value.abs().max()))


def test_they_freeze_as_torchs_do():
    network = freeze_layers(IResNet(18, base_channels=8, embedding_dim=16).requires_grad_(False).eval())
    kinds = [type(module) for module in network.modules()]
    assert kinds.count(FrozenPReLU) == 9 and PReLU not in kinds
    assert kinds.count(FrozenConv2d) == 21 and Conv3x3 not in kinds


@pytest.mark.parametrize('width', [4, 8, 16])
def test_narrow_network_trains(width: int) -> None:
    """In a process of its own: where oneDNN writes outside its memory, that one dies."""
    step = f"""
import torch
from facemae_mm.models.embedders import IResNet
torch.manual_seed(0)
network = IResNet(depth=18, base_channels={width}, embedding_dim=16)
for _ in range(3):
    network(torch.randn(8, 3, 112, 112))[0].square().sum().backward()
print(all(parameter.grad.isfinite().all() for parameter in network.parameters() if parameter.requires_grad))
"""
    done = subprocess.run([sys.executable, '-c', step], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, 'True'), done.stderr
