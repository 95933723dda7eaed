"""What every test may ask for."""

import os
from pathlib import Path

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def threads():
    """A test that changes how many threads torch takes changes the last bits of no other."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
