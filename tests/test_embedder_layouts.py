"""arcface_torch's MobileFaceNet and ViT, AdaFace's IR: keys, a literal computation, their own code where it is."""

import importlib
import math
import os
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmpretrain.registry import MODELS
from test_embedders import batch_norm_keys, randomised
from torch import nn

from facemae_mm.models.embedders import AdaFaceIR, ArcFaceViT, FaceEmbedder, MobileFaceNet

pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. .* has no checkpoint')


class Literal:
    """Layers by their keys, in float64."""

    def __init__(self, network: nn.Module) -> None:
        self.state = {key: value.double() for key, value in network.state_dict().items()}

    def bn(self, x, name, eps=1e-5):
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean, var = (self.state[f'{name}.running_{key}'].view(shape) for key in ('mean', 'var'))
        x = (x - mean) / (var + eps).sqrt()
        if f'{name}.weight' in self.state:
            x = x * self.state[f'{name}.weight'].view(shape) + self.state[f'{name}.bias'].view(shape)
        return x

    def conv(self, x, name, **options):
        return F.conv2d(x, self.state[f'{name}.weight'], **options)

    def prelu(self, x, name):
        return torch.where(x > 0, x, self.state[f'{name}.weight'].view(1, -1, 1, 1) * x)

    def linear(self, x, name):
        x = x @ self.state[f'{name}.weight'].T
        return x + self.state[f'{name}.bias'] if f'{name}.bias' in self.state else x

    def layer_norm(self, x, name):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        return x * self.state[f'{name}.weight'] + self.state[f'{name}.bias']


def agrees(network: nn.Module, expected) -> None:
    faces = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (embedding,) = network(faces)
        want = expected(faces.double())
    assert embedding.dtype == torch.float32 and want.std() > 1e-2
    torch.testing.assert_close(embedding.double(), want, rtol=1e-4, atol=1e-4)


# MobileFaceNet


def conv_block_keys(name, prelu=True):
    keys = [f'{name}.layers.0.weight', *batch_norm_keys(f'{name}.layers.1')]
    return keys + [f'{name}.layers.2.weight'] * prelu


def depth_wise_keys(name):
    parts = [conv_block_keys(f'{name}.layers.{number}', prelu=number < 2) for number in range(3)]
    return sum(parts, [])


