"""Hooks in a real run."""

import pytest
import torch
from mmengine.runner import Runner
from tiny import SMALL_FACEMAE, small_recipe, write_faces


def recipe(repository, work, epochs, **options):
    small = {key: value for key, value in SMALL_FACEMAE.items() if 'phi' not in key}
    cfg = small_recipe(repository, 'mae_vitb_webface', train_faces=str(work / 'faces'), **small, **options)
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(work / 'run'), f'{work} {epochs}', 'ERROR'
    cfg.train_cfg.max_epochs, cfg.param_scheduler, cfg.train_dataloader.batch_size = epochs, [], 8
    return cfg


def test_nan_loss_stops_the_run_says_where_and_keeps_the_last_checkpoint(repository, tmp_path):
    write_faces(tmp_path / 'faces')  # 16 faces: two iterations an epoch
    runner = Runner.from_cfg(recipe(repository, tmp_path, 3))
    loss = runner.model.loss

    def spoiled(inputs, data_samples):
        factor = float('nan') if runner.iter == 3 else 1.0
        return {name: value * factor for name, value in loss(inputs, data_samples).items()}

    runner.model.loss = spoiled
    with pytest.raises(FloatingPointError, match=r'Loss is nan at epoch 2, iteration 4') as caught:
        runner.train()
    assert 'epoch_1.pth' in str(caught.value) and '--resume' in str(caught.value)
    assert sorted(path.name for path in (tmp_path / 'run').glob('*.pth')) == ['epoch_1.pth']
    weights = torch.load(tmp_path / 'run' / 'epoch_1.pth', weights_only=True)['state_dict']
    assert all(torch.isfinite(value).all() for value in weights.values())


def test_a_loop_without_epochs_is_refused_as_its_masks_would_repeat(repository, tmp_path):
    write_faces(tmp_path / 'faces')
    cfg = recipe(repository, tmp_path, 1)
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2)
    with pytest.raises(RuntimeError, match='IterBasedTrainLoop has none'):
        Runner.from_cfg(cfg).train()
