"""How far sets of faces lie from the originals in an embedder's space, with intervals by person (Figure 1)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations, islice

import numpy as np
from tqdm import tqdm

from ..evaluation.intervals import resampled_identities
from .distances import Gaussian, PeopleKernels, frechet_distance, kernel_sums, median_bandwidth

#: The distance of the originals' one half to their other.
ZERO = 'zero'

#: Resamples that are looked at, at most.
MANY = 10**6


@dataclass(frozen=True)
class HalfSet:
    """The faces of a set that show one half of the people.

    Attributes:
        embeddings: (n, D) float64, of length 1.
        people: Whom each shows, (n,) str.
    """

    embeddings: np.ndarray
    people: np.ndarray


class _Numbered:
    """A half with its people numbered, in itself and among those of all sets."""

    def __init__(self, half: HalfSet, everybody: np.ndarray) -> None:
        self.rows = half.embeddings
        names, self.person = np.unique(half.people, return_inverse=True)
        self.place = np.searchsorted(everybody, names)
        self.faces = np.bincount(self.person)


def feature_distances(
    sets: Mapping[str, tuple[HalfSet, HalfSet]], originals: str, resamples: int = 1000, seed: int = 0
) -> dict:
    """Fréchet distance and MMD² of every set to the originals, and of the originals to themselves.

    People are cut in two halves, the same in all sets. A set's distance is the mean of two: its faces of the one half
    to the originals' of the other, and the other way round, so that no distance rests on one person's being on both
    sides. The zero is that of the originals' halves. All compare as many faces with as many, so that the small-sample
    bias of Fréchet's is much the same in all and about the zero's.

    Intervals are of 95 % and resample people, the same ones in all sets, two or more of each half: percentiles of
    how the resampled distances differ from their mean, about the distance itself, since a resample repeats people and
    lies farther off.

    Args:
        sets: Their two halves by name, all of one number of faces.
        originals: Name of the set that others are compared with.
        resamples: Of people.
        seed: Of the resamples.

    Returns:
        `frechet` and `mmd2`, each [value, low, high] by name, and under 'zero' that of the originals' halves;
        `differences`, of every two sets `a`, `b`: `frechet` and `mmd2` of a less those of b; and `bandwidth`, σ of
        MMD's Gaussian kernel, the median distance between the originals.

    Raises:
        ValueError: A half shows fewer than two people, or more than half of the originals have one embedding.
    """
    everybody = [np.unique(np.concatenate([halves[side].people for halves in sets.values()])) for side in (0, 1)]
    numbered = {
        name: [_Numbered(half, names) for half, names in zip(halves, everybody)] for name, halves in sets.items()
    }
    for name, halves in numbered.items():
        if min(len(half.place) for half in halves) < 2:
            raise ValueError(f'{name}: a half of its people holds fewer than two. Give a larger set.')
    original = numbered.pop(originals)
    bandwidth = median_bandwidth(np.concatenate([half.rows for half in original]))
    kernels = _kernels(original, numbered, bandwidth)

    def distances(times: list[np.ndarray]) -> dict[str, tuple[float, float]]:
        """(Fréchet, MMD²) by name, where people count so often, (P,) of each half."""

        def gaussian(half: _Numbered, side: int) -> Gaussian:
            return Gaussian.fit(half.rows, times[side][half.place][half.person])

        def mmd2(kernel: PeopleKernels, a: _Numbered, b: _Numbered, side: int) -> float:
            return kernel.mmd2(times[side][a.place], times[1 - side][b.place])

        real = [gaussian(half, side) for side, half in enumerate(original)]
        found = {ZERO: (frechet_distance(*real), mmd2(kernels[ZERO][0], *original, 0))}
        for name, halves in numbered.items():
            pairs = [(real[side], gaussian(halves[1 - side], 1 - side)) for side in (0, 1)]
            frechet = np.mean([frechet_distance(*pair) for pair in pairs])
            squared = np.mean([mmd2(kernels[name][s], original[s], halves[1 - s], s) for s in (0, 1)])
            found[name] = float(frechet), float(squared)
        return found

    here = distances([np.ones(len(names)) for names in everybody])

    def draws(side: int) -> Iterator[np.ndarray]:
        """Resamples of a half's people in which every set has two or more: of one nothing can be compared."""
        halves = [original[side], *(halves[side] for halves in numbered.values())]
        for times in resampled_identities(len(everybody[side]), MANY, seed + side):
            if all(np.count_nonzero(times[half.place]) > 1 for half in halves):
                yield times

    both = islice(zip(draws(0), draws(1)), resamples)
    drawn = [distances(list(times)) for times in tqdm(both, desc='resample people', total=resamples, mininterval=1)]
    values = {name: np.array([one[name] for one in drawn]) for name in here}  # (resamples, 2)

    def measured(value: tuple[float, float], resampled: np.ndarray) -> dict[str, list[float]]:
        low, high = np.percentile(resampled - resampled.mean(0), (2.5, 97.5), axis=0)
        return {
            kind: [value[k], value[k] + float(low[k]), value[k] + float(high[k])]
            for k, kind in enumerate(('frechet', 'mmd2'))
        }

    by_name = {name: measured(here[name], values[name]) for name in here}
    differences = [
        dict(a=a, b=b) | measured(tuple(np.subtract(here[a], here[b]).tolist()), values[a] - values[b])
        for a, b in combinations(numbered, 2)
    ]
    kinds = {kind: {name: one[kind] for name, one in by_name.items()} for kind in ('frechet', 'mmd2')}
    return kinds | dict(differences=differences, bandwidth=bandwidth)


def _kernels(original: list[_Numbered], sets: Mapping[str, list[_Numbered]], bandwidth: float) -> dict:
    """By name: of the originals' half 0 with the set's half 1, and of 1 with 0; the zero's one pair."""

    def sums(a: _Numbered, b: _Numbered) -> np.ndarray:
        return kernel_sums(a.rows, b.rows, a.person, b.person, bandwidth)

    real = [sums(half, half) for half in original]
    first, second = original
    found = {ZERO: [PeopleKernels(*real, sums(first, second), first.faces, second.faces)]}
    for name, halves in tqdm(sets.items(), desc='kernels', mininterval=1):
        found[name] = [
            PeopleKernels(real[s], sums(o, o), sums(original[s], o), original[s].faces, o.faces)
            for s, o in ((0, halves[1]), (1, halves[0]))
        ]
    return found
