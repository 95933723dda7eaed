"""Attackers that learn from pairs that they own, once."""

import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ...models.embedders import FaceEmbedder
from ...randomness import keyed_generators
from ...whole_file import whole_file
from .attacker import Attacker
from .learning_pairs import LearningPairs


class LearningAttacker(Attacker, ABC):
    """An attacker who learns from owned pairs, and keeps what he learnt.

    The same pairs, embedder, settings and seed lead to the same on a CPU with as many cores, all of which learn, on
    whatever number of processes; a file in the owner's folder, named by all of them, is then read in place of learning
    again.

    A subclass says what he learns and how he uses it. One that takes away the mean difference of the two sides:

        @TASK_UTILS.register_module()
        class MeanShiftAttacker(LearningAttacker):
            budget = dict(pairs=1000)

            def learn(self, pairs, device):
                rows = pairs.learning[:1000]
                photos, released = pairs.embed(self.embedder, self.embedder, rows, 'mean shift')
                return dict(shift=torch.from_numpy((photos - released).mean(0))), dict(pairs=len(rows))

            def use(self, learnt, device):
                self.shift = learnt['shift'].numpy()

            def map_released(self, embeddings):
                return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True) + self.shift

    Args:
        embedder: Arguments of `open_embedder`.
        held_out: Share of the owned identities from which nothing is learnt but when to stop.
        seed: Of everything that is drawn.
    """

    needs_pairs = True

    def __init__(self, embedder: Mapping, held_out: float = 0.2, seed: int = 0) -> None:
        super().__init__(embedder)
        if not 0 < held_out <= 0.5:
            raise ValueError(
                f'{type(self).__name__}: held_out={held_out} is not in (0, 0.5]. Give the share of the owned '
                'identities that tells when to stop, such as 0.2.'
            )
        self.held_out = held_out
        self.seed = seed

    @abstractmethod
    def learn(self, pairs: LearningPairs, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        """What he learns, as tensors by name, and what it took, for the report; the embedder is on the device.

        Python's, NumPy's and torch's generators are seeded around it.
        """

    @abstractmethod
    def use(self, learnt: Mapping[str, torch.Tensor], device: torch.device) -> None:
        """Takes up what `learn` gave, from a CPU."""

    def networks(self) -> tuple[FaceEmbedder, ...]:
        """All embedders that he starts from."""
        return (self.embedder,)

    def settings(self) -> dict:
        return dict(held_out=self.held_out, seed=self.seed)

    def fit(self, owned: Dataset, folder: Path, device: torch.device, flip: bool = True) -> dict[str, float]:
        """Learns, or reads what he learnt from the same before: see `Attacker.fit`.

        Returns:
            Beside what `learn` reports, 'seconds' that learning took, at the time when it was done.

        Raises:
            CannotLearn: Too few pairs or identities, or a loss that is not finite.
            ValueError: A pair that cannot be read, or a damaged file in the folder.
        """
        pairs = LearningPairs(owned, self.held_out, self.seed, flip)
        fingerprints = [network.to(device).fingerprint(device) for network in self.networks()]
        parts = json.dumps([self.describe(), fingerprints, pairs.digest(), flip], sort_keys=True)
        key = hashlib.sha256(parts.encode()).hexdigest()
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f'{type(self).__name__}_{key[:16]}.pth'
        if not path.is_file():
            start = time.monotonic()
            threads = torch.get_num_threads()
            torch.set_num_threads(len(os.sched_getaffinity(0)))  # other processes of a group wait meanwhile
            try:
                with keyed_generators(type(self).__name__, self.seed):
                    learnt, report = self.learn(pairs, device)
            finally:
                torch.set_num_threads(threads)
            report = {name: float(value) for name, value in report.items()} | dict(seconds=time.monotonic() - start)
            with whole_file(path, private=True) as file:
                torch.save(dict(learnt={name: tensor.cpu() for name, tensor in learnt.items()}, report=report), file)
        try:
            kept = torch.load(path, map_location='cpu', weights_only=True)
            self.use(kept['learnt'], device)
        except Exception as error:  # a damaged file raises whatever its bytes lead to
            raise ValueError(
                f'{path} is not what {type(self).__name__} kept there, or is damaged ({error}). Remove it, and it is '
                'learnt again.'
            ) from error
        return kept['report']
