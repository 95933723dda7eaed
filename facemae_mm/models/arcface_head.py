"""ArcFace and its kin: a margin softmax over all identities."""

from collections.abc import Sequence

import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .class_shard import ClassShard
from .margin_softmax import MAX_SCALE, margin_softmax
from .recogniser import EmbeddingHead


@MODELS.register_module()
class ArcFaceHead(EmbeddingHead):
    r"""Softmax cross-entropy over class cosines with a margin on the target.

    ArcFace (Deng et al., 2019), Eq. 3: the target's logit is :math:`s \cos(\theta_y + m)`, the others are
    :math:`s \cos\theta_j`, θ being the angle between embedding and class weight. Embeddings and class weights are
    normalised here; all is computed in float32 even under autocast (float64 stays float64).

    Args:
        num_classes: Number of identities C; labels lie in [0, C).
        in_channels: Dimension D of the embedding.
        s: Scale of the logits, in (0, 100].
        margin: Config or module, `CombinedMargin` (ArcFace, CosFace) or `AdaFaceMargin`; None is ArcFace's 0.5.
        gradient: 'straight_through' has the gradient of `arcface_torch`, whose margin is applied without gradient:
            dL/dcos = s·(p − y). 'exact' differentiates the margin, as AdaFace does.
        interclass_filtering_threshold: Where positive, negatives whose cosine exceeds it are multiplied by 0: they may
            be the same person under another label.
        precision: 'float32', or 'bfloat16' for the factors of the matrix products.
        init_cfg: MMEngine's initialisation config. Weights are drawn from N(0, 0.01).

    Attributes:
        shard: Which classes this process holds.

    Raises:
        ValueError: An option out of its range.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 512,
        s: float = 64.0,
        margin: dict | nn.Module | None = None,
        gradient: str = 'straight_through',
        interclass_filtering_threshold: float = 0.0,
        precision: str = 'float32',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        name = type(self).__name__
        if gradient not in ('straight_through', 'exact'):
            raise ValueError(f"{name}: gradient must be 'straight_through' or 'exact', not {gradient!r}.")
        if precision not in ('float32', 'bfloat16'):
            raise ValueError(f"{name}: precision must be 'float32' or 'bfloat16', not {precision!r}.")
        if not 0 < s <= MAX_SCALE:
            raise ValueError(f'{name}: s={s} lies outside (0, {MAX_SCALE:g}], where exp(s) fits. The usual one is 64.')
        if not 0 <= interclass_filtering_threshold <= 1:
            raise ValueError(
                f'{name}: interclass_filtering_threshold={interclass_filtering_threshold} is no cosine in [0, 1]. '
                '0 filters nothing.'
            )
        self.num_classes, self.s, self.gradient, self.precision = num_classes, s, gradient, precision
        self.interclass_filtering_threshold = interclass_filtering_threshold
        margin = dict(type='CombinedMargin') if margin is None else margin
        self.margin = margin if isinstance(margin, nn.Module) else MODELS.build(margin)
        self.shard = self.share()
        self.weight = nn.Parameter(torch.empty(self.shard.num_local, in_channels).normal_(std=0.01))
        self.weight.class_shard = self.shard  # for the optimiser's wrapper

    def share(self) -> ClassShard:
        """Which classes this process holds: all."""
        return ClassShard.of(self.num_classes, 0, 1)

    def loss(self, feats: Tensor | Sequence[Tensor], data_samples: list[DataSample]) -> dict:
        """Mean cross-entropy as ``dict(loss=...)``.

        Args:
            feats: Embeddings (N, D), or a tuple that ends in them.
            data_samples: N samples with an integer `gt_label`.

        Raises:
            ValueError: Where a label is no integer or lies outside [0, num_classes).
        """
        embedding = self.pre_logits(feats)
        return dict(loss=self.margin_loss(embedding, self.labels(data_samples, embedding.device)))

    def margin_loss(self, embedding: Tensor, labels: Tensor, **sharding) -> Tensor:
        """Scalar, under the options of this head; see `margin_softmax`."""
        with torch.autocast(embedding.device.type, enabled=False):
            return margin_softmax(
                embedding,
                self.weight,
                labels,
                self.margin,
                self.s,
                exact=self.gradient == 'exact',
                threshold=self.interclass_filtering_threshold,
                precision=getattr(torch, self.precision),
                **sharding,
            )

    def labels(self, data_samples: list[DataSample], device: torch.device) -> Tensor:
        """Labels of a batch, (N,) int64, of any integer type before.

        Raises:
            ValueError: As for `loss`, with the image's key.
        """
        name = type(self).__name__
        labels = torch.cat([torch.as_tensor(sample.gt_label).reshape(-1) for sample in data_samples])
        if labels.is_floating_point():
            raise ValueError(f'{name}: labels are integers, got {labels.dtype}.')
        labels = labels.to(device, torch.int64)
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            first = int(outside.nonzero()[0])
            key = data_samples[first].get('img_key')
            raise ValueError(
                f'{name}: label {int(labels[first])}'
                + (f' of image {key!r}' if key is not None else '')
                + f' lies outside [0, {self.num_classes}). Set head.num_classes to the number of '
                'identities in the training set, whose labels count from 0.'
            )
        return labels
