"""What every test may ask for."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
if 'PYTEST_XDIST_WORKER' in os.environ:
    os.environ.setdefault('OMP_NUM_THREADS', '1')  # the other cores run other tests

import pytest
import torch
from mmengine.registry import DefaultScope

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def threads():
    """A test that changes how many threads torch takes changes the last bits of no other."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def scope():
    """The scope of a runner, in which MMEngine looks for every name from then on, ends with its test."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(scope='session')
def repository() -> Path:
    """The checkout's top folder."""
    return REPOSITORY


@pytest.fixture(scope='session')
def shared() -> Path:
    """Real faces and files for measurements, beside the checkout; tests that need them skip where they are absent."""
    folder = REPOSITORY.parent / 'shared'
    if not folder.is_dir():
        pytest.skip('the shared/ folder with real faces does not lie beside this checkout')
    return folder


@pytest.fixture
def verify(repository, monkeypatch, capsys):
    """Runs tools/verify.py in this process; gives exit code and output."""
    return _runner('verify', repository, monkeypatch, capsys)


@pytest.fixture
def audit(repository, monkeypatch, capsys):
    """Runs tools/audit.py in this process; gives exit code and output."""
    return _runner('audit', repository, monkeypatch, capsys)


def _runner(tool, repository, monkeypatch, capsys):
    monkeypatch.syspath_prepend(repository / 'tools')
    spec = importlib.util.spec_from_file_location(f'tools_{tool}', repository / 'tools' / f'{tool}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*args):
        monkeypatch.setattr(sys, 'argv', [f'tools/{tool}.py', *map(str, args)])
        code = 0
        try:
            module.main()
        except SystemExit as stopped:
            code = stopped.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run
