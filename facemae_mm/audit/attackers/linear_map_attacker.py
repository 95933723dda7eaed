"""An attacker who maps embeddings of released faces to those of photos."""

from collections.abc import Mapping

import numpy as np
import torch
from mmpretrain.registry import TASK_UTILS

from ...models.embedders import FaceEmbedder
from ...open_embedder import open_embedder
from .attacker import describe_embedder
from .learning_attacker import LearningAttacker
from .learning_pairs import MIN_IDENTITIES, LearningPairs
from .ranking import ranking_auc

#: Penalties tried, in units of the mean variance of an embedding's components.
PENALTIES = tuple(10.0**power for power in range(-4, 3))

#: Parts that the identities are dealt into; each is left out once.
FOLDS = 5

#: Pairs of a left-out part that are ranked.
MAX_RANKED = 512


@TASK_UTILS.register_module()
class LinearMapAttacker(LearningAttacker):
    """Fits an affine map from the embedding of a released face to that of its photo, by ridge regression.

    Of n unit embeddings X of released faces and Y of photos, about their means: W = (XᵀX + λ·n·v·I)⁻¹XᵀY, v the mean
    variance of a component of X. λ is the one by which left-out identities are ranked best (`ranking_auc`), each left
    out once: what counts is who is nearer, not by how much the map errs. Among equals it is the smallest.

    Args:
        embedder: Of the photos: arguments of `open_embedder`.
        released_embedder: Of the released faces; None for the same.
        pairs: Budget: the most pairs that are embedded, drawn over all identities alike.
        seed: Of what is drawn.

    Raises:
        ValueError: `pairs` is below `MIN_IDENTITIES`.
    """

    def __init__(
        self, embedder: Mapping, released_embedder: Mapping | None = None, pairs: int = 20_000, seed: int = 0
    ) -> None:
        super().__init__(embedder, seed=seed)
        if pairs < MIN_IDENTITIES:
            raise ValueError(f'LinearMapAttacker: pairs={pairs} is below {MIN_IDENTITIES}. Give more, such as 20_000.')
        self.released_embedder = open_embedder(**released_embedder) if released_embedder else self.embedder
        self.budget = dict(pairs=pairs)

    @property
    def released_network(self) -> FaceEmbedder:
        return self.released_embedder

    def networks(self) -> tuple[FaceEmbedder, ...]:
        return self.embedder, self.released_embedder

    def settings(self) -> dict:
        return dict(released_embedder=describe_embedder(self.released_embedder), **self.budget, seed=self.seed)

    def learn(self, pairs: LearningPairs, device: torch.device) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        generator = np.random.default_rng(self.seed)
        rows = pairs.draw(np.arange(len(pairs)), self.budget['pairs'], generator)
        photos, released = pairs.embed(self.embedder, self.released_embedder, rows, 'linear map')
        identities = pairs.identities[rows]
        people, number = np.unique(identities, return_inverse=True)
        fold = (generator.permutation(len(people)) % FOLDS)[number]
        scores = np.zeros(len(PENALTIES))
        for part in range(FOLDS):
            maps = ridge(released[fold != part], photos[fold != part], PENALTIES)
            out = pairs.draw(rows[fold == part], MAX_RANKED, generator)
            ranked = np.searchsorted(rows, out)
            who = identities[ranked]
            for place, (weight, bias) in enumerate(maps):
                scores[place] += ranking_auc(photos[ranked], who, released[ranked] @ weight + bias, who) / FOLDS
        penalty = PENALTIES[int(scores.argmax())]
        ((weight, bias),) = ridge(released, photos, [penalty])
        learnt = dict(weight=torch.from_numpy(weight), bias=torch.from_numpy(bias))
        report = dict(pairs=len(rows), faces=2 * len(rows), identities=len(people), penalty=penalty)
        return learnt, report | dict(held_out_auc=scores.max())

    def use(self, learnt: Mapping[str, torch.Tensor], device: torch.device) -> None:
        self.weight, self.bias = (learnt[name].numpy() for name in ('weight', 'bias'))

    def map_released(self, embeddings: np.ndarray) -> np.ndarray:
        unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
        return (unit @ self.weight + self.bias).astype(np.float32)


def ridge(x: np.ndarray, y: np.ndarray, penalties: list[float]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ridge regression of y on x with an intercept that is not penalised, for several penalties at once.

    Args:
        x: (N, D').
        y: (N, D).
        penalties: λ, in units of the mean variance of x's components.

    Returns:
        For each λ the weight (D', D) and bias (D,), float64: y ≈ x·weight + bias.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    values, vectors = np.linalg.eigh((x - x_mean).T @ (x - x_mean) / len(x))
    values = values.clip(min=0)
    across = vectors.T @ ((x - x_mean).T @ (y - y_mean)) / len(x)
    maps = []
    for penalty in penalties:
        weight = vectors @ (across / (values + penalty * max(values.mean(), 1e-12))[:, None])
        maps.append((weight, y_mean - x_mean @ weight))
    return maps
