"""Workarounds for the versions of the libraries below this one; each can go by itself, as its docstring says."""

import functools
import importlib.util
import warnings
from pathlib import Path
from pickle import UnpicklingError

REMEDY = {
    'torch': 'pip install torch torchvision',
    'mmengine': 'pip install mmengine',
    'mmcv': 'pip install mmcv-lite',
    'mmpretrain': 'pip install mmpretrain',
    'pkg_resources': "pip install 'setuptools<81'",
}


def apply() -> None:
    """Calls every workaround. Safe to call again."""
    check_packages()
    silence_warnings()
    allow_checkpoint_classes()
    drop_scope_of_collate_fn()
    write_checkpoints_whole()
    read_checkpoints_by_page()
    save_all_classes()
    checkpoint_activations_without_reentry()


def check_packages() -> None:
    """Says which packages are missing and how to install them, before an import deep inside fails.

    Neither mmcv nor mmcv-lite is a hard requirement, as both fill one folder: extras choose. Only import names are
    looked at, which the maintained fork (onedl-*) shares.

    Raises:
        ImportError: With one pip command for each missing package.
    """
    names = ['torch', 'mmengine', 'mmcv', 'mmpretrain']
    if _mmengine_needs_pkg_resources():
        names.append('pkg_resources')
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        lines = '\n'.join(f'  {name}: {REMEDY[name]}' for name in missing)
        raise ImportError(f'facemae_mm: packages are missing from this environment.\n{lines}')


def _mmengine_needs_pkg_resources() -> bool:
    """mmengine 0.10.7 inherits 'mmpretrain::…' configs by pkg_resources, which setuptools 81 dropped.

    Can go when mmengine's `package_utils` no longer imports it (onedl-mmengine's may not: its source is asked).
    """
    spec = importlib.util.find_spec('mmengine')
    if spec is None or spec.origin is None:
        return False
    source = Path(spec.origin).parent / 'utils' / 'package_utils.py'
    return source.is_file() and 'import pkg_resources' in source.read_text()


def silence_warnings() -> None:
    """Drops two warnings that no user can act on.

    mmcv-lite 2.2.0 warns that its compiled operators are absent; no model of this project has any. setuptools 80 warns
    that pkg_resources will go, on behalf of mmengine 0.10.7. Can go when mmcv and mmengine no longer cause them.
    """
    warnings.filterwarnings('ignore', message='Fail to import ``MultiScaleDeformableAttention``')
    warnings.filterwarnings('ignore', message='pkg_resources is deprecated as an API')


def allow_checkpoint_classes() -> None:
    """Lets torch ≥ 2.6 read what mmengine 0.10.7 writes beside weights, still with `weights_only=True`.

    A Runner's checkpoint holds its logs: `HistoryBuffer`s of NumPy arrays, NumPy scalars, and the buffer's own methods,
    pickled as `getattr(HistoryBuffer, name)`. The name `builtins.getattr` is bound to `history_method`, which knows
    those methods only. Can go when mmengine loads its own checkpoints under torch's default.

    facebookresearch/mae keeps its command line beside the weights, an `argparse.Namespace`, which holds values alone.
    """
    import argparse

    import numpy as np
    import torch
    from mmengine.logging import HistoryBuffer

    core = (getattr(np, '_core', None) or np.core).multiarray  # NumPy 2 renamed it; files name either
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            HistoryBuffer,
            (history_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *(type(np.dtype(name)) for name in ('float64', 'float32', 'int64', 'int32', 'bool')),
            *(
                (getattr(core, name), f'numpy.{module}.multiarray.{name}')
                for name in ('_reconstruct', 'scalar')
                for module in ('core', '_core')
            ),
        ]
    )


