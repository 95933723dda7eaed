"""IRM in MMPretrain's masked image models: SimMIM, MixMIM, MAE over HiViT and MAE, by their recipes."""

import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from processes import free_port
from tiny import SMALL_FACEMAE, cfg_options, write_faces

from facemae_mm.config import load_config
from facemae_mm.memory import estimate_memory

#: What makes each recipe's network small; the rest of the recipe stays.
SMALL = dict(
    irm_simmim_swinb_webface="""
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=12, depths=[1, 1, 2, 1], num_heads=[1, 2, 3, 3])),
    neck=dict(in_channels=96),
)""",
    irm_mixmim_base_webface="""
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=16, depths=[1, 1, 2, 1], num_heads=[1, 2, 4, 4])),
    neck=dict(embed_dim=128, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2),
)""",
    irm_mae_hivitb_webface="""
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=64, depths=[1, 1, 2], num_heads=4)),
    neck=dict(embed_dim=64, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2),
)""",
    facemae_vitb_webface="""
model = dict(
    backbone=dict(arch=dict(_delete_=True, embed_dims=48, num_layers=2, num_heads=3, feedforward_channels=96)),
    neck=dict(embed_dim=48, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2),
)""",
)
NARROW_PHI = 'model["head"] = dict(loss=dict(cache=None, phi=dict(backbone=dict(depth=18, base_channels=4))))'
OPTIONS = {key: value for key, value in SMALL_FACEMAE.items() if key.startswith('train_dataloader')}
RECIPES = [name for name in SMALL if name.startswith('irm')]
pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. IResNet has no checkpoint')


@pytest.fixture(scope='module')
def phi_weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('phi') / 'phi.pth'
    torch.save(MODELS.build(dict(type='IResNet', depth=18, base_channels=4)).state_dict(), path)
    return path


@pytest.fixture(scope='module')
def small(repository, tmp_path_factory, phi_weights):
    """A recipe that inherits a recipe and shrinks its networks; its path, and its config with 16 faces to train on."""
    folder = tmp_path_factory.mktemp('recipes')
    faces = write_faces(folder / 'faces')

    def inherit(name):
        path = folder / f'small_{name}.py'
        path.write_text(f'_base_ = {str(repository / "configs" / f"{name}.py")!r}\n{SMALL[name]}\n{NARROW_PHI}\n')
        return path, load_config(path, OPTIONS | dict(train_faces=str(faces), phi_weights=str(phi_weights)))

    inherit.faces = faces
    return inherit


def build(cfg):
    model = copy.deepcopy(cfg.model)
    if cfg.get('data_preprocessor'):
        model.setdefault('data_preprocessor', cfg.data_preprocessor)  # as the Runner does
    torch.manual_seed(0)
    model = MODELS.build(model)
    model.init_weights()
    return model


def batch(cfg, model, n=4, seed=1):
    """Smooth normalised images of the model's size, and samples that carry what its pipeline gives them."""
    generator = torch.Generator().manual_seed(seed)
    side = 192 if cfg.model.type == 'SimMIM' else 224
    images = torch.nn.functional.interpolate(torch.randn(n, 3, 7, 7, generator=generator), side, mode='bicubic')
    if cfg.model.type == 'SimMIM':
        masks = (torch.rand(n, 6, 6, generator=generator) > 0.4).long().repeat_interleave(8, 1).repeat_interleave(8, 2)
    else:
        masks = (torch.rand(n, 196, generator=generator).argsort(1) >= 49).to(torch.uint8)
    samples = [DataSample() for _ in range(n)]
    for sample, mask in zip(samples, masks, strict=True):
        sample.set_field(mask, 'mask', dtype=torch.Tensor)
    return images, samples


@pytest.mark.parametrize('name', RECIPES)
def test_is_short_over_its_base(repository, name):
    lines = (repository / 'configs' / f'{name}.py').read_text().splitlines()
    code = [line for line in lines if line.strip() and not line.startswith('#')]
    assert len(code) < 30 and any('mmpretrain::' in line for line in code)


