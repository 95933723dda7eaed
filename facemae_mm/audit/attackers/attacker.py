"""What an attacker is: networks that embed the photos he holds and the faces that were released."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ...models.embedders import FaceEmbedder
from ...open_embedder import open_embedder


class CannotLearn(ValueError):
    """An attacker has too little to learn from, or does not succeed: the others go on without him."""


class Attacker:
    """An attacker of a released set of faces.

    He embeds real photos by `photo_network` and released faces by `released_network`, maps the latter's embeddings by
    `map_released`, and compares both by cosine. Embeddings are kept by the fingerprint of the network that made them,
    so attackers that share a network share its work. Networks are where they were made, or where `fit` was told to
    compute: move them before use.

    A subclass is registered in `mmpretrain.registry.TASK_UTILS`; its arguments are in a recipe (`configs/audit.py`).
    One that learns derives from `LearningAttacker`.

    Args:
        embedder: What he starts from: arguments of `open_embedder`.

    Attributes:
        needs_pairs: Whether he learns from pairs of a photo and its release that he owns; then `fit` is called first.
        budget: What learning may cost at most, by name and unit, for the report; empty where nothing is learnt.

    Raises:
        FileNotFoundError: The embedder's checkpoint or recipe does not exist.
        ValueError: It is no embedder, or is damaged, or `mean` or `std` are not three numbers.
    """

    needs_pairs: bool = False
    budget: Mapping[str, float] = {}

    def __init__(self, embedder: Mapping) -> None:
        for name in ('mean', 'std'):
            if embedder.get(name) is not None and np.shape(embedder[name]) != (3,):
                raise ValueError(
                    f'{type(self).__name__}: {name} of the embedder is {embedder[name]}. Give three numbers, one '
                    'a channel, or none for its own.'
                )
        self.embedder = open_embedder(**embedder)

    def fit(self, owned: Dataset, folder: Path, device: torch.device, flip: bool = True) -> dict[str, float]:
        """Learns from what the attacker owns, within his budget.

        Args:
            owned: Pairs by index: (photo (3, H, H) uint8 RGB, released face (3, h, h) uint8 RGB, identity int). Where
                the release's links are known, the face was made from the photo; else both show one person. Its
                `identities` (P,) holds the identity of every pair without reading an image.
            folder: For what he learnt, for the owner alone; what is there already is used and not learnt again.
            device: Where to compute.
            flip: The audit embeds f(x) + f(flip x), else f(x).

        Returns:
            What it took, for the report: numbers by name ('seconds', 'faces', …).

        Raises:
            CannotLearn: Too few pairs or identities to learn from, or a loss that is not finite.
            ValueError: A pair that cannot be read, or a damaged file in the folder.
        """
        raise NotImplementedError(f'{type(self).__name__} learns nothing.')

    @property
    def photo_network(self) -> FaceEmbedder | nn.Module:
        """Embeds real photos: (N, 3, H, H) RGB in [0, 255] -> tuple whose last entry is (N, D).

        It has `mean` (a tensor on its device) and `fingerprint(device)`, as `FaceEmbedder`. By default it is the
        embedder as it is.
        """
        return self.embedder

    @property
    def released_network(self) -> FaceEmbedder | nn.Module:
        """Embeds released faces, as `photo_network`, which it is by default."""
        return self.photo_network

    def map_released(self, embeddings: np.ndarray) -> np.ndarray:
        """Takes embeddings of released faces to where those of photos lie; by default they are there.

        Args:
            embeddings: Of `released_network`, mirrored or not as `fit` was told, raw, (N, D').

        Returns:
            (N, D) float32, of any norm.
        """
        return embeddings

    def describe(self) -> dict:
        """What he is, for the report: his class, the SHA-256 of his embedder's file, and his settings."""
        return dict(type=type(self).__name__, embedder=describe_embedder(self.embedder), **self.settings())

    def settings(self) -> dict:
        """His arguments beside the embedder, as plain values."""
        return {}


def describe_embedder(embedder: FaceEmbedder) -> dict:
    """An embedder for a report, without the place of its file."""
    return dict(
        network=type(embedder.backbone).__name__,
        sha256=embedder.sha256,
        channel_order=embedder.channel_order,
        mean=[round(value, 4) for value in embedder.mean.flatten().tolist()],
        std=[round(value, 4) for value in embedder.std.flatten().tolist()],
    )
