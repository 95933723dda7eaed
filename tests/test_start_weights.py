"""Weights of facebookresearch/mae and MMPretrain as a start: the same reconstruction, and nothing loaded by half."""

import argparse
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from tiny import SMALL_FACEMAE, cfg_options, small_recipe, write_faces

from facemae_mm.models.start_weights import convert_mae_state

SMALL_MAE = {key: value for key, value in SMALL_FACEMAE.items() if 'phi' not in key}
DEPTH, HEADS, DECODER_DEPTH, DECODER_HEADS = 12, 3, 1, 2  # of SMALL_MAE


def peer_state():
    """Random weights under facebookresearch/mae's names, of SMALL_MAE's size."""
    generator = torch.Generator().manual_seed(0)
    shapes = dict(cls_token=(1, 1, 192), pos_embed=(1, 197, 192), mask_token=(1, 1, 16), decoder_pos_embed=(1, 197, 16))
    shapes |= {'patch_embed.proj.weight': (192, 3, 16, 16), 'patch_embed.proj.bias': (192,)}
    for prefix, depth, dim in (('blocks', DEPTH, 192), ('decoder_blocks', DECODER_DEPTH, 16)):
        for i in range(depth):
            for name, size in (('attn.qkv', 3), ('attn.proj', 1), ('mlp.fc1', 4)):
                shapes[f'{prefix}.{i}.{name}.weight'] = (size * dim, dim)
                shapes[f'{prefix}.{i}.{name}.bias'] = (size * dim,)
            shapes[f'{prefix}.{i}.mlp.fc2.weight'], shapes[f'{prefix}.{i}.mlp.fc2.bias'] = (dim, 4 * dim), (dim,)
            for name in ('norm1', 'norm2'):
                shapes[f'{prefix}.{i}.{name}.weight'] = shapes[f'{prefix}.{i}.{name}.bias'] = (dim,)
    for name, dim in (('norm', 192), ('decoder_norm', 16)):
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (dim,)
    shapes |= {'decoder_embed.weight': (16, 192), 'decoder_embed.bias': (16,)}
    shapes |= {'decoder_pred.weight': (768, 16), 'decoder_pred.bias': (768,)}
    return {key: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for key, shape in shapes.items()}


def twin(state, image, mask):
    """facebookresearch/mae's forward pass of one image (3, 224, 224) with mask (196,), step by step, float64."""
    w = {key: value.double() for key, value in state.items()}

    def linear(name, x):
        return x @ w[f'{name}.weight'].T + w[f'{name}.bias']

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return centred / scale * w[f'{name}.weight'] + w[f'{name}.bias']

    def block(name, x, heads):
        q, k, v = linear(f'{name}.attn.qkv', norm(f'{name}.norm1', x)).chunk(3, -1)
        width = x.shape[-1] // heads
        parts = []
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            parts.append((q[:, part] @ k[:, part].T / width**0.5).softmax(-1) @ v[:, part])
        x = x + linear(f'{name}.attn.proj', torch.cat(parts, -1))
        return x + linear(f'{name}.mlp.fc2', F.gelu(linear(f'{name}.mlp.fc1', norm(f'{name}.norm2', x))))

    kernel = w['patch_embed.proj.weight'].flatten(1)
    visible = [place for place in range(196) if not mask[place]]
    tokens = [w['cls_token'][0, 0] + w['pos_embed'][0, 0]]
    for place in visible:
        row, column = place // 14 * 16, place % 14 * 16
        patch = image.double()[:, row : row + 16, column : column + 16].flatten()
        tokens.append(kernel @ patch + w['patch_embed.proj.bias'] + w['pos_embed'][0, 1 + place])
    x = torch.stack(tokens)
    for i in range(DEPTH):
        x = block(f'blocks.{i}', x, HEADS)
    x = linear('decoder_embed', norm('norm', x))
    grid = w['mask_token'][0].repeat(197, 1)
    grid[0] = x[0]
    for token, place in zip(x[1:], visible, strict=True):
        grid[1 + place] = token
    x = grid + w['decoder_pos_embed'][0]
    for i in range(DECODER_DEPTH):
        x = block(f'decoder_blocks.{i}', x, DECODER_HEADS)
    return linear('decoder_pred', norm('decoder_norm', x))[1:]


@pytest.fixture
def facemae(repository):
    """A small FaceMAE, in eval mode."""
    return MODELS.build(small_recipe(repository, 'mae_vitb_webface', **SMALL_MAE).model).eval()


def inputs(n=2):
    generator = torch.Generator().manual_seed(1)
    masks = torch.stack([torch.rand(196, generator=generator).argsort().argsort() >= 49 for _ in range(n)])
    return torch.randn(n, 3, 224, 224, generator=generator), masks.to(torch.uint8)


