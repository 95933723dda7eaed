"""Frozen layers against those of torch that they take the place of: values, input gradients, memory."""

import copy

import pytest
import torch
from torch import nn

from facemae_mm.models.embedders import IResNet
from facemae_mm.models.embedders.frozen_layers import freeze_layers


def randomised(network):
    """Statistics and slopes that are not those of a new layer."""
    generator = torch.Generator().manual_seed(0)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.uniform_(0.2, 1.0, generator=generator)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, (module.weight[0].numel()) ** -0.5, generator=generator)
        if isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.5, 1.5, generator=generator)
    return network.requires_grad_(False).eval()


LAYERS = dict(
    conv=lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1),
    grouped=lambda: nn.Conv2d(4, 8, (3, 1), padding=(1, 0), dilation=(2, 1), groups=2, bias=False),
    norm=lambda: nn.BatchNorm2d(4, eps=1e-3),
    plain_norm=lambda: nn.BatchNorm2d(4, affine=False),
    prelu=lambda: nn.PReLU(4),
    one_slope=lambda: nn.PReLU(),
)


@pytest.mark.parametrize('layer', LAYERS.values(), ids=LAYERS)
def test_value_and_input_gradient_are_those_of_torch(layer):
    plain = randomised(layer()).double()
    frozen = freeze_layers(copy.deepcopy(plain))
    assert type(frozen) is not type(plain) and list(frozen.state_dict()) == list(plain.state_dict())
    x = torch.randn(3, 4, 9, 7, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(frozen(x), plain(x))
    weight = torch.randn_like(plain(x))
    gradients = [torch.autograd.grad((network(x) * weight).sum(), x)[0] for network in (plain, frozen)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(frozen, x)


def kept(network, x):
    """Bytes that autograd keeps for the gradient in x, weights and statistics apart."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*network.parameters(), *network.buffers())}
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = network(x)
    assert output[0].requires_grad
    return sum(storage.nbytes() for address, storage in storages.items() if address not in own)


def test_a_whole_network_keeps_a_tenth():
    plain = randomised(IResNet(18, base_channels=8, embedding_dim=16))
    frozen = freeze_layers(copy.deepcopy(plain))
    x = torch.randn(4, 3, 112, 112, requires_grad=True)
    assert kept(frozen, x) < 0.1 * kept(plain, x)


@pytest.mark.parametrize('layer', LAYERS.values(), ids=LAYERS)
def test_autocast_reaches_them_as_it_does_torchs(layer):
    plain = randomised(layer())
    frozen = freeze_layers(copy.deepcopy(plain))
    x = torch.randn(3, 4, 9, 7, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        values = frozen(x), plain(x)
    torch.testing.assert_close(values[0], values[1].to(values[0].dtype), rtol=2e-2, atol=2e-2)
    if 'Conv' in type(plain).__name__:
        assert values[0].dtype == values[1].dtype == torch.bfloat16
    values[0].float().sum().backward()
    assert x.grad.dtype == torch.float32 and torch.isfinite(x.grad).all()


def test_what_they_cannot_do_stays_as_it_is():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding='same'), nn.Conv2d(4, 4, 3, padding=1, padding_mode='reflect'))
    network.append(nn.BatchNorm2d(4, track_running_stats=False)).append(nn.Linear(4, 4))
    types = [type(module) for module in network]
    assert [type(module) for module in freeze_layers(network)] == types
