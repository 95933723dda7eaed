"""What an attacker is: networks that embed the photos he holds and the faces that were released."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ...models.embedders import FaceEmbedder


class Attacker(ABC):
    """An attacker of a released set of faces.

    He embeds real photos by `photo_network` and released faces by `released_network`, maps the latter's embeddings by
    `map_released`, and compares both by cosine. Embeddings are kept by the fingerprint of the network that made them, so
    attackers that share a network share its work.

    A subclass is registered in `mmpretrain.registry.TASK_UTILS`; its arguments are in a recipe (`configs/audit.py`).

    Attributes:
        needs_pairs: Whether he learns from pairs of a photo and its release that he owns; then `fit` is called first.
        budget: What learning may cost at most, by name and unit, for the report; empty where nothing is learnt.
    """

    needs_pairs: bool = False
    budget: Mapping[str, float] = {}

    def fit(self, owned: Dataset, folder: Path, device: torch.device) -> dict[str, float]:
        """Learns from what the attacker owns, within his budget.

        Args:
            owned: Pairs by index: (photo (3, H, H) uint8 RGB, released face (3, h, h) uint8 RGB, identity int). Where
                the release's links are known, the face was made from the photo; else both show one person. Its
                `identities` (P,) holds the identity of every pair without reading an image.
            folder: For what he learnt, for the owner alone; what is there already is used and not learnt again.
            device: Where to compute.

        Returns:
            What it took, for the report: numbers by name ('seconds', 'faces', …).

        Raises:
            ValueError: Too few pairs or identities to learn from.
        """
        raise NotImplementedError(f'{type(self).__name__} learns nothing.')

    @property
    @abstractmethod
    def photo_network(self) -> FaceEmbedder | nn.Module:
        """Embeds real photos: (N, 3, H, H) RGB in [0, 255] -> tuple whose last entry is (N, D).

        It has `mean` (a tensor on its device) and `fingerprint(device)`, as `FaceEmbedder`.
        """

    @property
    def released_network(self) -> FaceEmbedder | nn.Module:
        """Embeds released faces, as `photo_network`, which it is by default."""
        return self.photo_network

    def map_released(self, embeddings: np.ndarray) -> np.ndarray:
        """Takes embeddings of released faces (N, D') to those of photos (N, D), float32; by default they are that."""
        return embeddings

    @abstractmethod
    def describe(self) -> dict:
        """What he is, for the report: SHA-256 of his embedder and his settings."""
