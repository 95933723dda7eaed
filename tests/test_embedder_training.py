"""Embedders as they train: what is dropped, fixed and drawn; values, statistics and gradients of their peers' code."""

import pytest
import torch
from mmpretrain.registry import MODELS
from test_embedder_layouts import peers
from test_embedders import randomised
from torch import nn

from facemae_mm.models.embedders import AdaFaceIR, ArcFaceViT, IResNet, MobileFaceNet
from facemae_mm.models.embedders.training_layers import Conv3x3, PReLU

#: Table 5, and AdaFace's.
NETWORKS = {
    'r18': dict(type='IResNet', depth=18),
    'r50': dict(type='IResNet', depth=50),
    'r100': dict(type='IResNet', depth=100),
    'mbf': dict(type='MobileFaceNet'),
    'vit_s': dict(type='ArcFaceViT', arch='vit_s'),
    'ir_50': dict(type='AdaFaceIR', depth=50),
}


@pytest.mark.parametrize('name', NETWORKS)
def test_all_is_trained_but_the_scale_of_iresnets_embedding(name):
    with torch.device('meta'):
        network = MODELS.build(NETWORKS[name])
    fixed = [key for key, value in network.named_parameters() if not value.requires_grad]
    assert fixed == (['features.weight'] if name.startswith('r') else [])
    assert network.training and all(module.training for module in network.modules())


@pytest.mark.parametrize('name, p', [('r18', 0.0), ('ir_50', 0.4)])
def test_dropout_is_as_rare_as_in_training_by_its_peers(name, p):
    with torch.device('meta'):
        network = MODELS.build(NETWORKS[name])
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout)] == [p]


def test_iresnet_fixes_its_embedding_to_unit_variance():
    """The last BN's scale is 1 and stays it: a trained embedding has variance 1 in each of its values."""
    torch.manual_seed(0)
    network = IResNet(18, base_channels=8, embedding_dim=16, dropout=0.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for _ in range(3):
        (embedding,) = network(torch.randn(16, 3, 112, 112))
        torch.testing.assert_close(embedding.var(0, correction=0), torch.ones(16), rtol=1e-2, atol=0)
        embedding[:, 0].square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (network.features.weight == 1).all() and (network.features.bias != 0).any()


def test_vit_drops_whole_blocks_of_a_face_more_often_the_deeper():
    torch.manual_seed(0)
    network = ArcFaceViT('vit_t', embedding_dim=16, embed_dims=8, depth=3, drop_path_rate=0.5, mask_ratio=0.0)
    nn.init.normal_(network.pos_embed)
    kept = {}

    def count(number):
        def hook(block, args, out):
            kept[number] = ((out - args[0]).abs().amax((1, 2)) > 0).float().mean().item()

        return hook

    for number, block in enumerate(network.blocks):
        block.mlp.register_forward_hook(lambda *args: torch.zeros_like(args[-1]))  # attention alone
        block.register_forward_hook(count(number))
    with torch.no_grad():
        network(torch.randn(400, 3, 112, 112))
        drawn = dict(kept)
        network.eval()(torch.randn(8, 3, 112, 112))
    assert drawn[0] == 1 and drawn[1] == pytest.approx(0.75, abs=0.09) and drawn[2] == pytest.approx(0.5, abs=0.1)
    assert set(kept.values()) == {1}


def trains_alike(own: nn.Module, theirs: nn.Module, faces: int = 4) -> None:
    """Two steps of both from the same weights, on the same faces, with the same draws.

    In planes and by torch's own layers, so that sums have nearly one order: test_training_layers holds ours against
    those. What is left of float32's rounding grows in batch norm over few faces.
    """
    own.to(memory_format=torch.contiguous_format).memory_format = torch.contiguous_format
    theirs.load_state_dict(randomised(own).state_dict(), strict=True)
    steps = []
    for network in (own, theirs):
        network.train()
        for layer in network.modules():
            if isinstance(layer, Conv3x3 | PReLU):
                layer.__class__ = layer.__class__.__base__
        torch.manual_seed(3)
        for _ in range(2):
            output = network(torch.randn(faces, 3, 112, 112))
            output = output[0] * output[1] if isinstance(output, tuple) and len(output) == 2 else output
            embedding = output[0] if isinstance(output, tuple) else output
            network.zero_grad()
            (embedding @ torch.randn(embedding.shape[1], 5)).sin().sum().backward()
            trained = [value for value in network.parameters() if value.grad is not None]
            largest = max(float(value.grad.abs().max()) for value in trained)
            torch.optim.SGD(trained, lr=1e-3 / largest).step()
        gradients = {key: value.grad for key, value in network.named_parameters()}
        steps.append((embedding.detach(), gradients, network.state_dict()))
    (mine, gradients, state), (other, expected, their_state) = steps
    assert other.std() > 1e-3
    torch.testing.assert_close(mine, other, rtol=0, atol=3e-5 * float(other.abs().max()))  # of the second step
    assert {key for key, value in gradients.items() if value is None} == {
        key for key, value in expected.items() if value is None
    }
    scale = max(float(value.norm()) for value in expected.values() if value is not None)
    for key, value in expected.items():
        if value is not None:  # as a whole: rounding may flip a ReLU; and some are 0 but for rounding
            assert (gradients[key] - value).norm() <= 2e-3 * max(float(value.norm()), 1e-2 * scale), key
    for key, value in their_state.items():
        torch.testing.assert_close(state[key], value, rtol=1e-4, atol=1e-4, msg=lambda m, k=key: k + m)


QUIET = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore:User provided device_type:UserWarning')


@QUIET
@pytest.mark.parametrize('depth, dropout', [(18, 0.0), (34, 0.4)])
def test_iresnet_trains_as_arcface_torchs(depth, dropout):
    module = peers('FACEMAE_ARCFACE_TORCH', 'backbones.iresnet')
    trains_alike(IResNet(depth, dropout=dropout), getattr(module, f'iresnet{depth}')(dropout=dropout))


@QUIET
def test_mobile_facenet_trains_as_arcface_torchs():
    trains_alike(MobileFaceNet(), peers('FACEMAE_ARCFACE_TORCH', 'backbones.mobilefacenet').MobileFaceNet())


@QUIET
@pytest.mark.filterwarnings('ignore:torch.utils.checkpoint')
@pytest.mark.parametrize('recompute', [False, True])
def test_vit_trains_as_arcface_torchs(recompute):
    module = peers('FACEMAE_ARCFACE_TORCH', 'backbones.vit')
    theirs = module.VisionTransformer(
        img_size=112,
        patch_size=9,
        num_classes=512,
        embed_dim=64,
        depth=4,
        num_heads=8,
        drop_path_rate=0.3,
        norm_layer='ln',
        mask_ratio=0.1,
        using_checkpoint=recompute,
    )
    own = ArcFaceViT('vit_t', embed_dims=64, depth=4, drop_path_rate=0.3, mask_ratio=0.1, with_cp=recompute)
    trains_alike(own, theirs, faces=16)


def test_adaface_trains_as_adafaces():
    trains_alike(AdaFaceIR(18), peers('FACEMAE_ADAFACE', 'net').build_model('ir_18'))
