"""ArcFace on faces that are part synthetic, part real."""

from collections.abc import Sequence

from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from .arcface_head import ArcFaceHead


@MODELS.register_module()
class DomainMixupHead(ArcFaceHead):
    """SynFace's domain mixup: λ · L(y_synthetic) + (1 − λ) · L(y_real), for faces as `mix_domains` blends them.

    Paper gap: SynFace's code also averages the logits of its labels, with a margin on each, before both losses; its
    text has the losses alone, which this is.
    """

    def loss(self, feats: Tensor | Sequence[Tensor], data_samples: list[DataSample]) -> dict:
        """Mean loss as ``dict(loss=...)``.

        Args:
            feats: Embeddings (N, D), or a tuple that ends in them.
            data_samples: N samples with `gt_label`, `real_label` and one `mix_ratio` λ; plain ones count as λ = 1.
        """
        embedding, ratio = self.pre_logits(feats), data_samples[0].get('mix_ratio', 1.0)
        loss = ratio * self.margin_loss(embedding, self.labels(data_samples, embedding.device))
        if ratio < 1:
            real = [DataSample(metainfo=sample.metainfo).set_gt_label(sample.real_label) for sample in data_samples]
            loss = loss + (1 - ratio) * self.margin_loss(embedding, self.labels(real, embedding.device))
        return dict(loss=loss)