@pytest.mark.parametrize('name', RECIPES)
def test_changes_the_loss_and_what_goes_in_alone(repository, name):
    """Against MMPretrain's own recipe: network, optimiser and schedule are the same."""
    from mmengine.config import Config

    ours = load_config(repository / 'configs' / f'{name}.py')
    base = next(line for line in open(repository / 'configs' / f'{name}.py') if 'mmpretrain::' in line)
    theirs = Config.fromfile(Config._get_cfg_path(base.split("'")[1], '')[0])
    assert ours.train_cfg.type == 'ResumableTrainLoop'  # MMPretrain's by epochs, that goes on in the middle of one
    theirs.train_cfg.type = ours.train_cfg.type
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert plain(ours[key]) == plain(theirs[key]), key
    ours, theirs = plain(ours.model), plain(theirs.model)
    for model in (ours, theirs):
        model['head'].pop('loss')
        model['head'].pop('norm_pix', None)
    assert ours == theirs


def plain(node):
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items() if key != '_scope_'}
    return [plain(value) for value in node] if isinstance(node, list | tuple) else node


@pytest.mark.parametrize('name', RECIPES)
def test_trains_by_the_tools_command(repository, small, phi_weights, tmp_path, name):
    path, _ = small(name)
    options = OPTIONS | {'train_faces': str(small.faces), 'phi_weights': str(phi_weights), 'param_scheduler': []}
    options |= {'train_dataloader.batch_size': 4, 'train_cfg.max_epochs': 1, 'default_hooks.logger.interval': 1}
    command = [sys.executable, repository / 'tools/train.py', path, '--cfg-options', *cfg_options(options)]
    env = os.environ | dict(PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    assert 'irm_im: ' in text and 'over N = 4 faces' in text and 'Memory not estimated' not in text
    saved = torch.load(next((tmp_path / 'work_dirs').rglob('epoch_1.pth')), weights_only=True)
    assert saved['meta']['iter'] == 4 and saved['message_hub']['runtime_info']['phi_sha256']
    assert not any('phi' in key or 'loss' in key for key in saved['state_dict'])


@pytest.mark.parametrize('name', SMALL)
def test_phi_is_outside_and_the_loss_falls(small, name):
    """Steps on one batch: every trained parameter that the loss reaches gets a gradient; φ is nowhere."""
    _, cfg = small(name)
    model = build(cfg)
    images, samples = batch(cfg, model)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    wrapper, average = OptimWrapper(optimiser), copy.deepcopy(model)
    values = []
    for _ in range(12):
        torch.manual_seed(0)  # models that draw their own masks draw the same
        loss = model(images, samples, mode='loss')['loss']
        values.append(loss.item())
        wrapper.update_params(loss)
    assert values[-1] < 0.9 * values[0], values

    (phi,) = model.head.loss_module.embedders()
    held = {id(p) for p in phi.backbone.parameters()}
    for owner in (model, copy.deepcopy(model), average):
        assert not held & {id(p) for p in owner.parameters()}
        assert not any('phi' in key for key in owner.state_dict())
    assert not held & {id(p) for group in optimiser.param_groups for p in group['params']}
    assert all(p.grad is None and not p.requires_grad for p in phi.backbone.parameters())
    assert not any(module.training for module in phi.backbone.modules())
    torch.manual_seed(0)
    model.zero_grad()
    model(images, samples, mode='loss')['loss'].backward()
    without = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not [key for key in without if not key.startswith('neck.mask_token')], without


@pytest.mark.parametrize('name', SMALL)
def test_the_moving_average_and_the_checkpoint_hold_the_model_alone(small, tmp_path, name):
    _, cfg = small(name)
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(tmp_path), f'{tmp_path}', 'ERROR'
    cfg.train_cfg.max_epochs, cfg.param_scheduler, cfg.train_dataloader.batch_size = 1, [], 8
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook', momentum=0.5)]
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.message_hub.get_info('phi_sha256')  # it was there
    cfg.model.head.loss = dict(type='PixelReconstructionLoss', criterion='L2')
    plain_model = build(cfg)
    shapes = {key: value.shape for key, value in plain_model.state_dict().items()}
    saved = torch.load(tmp_path / 'epoch_1.pth', weights_only=True)
    assert {key: value.shape for key, value in saved['state_dict'].items()} == shapes
    average = {key.removeprefix('module.'): value.shape for key, value in saved['ema_state_dict'].items()}
    assert average.pop('steps') == () and average == shapes
    optimised = sum(len(group['params']) for group in saved['optimizer']['param_groups'])
    assert optimised == len(list(plain_model.parameters()))


def step_in_a_process(rank, cfg, port, out):
    """A step of DDP on this rank's half of four faces: the gradients, and the bytes that its buckets hold."""
    torch.set_num_threads(1)
    model = build(cfg)
    model.head.loss_module.embedders()  # φ is there when DDP looks for parameters
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    images, samples = batch(cfg, model)
    half = slice(2 * rank, 2 * rank + 2)
    wrapped(images[half], samples[half], mode='loss')['loss'].backward()
    reduced = wrapped._get_ddp_logging_data()['total_parameter_size_bytes']
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    torch.save(dict(grads=grads, reduced=reduced, trained=trained), f'{out}.{rank}')
    dist.destroy_process_group()


@pytest.mark.parametrize('name', SMALL)
def test_two_processes_reduce_the_model_alone(small, tmp_path, name):
    _, cfg = small(name)
    mp.spawn(step_in_a_process, (cfg, free_port(), tmp_path / 'rank'), nprocs=2)
    one, two = (torch.load(f'{tmp_path / "rank"}.{rank}', weights_only=True) for rank in range(2))
    cfg.model.head.loss = dict(type='PixelReconstructionLoss', criterion='L2')
    without_phi = sum(p.numel() * 4 for p in build(cfg).parameters() if p.requires_grad)
    assert one['reduced'] == two['reduced'] == one['trained'] == without_phi
    assert one['grads'].keys() == two['grads'].keys() and len(one['grads']) > 20
    assert all(torch.equal(one['grads'][key], two['grads'][key]) for key in one['grads'])


def test_tokens_and_images_give_one_value(small, phi_weights):
    """The same reconstruction through the heads of MAE and MixMIM (tokens) and of SimMIM (images)."""
    loss = dict(load_config(small('irm_simmim_swinb_webface')[0], dict(phi_weights=str(phi_weights))).model.head.loss)
    generator = torch.Generator().manual_seed(5)
    original, made = (torch.randn(4, 3, 192, 192, generator=generator) for _ in range(2))
    values = {}
    with_mse = loss | dict(mse_weight=0.5, mse_visible=True)
    values['simmim'] = MODELS.build(dict(type='SimMIMHead', patch_size=4, loss=with_mse)).loss(
        made, original, torch.ones(4, 48, 48)
    )
    for patch in (16, 32):
        head = MODELS.build(dict(type='MAEPretrainHead', patch_size=patch, loss=with_mse | dict(patch_size=patch)))
        length = (192 // patch) ** 2
        values[f'mae {patch}'] = head.loss(head.patchify(made), original, torch.ones(4, length))
    head = MODELS.build(dict(type='MixMIMPretrainHead', patch_size=32, loss=with_mse | dict(patch_size=32)))
    mask = torch.zeros(1, 36, 1)
    mask[:, ::2] = 1
    # MixMIM hands over 2N rows: of the mixed faces, and of the same faces in reverse order at the other patches.
    tokens = head.patchify(made)
    values['mixmim'] = head.loss(torch.cat([tokens * mask, (tokens * (1 - mask)).flip(0)]), original, mask)
    for name, value in values.items():
        torch.testing.assert_close(value, values['simmim'], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.parametrize('name', RECIPES)
def test_memory_is_estimated_as_autograd_keeps_it(small, name):
    _, cfg = small(name)
    cfg.optim_wrapper.type = 'OptimWrapper'
    model = build(cfg)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    totals = []
    for n in (2, 4):
        kept = {}

        def keep(tensor, kept=kept):
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(*batch(cfg, model, n), mode='loss')  # noqa: F841  keeps the graph
        totals.append(sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own))
    assert estimate_memory(cfg).per_sample == pytest.approx((totals[1] - totals[0]) / 2, rel=0.02)


def run_once(cfg, folder, **options):
    """The runner's own way to a first iteration."""
    cfg.merge_from_dict(options)
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(folder), f'{folder}', 'ERROR'
    cfg.train_cfg.max_epochs, cfg.param_scheduler, cfg.train_dataloader.batch_size = 1, [], 8
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    Runner.from_cfg(cfg).train()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            {'model.head.loss.mean': [127.5] * 3},
            r'than SelfSupDataPreprocessor applied: mean=\[127\.5, .*\], not \[123\.6',
        ),
        ({'model.head.loss.std': [1.0] * 3}, r'applied: std=\[1\.0, 1\.0, 1\.0\], not \[58\.3'),
        ({'data_preprocessor.to_rgb': False}, r"applied: channel_order='?rgb'?, not bgr"),
        (
            {'data_preprocessor': dict(_delete_=True, type='SelfSupDataPreprocessor', to_rgb=True)},
            r'mean=\[123\.6.*\], not \[0\.0, 0\.0, 0\.0\]; std=.*, not \[1\.0',
        ),
        ({'model.target_generator': dict(type='HOGGenerator')}, 'the targets of SimMIM are what HOGGenerator makes'),
    ],
)
def test_what_phi_would_see_wrongly_is_refused_before_the_first_step(small, tmp_path, options, message):
    _, cfg = small('irm_simmim_swinb_webface')
    with pytest.raises(ValueError, match=message):
        run_once(cfg, tmp_path, **options)