def drop_scope_of_collate_fn() -> None:
    """Lets a recipe inherit a data loader from 'mmpretrain::…'.

    mmengine 0.10.7 marks every inherited dict with `_scope_`, which its registries take out again; but a `collate_fn`
    is called with all that is left of its dict. Can go when `Runner.build_dataloader` takes the mark out.
    """
    from mmengine.runner import Runner

    build = Runner.build_dataloader
    if hasattr(build, '__wrapped__'):
        return

    @functools.wraps(build)
    def build_dataloader(dataloader, *args, **kwargs):
        collate_fn = dataloader.get('collate_fn') if isinstance(dataloader, dict) else None
        if isinstance(collate_fn, dict):
            dataloader = dict(dataloader, collate_fn={k: v for k, v in collate_fn.items() if k != '_scope_'})
        return build(dataloader, *args, **kwargs)

    Runner.build_dataloader = staticmethod(build_dataloader)


def write_checkpoints_whole() -> None:
    """Gives a checkpoint its name only when it is complete, and lets `--resume` find one that is.

    mmengine 0.10.7 writes to the final name, holding the file in memory twice, and believes whatever `last_checkpoint`
    says. Names with a scheme, as s3://…, stay with it. Can go when mmengine writes to another name and renames.
    """
    import mmengine.runner
    from mmengine.runner import runner

    from . import checkpoints

    save = runner.save_checkpoint
    if hasattr(save, '__wrapped__'):
        return

    @functools.wraps(save)
    def save_checkpoint(checkpoint, filename, file_client_args=None, backend_args=None):
        if file_client_args or backend_args or '://' in filename:
            save(checkpoint, filename, file_client_args, backend_args)
        else:
            checkpoints.save_checkpoint(checkpoint, filename)

    mmengine.runner.save_checkpoint = runner.save_checkpoint = save_checkpoint
    runner.find_latest_checkpoint = checkpoints.find_latest_checkpoint


def read_checkpoints_by_page() -> None:
    """Lets every process read of a checkpoint what it needs, and none of it into a GPU's memory beside the model.

    mmengine 0.10.7 reads the whole file in each process, to the GPU where it resumes: of PartialFC's checkpoint that is
    every class, with the optimiser's states. Can go when `load_from_local` maps files (`torch.load(mmap=True)`).
    """
    import zipfile

    import torch
    from mmengine.runner.checkpoint import CheckpointLoader

    def load_from_local(filename, map_location=None):
        path = Path(filename).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f'{path} is not a file. Give the checkpoint that is to be loaded.')
        return torch.load(path, map_location='cpu', mmap=zipfile.is_zipfile(path), weights_only=True)

    CheckpointLoader.register_scheme(prefixes='', loader=load_from_local, force=True)


def save_all_classes() -> None:
    """Puts the classes of all processes into a checkpoint, where a head shards them.

    mmengine 0.10.7 saves what the first process holds. Can go when `Runner.save_checkpoint` asks all processes.
    """
    from mmengine.runner import Runner

    save = Runner.save_checkpoint
    if hasattr(save, '__facemae__'):
        return

    @functools.wraps(save)
    def save_checkpoint(runner, *args, **kwargs):
        from .engine.class_shards import gathered_classes

        with gathered_classes(runner):
            save(runner, *args, **kwargs)

    save_checkpoint.__facemae__ = True
    Runner.save_checkpoint = save_checkpoint


def checkpoint_activations_without_reentry() -> None:
    """Lets `activation_checkpointing` in a recipe say how torch is to do it, as torch ≥ 2.9 asks for.

    The variant that does not enter autograd again goes with DDP and with inputs that need no gradient. Can go when
    mmengine passes `use_reentrant` itself.
    """
    from mmengine.runner import activation_checkpointing
    from torch.utils.checkpoint import checkpoint

    activation_checkpointing.checkpoint = functools.partial(checkpoint, use_reentrant=False)


def history_method(owner: type, name: str) -> object:
    """`getattr` as a checkpoint may use it: a statistic of `HistoryBuffer`.

    Raises:
        UnpicklingError: Anything else.
    """
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise UnpicklingError(
            f'The checkpoint asks for attribute {name!r} of {owner!r}, which no log of mmengine holds. '
            'Do not load it unless you know who wrote it.'
        )
    return getattr(owner, name)
