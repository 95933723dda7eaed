"""Î = D(E[γ(I)]) of Eq. 1: a masked autoencoder that is given its masks and returns images."""

import torch
import torch.nn.functional as F
from mmpretrain.models import MAE
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

from .irm_loss import IRMLoss


@MODELS.register_module()
class FaceMAE(MAE):
    """MMPretrain's MAE with the mask of each sample, not one of its own, and a predict mode that returns faces.

    Modes: 'loss' as MAE's, with the head's loss (`IRMLoss` for FaceMAE, `PixelReconstructionLoss` for plain MAE);
    'predict' sets `data_sample.reconstruction`; 'tensor' gives the encoder's features of the unmasked image.

    Args:
        output_size: Side of the reconstructed face, pixels. 112 halves a 224 output by the mean of 2×2 pixels
            (bilinear, align_corners=False, no antialias), as φ sees it in training.
        paste_visible: Puts the visible patches back over the decoder's output. Paper gap: Eq. 1 gives the decoder's
            output, which is what is released; pasting would publish a quarter of the real pixels.
        kwargs: backbone (`MAEViT`), neck (`MAEPretrainDecoder`), head (`MAEPretrainHead`) and the rest of MAE's.
    """

    def __init__(self, *, output_size: int = 112, paste_visible: bool = False, **kwargs) -> None:
        super().__init__(**kwargs)
        self.output_size = output_size
        self.paste_visible = paste_visible

    def forward(
        self,
        inputs: torch.Tensor,
        data_samples: list[DataSample] | None = None,
        mode: str = 'tensor',
    ) -> torch.Tensor | dict | list[DataSample]:
        """MMEngine's entry for training and test; see the class for the modes."""
        if mode == 'predict':
            return self.predict(inputs, data_samples)
        return super().forward(inputs, data_samples, mode)

    def loss(self, inputs: torch.Tensor, data_samples: list[DataSample]) -> dict[str, torch.Tensor]:
        """Loss of a batch (N, 3, H, W) of normalised images, whose samples carry their masks."""
        mask = self.stack_masks(data_samples)
        tokens = self.reconstruct(inputs, mask)
        target = self.head.construct_target(inputs)
        known = [data_samples] if isinstance(self.head.loss_module, IRMLoss) else []
        return dict(loss=self.head.loss_module(tokens, target, mask.to(inputs.dtype), *known))

    def predict(self, inputs: torch.Tensor, data_samples: list[DataSample]) -> list[DataSample]:
        """Sets `reconstruction` of each sample: (3, output_size, output_size) uint8, RGB.

        Faces are loaded as BGR, so a data preprocessor that does not swap channels (`to_rgb`) hands out BGR, and the
        network speaks it: then the channels are swapped here.

        Raises:
            ValueError: As `check_norm_pix`.
        """
        self.check_norm_pix()
        mask = self.stack_masks(data_samples)
        tokens = self.reconstruct(inputs, mask).float()
        if self.paste_visible:
            tokens = torch.where(mask[..., None].bool(), tokens, self.head.patchify(inputs))
        faces = self.head.unpatchify(tokens)
        faces = faces * self.data_preprocessor.std + self.data_preprocessor.mean
        if not self.data_preprocessor._channel_conversion:
            faces = faces.flip(1)  # BGR -> RGB
        if faces.shape[-1] != self.output_size:
            faces = F.interpolate(faces, size=self.output_size, mode='bilinear', align_corners=False)
        faces = faces.clamp(0, 255).round().to(torch.uint8)
        for sample, face in zip(data_samples, faces, strict=True):
            sample.set_field(face, 'reconstruction', dtype=torch.Tensor)
        return data_samples

    def check_norm_pix(self) -> None:
        """Whether the output is an image.

        Raises:
            ValueError: The head was trained with `norm_pix=True`: its output is a normalised signal, and undoing that
                would copy the mean and variance of removed patches into the image.
        """
        if self.head.norm_pix:
            raise ValueError(
                'FaceMAE: head.norm_pix must be False. With True the decoder predicts normalised patches, and an image '
                'needs the statistics of the removed ones. Train with norm_pix=False.'
            )

    def reconstruct(self, inputs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """D(E[γ(I)]): tokens of the whole image from its visible patches.

        Args:
            inputs: (N, 3, H, W), normalised.
            mask: (N, L), 1 = removed; every row removes the same number.

        Returns:
            (N, L, patch_size² · 3), normalised, ordered 'nchpwq->nhwpqc'.
        """
        ids_shuffle = torch.argsort(mask, dim=1, stable=True)  # visible patches first, in reading order
        ids_restore = torch.argsort(ids_shuffle, dim=1)
        ids_keep = ids_shuffle[:, : int((mask[0] == 0).sum())]
        return self.neck(self.encode(inputs, ids_keep), ids_restore)

    def encode(self, inputs: torch.Tensor, ids_keep: torch.Tensor) -> torch.Tensor:
        """E: latent of the visible patches alone.

        Args:
            inputs: (N, 3, H, W).
            ids_keep: (N, L_keep), indices of the visible patches.

        Returns:
            (N, 1 + L_keep, D), the class token first.
        """
        vit = self.backbone
        x = vit.patch_embed(inputs)[0] + vit.pos_embed[:, 1:]  # (N, L, D); a patch each, none sees another
        x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[-1]))  # (N, L, D) -> (N, L_keep, D)
        cls_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls_token, x], dim=1)
        for layer in vit.layers:
            x = layer(x)
        return vit.norm1(x)

    def stack_masks(self, data_samples: list[DataSample] | None) -> torch.Tensor:
        """(N, L) masks of the batch.

        Raises:
            ValueError: A sample has no mask, masks do not fit the network's grid, or remove different numbers.
        """
        if not data_samples or any('mask' not in sample for sample in data_samples):
            raise ValueError('FaceMAE: a sample carries no mask. Put FaceMask before PackInputs in the pipeline.')
        lengths = {len(sample.mask) for sample in data_samples}
        if lengths != {self.backbone.num_patches}:
            raise ValueError(
                f'FaceMAE: masks of {sorted(lengths)} patches do not fit a network of {self.backbone.num_patches}. '
                'FaceMask cuts stored faces: stored size / its patch_size must equal img_size / the network patch_size.'
            )
        masks = torch.stack([sample.mask for sample in data_samples])
        removed = masks.sum(1).unique().tolist()
        if len(removed) > 1:
            raise ValueError(
                f'FaceMAE: masks of one batch remove {removed} patches; a batch needs one number. '
                'Use one mask_ratio for the whole set.'
            )
        return masks
