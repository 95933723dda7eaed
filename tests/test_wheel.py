"""The wheel, used from outside the checkout."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest


@pytest.fixture(scope='module')
def installed(repository, tmp_path_factory):
    """A folder where the wheel is installed; built without network from a copy, so the checkout stays clean."""
    folder = tmp_path_factory.mktemp('wheel')
    leave = shutil.ignore_patterns('.*', '__pycache__', 'data', 'work_dirs', 'weights', 'build', 'dist', '*.egg-info')
    shutil.copytree(repository, folder / 'source', ignore=leave)
    pip = [sys.executable, '-m', 'pip', '--quiet']
    offline = ['--no-deps', '--no-index']
    build = [*pip, 'wheel', '--no-build-isolation', *offline, '-w', str(folder), str(folder / 'source')]
    subprocess.run(build, check=True, capture_output=True)
    wheel = next(folder.glob('*.whl'))
    site = folder / 'site'
    subprocess.run([*pip, 'install', *offline, '--target', str(site), str(wheel)], check=True, capture_output=True)
    return wheel, site


def outside(site, cwd, *command):
    env = os.environ | dict(PYTHONPATH=str(site), OMP_NUM_THREADS='1', PYTHON=sys.executable)
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_holds_recipes_and_tools(installed, repository):
    wheel, _ = installed
    names = zipfile.ZipFile(wheel).namelist()
    for folder in ('configs', 'tools'):
        kept = {
            f'facemae_mm/.mim/{path.relative_to(repository).as_posix()}'
            for path in (repository / folder).rglob('*')
            if path.is_file() and '__pycache__' not in path.parts
        }
        assert len(kept) > 5 and kept <= set(names)
    packages = {path.parent.name for path in (repository / 'facemae_mm').rglob('__init__.py')}
    assert {name.split('/')[-2] for name in names if name.endswith('/__init__.py')} == packages
    assert not [name for name in names if name.startswith(('tests/', 'tools/', 'configs/'))]
    files = [path for path in (repository / 'facemae_mm').rglob('*') if path.is_file() and path.suffix != '.pyc']
    assert {path.relative_to(repository).as_posix() for path in files} <= set(names)


def test_its_tools_and_recipes_work_from_elsewhere(installed, tmp_path):
    _, site = installed
    mim = site / 'facemae_mm' / '.mim'
    done = outside(site, tmp_path, sys.executable, str(mim / 'tools/train.py'), '--help')
    assert done.returncode == 0 and '--auto-scale-lr' in done.stdout, done.stderr
    load = (
        'import facemae_mm; from facemae_mm.config import load_config; '
        f'cfg = load_config({str(mim / "configs/facemae_vitb_webface.py")!r}); '
        'print(facemae_mm.__file__, facemae_mm.__version__, cfg.model.type)'
    )
    done = outside(site, tmp_path, sys.executable, '-c', load)
    assert done.stdout.split() == [str(site / 'facemae_mm' / '__init__.py'), '0.1.0', 'FaceMAE'], done.stderr


def test_its_scripts_run_from_elsewhere(installed, tmp_path):
    _, site = installed
    mim = site / 'facemae_mm' / '.mim'
    script = mim / 'tools/dist_train.sh'
    assert os.access(script, os.X_OK)
    done = outside(site, tmp_path, str(script), str(mim / 'configs/facemae_vitb_webface.py'), '8')
    assert done.returncode == 2 and 'train_faces = data/webface260m/train.rec' in done.stderr, done.stderr
