"""Attackers that train a network, batch by batch of owned people."""

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import nn

from .learning_attacker import LearningAttacker
from .learning_pairs import LearningPairs
from .training import train


class TrainedAttacker(LearningAttacker):
    """A `LearningAttacker` who learns by training within a budget of faces; see `train`.

    Args:
        embedder: Arguments of `open_embedder`.
        faces: Budget: faces seen.
        identities: In a batch; at most those that there are.
        lr: Peak learning rate.
        temperature: Of InfoNCE.
        held_out: Share of the owned identities that tells when to stop.
        seed: Of what is drawn.
    """

    def __init__(
        self,
        embedder: Mapping,
        faces: int,
        identities: int,
        lr: float,
        temperature: float,
        held_out: float,
        seed: int,
    ) -> None:
        super().__init__(embedder, held_out, seed)
        self.budget = dict(faces=faces)
        self.identities = identities
        self.lr = lr
        self.temperature = temperature

    def settings(self) -> dict:
        own = dict(identities=self.identities, lr=self.lr, temperature=self.temperature)
        return super().settings() | dict(self.budget) | own

    def train(
        self,
        pairs: LearningPairs,
        network: nn.Module,
        loss: Callable[[Iterator[np.ndarray], np.random.Generator], torch.Tensor],
        score: Callable[[], float],
        faces_of_each: int,
        title: str,
    ) -> dict[str, float]:
        """Trains a network on owned people, as `train` does.

        Args:
            pairs: What the attacker owns.
            network: Holds what is trained.
            loss: Of the next batch, from batches of rows as `LearningPairs.batches` yields them and a generator.
            score: On held-out identities, the larger the better.
            faces_of_each: Faces of an identity that a batch shows.
            title: Of the progress bar.
        """
        generator = np.random.default_rng(self.seed)
        size = min(self.identities, len(np.unique(pairs.identities[pairs.learning])))
        batches = pairs.batches(size, generator)
        return train(
            network,
            lambda: loss(batches, generator),
            score,
            self.budget['faces'],
            faces_of_each * size,
            self.lr,
            title,
        )
