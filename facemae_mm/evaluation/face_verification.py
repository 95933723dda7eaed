"""Utility: are two faces the same person? InsightFace's ten-fold protocol on pairs."""

import csv
from pathlib import Path
from typing import ClassVar

import numpy as np
from mmpretrain.registry import METRICS

from ..whole_file import whole_file
from .embedding_metric import EmbeddingMetric, check_embeddings
from .intervals import bootstrap_interval, resampled_identities, wilson_interval
from .roc import roc_curve, save_roc

FOLDS = 10
THRESHOLDS = np.arange(0, 4, 0.01)  # of the accuracy, squared L2 distance
FINE_THRESHOLDS = np.arange(0, 4, 0.001)  # of TAR at FAR
FARS = (1e-3, 1e-4, 1e-5, 1e-6)
ANSWER_COLUMNS = ('set', 'pair', 'same', 'distance', 'correct')


@METRICS.register_module()
class FaceVerification(EmbeddingMetric):
    """Ten-fold verification accuracy, TAR at FAR 1e-3 and AUC, for one or several sets of pairs.

    Logs for each set, named '{set}/…': `accuracy` (mean over folds), `accuracy_std` (population),
    `accuracy_lo` and `accuracy_hi` (95 % interval), `interval_by_identity` (1: identities were
    resampled, 0: Wilson's interval over pairs because identities are unknown), `pairs`,
    `tar@far=1e-3`, `far_resolution`, `auc`, `threshold` (squared L2, mean over folds), `xnorm` (mean
    norm of the raw embeddings, both passes of a flip test; where samples have embedding_norm), and
    `tar@far=1e-4`, `tar@far=1e-5`, `tar@far=1e-6` where the set has pairs enough: FARs below
    `far_resolution`, one false acceptance among the different pairs of nine folds, are left out, but
    for InsightFace's 1e-3, which is an interpolation there.

    Required fields of a sample: embedding, set_name, pair_index, side (0 or 1), same; identity and
    embedding_norm where known.

    Args:
        roc_dir: Folder for `roc.png` and `roc_{set}.csv`, written anew at each evaluation.
        answers: CSV with a row for each pair, written anew likewise: set, pair, same, distance (squared L2), correct.
        kwargs: Of MMEngine's `BaseMetric`.
    """

    default_prefix = ''
    fields: ClassVar = dict(set_name=str, pair_index=int, side=int, same=bool, identity=str, embedding_norm=float)
    key = ('set_name', 'pair_index', 'side')
    optional = ('identity', 'embedding_norm')

    def __init__(self, roc_dir: str | Path | None = None, answers: str | Path | None = None, **kwargs) -> None:
        super().__init__(**kwargs)
        self.roc_dir = roc_dir
        self.answers = answers

    def compute_metrics(self, results: dict[str, np.ndarray]) -> dict[str, float]:
        """One row of numbers per set.

        Raises:
            ValueError: Where a pair lacks a side or a set cannot be cut into ten folds.
        """
        metrics, curves, rows = {}, {}, []
        for name in np.unique(results['set_name']):
            chosen = results['set_name'] == name
            left, right = (
                {field: column[chosen & (results['side'] == side)] for field, column in results.items()}
                for side in (0, 1)
            )
            halves = np.setxor1d(left['pair_index'], right['pair_index'])
            if halves.size:
                raise ValueError(
                    f'FaceVerification: {halves.size} pairs of {name} have only one image, first '
                    f'pair {halves[0]}. Give both images of every pair (side 0 and side 1).'
                )
            embeddings = left['embedding'], right['embedding']
            identities = np.stack([left['identity'], right['identity']], 1)
            norms = np.stack([left['embedding_norm'], right['embedding_norm']], 1)
            try:
                values = self.calculate(
                    *embeddings,
                    left['same'],
                    identities if (identities != '').all() else None,
                    None if np.isnan(norms).any() else norms,
                )
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from None
            metrics.update({f'{name}/{key}': value for key, value in values.items()})
            if self.answers is not None:
                distance, _, correct = _answer(*embeddings, left['same'])
                columns = left['pair_index'], left['same'].astype(int), distance.round(6), correct.astype(int)
                rows += [[name, *row] for row in zip(*columns, strict=True)]
            if self.roc_dir is not None:
                curves[str(name)] = self.roc(*embeddings, left['same'])
        if curves:
            save_roc(curves, self.roc_dir)
        if self.answers is not None:
            Path(self.answers).parent.mkdir(parents=True, exist_ok=True)
            with whole_file(Path(self.answers), 'x') as file:
                csv.writer(file, lineterminator='\n').writerows([ANSWER_COLUMNS, *rows])
        return metrics

    @staticmethod
    def roc(embeddings1: np.ndarray, embeddings2: np.ndarray, same: np.ndarray) -> dict[str, np.ndarray]:
        """ROC over all pairs of a set, without folds, by squared L2 distance: see `roc_curve`.

        Args:
            embeddings1: First image of each pair (P, D), not normalised.
            embeddings2: Second image of each pair (P, D).
            same: Whether the two are one person, (P,).
        """
        return roc_curve(_distance(embeddings1, embeddings2), same)

    @staticmethod
    def calculate(
        embeddings1: np.ndarray,
        embeddings2: np.ndarray,
        same: np.ndarray,
        identities: np.ndarray | None = None,
        norms: np.ndarray | None = None,
    ) -> dict[str, float]:
        """All numbers of one set, in float64.

        The protocol: squared L2 distance of the normalised embeddings; ten consecutive folds; a
        pair is called same iff its distance < t, t being the first threshold that does best on
        the nine other folds. TAR at a FAR: the threshold at which the nine other folds have that FAR,
        by linear interpolation, 0 where they never reach it.

        The interval resamples identities 1000 times with a fixed seed: a pair (a, b) weighs
        multiplicity(a) · multiplicity(b), a pair (a, a) multiplicity(a); the thresholds stay.
        Wilson's interval over pairs, which takes pairs for independent, where `identities` is None.

        Args:
            embeddings1: First image of each pair (P, D), not normalised.
            embeddings2: Second image of each pair (P, D).
            same: Whether the two are one person, (P,). The order of pairs makes the folds.
            identities: Who is shown, (P, 2).
            norms: Norms of the raw embeddings, the mean over both passes of a flip test, (P, 2).

        Raises:
            ValueError: With fewer than ten pairs, with one kind of pairs only, with embeddings
                that are zero or not finite, or with arrays of unequal length.
        """
        same = np.asarray(same, bool)
        if not len(embeddings1) == len(embeddings2) == len(same):
            raise ValueError(
                f'FaceVerification: {len(embeddings1)} first images, {len(embeddings2)} second '
                f'images and {len(same)} answers do not make pairs. Give one of each per pair.'
            )
        check_pairs(same)
        distance, threshold, correct = _answer(embeddings1, embeddings2, same)
        fold = _folds(len(same))
        accuracy = np.bincount(fold, correct) / np.bincount(fold)
        if identities is None:
            low, high = wilson_interval(correct.mean(), len(same))
        else:
            low, high = _interval_by_identity(correct, np.asarray(identities))
        resolution, rates = _tar_at_far(distance, same, fold)
        return {
            'accuracy': float(accuracy.mean()),
            'accuracy_std': float(accuracy.std()),
            'accuracy_lo': low,
            'accuracy_hi': high,
            'interval_by_identity': int(identities is not None),
            'pairs': len(same),
            **rates,
            'far_resolution': resolution,
            'auc': _auc(distance, same),
            'threshold': float(threshold.mean()),
            **({} if norms is None else {'xnorm': float(np.mean(norms))}),
        }


