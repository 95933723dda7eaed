"""Draw what a recipe's pipeline feeds: above the faces as they are stored, below as the network sees them."""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import default_collate
from mmengine.registry import DATASETS, MODELS, init_default_scope
from tqdm import tqdm

from facemae_mm.command_line import add_options, read_recipe
from facemae_mm.config import check_inputs
from facemae_mm.datasets import LoadFace
from facemae_mm.launch import refuse

SIDE = 224  # of a face on the sheet, pixels
COLUMNS = 8
REMOVED = 127  # grey of a removed patch


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=f'{__doc__} Removed patches are grey. The sheet shows real faces: it is not for release.'
    )
    parser.add_argument('config', help='recipe, such as configs/facemae_vitb_webface.py')
    parser.add_argument(
        '--split',
        choices=['train', 'val', 'test'],
        default='train',
        help='whose loader (default: train)',
    )
    parser.add_argument(
        '--output-dir',
        default='work_dirs/browse',
        help='folder of the sheet (default: %(default)s)',
    )
    parser.add_argument(
        '--number',
        type=int,
        default=16,
        help='faces, evenly spaced over the set (default: %(default)s)',
    )
    add_options(parser)
    args = parser.parse_args()
    args.launcher = 'none'
    if args.number < 1:
        parser.error(f'--number {args.number}: at least 1 face is needed')
    return args


def feed(sample: dict, preprocessor: torch.nn.Module) -> np.ndarray:
    """One face as the network sees it, in the order of channels that it wants.

    Args:
        sample: What the pipeline made.
        preprocessor: The model's.

    Returns:
        (H, H, 3) uint8; patches that the sample's mask removes are grey.
    """
    batch = preprocessor(default_collate([sample]))
    sample = batch['data_samples'][0]
    face = batch['inputs'][0] * preprocessor.std + preprocessor.mean  # (3, H, H)
    if 'mask' in sample:
        grid = round(len(sample.mask) ** 0.5)
        patch = face.shape[-1] // grid
        removed = sample.mask.view(grid, grid).bool()
        removed = removed.repeat_interleave(patch, 0).repeat_interleave(patch, 1)
        face = torch.where(removed, torch.tensor(float(REMOVED)), face)
    return face.clamp(0, 255).round().byte().permute(1, 2, 0).numpy()


def enlarge(face: np.ndarray) -> np.ndarray:
    """To the sheet's size, pixel by pixel."""
    return cv2.resize(np.ascontiguousarray(face), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def contact_sheet(stored: list[np.ndarray], fed: list[np.ndarray]) -> np.ndarray:
    """Rows of faces (H, W, 3) uint8: stored, fed, stored, fed, …"""
    rows = []
    for first in range(0, len(stored), COLUMNS):
        for faces in (stored[first : first + COLUMNS], fed[first : first + COLUMNS]):
            row = [enlarge(face) for face in faces]
            blank = np.full((SIDE, SIDE, 3), 255, np.uint8)
            rows.append(np.hstack(row + [blank] * (min(COLUMNS, len(stored)) - len(row))))
    return np.vstack(rows)


def draw(config: Config, split: str, number: int) -> np.ndarray:
    """The sheet of one split, (H, W, 3) uint8, BGR."""
    init_default_scope(config.default_scope)
    dataset = DATASETS.build(config[f'{split}_dataloader'].dataset)
    settings = config.model.get('data_preprocessor') or config.data_preprocessor  # MMPretrain's recipes have it outside
    preprocessor = MODELS.build(settings)
    indices = np.linspace(0, len(dataset) - 1, min(number, len(dataset))).round().astype(int).tolist()
    rgb = settings.get('to_rgb', False)
    stored, fed = [], []
    for index in tqdm(indices, desc='Faces', unit='face'):
        info = dataset.get_data_info(index)
        stored.append(LoadFace()(info)['img'].round().astype(np.uint8))
        face = feed(dataset[index], preprocessor)
        fed.append(face[..., ::-1] if rgb else face)
    return contact_sheet(stored, fed)


def main() -> None:
    """Draws one sheet."""
    args = parse_args()
    config = read_recipe(args)
    loader = f'{args.split}_dataloader'
    if config.get(loader) is None:
        given = [split for split in ('train', 'val', 'test') if config.get(f'{split}_dataloader')]
        refuse(f'{args.config} has no {loader}. Choose --split {" or ".join(given)}.')
    try:
        check_inputs(config, (loader,))
    except FileNotFoundError as error:
        refuse(str(error))
    sheet = draw(config, args.split, args.number)
    path = Path(args.output_dir) / f'{Path(args.config).stem}_{args.split}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), sheet):
        raise OSError(f'{path} could not be written. Is the disk full?')
    print(path)


if __name__ == '__main__':
    main()
