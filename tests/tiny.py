"""A face set, recipes and a φ so small that a test runs the real commands on them."""

from pathlib import Path

import cv2
import numpy as np

from facemae_mm.config import load_config

#: Overrides that shrink the paper's recipe: its own size and patches, a narrow network, a narrow φ.
SMALL_FACEMAE = {
    'model.backbone.arch': 'deit-tiny',
    'model.neck.embed_dim': 192,
    'model.neck.decoder_embed_dim': 16,
    'model.neck.decoder_depth': 1,
    'model.neck.decoder_num_heads': 2,
    'model.head.loss.phi.backbone.depth': 18,
    'model.head.loss.phi.backbone.base_channels': 4,
    'train_dataloader.dataset.subset': None,
    'train_dataloader.num_workers': 0,
    'train_dataloader.persistent_workers': False,
}


def write_faces(folder: Path, identities: int = 4, images: int = 4, seed: int = 0) -> Path:
    """Smooth random 112×112 pictures, one pattern an identity."""
    rng = np.random.default_rng(seed)
    for number in range(identities):
        pattern = rng.integers(0, 256, (7, 7, 3)).astype(np.float32)
        (folder / f'person_{number}').mkdir(parents=True)
        for image in range(images):
            noisy = np.clip(pattern + rng.normal(0, 20, pattern.shape), 0, 255).astype(np.float32)
            face = cv2.resize(noisy, (112, 112), interpolation=cv2.INTER_CUBIC).clip(0, 255).round()
            cv2.imwrite(str(folder / f'person_{number}' / f'{image}.png'), face.astype(np.uint8))
    return folder


def cfg_options(options: dict) -> list[str]:
    """Options as a user types them behind --cfg-options."""

    def text(value):
        return repr(value).replace(' ', '') if not isinstance(value, str) else value

    flat = {}
    for name, value in options.items():
        if isinstance(value, dict):
            flat |= {f'{name}.{key}': inner for key, inner in value.items()}
        else:
            flat[name] = value
    return [f'{name}={text(value)}' for name, value in flat.items()]


def small_recipe(repository: Path, name: str, **options):
    """A recipe of `configs/` with the overrides filled in."""
    return load_config(repository / 'configs' / f'{name}.py', options)