def check_pairs(same: np.ndarray) -> None:
    """Refuse pairs that cannot be verified.

    Args:
        same: Whether the two of each pair are one person, (P,) bool.

    Raises:
        ValueError: Fewer than ten pairs, or one kind of pairs only.
    """
    if len(same) < FOLDS:
        raise ValueError(
            f'FaceVerification: {len(same)} pairs cannot be cut into {FOLDS} folds. Give at least {FOLDS} pairs.'
        )
    if same.all() or not same.any():
        raise ValueError(
            f'FaceVerification: all {len(same)} pairs show '
            f'{"one person" if same.any() else "two persons"}. Give pairs of both kinds.'
        )


def tar_name(far: float) -> str:
    """How a TAR is logged: tar@far=1e-3."""
    return f'tar@far={far:.0e}'.replace('e-0', 'e-')


def _folds(pairs: int) -> np.ndarray:
    """Which fold each pair is in, consecutive ones, (P,)."""
    return np.concatenate([np.full(len(p), i) for i, p in enumerate(np.array_split(np.arange(pairs), FOLDS))])


def _answer(
    embeddings1: np.ndarray, embeddings2: np.ndarray, same: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared L2 distance of each pair (P,), threshold of each fold (FOLDS,), and whether each answer is right (P,)."""
    distance, fold = _distance(embeddings1, embeddings2), _folds(len(same))
    threshold = _best_thresholds(distance, same, fold)
    return distance, threshold, (distance < threshold[fold]) == same


def _distance(embeddings1: np.ndarray, embeddings2: np.ndarray) -> np.ndarray:
    """Squared L2 distance of the normalised embeddings, (P, D) and (P, D) -> (P,) float64."""
    return np.square(_normalise(embeddings1) - _normalise(embeddings2)).sum(1)


def _normalise(embeddings: np.ndarray) -> np.ndarray:
    embeddings = np.asarray(embeddings, np.float64)
    check_embeddings(embeddings)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _accepted(distance: np.ndarray, fold: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Number of pairs in each fold whose distance < each threshold, (FOLDS, T)."""
    counts = np.zeros((FOLDS, len(thresholds) + 1), int)
    np.add.at(counts, (fold, np.searchsorted(thresholds, distance, side='right')), 1)
    return counts[:, :-1].cumsum(1)


def _best_thresholds(distance: np.ndarray, same: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """For each fold the first threshold with the most correct answers on the others, (FOLDS,)."""
    accepted_same = _accepted(distance[same], fold[same], THRESHOLDS)
    accepted_different = _accepted(distance[~same], fold[~same], THRESHOLDS)
    correct = accepted_same - accepted_different  # up to a constant: the number of different pairs
    return THRESHOLDS[(correct.sum(0) - correct).argmax(1)]


def _tar_at_far(distance: np.ndarray, same: np.ndarray, fold: np.ndarray) -> tuple[float, dict[str, float]]:
    """Least FAR that can be measured, and TARs: mean over folds with a same pair, and a different one elsewhere."""
    accepted = _accepted(distance[~same], fold[~same], FINE_THRESHOLDS)
    different = np.bincount(fold[~same], minlength=FOLDS)
    different = different.sum() - different
    mates = [distance[same & (fold == i)] for i in range(FOLDS)]
    used = [i for i in range(FOLDS) if different[i] and mates[i].size]
    resolution = 1 / different[used].min()
    tars = {}
    for far in FARS:
        if far < resolution and far != FARS[0]:
            continue
        rates = []
        for i in used:
            curve = (accepted.sum(0) - accepted[i]) / different[i]
            threshold = np.interp(far, curve, FINE_THRESHOLDS) if curve[-1] >= far else 0.0
            rates.append((mates[i] < threshold).mean())
        tars[tar_name(far)] = float(np.mean(rates))
    return float(resolution), tars


def _auc(distance: np.ndarray, same: np.ndarray) -> float:
    """Share of (same, different) couples in which the same pair is nearer, ties counted half."""
    different = np.sort(distance[~same])
    below, upto = (np.searchsorted(different, distance[same], side) for side in ('left', 'right'))
    return float(1 - (below + upto).mean() / (2 * len(different)))


def _interval_by_identity(correct: np.ndarray, identities: np.ndarray) -> tuple[float, float]:
    names, index = np.unique(identities, return_inverse=True)
    a, b = index.reshape(-1, 2).T
    rates = []
    for multiplicity in resampled_identities(len(names)):
        weight = multiplicity[a] * np.where(a == b, 1, multiplicity[b])
        if weight.any():
            rates.append(weight @ correct / weight.sum())
    return bootstrap_interval(rates, correct.mean(), len(names))
