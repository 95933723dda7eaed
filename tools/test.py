"""Test the model of a recipe: verify, measure leakage, or export, as the recipe says."""

import argparse

import mmengine
from mmengine.config import Config
from mmengine.evaluator import DumpResults

from facemae_mm.command_line import (
    add_runtime_flags,
    apply_runtime_flags,
    build_runner,
    read_recipe,
)
from facemae_mm.config import TEST_PARTS
from facemae_mm.launch import refuse, start


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='recipe, such as configs/leakage_casia.py')
    parser.add_argument('checkpoint', help="weights of the model; 'none' where the recipe names them all")
    parser.add_argument('--out', help='write predictions (.pkl) or metrics (.json) to this file')
    parser.add_argument(
        '--out-item',
        choices=['metrics', 'pred'],
        help='what --out writes (default: pred)',
    )
    parser.add_argument('--show-dir', help='write what the network was fed and what it reconstructed to this folder')
    parser.add_argument('--interval', type=int, default=1, help='of --show-dir: every this many batches')
    parser.add_argument(
        '--originals',
        metavar='FACES',
        help='of an export: the real faces, to say in the manifest how close each released face is to its own source '
        'and to another photo of the same person',
    )
    parser.add_argument(
        '--phi',
        metavar='EMBEDDER',
        help="of --originals: what compares them, as for tools/verify.py (the recipe's φ)",
    )
    parser.add_argument(
        '--amp', action='store_true', help="mixed precision of verifying; an export's is test_cfg.precision"
    )
    add_runtime_flags(parser)
    args = parser.parse_args()
    if args.out_item and not args.out:
        parser.error('--out-item needs --out FILE')
    return args


def apply_flags(config: Config, args: argparse.Namespace) -> None:
    """Applies the flags to a recipe."""
    apply_runtime_flags(config, args, ('test_dataloader',))
    config.load_from = None if args.checkpoint == 'none' else args.checkpoint
    config.needs = config.get('needs', {}) | dict(load_from='weights that a training left, given as CHECKPOINT')
    config.resume = False
    if args.amp:
        config.test_cfg.fp16 = True
    if args.show_dir:
        show = dict(type='ReconstructionShowHook', out_dir=args.show_dir, interval=args.interval)
        config.custom_hooks = [*config.get('custom_hooks', []), show]
    exports = [hook for hook in config.get('custom_hooks', []) if hook.type == 'ReconstructionExportHook']
    for name in ('originals', 'phi'):
        if getattr(args, name) is not None:
            if not exports:
                refuse(f'test.py: --{name} is for an export, and {args.config} makes none.')
            exports[0][name] = getattr(args, name)


def main() -> None:
    """Tests."""
    args = parse_args()
    config = read_recipe(args)
    apply_flags(config, args)
    start(config, args.launcher, TEST_PARTS, check_only=args.check)
    try:
        runner = build_runner(config)
        if args.out and args.out_item != 'metrics':
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        metrics = runner.test()
    except (OSError, ValueError) as error:
        refuse(f'test.py: {error}')
    except KeyboardInterrupt:
        refuse('test.py: interrupted. An export goes on with the same command, other tests start over.')
    if args.out and args.out_item == 'metrics':
        mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
