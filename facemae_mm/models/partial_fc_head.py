"""PartialFC: the classes of a margin softmax shared out over the processes, and a sample of them in each step."""

from collections.abc import Sequence

import torch
from mmengine.dist import broadcast, get_dist_info
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor

from ..randomness import keyed_seed
from .arcface_head import ArcFaceHead
from .class_shard import ClassShard, rows_of_all

#: Classes whose first weights are drawn by one key, so that they are the same on any number of processes.
DRAWN_TOGETHER = 4096


@MODELS.register_module()
class PartialFCHead(ArcFaceHead):
    """`ArcFaceHead` whose classes are sharded over the processes: PartialFC V2 (An et al., 2022) in `arcface_torch`.

    Process r of W holds C // W classes, one more where r < C mod W. Embeddings and labels of all processes are
    gathered; the softmax goes over all shards; loss, gradient of the backbone under DDP and gradient of the class
    weights are those of one `ArcFaceHead` with the whole batch. With a sample rate below 1 each process takes its
    batch's classes and random others, int(rate · num_local) together, or only the batch's where these are more.

    Every process needs the same batch size. The weight is not averaged by DDP, in no broadcast, not clipped
    (`AutocastOptimWrapper`), and in no `state_dict()`, except while a Runner saves a checkpoint: that holds the weights
    (C, D) and the optimiser's states of all classes under the names of `ArcFaceHead`, so that either head loads it on
    any number of processes.

    Args:
        num_classes: Number of identities C of all processes; labels lie in [0, C).
        sample_rate: Share of a process's classes in each step, in (0, 1].
        sparse: Give the weight a sparse gradient of the sampled rows, for `RowSparseSGD`, which leaves the others as
            they are. PartialFC moves them: momentum and weight decay go on where the gradient is 0.
        kwargs: As for `ArcFaceHead`.

    Raises:
        ValueError: An option out of its range.
    """

    def __init__(self, num_classes: int, *args, sample_rate: float = 1.0, sparse: bool = False, **kwargs) -> None:
        if not 0 < sample_rate <= 1:
            raise ValueError(f'PartialFCHead: sample_rate={sample_rate} lies outside (0, 1]. WebFace42M takes 0.2.')
        if sparse and sample_rate == 1:
            raise ValueError('PartialFCHead: sparse=True with sample_rate=1 leaves no row out. Set one of the two.')
        self.sample_rate, self.sparse = sample_rate, sparse
        super().__init__(num_classes, *args, **kwargs)
        #: All classes' weights on the first process while a checkpoint is saved.
        self.gathered_weight = None

    def share(self) -> ClassShard:
        """Which classes this process holds."""
        return ClassShard.of(self.num_classes, *get_dist_info())

    def init_weights(self) -> None:
        """Draws the first weights: for a seed of the first process the same C rows on any number of processes."""
        super().init_weights()
        seed = torch.tensor(torch.initial_seed() & (2**63 - 1), device=self.weight.device)
        broadcast(seed)
        first, last = self.shard.class_start, self.shard.class_start + self.shard.num_local
        for start in range(first - first % DRAWN_TOGETHER, last, DRAWN_TOGETHER):
            generator = torch.Generator().manual_seed(keyed_seed('class weights', int(seed), start))
            rows = torch.empty(DRAWN_TOGETHER, self.weight.shape[1]).normal_(std=0.01, generator=generator)
            begin, end = max(start, first), min(start + DRAWN_TOGETHER, last)
            self.weight.data[begin - first : end - first] = rows[begin - start : end - start]

    def loss(self, feats: Tensor | Sequence[Tensor], data_samples: list[DataSample]) -> dict:
        """Mean cross-entropy over the batches of all processes, the same on each, as ``dict(loss=...)``.

        Args:
            feats: Embeddings (N, D) of this process, or a tuple that ends in them.
            data_samples: N samples with an integer `gt_label`.

        Raises:
            ValueError: Where a label is no integer or lies outside [0, num_classes).
        """
        embedding = self.pre_logits(feats)
        labels = self.labels(data_samples, embedding.device)
        sharded = not self.shard.whole
        if sharded:
            labels = rows_of_all(labels) - self.shard.class_start
            labels[(labels < 0) | (labels >= self.shard.num_local)] = -1
        rows = self.sample(labels) if self.sample_rate < 1 else None
        return dict(loss=self.margin_loss(embedding, labels, rows=rows, sharded=sharded, sparse=self.sparse))

    def sample(self, labels: Tensor) -> Tensor:
        """Classes of this step, as rows of `weight`, sorted, (S,).

        Args:
            labels: Rows that are in the batch, and −1 for those of other processes.
        """
        chosen = torch.zeros(self.shard.num_local, dtype=torch.bool, device=labels.device)
        chosen[labels[labels >= 0]] = True
        positive = int(chosen.sum())
        others = int(self.sample_rate * self.shard.num_local) - positive
        if others > 0:
            order = torch.randperm(self.shard.num_local, device=labels.device)[: others + positive]
            chosen[order[~chosen[order]][:others]] = True
        return chosen.nonzero()[:, 0]

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not self.shard.whole:
            del destination[f'{prefix}weight']
        if self.gathered_weight is not None:
            destination[f'{prefix}weight'] = self.gathered_weight

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        name = f'{prefix}weight'
        if name in state_dict and len(state_dict[name]) == self.num_classes:
            state_dict = {**state_dict, name: self.shard.cut(state_dict[name])}
        super()._load_from_state_dict(state_dict, prefix, *args)