@pytest.mark.parametrize('blocks, scale', [((1, 4, 6, 2), 2), ((2, 8, 12, 4), 4)])
def test_mobile_facenet_has_the_keys_of_arcface_torch(blocks, scale):
    with torch.device('meta'):
        state = MobileFaceNet(blocks, scale).state_dict()
    keys = conv_block_keys('layers.0')
    for stage, count in enumerate(blocks):
        if stage:
            keys += depth_wise_keys(f'layers.{2 * stage}')
        if count == 1 and not stage:
            keys += conv_block_keys('layers.1')
        else:
            for number in range(count):
                keys += depth_wise_keys(f'layers.{2 * stage + 1}.layers.{number}')
    keys += conv_block_keys('conv_sep') + conv_block_keys('features.layers.0', prelu=False)
    keys += ['features.layers.2.weight', *batch_norm_keys('features.layers.3')]
    assert list(state) == keys
    narrow, wide = 64 * scale, 128 * scale
    shapes = {
        'layers.0.layers.0.weight': (narrow, 3, 3, 3),
        'layers.2.layers.1.layers.0.weight': (128, 1, 3, 3),
        'layers.4.layers.2.layers.0.weight': (wide, 256, 1, 1),
        'layers.6.layers.0.layers.0.weight': (512, wide, 1, 1),
        'layers.7.layers.0.layers.1.layers.0.weight': (256, 1, 3, 3),
        'conv_sep.layers.0.weight': (512, wide, 1, 1),
        'features.layers.0.layers.0.weight': (512, 1, 7, 7),
    }
    first = 'layers.1.layers.0.weight' if blocks[0] == 1 else 'layers.1.layers.0.layers.1.layers.0.weight'
    shapes[first] = (narrow, narrow // 64, 3, 3) if blocks[0] == 1 else (128, 1, 3, 3)
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize('blocks', [(1, 1, 1, 1), (2, 1, 1, 1)])
def test_mobile_facenet_computes_what_its_keys_say(blocks):
    network = randomised(MobileFaceNet(blocks, scale=1, embedding_dim=16))
    own = Literal(network)

    def block(x, name, prelu=True, **options):
        x = own.bn(own.conv(x, f'{name}.layers.0', **options), f'{name}.layers.1')
        return own.prelu(x, f'{name}.layers.2') if prelu else x

    def depth_wise(x, name, groups, stride):
        x = block(x, f'{name}.layers.0')
        x = block(x, f'{name}.layers.1', groups=groups, stride=stride, padding=1)
        return block(x, f'{name}.layers.2', prelu=False)

    def expected(x):
        x = block(x, 'layers.0', stride=2, padding=1)
        if blocks[0] == 1:
            x = block(x, 'layers.1', groups=64, padding=1)
        else:
            for number in range(blocks[0]):
                x = x + depth_wise(x, f'layers.1.layers.{number}', 128, 1)
        for layer, groups in ((2, (128, 128)), (4, (256, 256)), (6, (512, 256))):
            x = depth_wise(x, f'layers.{layer}', groups[0], 2)
            x = x + depth_wise(x, f'layers.{layer + 1}.layers.0', groups[1], 1)
        x = block(block(x, 'conv_sep'), 'features.layers.0', prelu=False, groups=512).flatten(1)
        return own.bn(own.linear(x, 'features.layers.2'), 'features.layers.3')

    agrees(network, expected)


# ViT


@pytest.mark.parametrize(
    'arch, dims, depth, rate, masked',
    [
        ('vit_t', 256, 12, 0.1, 0.1),
        ('vit_t_dp005_mask0', 256, 12, 0.05, 0.0),
        ('vit_s', 512, 12, 0.1, 0.1),
        ('vit_s_dp005_mask_0', 512, 12, 0.05, 0.0),
        ('vit_b', 512, 24, 0.1, 0.1),
        ('vit_b_dp005_mask_005', 512, 24, 0.05, 0.1),
        ('vit_l_dp005_mask_005', 768, 24, 0.05, 0.1),
        ('vit_h', 1024, 48, 0.1, 0.0),
    ],
)
def test_vit_has_the_keys_of_arcface_torch(arch, dims, depth, rate, masked):
    with torch.device('meta'):
        network = ArcFaceViT(arch)
    keys = ['pos_embed', 'mask_token', 'patch_embed.proj.weight', 'patch_embed.proj.bias']
    for number in range(depth):
        name = f'blocks.{number}'
        keys += [f'{name}.norm1.weight', f'{name}.norm1.bias', f'{name}.attn.qkv.weight']
        keys += [f'{name}.attn.proj.weight', f'{name}.attn.proj.bias', f'{name}.norm2.weight', f'{name}.norm2.bias']
        keys += [f'{name}.mlp.{layer}.{value}' for layer in ('fc1', 'fc2') for value in ('weight', 'bias')]
    keys += ['norm.weight', 'norm.bias', 'feature.0.weight', *batch_norm_keys('feature.1')]
    keys += ['feature.2.weight', *batch_norm_keys('feature.3')]
    state = network.state_dict()
    assert sorted(state) == sorted(keys)
    assert state['pos_embed'].shape == (1, 144, dims)
    assert state['feature.0.weight'].shape == (dims, 144 * dims)
    assert state['feature.2.weight'].shape == (512, dims)
    assert state['blocks.0.mlp.fc1.weight'].shape == (4 * dims, dims)
    assert network.mask_ratio == masked
    assert network.blocks[-1].drop_path.drop_prob == pytest.approx(rate)
    assert isinstance(network.blocks[0].drop_path, nn.Identity)


def tiny_vit(**options) -> ArcFaceViT:
    return randomised(ArcFaceViT('vit_t', embedding_dim=16, embed_dims=32, depth=2, **options))


def test_vit_computes_what_its_keys_say():
    network = tiny_vit()
    own = Literal(network)

    def expected(x):
        weight, bias = (own.state[f'patch_embed.proj.{key}'] for key in ('weight', 'bias'))
        patches = x[..., :108, :108].unfold(2, 9, 9).unfold(3, 9, 9)  # (N, 3, 12, 12, 9, 9)
        x = torch.einsum('nchwpq,dcpq->nhwd', patches, weight).reshape(2, 144, 32) + bias + own.state['pos_embed']
        for name in ('blocks.0', 'blocks.1'):
            qkv = own.linear(own.layer_norm(x, f'{name}.norm1'), f'{name}.attn.qkv')
            heads = []
            for head in range(8):
                q, k, v = (qkv[..., 32 * part + 4 * head :][..., :4] for part in range(3))
                heads.append((q @ k.transpose(1, 2) / math.sqrt(4)).softmax(-1) @ v)
            x = x + own.linear(torch.cat(heads, -1), f'{name}.attn.proj')
            hidden = own.linear(own.layer_norm(x, f'{name}.norm2'), f'{name}.mlp.fc1').clamp(0, 6)
            x = x + own.linear(hidden, f'{name}.mlp.fc2')
        x = own.linear(own.layer_norm(x, 'norm').flatten(1), 'feature.0')
        return own.bn(own.linear(own.bn(x, 'feature.1', 2e-5), 'feature.2'), 'feature.3', 2e-5)

    agrees(network, expected)


def test_vit_puts_the_mask_token_where_it_left_tokens_out():
    network = tiny_vit(drop_path_rate=0.0, mask_ratio=0.5)
    network.train()
    seen = {}
    network.blocks[0].register_forward_hook(lambda _, args, out: seen.update(tokens=args[0]))
    network.feature.register_forward_pre_hook(lambda _, args: seen.update(fed=args[0]))
    with torch.no_grad():
        network(torch.randn(2, 3, 112, 112))
    fed = seen['fed'].reshape(2, 144, 32)
    masked = (fed == network.mask_token).all(-1)
    assert seen['tokens'].shape == (2, 72, 32) and masked.sum(1).tolist() == [72, 72]
    assert not torch.equal(masked[0], masked[1])


def test_vit_recomputes_blocks_without_changing_gradients():
    faces, gradients = torch.randn(2, 3, 112, 112), []
    for with_cp in (False, True):
        network = tiny_vit(drop_path_rate=0.0, mask_ratio=0.0, with_cp=with_cp).train()
        network(faces)[0].square().sum().backward()
        gradients.append(network.blocks[0].mlp.fc1.weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


# AdaFace's IR


@pytest.mark.parametrize('depth, stages', [(18, [2, 2, 2, 2]), (34, [3, 4, 6, 3]), (50, [3, 4, 14, 3])])
@pytest.mark.parametrize('squeeze_excite', [False, True])
def test_adaface_has_its_keys(depth, stages, squeeze_excite):
    with torch.device('meta'):
        state = AdaFaceIR(depth, squeeze_excite).state_dict()
        deep = AdaFaceIR(101).state_dict()
    keys = ['input_layer.0.weight', *batch_norm_keys('input_layer.1'), 'input_layer.2.weight']
    keys += batch_norm_keys('output_layer.0') + ['output_layer.3.weight', 'output_layer.3.bias']
    keys += batch_norm_keys('output_layer.4')[2:]  # without weight and bias
    number = 0
    for stage, count in enumerate(stages):
        for block in range(count):
            name = f'body.{number}'
            if stage and not block:
                keys += [f'{name}.shortcut_layer.0.weight', *batch_norm_keys(f'{name}.shortcut_layer.1')]
            keys += [*batch_norm_keys(f'{name}.res_layer.0'), f'{name}.res_layer.1.weight']
            keys += [*batch_norm_keys(f'{name}.res_layer.2'), f'{name}.res_layer.3.weight']
            keys += [f'{name}.res_layer.4.weight', *batch_norm_keys(f'{name}.res_layer.5')]
            if squeeze_excite:
                keys += [f'{name}.res_layer.se_block.{layer}.weight' for layer in ('fc1', 'fc2')]
            number += 1
    assert list(state) == keys
    assert state['output_layer.3.weight'].shape == (512, 25088)
    assert 'body.48.res_layer.0.weight' in deep and 'body.49.res_layer.0.weight' not in deep


@pytest.mark.parametrize('squeeze_excite', [False, True])
def test_adaface_computes_what_its_keys_say(squeeze_excite):
    network = randomised(AdaFaceIR(18, squeeze_excite, base_channels=16, embedding_dim=16))
    own = Literal(network)

    def expected(x):
        x = own.prelu(own.bn(own.conv(x, 'input_layer.0', padding=1), 'input_layer.1'), 'input_layer.2')
        for number in range(8):
            name, stride = f'body.{number}', 2 - number % 2
            out = own.conv(own.bn(x, f'{name}.res_layer.0'), f'{name}.res_layer.1', padding=1)
            out = own.prelu(own.bn(out, f'{name}.res_layer.2'), f'{name}.res_layer.3')
            out = own.bn(own.conv(out, f'{name}.res_layer.4', stride=stride, padding=1), f'{name}.res_layer.5')
            if squeeze_excite:
                mean = out.flatten(2).mean(2)
                first, second = (
                    own.state[f'{name}.res_layer.se_block.{fc}.weight'][..., 0, 0] for fc in ('fc1', 'fc2')
                )
                out = out / (1 + torch.exp(-(mean @ first.T).clamp(min=0) @ second.T))[..., None, None]
            if number in (2, 4, 6):
                x = own.conv(x, f'{name}.shortcut_layer.0', stride=2)
                x = own.bn(x, f'{name}.shortcut_layer.1') + out
            else:
                x = x[..., ::stride, ::stride] + out
        x = own.linear(own.bn(x, 'output_layer.0').flatten(1), 'output_layer.3')
        return own.bn(x, 'output_layer.4')

    agrees(network, expected)


# All


SMALL = [
    (dict(type='MobileFaceNet', blocks=(1, 1, 1, 1), scale=1, embedding_dim=16), 'layers.7', 'features.layers.2'),
    (dict(type='ArcFaceViT', embed_dims=32, depth=1, embedding_dim=16), 'blocks.0.mlp.fc2', 'feature.2'),
    (dict(type='AdaFaceIR', depth=18, base_channels=4, embedding_dim=16), 'body.7.res_layer.4', 'output_layer.3'),
]


@pytest.mark.parametrize('config, half, last', SMALL)
def test_embedders_end_in_float32_under_autocast(config, half, last):
    network = randomised(MODELS.build(config))
    types = {}
    for name in (half, last):
        layer = network.get_submodule(name)
        layer.register_forward_hook(lambda _, args, out, name=name: types.update({name: (out.dtype, args[0].dtype)}))
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        (embedding,) = network(torch.randn(2, 3, 112, 112))
    assert types[half][0] == torch.bfloat16
    assert types[last] == (torch.float32, torch.float32) and embedding.dtype == torch.float32


@pytest.mark.parametrize('config, half, last', SMALL)
def test_embedders_load_strictly_and_refuse_other_sizes(config, half, last, tmp_path):
    network, path = randomised(MODELS.build(config)), tmp_path / 'phi.pth'
    torch.save(network.state_dict(), path)
    faces = torch.rand(2, 3, 112, 112) * 255
    phi = FaceEmbedder(config, path)
    fed = faces.flip(1) if config['type'] == 'AdaFaceIR' else faces
    with torch.no_grad():
        torch.testing.assert_close(phi(faces)[0], network((fed - 127.5) / 127.5)[0], rtol=1e-4, atol=1e-4)
    torch.save({key: value for key, value in network.state_dict().items() if key != f'{last}.weight'}, path)
    with pytest.raises(ValueError, match=rf'1 missing \({last}.weight\).*Set the type of `backbone`'):
        FaceEmbedder(config, path)
    with pytest.raises(ValueError, match=r'\(1, 3, 224, 224\).*112'):
        network(torch.zeros(1, 3, 224, 224))


def test_embedders_refuse_what_they_cannot_be():
    with pytest.raises(ValueError, match='vit_x.*vit_t'):
        ArcFaceViT('vit_x')
    with pytest.raises(ValueError, match='embed_dims 36 is no multiple of 8'):
        ArcFaceViT(embed_dims=36)
    with pytest.raises(ValueError, match='depth 100 .*101'):
        AdaFaceIR(100)
    with pytest.raises(ValueError, match='four numbers'):
        MobileFaceNet((1, 4, 6))


# AdaFace's Lightning checkpoints


def test_adaface_checkpoint_with_names_of_lightning(tmp_path, monkeypatch):
    """Lightning 1.4 files a callback's state under its class; the class is neither needed nor imported."""
    config = dict(type='AdaFaceIR', depth=18, base_channels=4, embedding_dim=16)
    state = randomised(MODELS.build(config)).state_dict()
    module = types.ModuleType('pytorch_lightning.callbacks.model_checkpoint')
    module.ModelCheckpoint = type('ModelCheckpoint', (), {'__module__': module.__name__})
    for name in ('pytorch_lightning', 'pytorch_lightning.callbacks'):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    path = tmp_path / 'adaface.ckpt'
    content = dict(
        epoch=25,
        state_dict={**{f'model.{k}': v for k, v in state.items()}, 'head.kernel': torch.zeros(16, 5)},
        callbacks={module.ModelCheckpoint: dict(best_model_path='x')},
        hyper_parameters=dict(arch='ir_18', lr=0.1),
    )
    torch.save(content, path)
    for name in ('pytorch_lightning', 'pytorch_lightning.callbacks', module.__name__):
        monkeypatch.delitem(sys.modules, name)
    phi = FaceEmbedder(config, path)
    assert 'pytorch_lightning' not in sys.modules
    assert all(torch.equal(value, state[key]) for key, value in phi.backbone.state_dict().items())
    torch.save({f'net.{k}': v for k, v in state.items()}, path)  # CVLface
    assert all(
        torch.equal(value, state[key]) for key, value in FaceEmbedder(config, path).backbone.state_dict().items()
    )


class Runs:
    """Runs when a pickle of it is loaded plainly."""

    def __init__(self, target) -> None:
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), 'w'))


