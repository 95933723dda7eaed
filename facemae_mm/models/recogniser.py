"""Face recognition: a backbone's embedding → a head's loss in training, the bare embedding in tests."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule
from mmpretrain.models import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from .class_shard import class_shard


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
        #: DDP, which reads this name on the outermost module, leaves classes alone that processes share out.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, parameter in self.named_parameters()
            if (shard := class_shard(parameter)) is not None and not shard.whole
        ]

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
