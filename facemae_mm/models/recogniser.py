"""Face recognition: embedding → ArcFace's margin in training, the bare embedding in tests."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn


@MODELS.register_module()
class EmbeddingHead(BaseModule):
    """Hands on the backbone's embedding as it is: raw, at least float32, without class scores."""

    def pre_logits(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        """The embedding (N, D) among a backbone's outputs: the last of a tuple, or the tensor."""
        embedding = feats if isinstance(feats, Tensor) else feats[-1]
        if embedding.ndim != 2:
            raise ValueError(
                f'{type(self).__name__}: an embedding is (N, D), the backbone gave '
                f'{tuple(embedding.shape)}. Use a backbone that ends in an embedding or add a neck.'
            )
        return embedding.to(torch.promote_types(embedding.dtype, torch.float32))

    def forward(self, feats: Tensor | Sequence[Tensor]) -> Tensor:
        return self.pre_logits(feats)

    def loss(self, feats: Tensor | Sequence[Tensor], data_samples: list[DataSample]) -> dict:
        raise NotImplementedError(f'{type(self).__name__} only predicts. Train with ArcFaceHead.')

    def predict(
        self,
        feats: Tensor | Sequence[Tensor],
        data_samples: list[DataSample] | None = None,
    ) -> list[DataSample]:
        """Set `embedding`, (D,) float32 and not normalised, in each sample.

        Args:
            feats: Embeddings (N, D), or a tuple that ends in them.
            data_samples: N samples; None makes new ones.
        """
        embeddings = self.pre_logits(feats).float()
        if data_samples is None:
            data_samples = [DataSample() for _ in embeddings]
        for sample, embedding in zip(data_samples, embeddings, strict=True):
            sample.set_field(embedding, 'embedding', dtype=Tensor)
        return data_samples


def margin_cosine(cosine: Tensor, m: float) -> Tensor:
    """cos(θ + m) from cos θ in [−1, 1], differentiable, with a finite gradient at both ends.

    The derivative sin(θ + m) / sin θ has no limit at |cos θ| = 1; there sin θ counts as constant,
    which leaves cos m. Past θ + m = π the cosine rises again: no fallback, as in `arcface_torch`.
    """
    squared_sine = (1 - cosine) * (1 + cosine)
    inside = squared_sine > 0
    sine = torch.where(inside, squared_sine, 1).sqrt() * inside
    return cosine * math.cos(m) - sine * math.sin(m)


@MODELS.register_module()
class ArcFaceHead(EmbeddingHead):
    r"""Softmax cross-entropy over class cosines with an additive angular margin on the target.

    ArcFace (Deng et al., 2019), Eq. 3: the target's logit is :math:`s \cos(\theta_y + m)`, the
    others are :math:`s \cos\theta_j`, θ being the angle between embedding and class weight.
    Embeddings and class weights are normalised here; all is computed in float32 even under
    autocast (float64 stays float64).

    Args:
        num_classes: Number of identities C; labels lie in [0, C).
        in_channels: Dimension D of the embedding.
        s: Scale of the logits.
        m: Margin in radians.
        gradient: 'straight_through' has the gradient of `arcface_torch`, whose margin is applied
            without gradient: dL/dcos = s·(p − y). 'exact' differentiates cos(θ + m).
        init_cfg: MMEngine's initialisation config. Weights are drawn from N(0, 0.01).
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 512,
        s: float = 64.0,
        m: float = 0.5,
        gradient: str = 'straight_through',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if gradient not in ('straight_through', 'exact'):
            raise ValueError(f"ArcFaceHead: gradient must be 'straight_through' or 'exact', not {gradient!r}.")
        self.num_classes, self.s, self.m, self.gradient = num_classes, s, m, gradient
        self.weight = nn.Parameter(torch.empty(num_classes, in_channels).normal_(std=0.01))

    def cosine(self, embedding: Tensor) -> Tensor:
        """Cosines with all classes, (N, D) -> (N, C), clamped to [−1, 1]."""
        dtype = torch.promote_types(embedding.dtype, self.weight.dtype)
        with torch.autocast(embedding.device.type, enabled=False):
            weight = F.normalize(self.weight.to(dtype))
            return F.linear(F.normalize(embedding.to(dtype)), weight).clamp(-1, 1)

    def logits(self, cosine: Tensor, labels: Tensor) -> Tensor:
        """Scaled cosines with the margin on the target, (N, C) -> (N, C).

        Args:
            cosine: Cosines in [−1, 1], (N, C).
            labels: Class of each row, (N,) int64.
        """
        index = labels[:, None]
        target = cosine.gather(1, index)
        change = margin_cosine(target, self.m) - target
        if self.gradient == 'straight_through':
            change = change.detach()
        return self.s * cosine.scatter_add(1, index, change)

    def loss(self, feats: Tensor | Sequence[Tensor], data_samples: list[DataSample]) -> dict:
        """Mean cross-entropy as ``dict(loss=...)``.

        Args:
            feats: Embeddings (N, D), or a tuple that ends in them.
            data_samples: N samples with an integer `gt_label`.

        Raises:
            ValueError: Where a label is no integer or lies outside [0, num_classes).
        """
        embedding = self.pre_logits(feats)
        labels = self._labels(data_samples, embedding.device)
        with torch.autocast(embedding.device.type, enabled=False):
            logits = self.logits(self.cosine(embedding), labels)
            return dict(loss=F.cross_entropy(logits, labels))

    def _labels(self, data_samples: list[DataSample], device: torch.device) -> Tensor:
        labels = torch.cat([torch.as_tensor(s.gt_label).reshape(-1) for s in data_samples])
        if labels.is_floating_point():
            raise ValueError(f'ArcFaceHead: labels are integers, got {labels.dtype}.')
        labels = labels.to(device, torch.int64)
        outside = (labels < 0) | (labels >= self.num_classes)
        if outside.any():
            first = int(outside.nonzero()[0])
            key = data_samples[first].get('img_key')
            raise ValueError(
                f'ArcFaceHead: label {int(labels[first])}'
                + (f' of image {key!r}' if key is not None else '')
                + f' lies outside [0, {self.num_classes}). Set head.num_classes to the number of '
                'identities in the training set, whose labels count from 0.'
            )
        return labels


@MODELS.register_module()
class FaceRecognizer(ImageClassifier):
    """Backbone and head whose prediction is an embedding.

    Args:
        backbone: Config or module; images (N, 3, H, W), normalised as it wants -> ``(embedding,)``.
        neck: Config or module between backbone and head.
        head: Config or module, `ArcFaceHead` to train, `EmbeddingHead` to predict only.
        flip_test: Predict f(x) + f(flip x), flipped left to right, as InsightFace verifies faces.
        kwargs: Further arguments of MMPretrain's `ImageClassifier`.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        neck: dict | nn.Module | None = None,
        head: dict | nn.Module | None = None,
        flip_test: bool = True,
        **kwargs,
    ) -> None:
        super().__init__(backbone, neck, head, **kwargs)
        self.flip_test = flip_test

    def predict(self, inputs: Tensor, data_samples: list[DataSample] | None = None) -> list[DataSample]:
        """Set the raw `embedding` of every image, and `embedding_norm`, a float: the mean norm of the passes.

        Args:
            inputs: Images (N, 3, H, W) as the data preprocessor made them.
            data_samples: N samples; None makes new ones.
        """
        passes = [self.head.pre_logits(self.extract_feat(inputs))]
        if self.flip_test:
            passes.append(self.head.pre_logits(self.extract_feat(inputs.flip(-1))))
        data_samples = self.head.predict(sum(passes), data_samples)
        norms = torch.stack([embedding.norm(dim=1) for embedding in passes]).mean(0)
        for sample, norm in zip(data_samples, norms.tolist(), strict=True):
            sample.set_field(norm, 'embedding_norm', dtype=float)
        return data_samples
