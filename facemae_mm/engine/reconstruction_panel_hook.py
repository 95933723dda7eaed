"""Pictures of what training reconstructs, to look at while it goes on."""

from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.dataset import default_collate
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from ..datasets.face_mask import blank_removed
from ..models import FaceMAE


@HOOKS.register_module()
class ReconstructionPanelHook(Hook):
    """Shows a few faces of the training set, always the same under the same masks: original, masked, reconstructed.

    The panel, a column a face, goes to every backend of the visualizer as `reconstruction`, at the first iteration and
    every `interval` after it. Its first row is real faces: the owner alone may enter the folder of the backends. Other
    models than `FaceMAE` have no panel, nor has one that predicts normalised patches.

    Args:
        interval: Iterations from a panel to the next.
        faces: Number of faces, spread over the set.
    """

    def __init__(self, interval: int = 500, faces: int = 8) -> None:
        self.interval = interval
        self.faces = faces
        self._batch = None

    def before_train(self, runner: Runner) -> None:
        """Takes the faces from the training set."""
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if isinstance(model, FaceMAE) and not model.head.norm_pix and is_main_process():
            shown = Path(runner.log_dir) / 'vis_data'  # where MMEngine's file backends write
            shown.mkdir(parents=True, exist_ok=True)
            shown.chmod(0o700)
            dataset = runner.train_dataloader.dataset
            chosen = np.linspace(0, len(dataset) - 1, min(self.faces, len(dataset))).astype(int)
            self._batch = [dataset[int(i)] for i in chosen]

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs: dict | None = None
    ) -> None:
        """Draws the panel."""
        if self._batch is None or (runner.iter and not self.every_n_train_iters(runner, self.interval)):
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.eval()
        with torch.no_grad():
            samples = model.test_step(dict(default_collate([_copy(sample) for sample in self._batch])))
        model.train()
        columns = [_column(face['inputs'], sample) for face, sample in zip(self._batch, samples, strict=True)]
        runner.visualizer.add_image('reconstruction', np.hstack(columns), step=runner.iter + 1)


def _copy(sample: dict) -> dict:
    """A sample whose data sample may be written to."""
    return dict(inputs=sample['inputs'], data_samples=sample['data_samples'].clone())


def _column(face: torch.Tensor, sample: object) -> np.ndarray:
    """Original, masked and reconstructed face below each other, (3 · H, H, 3) uint8, RGB."""
    original = face.permute(1, 2, 0).numpy()[..., ::-1]  # BGR -> RGB
    mask, size = sample.mask.cpu().numpy(), len(original)
    masked = blank_removed(original, mask, size // round(len(mask) ** 0.5))
    output = sample.reconstruction.permute(1, 2, 0).cpu().numpy()
    if len(output) != size:
        output = cv2.resize(output, (size, size), interpolation=cv2.INTER_AREA)
    return np.vstack([original, masked.round(), output]).astype(np.uint8)
