"""Membership: does a photo tell whether its person is in the released set? Open set, at low false positive rates."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluation.embedded_faces import EmbeddedFaces
from ..evaluation.intervals import bootstrap_interval, resampled_identities
from ..evaluation.roc import roc_curve
from ..evaluation.unit_rows import unit_rows
from ..randomness import keyed_seed

#: Released faces that a photo's score is calibrated on, at most.
COHORT = 2000

#: False positive rates at which the true positive rate is read off.
RATES = (1e-2, 1e-3)

#: Points of a curve in a report, about.
POINTS = 400

_BLOCK = 2**22  # cosines held at once; with their copies 64 MiB


def membership(
    best_with: np.ndarray,
    best_without: np.ndarray | None,
    photos: Sequence[EmbeddedFaces],
    released: EmbeddedFaces,
    member: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Scores photos of people who are in the released set and of people who are not, and measures how they separate.

    A photo's score is its largest cosine to a released face, raw and calibrated (`cohort_medians`). 'with' compares
    with all released faces, 'without' with those that were not made from this very photo: then the attacker holds
    another photo than the owner. Members whose person has no face from another photo are left out of 'without'.

    Paper gap: the paper does not measure membership.

    Args:
        best_with: Largest cosine of each photo to any released face, (Q,).
        best_without: To any that was not made from it, (Q,); None where sources are not known.
        photos: Sets of photos, Q in all, whose embeddings are read block by block. Identities tell people apart; photos
            of −1 are each a person of their own. People of another set than the real one have −2 − their label in it.
        released: The released faces.
        member: Of each photo (Q,): 1 where its person is in the released set, 0 where not, −1 where nobody asks.
        resamples: Of identities, for intervals; 1000 take two minutes for 500,000 photos.
        seed: Of cohort and resamples.

    Returns:
        'photos': 'members', 'non_members', 'member_identities', 'non_member_identities', and 'photos_without' the same.
        'with' and 'without': 'calibrated' and 'raw', as `separation` gives them. The latter two are None where sources
        are not known, or no member is left.

    Raises:
        ValueError: No members, or nobody else.
    """
    member = np.asarray(member)
    if not (member == 1).any() or not (member == 0).any():
        raise ValueError(
            f'Membership: {int((member == 1).sum()):,} photos are of people in the released set, '
            f'{int((member == 0).sum()):,} of others. Both are needed: give faces of people who are known not to be in '
            'it, or links that match the sets.'
        )
    medians = np.concatenate([cohort_medians(faces.embeddings, released.embeddings, seed) for faces in photos])
    identity, source = (np.concatenate([getattr(faces, of) for faces in photos]) for of in ('identity', 'source'))
    identity = np.where(identity == -1, identity.min() - 1 - np.arange(len(identity)), identity)

    def scores(best: np.ndarray, asked: np.ndarray) -> dict:
        best = np.asarray(best, np.float64)[asked]
        rated = dict(calibrated=best - medians[asked], raw=best)
        return {
            name: separation(score, identity[asked], member[asked] == 1, resamples, seed)
            for name, score in rated.items()
        }

    asked = member >= 0
    found = {'photos': _counts(identity[asked], member[asked]), 'with': scores(best_with, asked)}
    found |= dict(photos_without=None, without=None)
    if best_without is not None:
        others = _occurrences(identity, released.identity) - _occurrences(source, released.source)
        asked = (member == 0) | ((member == 1) & (others > 0))
        if (member[asked] == 1).any():
            found |= dict(photos_without=_counts(identity[asked], member[asked]), without=scores(best_without, asked))
    return found