def test_converted_weights_reconstruct_as_a_literal_twin_of_the_peer(facemae):
    state = peer_state()
    facemae.load_state_dict(convert_mae_state(state), strict=True)
    images, masks = inputs()
    with torch.no_grad():
        found = facemae.reconstruct(images, masks)
    expected = torch.stack([twin(state, image, mask) for image, mask in zip(images, masks, strict=True)])
    assert found.std() > 0.1
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_converted_weights_reconstruct_as_the_peers_own_code(facemae):
    """FACEMAE_MAE_PEER is a folder with facebookresearch/mae's models_mae.py and util/, which import timm."""
    folder = os.environ.get('FACEMAE_MAE_PEER')
    if not folder:
        pytest.skip('FACEMAE_MAE_PEER does not name a folder with models_mae.py')
    sys.path.insert(0, folder)
    from models_mae import MaskedAutoencoderViT

    torch.manual_seed(0)
    peer = MaskedAutoencoderViT(
        embed_dim=192,
        depth=DEPTH,
        num_heads=HEADS,
        decoder_embed_dim=16,
        decoder_depth=DECODER_DEPTH,
        decoder_num_heads=DECODER_HEADS,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
    ).eval()
    facemae.load_state_dict(convert_mae_state(peer.state_dict()), strict=True)
    images, _ = inputs()
    with torch.no_grad():
        latent, mask, ids_restore = peer.forward_encoder(images, 0.75)
        expected = peer.forward_decoder(latent, ids_restore)
        found = facemae.reconstruct(images, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(facemae.head.unpatchify(found), peer.unpatchify(expected), rtol=1e-5, atol=1e-5)


def test_weights_of_mmpretrains_mae_reconstruct_as_there(repository, facemae):
    cfg = small_recipe(repository, 'mae_vitb_webface', **SMALL_MAE).model
    cfg.update(type='MAE', data_preprocessor=None)
    peer = MODELS.build(cfg)
    peer.init_weights()
    peer.eval()
    facemae.load_state_dict(convert_mae_state(peer.state_dict()), strict=True)
    images, _ = inputs()
    with torch.no_grad():
        latent, mask, ids_restore = peer.backbone(images)
        expected = peer.neck(latent, ids_restore)
        found = facemae.reconstruct(images, mask)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_position_embeddings_of_the_peer_have_swapped_halves(facemae):
    """The trap: weights without their own position embeddings would meet MMPretrain's."""
    facemae.init_weights()
    own = facemae.backbone.pos_embed.detach()[0, 1:]
    half = own.shape[-1] // 2
    omega = 1 / 10000 ** (torch.arange(half // 2) / (half // 2))
    rows, columns = torch.meshgrid(torch.arange(14.0), torch.arange(14.0), indexing='ij')
    peers = [(axis.reshape(-1, 1) * omega, axis) for axis in (columns, rows)]  # its first half is the column
    peers = torch.cat([torch.cat([angle.sin(), angle.cos()], 1) for angle, _ in peers], 1)
    torch.testing.assert_close(own, torch.cat([peers[:, half:], peers[:, :half]], 1), rtol=1e-5, atol=1e-5)


@pytest.fixture
def start(repository, tmp_path):
    """Starts a recipe from a checkpoint at rate 0 and gives the weights after an epoch."""
    write_faces(tmp_path / 'faces', 2, 4)

    def run(checkpoint, recipe='mae_vitb_webface', **options):
        torch.save(checkpoint, tmp_path / 'start.pth')
        small = SMALL_FACEMAE if recipe.startswith('face') else SMALL_MAE
        cfg = small_recipe(
            repository,
            recipe,
            train_faces=str(tmp_path / 'faces'),
            load_from=str(tmp_path / 'start.pth'),
            **small | {'optim_wrapper.optimizer.lr': 0.0, 'optim_wrapper.type': 'OptimWrapper'} | options,
        )
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(tmp_path / 'work'), f'{tmp_path} {recipe}', 'ERROR'
        cfg.train_cfg.max_epochs, cfg.param_scheduler, cfg.train_dataloader.batch_size = 1, [], 8
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.model.state_dict()

    return run


def test_load_from_takes_the_peers_checkpoint_as_its_code_saves_it(start):
    """With optimiser, scaler and the command line, which plain safe loading refuses."""
    state = peer_state()
    saved = dict(
        model=state,
        optimizer=dict(state={}, param_groups=[dict(lr=1e-3, betas=(0.9, 0.95), params=[0])]),
        epoch=799,
        scaler=dict(scale=65536.0),
        args=argparse.Namespace(model='mae_vit_base_patch16', norm_pix_loss=False, device='cuda', resume=''),
    )
    found = start(saved)
    for key, value in convert_mae_state(state).items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize('wrap', [lambda s: dict(state_dict=s, meta={}), dict, lambda s: dict(state_dict=prefixed(s))])
def test_load_from_takes_mmpretrains_own_checkpoints_bare_and_wrapped(start, wrap):
    state = convert_mae_state(peer_state())
    found = start(wrap(state))
    assert all(torch.equal(found[key], value) for key, value in state.items())


def prefixed(state):
    return {f'module.{key}': value for key, value in state.items()}


@pytest.mark.filterwarnings('ignore:FaceEmbedder. IResNet has no checkpoint')
def test_facemae_and_its_moving_average_start_from_plain_mae(start):
    """φ has no weights to miss; EMAHook, which copies at the same moment, sees the converted names."""
    found = start(
        dict(model=peer_state()),
        'facemae_vitb_webface',
        **{
            'model.head.loss.phi.checkpoint': None,
            'custom_hooks': [dict(type=f'{name}Hook') for name in ('EMA', 'StartWeights', 'KeyedRandomness')],
        },
    )
    assert torch.equal(found['neck.mask_token'], peer_state()['mask_token'])


def without(*words):
    return {key: value for key, value in peer_state().items() if not any(word in key for word in words)}


@pytest.mark.parametrize(
    ('checkpoint', 'message'),
    [
        (dict(model=without('decoder', 'mask_token')), r'an encoder alone, no decoder.*mae_visualize_vit_base\.pth'),
        (
            dict(model=without('decoder', 'mask_token') | {'head.weight': torch.ones(1000, 192)}),
            r'1 unexpected \(head\.weight\).*is a classifier, no decoder',
        ),
        (dict(model=without('blocks.11.', 'blocks.10.')), r'24 missing \(backbone\.layers\.10\.ln1\.weight; '),
        (
            dict(model=peer_state() | {'blocks.12.attn.qkv.bias': torch.ones(576)}),
            r'1 unexpected \(backbone\.layers\.12\.attn\.qkv\.bias\)',
        ),
        (
            dict(model=peer_state() | dict(pos_embed=torch.ones(1, 50, 192))),
            r'1 of another shape \(backbone\.pos_embed \(1, 50, 192\), not \(1, 197, 192\)\)\. Set the sizes',
        ),
        (dict(weights=[1, 2]), r"holds no weights under 'state_dict' or 'model', but weights"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_file(start, checkpoint, message):
    with pytest.raises(ValueError, match=rf'load_from .*start\.pth: (?s:.*){message}'):
        start(checkpoint)


def test_resuming_is_left_alone(repository, tmp_path):
    write_faces(tmp_path / 'faces', 2, 4)
    iterations = []
    for epochs, resume in ((1, False), (2, True)):
        cfg = small_recipe(repository, 'mae_vitb_webface', train_faces=str(tmp_path / 'faces'), **SMALL_MAE)
        cfg.work_dir, cfg.experiment_name, cfg.log_level = str(tmp_path / 'run'), f'{tmp_path} {epochs}', 'ERROR'
        cfg.train_cfg.max_epochs, cfg.param_scheduler, cfg.train_dataloader.batch_size = epochs, [], 4
        cfg.resume = resume
        runner = Runner.from_cfg(cfg)
        runner.train()
        iterations.append(runner.iter)
    assert iterations == [2, 4]


def test_an_export_refuses_half_a_checkpoint_and_takes_the_peers_whole(repository, tmp_path):
    """tools/test.py's own path: without the check it would release what random weights make."""
    faces = write_faces(tmp_path / 'faces', 2, 2)
    options = {key: value for key, value in SMALL_MAE.items() if key.startswith('model.')}
    options |= {'deploy_faces': str(faces), 'test_dataloader.num_workers': 0, 'release_dir': str(tmp_path / 'out')}
    recipe = repository / 'configs' / 'export_casia.py'
    codes = []
    for state in (without('decoder', 'mask_token'), peer_state()):
        torch.save(dict(model=state), tmp_path / 'start.pth')
        command = [sys.executable, repository / 'tools/test.py', recipe, tmp_path / 'start.pth']
        env = os.environ | dict(PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
        done = subprocess.run(
            [*map(str, command), '--cfg-options', *cfg_options(options)], cwd=tmp_path, env=env, capture_output=True
        )
        codes.append((done.returncode, b'no decoder' in done.stderr))
        assert b'Traceback' not in done.stderr
    assert codes == [(2, True), (0, False)]
    assert len(list((tmp_path / 'out').rglob('*.png'))) == 4
