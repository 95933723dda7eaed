"""Train the model of a recipe, with MMPretrain's flags."""

import argparse

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size

from facemae_mm.checkpoints import find_latest_checkpoint
from facemae_mm.command_line import (
    add_runtime_flags,
    apply_runtime_flags,
    build_runner,
    read_recipe,
)
from facemae_mm.launch import print_effective_batch, process_numbers, refuse, start


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='recipe, such as configs/facemae_vitb_webface.py')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help="go on from this checkpoint; without a path from the work folder's latest, or as the recipe says where "
        'there is none yet',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision where the recipe has none: float16 with scaled loss on a GPU, bfloat16 on a CPU that '
        'has it',
    )
    parser.add_argument('--no-validate', action='store_true', help='do not validate in training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate by batch × processes over the recipe's base batch",
    )
    add_runtime_flags(parser)
    return parser.parse_args()


def apply_flags(config: Config, args: argparse.Namespace) -> None:
    """Applies the flags to a recipe."""
    apply_runtime_flags(config, args, ('train_dataloader', 'val_dataloader'))
    if args.no_validate:
        config.val_cfg = config.val_dataloader = config.val_evaluator = None
    wrapper = config.optim_wrapper
    if not torch.cuda.is_available():
        if args.amp or wrapper.get('type') == 'AmpOptimWrapper':  # which asserts an accelerator
            wrapper.type = 'AutocastOptimWrapper'
    elif args.amp and wrapper.get('type') != 'AutocastOptimWrapper':  # bfloat16 already
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
    if wrapper.get('type') == 'AutocastOptimWrapper' and wrapper.get('dtype') != 'float16':
        wrapper.pop('loss_scale', None)  # of an inherited recipe: bfloat16 needs none
    if args.resume == 'auto':
        config.resume = find_latest_checkpoint(config.work_dir) is not None
        if config.resume:  # else the recipe's start weights count, as without the flag
            config.load_from = None
    elif args.resume is not None:
        config.resume, config.load_from = True, args.resume
    if args.auto_scale_lr:
        if 'auto_scale_lr' not in config:
            raise ValueError(
                f'{args.config} names no batch that its learning rate is for: --cfg-options '
                'auto_scale_lr.base_batch_size=N does.'
            )
        config.auto_scale_lr.enable = True


def main() -> None:
    """Trains."""
    args = parse_args()
    config = read_recipe(args)
    try:
        apply_flags(config, args)
    except (FileNotFoundError, ValueError) as error:
        refuse(str(error), process_numbers(args.launcher)[2])
    start(config, args.launcher, check_only=args.check)
    runner = build_runner(config)
    print_effective_batch(config, get_world_size())
    runner.train()


if __name__ == '__main__':
    main()