def cohort_medians(photos: np.ndarray, released: np.ndarray, seed: int, cohort: int = COHORT) -> np.ndarray:
    """Median cosine of each photo to a cohort of released faces, by which its score is calibrated.

    A blurred photo is near to everybody, and must come nearer to be found. Biometrics subtracts the mean over people
    who are known to be others and divides by the standard deviation (z-norm). An attacker does not know who is who: his
    cohort is drawn from all released faces, and in a small set a share of it shows the person he asks about, which
    raises both for members alone, the median least. The spread is left as it is: on releases simulated from LFW
    (embeddings of photos of 14, 100 and 779 people with noise, other photos asking) subtracting the median found 97, 85
    and 75 % of the members at FPR 1e-3, z-norm 3, 53 and 64 %, and a division by robust spreads nothing more.

    Paper gap: which faces calibrate, and how.

    Args:
        photos: Embeddings (Q, D), of any norm; read block by block.
        released: Embeddings (M, D).
        seed: Of the cohort.
        cohort: Faces in it, at most.

    Returns:
        (Q,) float64.
    """
    draw = np.random.default_rng(keyed_seed('membership cohort', seed)).permutation(len(released))
    others = unit_rows(released[np.sort(draw[:cohort])]).T
    medians = np.empty(len(photos))
    rows = max(1, _BLOCK // max(others.shape))
    for start in range(0, len(photos), rows):
        block = slice(start, start + rows)
        medians[block] = np.median(unit_rows(photos[block]) @ others, axis=1, overwrite_input=True)
    return medians


def separation(
    score: np.ndarray, identity: np.ndarray, member: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict:
    """ROC, area below it and true positive rates of a score, with 95 % intervals by identity.

    A photo is called a member's where its score exceeds a threshold. The TPR at an FPR is that of the lowest threshold
    which at most this share of the others' photos exceed. Intervals resample identities of members and of others, with
    replacement; photos are sorted once, and a resample weights them in O(Q). In simulations they held the truth in 93
    to 97 % where the FPR was five false matches or more, in 85 % where it was one.

    Args:
        score: Of each photo (Q,), larger for members.
        identity: Who it shows, (Q,), any numbers.
        member: Whether they are members, (Q,) bool; some are, some are not.
        resamples: For the intervals.
        seed: Of the resamples.

    Returns:
        'auc': [value, low, high]; 'tpr': the same by FPR, '0.01' and '0.001', None where that is below one false match;
        'curve': 'fpr' and 'tpr', lists from 0 to 1, on which the values that were read off lie.
    """
    order = np.argsort(score, kind='stable')
    ranked = score[order], identity[order], member[order]
    members, others = (_Ranked.of(*(column[kind] for column in ranked[:2])) for kind in (ranked[2], ~ranked[2]))
    below, upto = (np.searchsorted(others.scores, members.scores, side) for side in ('left', 'right'))
    rates = [rate for rate in RATES if rate * len(others.scores) > 1 - 1e-9]

    def measure(member_weights: np.ndarray, other_weights: np.ndarray) -> tuple[list[float], list[float]]:
        """AUC and TPR at each rate; and the FPR that is really there."""
        has, other = members.weigh(member_weights), others.weigh(other_weights)
        wins = np.diff(has) @ (other[below] + other[upto]) / 2
        values, reached = [wins / (has[-1] * other[-1])], []
        for rate in rates:
            last = np.searchsorted(other, other[-1] * (1 - rate * (1 + 1e-12))) - 1
            threshold = others.scores[last]
            values.append((has[-1] - has[np.searchsorted(members.scores, threshold, 'right')]) / has[-1])
            reached.append((other[-1] - other[np.searchsorted(others.scores, threshold, 'right')]) / other[-1])
        return values, reached

    values, reached = measure(np.ones(members.people, np.int64), np.ones(others.people, np.int64))
    draws = (
        resampled_identities(ranked.people, resamples, keyed_seed(kind, seed))
        for kind, ranked in (('members', members), ('others', others))
    )
    found = np.array([measure(*weights)[0] for weights in zip(*draws)]).reshape(-1, len(values))
    trials = min(members.people, others.people)
    auc, *tpr = ([float(value), *bootstrap_interval(column, value, trials)] for value, column in zip(values, found.T))
    return dict(
        auc=auc,
        tpr={f'{rate:g}': tpr[place] if place < len(rates) else None for place, rate in enumerate(RATES)},
        curve=_thinned(roc_curve(-score, member), reached, values[1:]),
    )


@dataclass(frozen=True)
class _Ranked:
    """Scores of one kind of photos, ascending, and whose each is: numbers below `people`."""

    scores: np.ndarray
    person: np.ndarray
    people: int

    @classmethod
    def of(cls, scores: np.ndarray, identity: np.ndarray) -> '_Ranked':
        names, person = np.unique(identity, return_inverse=True)
        return cls(scores, person, len(names))

    def weigh(self, weights: np.ndarray) -> np.ndarray:
        """Weight of the first 0, 1, … photos, (n + 1,), where each counts as its person's weight (people,)."""
        return np.concatenate([[0], np.cumsum(weights[self.person])])


def _thinned(curve: dict[str, np.ndarray], fpr: Sequence[float], tpr: Sequence[float]) -> dict[str, list[float]]:
    """At most `POINTS` corners of a ROC, close together at low FPR, and the points that were read off."""
    far, tar = curve['far'], curve['tar']
    kept = np.arange(len(far))
    if len(kept) > POINTS - len(fpr):
        grid = np.concatenate([np.geomspace(1e-6, 1, POINTS // 2), np.linspace(0, 1, POINTS // 4)])
        height = np.linspace(0, 1, POINTS // 4 - len(fpr) - 2)
        kept = [np.searchsorted(far, grid, 'right') - 1, np.searchsorted(tar, height), [0, len(far) - 1]]
        kept = np.unique(np.concatenate(kept))
    points = np.unique(np.stack([np.append(far[kept], fpr), np.append(tar[kept], tpr)]), axis=1)
    return dict(fpr=points[0].tolist(), tpr=points[1].tolist())


def _counts(identity: np.ndarray, member: np.ndarray) -> dict[str, int]:
    people = [identity[member == kind] for kind in (1, 0)]
    photos = {name: len(of) for name, of in zip(('members', 'non_members'), people)}
    return photos | {f'{name}_identities': len(np.unique(of)) for name, of in zip(('member', 'non_member'), people)}


def _occurrences(asked: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """How often each number ≥ 0 that is asked for is among others; 0 for those below."""
    names, counts = np.unique(numbers[numbers >= 0], return_counts=True)
    place = np.searchsorted(names, asked)
    found = np.append(names, -1)[place] == asked
    return np.where(found & (asked >= 0), np.append(counts, 0)[place], 0)
