"""Hooks in a real run."""

import json
import stat
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import Runner
from tiny import SMALL_FACEMAE, small_recipe, write_faces

from facemae_mm.engine import DivergenceHook, KeyedRandomnessHook


def recipe(repository, work, epochs, **options):
    small = {key: value for key, value in SMALL_FACEMAE.items() if 'phi' not in key}
    cfg = small_recipe(repository, 'mae_vitb_webface', train_faces=str(work / 'faces'), **small, **options)
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(work / 'run'), f'{work} {epochs} {options}', 'ERROR'
    cfg.train_cfg.max_epochs, cfg.param_scheduler, cfg.train_dataloader.batch_size = epochs, [], 8
    return cfg


def test_nan_loss_stops_the_run_says_where_and_keeps_the_last_checkpoint(repository, tmp_path):
    write_faces(tmp_path / 'faces')  # 16 faces: two iterations an epoch
    runner = Runner.from_cfg(recipe(repository, tmp_path, 3, **{'optim_wrapper.clip_grad': dict(max_norm=1.0)}))
    loss = runner.model.loss
    seen = []

    def spoiled(inputs, data_samples):
        seen.append([sample.img_key for sample in data_samples])
        factor = float('nan') if runner.iter == 3 else 1.0
        return {name: value * factor for name, value in loss(inputs, data_samples).items()}

    runner.model.loss = spoiled
    with pytest.raises(FloatingPointError, match=r'Loss is nan, at epoch 2, iteration 4') as caught:
        runner.train()
    assert 'epoch_1.pth' in str(caught.value) and '--resume' in str(caught.value)
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == ['epoch_1.pth']
    weights = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)['state_dict']
    assert all(torch.isfinite(value).all() for value in weights.values())

    path = tmp_path / 'run' / 'stopped_iter_4_rank_0.json'
    assert str(path) in str(caught.value) and stat.S_IMODE(path.stat().st_mode) == 0o600
    report = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (report['epoch'], report['iteration'], report['rank'], report['seed']) == (2, 4, 0, 0)
    assert report['losses'][3] == 'nan' and all(0 < loss < 10 for loss in report['losses'][:3])
    assert report['images'] == seen[3] and report['lr'] == [1.5e-4 * 2048 / 256] and report['grad_norm'] == 'nan'
    assert report['last_checkpoint'].endswith('epoch_1.pth') and 'learning rate' in report['remedy']


def test_weights_that_are_no_numbers_are_never_saved(repository, tmp_path, monkeypatch):
    """A step that spoils them after a loss that was finite: the checkpoint that follows would replace the last one."""
    write_faces(tmp_path / 'faces')
    cfg = recipe(repository, tmp_path, 3)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    step, steps = torch.optim.AdamW.step, []

    def spoiling(self, *args, **kwargs):
        step(self, *args, **kwargs)
        steps.append(self)
        if len(steps) == 4:  # the last of epoch 2
            self.param_groups[0]['params'][0].data.view(-1)[5] = float('inf')

    monkeypatch.setattr(torch.optim.AdamW, 'step', spoiling)
    with pytest.raises(FloatingPointError, match=r'weights\.\S+ is no longer finite, so no checkpoint') as caught:
        Runner.from_cfg(cfg).train()
    assert 'epoch 2, iteration' in str(caught.value) and 'epoch_1.pth. Report: ' in str(caught.value)
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth*')) == ['epoch_1.pth']
    report = json.loads(next((tmp_path / 'run').glob('stopped_*.json')).read_text())
    assert report['last_checkpoint'].endswith('epoch_1.pth') and len(report['images']) == 8


def feed(losses, tmp_path, name, **options):
    """The iteration at which the hook stops a run with these losses; 0 where it does not."""
    hook = DivergenceHook(**options)
    wrapper = SimpleNamespace(get_lr=lambda: dict(lr=[0.1]))
    hub = MessageHub.get_instance(f'{tmp_path} {name} {options}')
    runner = SimpleNamespace(message_hub=hub, work_dir=str(tmp_path), epoch=0, seed=0, _randomness_cfg={})
    runner.optim_wrapper = wrapper
    for runner.iter, loss in enumerate(losses):
        try:
            hook.after_train_iter(runner, 0, {}, dict(loss=torch.tensor(float(loss))))
        except FloatingPointError as error:
            assert 'has diverged: its median over' in str(error) or 'inf' in str(error)
            return runner.iter + 1
    return 0


