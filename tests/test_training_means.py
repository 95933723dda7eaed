"""What MMEngine and MMPretrain offer for training, by config, with FaceMAE."""

import pytest
import torch
from mmpretrain.registry import MODELS
from test_resume import run, state
from tiny import write_faces

from facemae_mm.models import FaceMAE

PHI = dict(type='IResNet', depth=18, base_channels=4)


@pytest.fixture(scope='module')
def recipe(repository, tmp_path_factory):
    """FaceMAE with IRM in a small network: 16 faces, four iterations an epoch."""
    folder = tmp_path_factory.mktemp('means')
    torch.manual_seed(0)
    torch.save(MODELS.build(PHI).state_dict(), folder / 'phi.pth')
    phi = dict(type='FaceEmbedder', backbone=PHI, checkpoint=str(folder / 'phi.pth'))
    loss = dict(_delete_=True, type='IRMLoss', phi=phi, beta=1.0, mse_weight=1.0, mean=[127.5] * 3, std=[127.5] * 3)
    (folder / 'means.py').write_text(
        f"""
_base_ = '{repository}/configs/demo_mae.py'
train_faces = '{write_faces(folder / 'faces')}'
model = dict(
    backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)),
    neck=dict(embed_dim=32, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
    head=dict(loss={loss}),
)
train_dataloader = dict(batch_size=4, dataset=dict(source=train_faces))
param_scheduler = []
default_hooks = dict(logger=dict(interval=1))
train_cfg = dict(max_epochs=1)
"""
    )
    return folder / 'means.py'


def weights(work):
    return {name: value for name, value in state(work)[1].items() if name.startswith('.state_dict')}


def distance(work, other):
    found, expected = weights(work), weights(other)
    return max((found[name] - value).abs().max().item() for name, value in expected.items())


def test_accumulated_batches_step_as_one(recipe, tmp_path):
    """Where the loss is a mean over faces: four batches of 2 are two of 4. Relations stay within a batch."""
    plain = dict(
        model__head__loss__beta=0.0,
        model__head__loss__im_weight=0.0,
        optim_wrapper__optimizer=dict(type='SGD', lr=0.5, _delete_=True),
        optim_wrapper__clip_grad__max_norm=0.05,
    )
    run(recipe, tmp_path / 'one', **plain)
    halves = dict(train_dataloader__batch_size=2, optim_wrapper__accumulative_counts=2)
    run(recipe, tmp_path / 'two', **plain, **halves)
    run(recipe, tmp_path / 'small', **plain, train_dataloader__batch_size=2)
    assert distance(tmp_path / 'two', tmp_path / 'one') < 1e-6 < 1e-4 < distance(tmp_path / 'small', tmp_path / 'one')


def losses(runner):
    return [float(value) for value in runner.message_hub.get_scalar('train/loss').data[0]]


def test_bfloat16_by_one_config_with_the_loss_in_float32(recipe, tmp_path, monkeypatch):
    """Clipped and accumulated; masters stay float32, and so do φ's input and the loss."""
    seen = []
    forward = torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, 'forward', lambda self, x: seen.append(y := forward(self, x)) or y)
    exact = run(recipe, tmp_path / 'exact', optim_wrapper__accumulative_counts=2)
    assert {y.dtype for y in seen} == {torch.float32}
    seen.clear()
    wrapper = dict(optim_wrapper__type='AutocastOptimWrapper', optim_wrapper__emulate=True)
    bf16 = run(recipe, tmp_path / 'bf16', optim_wrapper__accumulative_counts=2, **wrapper)
    dtypes = [y.dtype for y in seen]
    assert torch.bfloat16 in dtypes
    phi_last = [y.dtype for y in seen if y.shape[-1] == 512]
    assert phi_last and set(phi_last) == {torch.float32}
    assert all(abs(a - b) < 0.03 * abs(a) for a, b in zip(losses(exact), losses(bf16), strict=True))
    assert losses(exact) != losses(bf16)
    assert {value.dtype for value in weights(tmp_path / 'bf16').values()} == {torch.float32}
    assert len(bf16.message_hub.get_scalar('train/grad_norm').data[0]) == 2


def test_activation_checkpointing_keeps_less_and_gives_the_same_weights(recipe, tmp_path, monkeypatch):
    """MMEngine's `activation_checkpointing`: names of modules; drop path is drawn alike again."""
    loss = FaceMAE.loss
    options = dict(model__backbone__drop_path_rate=0.3, model__head__loss__beta=0.0, model__head__loss__im_weight=0.0)

    def kept(name, **more):
        sizes = []

        def counting(*batch):
            with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.nbytes) or x, lambda x: x):
                return loss(*batch)

        monkeypatch.setattr(FaceMAE, 'loss', counting)
        run(recipe, tmp_path / name, **options, **more)
        return sum(sizes)

    whole = kept('whole')
    less = kept('less', activation_checkpointing=['backbone.layers.0', 'backbone.layers.1', 'neck.decoder_blocks.0'])
    assert less < 0.9 * whole  # the tiny network's output weighs more than its layers
    assert distance(tmp_path / 'less', tmp_path / 'whole') == 0


def test_an_average_of_the_weights_by_mmengines_hook(recipe, tmp_path):
    """EMAHook: w̄ ← w̄ + m (w − w̄) after each iteration; φ has no part; a checkpoint's state_dict is the average."""
    text = recipe.read_text() + "custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=0.25)]\n"
    (recipe.parent / 'ema.py').write_text(text)
    path = []
    step = torch.optim.AdamW.step

    def noting(self, *args, **kwargs):
        if not path:
            path.append(self.param_groups[0]['params'][0].detach().clone())
        step(self, *args, **kwargs)
        path.append(self.param_groups[0]['params'][0].detach().clone())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, 'step', noting)
        run(recipe.parent / 'ema.py', tmp_path)
    average = path[1].double()  # MMEngine's first update is a copy
    for weight in path[2:]:
        average += 0.25 * (weight - average)
    tensors = state(tmp_path)[1]
    assert not [name for name in tensors if 'phi' in name]
    name = '.state_dict.backbone.cls_token'
    assert torch.allclose(tensors[name].double(), average, atol=1e-7)
    assert torch.equal(tensors['.ema_state_dict.module.backbone.cls_token'], path[-1])


def test_layer_decay_by_mmpretrains_constructor(recipe, tmp_path):
    """lr · r^(layers from the end): stem r³, encoder layer i r^(2 − i), what follows the encoder 1. No group for φ."""
    text = recipe.read_text() + (
        "optim_wrapper = dict(constructor='LearningRateDecayOptimWrapperConstructor', "
        'paramwise_cfg=dict(layer_decay_rate=0.5))\n'
    )
    (recipe.parent / 'decay.py').write_text(text)
    runner = run(recipe.parent / 'decay.py', tmp_path)
    scales = {group['param_name']: group['lr'] / 1e-3 for group in runner.optim_wrapper.optimizer.param_groups}
    trained = {name for name, parameter in runner.model.named_parameters() if parameter.requires_grad}
    assert scales.keys() == trained
    for name, scale in scales.items():
        if name in ('backbone.cls_token', 'backbone.pos_embed') or name.startswith('backbone.patch_embed'):
            assert scale == pytest.approx(0.125), name
        elif name.startswith('backbone.layers.'):
            assert scale == pytest.approx(0.25 if name.startswith('backbone.layers.0.') else 0.5), name
        else:
            assert scale == pytest.approx(1.0) and name.startswith(('backbone.ln1', 'neck.')), name
