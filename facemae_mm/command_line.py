"""What tools/train.py and tools/test.py share: MMPretrain's flags and what they do to a recipe."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch import nn

from .config import load_config
from .launch import process_numbers, refuse

#: MMEngine's wrapper of models in several processes.
DDP = 'MMDistributedDataParallel'


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds `--cfg-options`."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        default={},
        metavar='KEY=VALUE',
        help='set keys of the recipe: variables at its head by name (train_faces=PATH), others with '
        'dots (train_dataloader.batch_size=64), lists as key="[a,b]" without blanks',
    )


def add_runtime_flags(parser: argparse.ArgumentParser) -> None:
    """Adds `--cfg-options` and the flags of loaders and launchers."""
    add_options(parser)
    parser.add_argument('--work-dir', help='folder of logs and checkpoints (default: work_dirs/RECIPE)')
    parser.add_argument('--no-pin-memory', action='store_true', help='loaders use pageable memory')
    parser.add_argument(
        '--no-persistent-workers',
        action='store_true',
        help='loaders start their workers anew each epoch',
    )
    parser.add_argument('--check', action='store_true', help='only look whether all inputs are there (exit code 2)')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what started this process; tools/dist_*.sh and tools/slurm_*.sh give it',
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, help='ignored; the launcher sets LOCAL_RANK')


def read_recipe(args: argparse.Namespace) -> Config:
    """Reads the recipe, options applied; a mistake in either ends the run with exit code 2."""
    try:
        return load_config(args.config, args.cfg_options)
    except (FileNotFoundError, ValueError) as error:
        refuse(str(error), process_numbers(args.launcher)[2])


def apply_runtime_flags(config: Config, args: argparse.Namespace, loaders: Sequence[str]) -> None:
    """Applies the flags of `add_runtime_flags`, and MMPretrain's defaults, to a recipe.

    Args:
        config: Recipe, options applied.
        args: Command line.
        loaders: Keys of the data loaders that the run uses.
    """
    config.launcher = args.launcher
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        config.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    for name in loaders:
        loader = config.get(name)
        if loader is None:
            continue
        loader.setdefault('collate_fn', dict(type='default_collate'))
        loader.setdefault('pin_memory', torch.cuda.is_available())
        loader.setdefault('persistent_workers', True)
        if args.no_pin_memory:
            loader.pin_memory = False
        if args.no_persistent_workers or not loader.get('num_workers'):
            loader.persistent_workers = False  # torch refuses it without workers


class FrozenModelRunner(Runner):
    """MMEngine's Runner, which leaves a model without trained parameters as it is in several processes too.

    An attacker's embedder is one: there is no gradient to share out, and DistributedDataParallel refuses it.
    """

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """As MMEngine's for models that train something, and where the recipe names another wrapper than DDP."""
        by_ddp = (model_wrapper_cfg or {}).get('type', DDP) == DDP
        if self.distributed and by_ddp and not any(weight.requires_grad for weight in model.parameters()):
            return model.to(get_device())
        return super().wrap_model(model_wrapper_cfg, model)


def build_runner(config: Config) -> Runner:
    """The recipe's own runner type, `FrozenModelRunner` where it names none."""
    return RUNNERS.build(config) if 'runner_type' in config else FrozenModelRunner.from_cfg(config)


def add_embedder_flags(parser: argparse.ArgumentParser) -> None:
    """Adds what `open_embedder` takes beside the checkpoint."""
    add = parser.add_argument
    add('--config', metavar='RECIPE', help='recipe of the network, where its file does not tell')
    add('--channel-order', choices=['rgb', 'bgr'], help='channels that it expects, in place of its own')
    add('--mean', type=float, nargs=3, metavar='M', help='what is subtracted, [0, 255], in place of its own')
    add('--std', type=float, nargs=3, metavar='S', help='what is divided by, in place of its own')


def embedder_flags(args: argparse.Namespace) -> dict:
    """Those flags as arguments of `open_embedder`."""
    return {key: getattr(args, key) for key in ('config', 'channel_order', 'mean', 'std')}


def without_folders(word: str) -> str:
    """A word of a command with the last part of each path alone: where things lie is nobody's business."""
    pieces = re.split(r'([=:,\[\]])', word)
    return ''.join(piece if re.fullmatch(r'[\d./]*', piece) else PurePath(piece).name for piece in pieces)