def test_a_loss_that_goes_up_for_good_stops_the_run_and_noise_does_not(tmp_path):
    rng = np.random.default_rng(0)
    steps = np.arange(20_000)
    falling = 0.2 + 40 * np.exp(-steps / 1500)
    heavy = rng.lognormal(0, 1, len(steps))  # its 98th percentile is eight times its median
    spikes = np.where(rng.random(len(steps)) < 0.3, 1000, 1)  # of 30 % of the iterations
    converged = 1e-3 * rng.lognormal(0, 1, len(steps)) * np.where(steps > 15_000, 8, 1)  # near 0, a recogniser's end
    normal = dict(
        heavy=falling * heavy,
        spikes=falling * spikes,
        converged=np.where(steps < 1000, 30, converged),
        flat=heavy,
        steps=np.where(steps % 5000 < 200, 2.5, 1) * falling,  # of a schedule that restarts
        at_zero=np.zeros(2000),
        below_zero=-falling + 0.1,
    )
    for name, losses in normal.items():
        assert feed(losses, tmp_path, name) == 0, name
    back = np.where(steps < 10_000, falling, 30) * heavy  # it forgot all that it learned
    assert 10_000 < feed(back, tmp_path, 'back') <= 10_400
    growing = 1.5 * np.exp(np.maximum(steps - 3000, 0) / 300) * heavy  # from weights that were good already
    assert 3000 < feed(growing, tmp_path, 'growing') <= 3000 + 600
    assert feed(back, tmp_path, 'off', factor=None) == 0
    assert feed([1.0, 0.1, 0.9], tmp_path, 'short', window=1) == 3
    assert feed([1.0, np.inf], tmp_path, 'inf', factor=None) == 2
    for wrong in (dict(factor=1.0), dict(window=0)):
        with pytest.raises(ValueError, match='The defaults are 3 and 200'):
            DivergenceHook(**wrong)


def test_levels_outlive_a_stop(repository, tmp_path):
    """Half of a run sees the first level, the other half the rise."""
    write_faces(tmp_path / 'faces')

    def train(epochs, factor, resume):
        cfg = recipe(repository, tmp_path, epochs)
        cfg.resume = resume
        next(hook for hook in cfg.custom_hooks if hook.type == 'DivergenceHook').window = 2
        runner = Runner.from_cfg(cfg)
        loss = runner.model.loss
        runner.model.loss = lambda *batch: {name: factor * value for name, value in loss(*batch).items()}
        runner.train()

    train(1, 1.0, False)
    with pytest.raises(FloatingPointError, match=r'has diverged: its median over 2 .* iteration 4'):
        train(2, 10.0, True)


def test_a_loop_without_epochs_is_refused_as_its_masks_would_repeat(repository, tmp_path):
    write_faces(tmp_path / 'faces')
    cfg = recipe(repository, tmp_path, 1)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    with pytest.raises(RuntimeError, match="IterBasedTrainLoop has none.*type='ResumableTrainLoop'"):
        Runner.from_cfg(cfg).train()


def test_what_a_model_draws_depends_on_seed_iteration_and_rank_alone(monkeypatch):
    hook = KeyedRandomnessHook()

    def draws(seed, iteration, rank):
        monkeypatch.setattr('facemae_mm.randomness.get_rank', lambda: rank)
        monkeypatch.setattr('facemae_mm.engine.keyed_randomness_hook.get_rank', lambda: rank)
        randomness = dict(diff_rank_seed=True)
        hook.before_train_iter(SimpleNamespace(seed=seed + rank, iter=iteration, _randomness_cfg=randomness), 0)
        return float(torch.rand(())), np.random.rand()

    known = {key: draws(*key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))}
    assert len(set(known.values())) == 5
    assert all(draws(*key) == value for key, value in known.items())


def test_epoch_and_seed_reach_every_set_of_faces_whatever_wraps_it(repository, tmp_path):
    faces = str(write_faces(tmp_path / 'faces'))
    cfg = recipe(repository, tmp_path, 1)
    one = dict(cfg.train_dataloader.dataset, source=faces)
    twice = dict(type='RepeatDataset', dataset=one, times=1)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[one, twice])
    cfg.randomness.seed = 11
    runner = Runner.from_cfg(cfg)
    runner.train_loop._epoch = 4
    KeyedRandomnessHook().before_train_epoch(runner)
    first, second = runner.train_dataloader.dataset.datasets
    for dataset in (first, second.dataset):
        assert (int(dataset._epoch), int(dataset._seed)) == (4, 11)
