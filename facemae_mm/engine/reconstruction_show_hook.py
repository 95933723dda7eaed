"""Pictures of what a test reconstructs, to look at."""

from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..datasets.source_keys import key_fault


@HOOKS.register_module()
class ReconstructionShowHook(Hook):
    """Writes pairs of pictures in the test loop: left what the network was fed, right what it reconstructed.

    They lie under `out_dir` by image key: real faces behind a mask, not for release. A key that would lead out of
    `out_dir` becomes one name there, with %2F for each slash.

    Args:
        out_dir: Folder of the pictures.
        interval: Every this many batches.

    Raises:
        TypeError: The model reconstructs nothing.
    """

    def __init__(self, out_dir: str, interval: int = 1) -> None:
        self.out_dir = Path(out_dir)
        self.interval = interval

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: list | None = None,
    ) -> None:
        """Writes the faces of one batch."""
        if batch_idx % self.interval:
            return
        for fed, sample in zip(data_batch['inputs'], outputs, strict=True):
            if 'reconstruction' not in sample:
                raise TypeError(
                    '--show-dir shows reconstructions, and this recipe has a '
                    f'{runner.cfg.model.type}, which makes none. Leave it out.'
                )
            right = sample.reconstruction.permute(1, 2, 0).flip(-1).cpu().numpy()  # RGB -> BGR
            left = fed.permute(1, 2, 0).cpu().numpy().round().astype(np.uint8)
            left = cv2.resize(left, right.shape[:2], interpolation=cv2.INTER_NEAREST)
            path = self.out_dir / f'{_below(sample.img_key)}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            if not cv2.imwrite(str(path), np.hstack([left, right])):
                raise OSError(f'{path} could not be written. Is the disk full?')


def _below(key: str) -> str:
    """An image key as a path that stays below the folder it is put in."""
    return key if key_fault(key) is None else quote(key, safe='', errors='surrogatepass')
