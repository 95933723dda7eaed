"""Reconstruction of a few faces by hand."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.device import get_device
from mmengine.runner import load_checkpoint
from mmpretrain.apis.base import BaseInferencer
from mmpretrain.registry import MODELS, TRANSFORMS
from mmpretrain.structures import DataSample

from .config import load_config


class FaceMAEInferencer(BaseInferencer):
    """Masks and reconstructs faces: ``FaceMAEInferencer(config, checkpoint)(images)``.

    Calling it takes a path, an array (H, W, 3) uint8 BGR, a folder of images, or a list of these: faces aligned to the
    ArcFace template at the size that the recipe stores. It returns a list of dicts, one a face: `reconstruction`
    (output_size, output_size, 3) uint8 BGR and `mask` (L,), 1 = removed. The call takes `batch_size`, and `show_dir`
    to write the reconstructions as PNGs.

    Args:
        config: Recipe of a FaceMAE, such as configs/facemae_vitb_webface.py. φ is not needed.
        checkpoint: Its weights; read without running code.
        device: Where to compute; a GPU where there is one.
        patch_size: Side of a patch in stored pixels.
        mask_ratio: Share of patches to remove.
        seed: Of the masks, which are a function of it and of the path (of the pixels of an array).

    Raises:
        RuntimeError: The checkpoint does not fit the recipe.
    """

    visualize_kwargs = frozenset({'show_dir'})

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        device: str | None = None,
        patch_size: int = 8,
        mask_ratio: float = 0.75,
        seed: int = 0,
    ) -> None:
        cfg = config if isinstance(config, Config) else load_config(config)
        model = MODELS.build(cfg.model)
        load_checkpoint(model, str(checkpoint), map_location='cpu', strict=True)
        model._config = cfg
        self.mask = dict(type='FaceMask', patch_size=patch_size, mask_ratio=mask_ratio, fresh=False, seed=seed)
        super().__init__(model, pretrained=False, device=device or get_device())

    def _init_pipeline(self, cfg: Config) -> Compose:
        steps = [dict(type='LoadFace'), self.mask, dict(type='PackInputs', meta_keys=())]
        return Compose([_sample, *map(TRANSFORMS.build, steps)])

    def visualize(self, ori_inputs: list, preds: list[DataSample], show_dir: str | None = None) -> list[np.ndarray]:
        """Reconstructions (output_size, output_size, 3) uint8 BGR; written to `show_dir` in the order of the inputs."""
        faces = [sample.reconstruction.permute(1, 2, 0).flip(-1).cpu().numpy() for sample in preds]
        if show_dir is not None:
            folder = Path(show_dir)
            folder.mkdir(parents=True, exist_ok=True)
            for number, face in enumerate(faces):
                cv2.imwrite(str(folder / f'{number:06d}.png'), face)
        return faces

    def postprocess(
        self, preds: list[DataSample], visualization: list[np.ndarray], return_datasamples: bool = False
    ) -> list:
        """Data samples where `return_datasamples`, else a list of dicts (see the class)."""
        if return_datasamples:
            return preds
        return [
            dict(reconstruction=face, mask=sample.mask.cpu().numpy())
            for sample, face in zip(preds, visualization, strict=True)
        ]


def _sample(image: str | Path | np.ndarray) -> dict:
    """What a dataset would hand to the pipeline."""
    if isinstance(image, np.ndarray):
        return dict(img=image, img_key=hashlib.sha256(image.tobytes()).hexdigest(), img_path='an array')
    return dict(img_bytes=Path(image).read_bytes(), img_key=str(image), img_path=str(image))