def test_normalised_patches_are_refused_by_name_with_black_borders_too(small, tmp_path):
    """A patch of one colour has variance 0 once normalised: aligned faces have such corners."""
    _, cfg = small('irm_mae_hivitb_webface')
    cfg.model.head.norm_pix = True
    model = build(cfg)
    images, samples = batch(cfg, model)
    images[:, :, :32, :32] = -2.0
    with pytest.raises(ValueError, match=r'head\.norm_pix must be False'):
        model(images, samples, mode='loss')
    with pytest.raises(ValueError, match=r'head\.norm_pix must be False'):
        run_once(cfg, tmp_path)


IRM = dict(type='IRMLoss', phi=dict(type='FaceEmbedder', backbone=dict(type='IResNet', depth=18, base_channels=4)))


def test_maskfeat_with_hog_is_told_what_phi_needs():
    """MMPretrain's MaskFeat as it is, with the loss exchanged."""
    arch = dict(embed_dims=48, num_layers=1, num_heads=3, feedforward_channels=96)
    model = MODELS.build(
        dict(
            type='MaskFeat',
            backbone=dict(type='MaskFeatViT', arch=arch, patch_size=16),
            neck=dict(type='LinearNeck', in_channels=48, out_channels=108, norm_cfg=None),
            head=dict(type='MIMHead', loss=IRM),
            target_generator=dict(type='HOGGenerator', nbins=9, pool=8, gaussian_window=16),
        )
    )
    samples = [DataSample().set_mask(torch.ones(14, 14)) for _ in range(2)]
    with pytest.raises(ValueError, match=r'tokens of shape \(2, 196, 108\).*features, as HOG.*MAE-HiViT, SimMIM'):
        model(torch.randn(2, 3, 224, 224), samples, mode='loss')


def test_heads_of_features_are_told_what_phi_needs():
    """EVA and MILAN hand over CLIP's 512 values a token; iTPN's head the rows of removed tokens alone."""
    head = MODELS.build(dict(type='MIMHead', loss=IRM))
    with pytest.raises(ValueError, match=r'tokens of shape \(2, 196, 512\).*those of CLIP'):
        head.loss(torch.randn(2, 196, 512), torch.randn(2, 196, 512), torch.ones(2, 196))
    head = MODELS.build(dict(type='iTPNClipHead', embed_dims=48, num_embed=512, loss=IRM))
    with pytest.raises(ValueError, match=r'pred \(392, 512\).*reconstructs pixels'):
        head.loss(torch.randn(2, 196, 48), torch.randn(2, 196, 512), torch.ones(2, 14, 14))
