"""What TensorBoard shows of a training: curves, and panels of the faces themselves."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import SMALL_FACEMAE, small_recipe, write_faces

from facemae_mm.datasets import FaceRecordDataset, LoadFace


@pytest.fixture
def trained(repository, tmp_path):
    """Trains the paper's recipe, small, for six iterations; options override it."""
    faces = write_faces(tmp_path / 'faces')
    torch.manual_seed(0)
    torch.save(MODELS.build(dict(type='IResNet', depth=18, base_channels=4)).state_dict(), tmp_path / 'phi.pth')

    def train(name='facemae_vitb_webface', **options):
        small = SMALL_FACEMAE if 'facemae' in name else {k: v for k, v in SMALL_FACEMAE.items() if 'phi' not in k}
        options = small | dict(train_faces=str(faces)) | options
        if 'facemae' in name:
            options |= dict(phi_weights=str(tmp_path / 'phi.pth'), phi_cache=str(tmp_path / 'features'))
        cfg = small_recipe(repository, name, **options)
        cfg.train_dataloader.batch_size = 8
        cfg.train_cfg.max_epochs, cfg.param_scheduler = 3, []
        cfg.default_hooks.logger.interval = 1
        cfg.default_hooks.checkpoint = None
        for hook in cfg.custom_hooks:
            if hook['type'] == 'ReconstructionPanelHook':
                hook.update(interval=3, faces=4)
        cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook['type'] != 'EmbedderCheckHook']  # φ is random
        work = tmp_path / f'work{len(list(tmp_path.iterdir()))}'
        work.mkdir()
        cfg.work_dir = str(work)
        runner = Runner.from_cfg(cfg)
        runner.train()
        runner.visualizer.close()
        (events,) = work.rglob('events.out.tfevents*')
        shown = EventAccumulator(str(events), size_guidance=dict(images=0, scalars=0))
        shown.Reload()
        return runner, shown

    train.faces = faces
    return train


def pictures(shown):
    return {
        event.step: cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR_RGB)
        for event in shown.Images('reconstruction')
    }


def test_curves_and_panels_reach_tensorboard(trained):
    runner, shown = trained()
    curves = {'irm_im', 'irm_rm', 'irm_mse', 'phi_similarity', 'leak_top1', 'loss', 'lr'}
    assert curves <= set(shown.Tags()['scalars'])
    assert [event.step for event in shown.Scalars('phi_similarity')] == list(range(1, 7))
    assert all(-1 <= event.value <= 1 for event in shown.Scalars('phi_similarity'))
    (folder,) = Path(runner.work_dir).rglob('vis_data')
    assert folder.stat().st_mode & 0o777 == 0o700  # real faces
    panels = pictures(shown)
    assert sorted(panels) == [1, 3, 6]
    assert panels[6].shape == (3 * 112, 4 * 112, 3)
    dataset = FaceRecordDataset(str(trained.faces), [LoadFace(112)])
    for column, index in enumerate((0, 5, 10, 15)):
        original, masked, output = panels[6][:, column * 112 : (column + 1) * 112].reshape(3, 112, 112, 3)
        stored = dataset[index]['img'][..., ::-1]  # BGR -> RGB
        assert np.array_equal(original, stored) or np.array_equal(original, stored[:, ::-1])  # flips are keyed
        removed = (masked == 128).all(-1)
        assert 0.7 < removed.mean() < 0.8 and np.array_equal(masked[~removed], original[~removed])
        assert (output != original).any() and output.std() > 0
    for step in (1, 3):  # the same faces under the same masks, another reconstruction
        assert np.array_equal(panels[step][:224], panels[6][:224])
        assert not np.array_equal(panels[step][224:], panels[6][224:])
    assert runner.model.training


def test_panels_change_no_weight(trained):
    weights = []
    for interval in (1, 10**6):
        runner, _ = trained(
            'mae_vitb_webface',
            **{
                'custom_hooks': [
                    dict(type='KeyedRandomnessHook'),
                    dict(type='ReconstructionPanelHook', interval=interval, faces=3),
                ]
            },
        )
        weights.append({name: value.clone() for name, value in runner.model.state_dict().items()})
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
