"""An attacker who fine-tunes an embedder on pairs that he owns."""

from collections.abc import Iterator, Mapping
from functools import partial

import numpy as np
import torch
from mmpretrain.registry import TASK_UTILS
from torch import nn

from ...models.embedders import FaceEmbedder
from .learning_pairs import LearningPairs
from .trainable_embedder import frozen_again, trainable_copy
from .trained_attacker import TrainedAttacker
from .training import flip_some, info_nce


@TASK_UTILS.register_module()
class FineTunedAttacker(TrainedAttacker):
    """Fine-tunes an embedder so that a photo and released faces of one person lie close, and of others far.

    A batch holds a photo and a released face each of different people, drawn independently: where a person has several
    photos, mostly not the one that the face was made from. Its loss is the symmetric InfoNCE. Each side has a network
    of its own: on reconstructions both ways ranked held-out people alike (AUC 0.59), of synthetic faces in scrambled
    colours two networks found twice as many as one.

    Args:
        embedder: Arguments of `open_embedder`; any network trains.
        faces: Budget: photos and released faces seen.
        shared: One network for both sides in place of one for each.
        identities: In a batch; at most those that there are.
        lr: Peak learning rate.
        temperature: Of InfoNCE.
        held_out: Share of the owned identities that tells when to stop.
        seed: Of what is drawn.

    Raises:
        ValueError: A setting out of range.
    """

    def __init__(
        self,
        embedder: Mapping,
        faces: int = 10_000,
        shared: bool = False,
        identities: int = 32,
        lr: float = 2e-4,
        temperature: float = 0.1,
        held_out: float = 0.2,
        seed: int = 0,
    ) -> None:
        super().__init__(embedder, faces, identities, lr, temperature, held_out, seed)
        if faces < 2 * identities or identities < 2 or lr <= 0 or temperature <= 0:
            raise ValueError(
                f'FineTunedAttacker: {identities=} must be 2 or more, {faces=} twice that or more, {lr=} and '
                f'{temperature=} above 0. The defaults are 32, 10,000, 2e-4 and 0.1.'
            )
        self.shared = shared
        self._trained: tuple[FaceEmbedder, ...] = ()

    def settings(self) -> dict:
        return super().settings() | dict(shared=self.shared)

    @property
    def photo_network(self) -> FaceEmbedder:
        return self._fitted()[0]

    @property
    def released_network(self) -> FaceEmbedder:
        return self._fitted()[-1]

    def learn(self, pairs: LearningPairs, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        copies = self._copies()

        def loss(batches: Iterator[np.ndarray], generator: np.random.Generator) -> torch.Tensor:
            rows = next(batches)
            photos, released = pairs.load(rows[:, 0])[0], pairs.load(rows[:, 1])[1]
            sides = [
                network(flip_some(faces.to(device), generator))[-1]
                for network, faces in ((copies[0], photos), (copies[-1], released))
            ]
            return info_nce(*sides, self.temperature)

        networks = nn.ModuleList(network.backbone for network in copies)
        score = partial(pairs.held_out_auc, copies[0], copies[-1])
        report = self.train(pairs, networks, loss, score, 2, 'fine-tuned')
        return networks.state_dict(), report

    def use(self, learnt: Mapping[str, torch.Tensor], device: torch.device) -> None:
        copies = self._copies()
        nn.ModuleList(network.backbone for network in copies).load_state_dict(learnt)
        self._trained = tuple(frozen_again(network) for network in copies)

    def _copies(self) -> tuple[FaceEmbedder, ...]:
        """Of the photos and of the released faces, which may be one."""
        return tuple(trainable_copy(self.embedder) for _ in range(1 if self.shared else 2))

    def _fitted(self) -> tuple[FaceEmbedder, ...]:
        if not self._trained:
            raise RuntimeError('FineTunedAttacker: nothing is learnt yet. Call fit first.')
        return self._trained
