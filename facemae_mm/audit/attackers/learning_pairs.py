"""Pairs of a photo and a released face that an attacker owns, as he learns from them."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ...evaluation.embedding_metric import check_embeddings
from .attacker import CannotLearn
from .ranking import ranking_auc

#: Identities from which an attacker learns: a fifth is held out, and two people are the least that can be told apart.
MIN_IDENTITIES = 10

#: Pairs of held-out identities that are embedded to see how far learning has come.
MAX_HELD_OUT = 256

#: Pairs whose pixels tell one set of pairs from another.
MAX_DIGESTED = 256


class LearningPairs:
    """An attacker's pairs, a part of the identities held out.

    Args:
        owned: As `Attacker.fit` takes them.
        held_out: Share of the identities that is held out, 0 … 0.5; at least two are.
        seed: Of the draw of these identities.
        flip: The audit embeds f(x) + f(flip x), else f(x).

    Attributes:
        identities: Of every pair, (P,) int64.
        learning: Rows of the pairs to learn from, ascending.
        held_out: Rows of pairs of the other identities, at most `MAX_HELD_OUT`, ascending.

    Raises:
        CannotLearn: Fewer than `MIN_IDENTITIES` identities.
    """

    def __init__(self, owned: Dataset, held_out: float = 0.2, seed: int = 0, flip: bool = True) -> None:
        self._owned = owned
        self._flip = flip
        self.identities = np.asarray(owned.identities, np.int64)
        people = np.unique(self.identities)
        if len(people) < MIN_IDENTITIES:
            raise CannotLearn(
                f'An attacker learns from pairs of {MIN_IDENTITIES} identities or more; he owns '
                f'{len(self.identities)} pairs of {len(people)}. Let him own more of the identities, or leave the '
                'attackers that learn out of the recipe.'
            )
        generator = np.random.default_rng(seed)
        out = generator.permutation(people)[: max(2, round(held_out * len(people)))]
        apart = np.isin(self.identities, out)
        self.learning = np.flatnonzero(~apart)
        self.held_out = self.draw(np.flatnonzero(apart), MAX_HELD_OUT, generator)

    def __len__(self) -> int:
        return len(self.identities)

    def draw(self, rows: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
        """At most `count` of some rows, ascending, drawn so that every identity has one before any has two."""
        rows = generator.permutation(rows)
        rows = rows[np.argsort(self.identities[rows], kind='stable')]
        person = self.identities[rows]
        turn = np.arange(len(rows)) - np.searchsorted(person, person)  # first, second, … pair of its identity
        shuffled = generator.permutation(len(rows))  # who comes first among equals
        return np.sort(rows[shuffled][np.argsort(turn[shuffled], kind='stable')[:count]])

    def batches(self, size: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Without end, identities to learn from, `size` different ones at once, each as often as the others.

        Yields:
            Two rows of each identity, drawn independently, (size, 2).
        """
        who = self.identities[self.learning]
        rows = self.learning[np.argsort(who, kind='stable')]
        counts = np.unique(who, return_counts=True)[1]
        starts = np.cumsum(counts) - counts
        queue = np.empty(0, np.int64)
        while True:
            if len(queue) < size:  # those who are left come last in the next round, so that nobody is in a batch twice
                fresh = generator.permutation(len(counts))
                queue = np.concatenate([queue, fresh[np.argsort(np.isin(fresh, queue), kind='stable')]])
            chosen, queue = queue[:size], queue[size:]
            drawn = (generator.random((size, 2)) * counts[chosen, None]).astype(np.int64)
            yield rows[starts[chosen, None] + drawn]

    def load(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Photos (N, 3, H, H) and released faces (N, 3, h, h) of some pairs, as they are.

        Raises:
            ValueError: The photos, or the released faces, are not of one size.
        """
        sides = list(zip(*(self._owned[int(row)][:2] for row in rows)))
        for name, faces in zip(('photo', 'released face'), sides):
            for row, face in zip(rows, faces):
                if face.shape != faces[0].shape:
                    raise ValueError(
                        f'The {name} of owned pair {row} is {tuple(face.shape)}, that of pair {rows[0]} '
                        f'{tuple(faces[0].shape)}. Bring all faces of a set to one size (tools/prepare_faces.py).'
                    )
        return torch.stack(sides[0]), torch.stack(sides[1])

    def embed(
        self,
        photo_network: nn.Module,
        released_network: nn.Module,
        rows: np.ndarray,
        title: str | None,
        flip: bool | None = None,
        batch_size: int = 32,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embeds some pairs, normalised.

        Args:
            photo_network: As `Attacker.photo_network`, on its device.
            released_network: As `Attacker.released_network`.
            rows: Which pairs, (N,).
            title: Of the progress bar; None shows none.
            flip: Give f(x) + f(flip x), else f(x); None does as the audit embeds faces.
            batch_size: Pairs at once.

        Returns:
            Of the photos (N, D) and of the released faces (N, D'), float32.

        Raises:
            ValueError: An embedding is zero or not finite.
        """
        flip = self._flip if flip is None else flip
        found = ([], [])
        bar = tqdm(total=len(rows), desc=title, unit='pair', mininterval=1, disable=title is None)
        with bar, torch.inference_mode():
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                for kind, faces, network in zip((0, 1), self.load(part), (photo_network, released_network)):
                    faces = faces.to(network.mean.device)
                    embeddings = network(faces)[-1] + (network(faces.flip(-1))[-1] if flip else 0)
                    embeddings = embeddings.float().cpu().numpy()
                    name = ('the photo', 'the released face')[kind]
                    check_embeddings(embeddings, [f'{name} of owned pair {row}' for row in part])
                    found[kind].append(embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
                bar.update(len(part))
        return np.concatenate(found[0]), np.concatenate(found[1])

    def held_out_auc(self, photo_network: nn.Module, released_network: nn.Module) -> float:
        """How well two networks rank the held-out identities: see `ranking_auc`."""
        who = self.identities[self.held_out]
        photos, released = self.embed(photo_network, released_network, self.held_out, None, flip=False)
        return ranking_auc(photos, who, released, who)

    def digest(self) -> str:
        """SHA-256, hexadecimal, of the identities and of the pixels of up to `MAX_DIGESTED` pairs."""
        digest = hashlib.sha256(self.identities.tobytes())
        for row in np.unique(np.linspace(0, len(self) - 1, MAX_DIGESTED).astype(int)):
            for face in self._owned[int(row)][:2]:
                digest.update(f'{tuple(face.shape)}'.encode())
                digest.update(face.contiguous().numpy().tobytes())
        return digest.hexdigest()