def test_adaface_checkpoint_does_not_execute(tmp_path):
    path, target = tmp_path / 'adaface.ckpt', tmp_path / 'executed'
    torch.save(dict(state_dict={}, callbacks=Runs(target)), path)
    with pytest.raises(ValueError, match='weights_only=True'):
        FaceEmbedder(dict(type='AdaFaceIR', depth=18, base_channels=4), path)
    assert not target.exists()
    path.write_bytes(b'no checkpoint')
    with pytest.raises(ValueError, match=r'adaface\.ckpt cannot be loaded'):
        FaceEmbedder(dict(type='AdaFaceIR', depth=18, base_channels=4), path)


# Their own code, where the user has it


def peers(variable: str, module: str):
    """A module of a peer's checkout, named by an environment variable."""
    folder = os.environ.get(variable)
    if not folder:
        pytest.skip(f'{variable} does not name a checkout')
    path = Path(folder, *module.split('.')).with_suffix('.py')
    if 'timm' not in sys.modules and importlib.util.find_spec('timm') is None:  # three names of it, for the ViT
        layers = types.ModuleType('timm.models.layers')
        layers.DropPath, layers.trunc_normal_ = DropPath, nn.init.trunc_normal_
        layers.to_2tuple = lambda x: (x, x)
        sys.modules['timm.models.layers'] = layers
    spec = importlib.util.spec_from_file_location(f'peer_{module.replace(".", "_")}', path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def same_numbers(own: nn.Module, theirs: nn.Module, train: bool = False) -> None:
    theirs.load_state_dict(randomised(own).state_dict(), strict=True)
    own.load_state_dict(theirs.state_dict(), strict=True)
    outputs = []
    for network in (own, theirs):
        network.train(train)
        if train:
            network.feature.eval()  # BN over two faces would enlarge rounding
        torch.manual_seed(3)
        with torch.no_grad():
            outputs.append(network(torch.randn(2, 3, 112, 112)))
    mine, other = outputs[0][0], outputs[1]
    if isinstance(other, tuple):  # AdaFace: normalised, norm
        other = other[0] * other[1]
    assert other.std() > 1e-3
    torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore:User provided device_type:UserWarning')
@pytest.mark.parametrize('options', [{}, dict(blocks=(2, 8, 12, 4), scale=4)])
def test_mobile_facenet_is_arcface_torchs(options):
    module = peers('FACEMAE_ARCFACE_TORCH', 'backbones.mobilefacenet')
    same_numbers(MobileFaceNet(**options), module.MobileFaceNet(**options))


@pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore:User provided device_type:UserWarning')
@pytest.mark.parametrize('dims, depth, train', [(256, 12, False), (128, 2, True)])
def test_vit_is_arcface_torchs(dims, depth, train):
    module = peers('FACEMAE_ARCFACE_TORCH', 'backbones.vit')
    shape = dict(embed_dim=dims, depth=depth, num_heads=8, mask_ratio=0.1, norm_layer='ln')
    theirs = module.VisionTransformer(img_size=112, patch_size=9, num_classes=512, **shape)
    same_numbers(ArcFaceViT('vit_t', embed_dims=dims, depth=depth, drop_path_rate=0.0), theirs, train)


@pytest.mark.parametrize(
    'name, options', [('ir_18', dict(depth=18)), ('ir_se_50', dict(depth=50, squeeze_excite=True))]
)
def test_adaface_is_adafaces(name, options):
    same_numbers(AdaFaceIR(**options), peers('FACEMAE_ADAFACE', 'net').build_model(name))
