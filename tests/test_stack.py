"""The workarounds for the libraries below."""

import importlib.util
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from torch.utils.data import Dataset

from facemae_mm import stack


class Ones(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return dict(inputs=torch.ones(2))


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode='loss'):
        return dict(loss=self.layer(torch.stack(inputs)).mean())


def train(folder, epochs, resume):
    runner = Runner(
        Line(),
        str(folder),
        train_dataloader=dict(batch_size=2, dataset=Ones(), sampler=dict(type='DefaultSampler', shuffle=True)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=[dict(type='CosineAnnealingLR', T_max=3)],
        resume=resume,
        experiment_name=f'{folder} {epochs}',
        log_level='ERROR',
    )
    runner.train()
    return runner


def test_a_checkpoint_of_mmengines_runner_is_resumed_with_safe_loading(tmp_path, monkeypatch):
    first = train(tmp_path, 1, False)
    modes = []
    load = torch.load
    monkeypatch.setattr(torch, 'load', lambda *a, **k: modes.append(k.get('weights_only')) or load(*a, **k))
    second = train(tmp_path, 3, True)
    assert modes and False not in modes
    assert (first.iter, second.iter, second.epoch) == (2, 6, 3)
    logged = second.message_hub.get_scalar('train/loss')
    assert len(logged._log_history) == 6 and np.isfinite(logged.mean())
    assert not torch.serialization.get_unsafe_globals_in_checkpoint(tmp_path / 'epoch_1.pth')


def test_a_checkpoint_is_mapped_not_read_whole(tmp_path, monkeypatch):
    checkpoint = dict(state_dict=dict(weight=torch.arange(6.0)))
    torch.save(checkpoint, tmp_path / 'zip.pth')
    torch.save(checkpoint, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    options, load = [], torch.load
    monkeypatch.setattr(torch, 'load', lambda *a, **k: options.append(k) or load(*a, **k))
    for name, mapped in (('zip.pth', True), ('old.pth', False)):
        found = CheckpointLoader.load_checkpoint(str(tmp_path / name), map_location='cuda')  # not onto the GPU
        assert torch.equal(found['state_dict']['weight'], torch.arange(6.0))
        assert options.pop() == dict(map_location='cpu', mmap=mapped, weights_only=True)
    with pytest.raises(FileNotFoundError, match='none.pth'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'none.pth'))


def test_without_the_workaround_it_is_not(tmp_path):
    """The premise: where this fails, `allow_checkpoint_classes` can go."""
    train(tmp_path, 1, False)
    plain = f'import torch; torch.load({str(tmp_path / "epoch_1.pth")!r})'
    done = subprocess.run([sys.executable, '-c', plain], capture_output=True, text=True)
    assert done.returncode and 'Weights only load failed' in done.stderr


def test_scalars_and_histories_of_numpy_are_read(tmp_path):
    buffer = HistoryBuffer([1.0, 2.0], [1, 1])
    saved = dict(buffer=buffer, best=np.float32(0.5), count=np.int64(3), flag=np.bool_(True))
    torch.save(saved, tmp_path / 'x.pth')
    found = torch.load(tmp_path / 'x.pth')
    assert found['buffer'].mean() == 1.5 and found['best'] == np.float32(0.5) and found['count'] == 3


class Getattr:
    """Pickles to getattr(HistoryBuffer, name)."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return getattr, (HistoryBuffer, self.name)


class Runs:
    def __reduce__(self):
        return print, ('code ran',)


@pytest.mark.parametrize('content', [Getattr('__init__'), Getattr('__globals__'), Getattr('update'), Runs()])
def test_nothing_else_is_let_through(tmp_path, capsys, content):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'x.pth')
    assert not capsys.readouterr().out


def test_only_logs_statistics_are_attributes_of_a_checkpoint():
    assert stack.history_method(HistoryBuffer, 'mean') is HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError, match='__globals__'):
        stack.history_method(HistoryBuffer.mean, '__globals__')


def test_missing_packages_are_named_with_their_remedy(monkeypatch):
    find_spec = importlib.util.find_spec
    gone = {'mmcv', 'pkg_resources'}
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name in gone else find_spec(name))
    with pytest.raises(ImportError) as caught:
        stack.check_packages()
    text = str(caught.value)
    assert 'pip install mmcv-lite' in text and "'setuptools<81'" in text
    assert 'torch:' not in text


def test_mmengines_configs_are_inherited_from_mmpretrain(tmp_path):
    """What pkg_resources is for."""
    (tmp_path / 'x.py').write_text("_base_ = 'mmpretrain::_base_/models/mae_vit-base-p16.py'\n")
    assert Config.fromfile(tmp_path / 'x.py').model.type == 'MAE'


def test_import_is_silent():
    code = 'import warnings; warnings.simplefilter("default"); import facemae_mm'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0 and 'mmcv' not in done.stderr, done.stderr
