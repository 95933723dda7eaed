"""A network of MMPretrain as an embedder of faces."""

from pathlib import Path

import torch
from mmpretrain.registry import MODELS
from torch import nn

from .face_embedder import read_torch_checkpoint


@MODELS.register_module()
class ClassifierEmbedder(nn.Module):
    """Embeds faces by any backbone or ImageClassifier of MMPretrain, whose checkpoints load strictly.

    The embedding is the last output of the neck, or of the backbone where there is none; maps are averaged over their
    area, as GlobalAveragePooling does. A head is left out. A neck that projects ('LinearReductionNeck') counts.

    Args:
        model: Config of a backbone, or of an ImageClassifier, of which backbone, neck and data_preprocessor are taken.
            Weights come from the checkpoint of `FaceEmbedder` alone, not from `init_cfg` or `pretrained`.
        input_size: Side of the faces, pixels.
        channel_order: 'rgb' or 'bgr'. By default that of the data_preprocessor; 'rgb' where none is given.
        mean: What is subtracted, [0, 255]. By default that of the data_preprocessor; ImageNet's where none is given.
        std: What is divided by. By default that of the data_preprocessor; ImageNet's where none is given.
        template: The five points of ARCFACE_TEMPLATE in the input, (5, 2), pixels (x, y). None where faces are shown as
            they are, enlarged or reduced to `input_size`.

    Raises:
        ValueError: Outputs that are neither (N, D) nor (N, D, H, W).
    """

    def __init__(
        self,
        model: dict,
        input_size: int = 224,
        channel_order: str | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        template: tuple | None = None,
    ) -> None:
        super().__init__()
        if 'backbone' not in model:
            model = dict(backbone=model)
        # What a data_preprocessor does not say, MMPretrain does not do: colours stay as they are read, BGR.
        usual = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), to_rgb=True)
        shown = usual if model.get('data_preprocessor') is None else model['data_preprocessor']
        self.input_size = input_size
        self.channel_order = channel_order or ('rgb' if shown.get('to_rgb', False) else 'bgr')
        self.mean = tuple(mean or shown.get('mean') or (0.0, 0.0, 0.0))
        self.std = tuple(std or shown.get('std') or (1.0, 1.0, 1.0))
        self.template = template
        self.backbone = MODELS.build(_without_weights(model['backbone']))
        self.neck = MODELS.build(_without_weights(model['neck'])) if model.get('neck') else None
        with torch.no_grad():
            self.embedding_dim = self.eval()(torch.zeros(1, 3, input_size, input_size))[0].shape[1]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        """Embeds normalised faces.

        Args:
            x: (N, 3, input_size, input_size), normalised.

        Returns:
            The embedding (N, D) alone in a tuple, raw.
        """
        x = self.backbone(x)
        if self.neck is not None:
            x = self.neck(x)
        x = x[-1] if isinstance(x, tuple | list) else x
        if x.ndim == 4:
            x = x.mean((2, 3))
        if x.ndim != 2:
            raise ValueError(
                f'ClassifierEmbedder: {type(self.backbone).__name__} gives {tuple(x.shape)}, neither (N, D) nor '
                "(N, D, H, W). Set its out_type to 'cls_token', 'avg_featmap' or 'featmap', or give a neck."
            )
        return (x,)

    def read_checkpoint(self, path: Path) -> dict[str, torch.Tensor]:
        """State dict of backbone and neck from a checkpoint of MMPretrain's, or of the bare backbone."""
        state = read_torch_checkpoint(path, strip_backbone=False)
        if not any(key.startswith('backbone.') for key in state):
            return {f'backbone.{key}': value for key, value in state.items()}
        return {key: value for key, value in state.items() if not key.startswith(('head.', 'data_preprocessor.'))}


def _without_weights(cfg: dict) -> dict:
    return {key: value for key, value in cfg.items() if key not in ('init_cfg', 'pretrained')}
