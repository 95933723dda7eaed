"""What a cell measured, over its runs, with intervals; and differences between cells, paired."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import itemgetter

import numpy as np

from ..evaluation.intervals import resampled_identities
from .numbers import answers_of
from .store import Store
from .tables import Row, Table

RESAMPLES = 1000

#: Verification sets by their names in recipes, and as the paper calls them.
SETS = dict(lfw='LFW', cfp_fp='CFP-FP', agedb_30='AgeDB')


@dataclass(frozen=True)
class Measured:
    """A mean over runs, by the people it was measured on.

    Attributes:
        runs: Number of runs.
        mean: Over runs.
        low: 2.5 % of the resampled means.
        high: 97.5 % of them.
        resampled: Means in each resample (R,), the same people and runs in every `Measured` of the same kind.
        by_run: The value of each run.
    """

    runs: int
    mean: float
    low: float
    high: float
    resampled: np.ndarray
    by_run: tuple[float, ...]


def _measured(resampled: np.ndarray, by_run: Sequence[float]) -> Measured:
    low, high = np.percentile(resampled, (2.5, 97.5))
    return Measured(len(by_run), float(np.mean(by_run)), float(low), float(high), resampled, tuple(by_run))


def _drawn_runs(runs: int) -> np.ndarray:
    """Which runs each resample takes, with replacement, (R, runs)."""
    return np.random.default_rng(runs).integers(runs, size=(RESAMPLES, runs))


def _over_runs(by_run: np.ndarray, of_run: np.ndarray) -> Measured:
    """From each run's resampled values (runs, R) and its own value (runs,)."""
    drawn = _drawn_runs(len(of_run))
    return _measured(by_run[drawn, np.arange(RESAMPLES)[:, None]].mean(1), of_run.tolist())


class Measures:
    """Reads cells off the records of a store.

    Every resample draws the people of the test and the runs of a cell anew, with replacement: the same people and runs
    for all cells, so that a difference of two is paired. Three runs tell little about the variance between runs: that
    which resampling them shows is a third too small on average.

    Args:
        store: With the records.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._weights: dict[str, np.ndarray] = {}

    def numbers(self, name: str) -> dict | None:
        """Of a stage; None where it has not run, or is none of this scale."""
        record = self.store.record(self.store.stages[name]) if name in self.store.stages else None
        return record and record['numbers']

    def sets(self, tables: Iterable[Table]) -> list[str]:
        """Verification sets, LFW apart, on which anything was tested."""
        found = set()
        for name in {run.verify for table in tables for row in table.rows.values() for run in row.runs}:
            found |= (self.numbers(name) or {'answers': {}})['answers'].keys()
        return [name for name in SETS if name in found and name != 'lfw']

    def _done(self, stages: Iterable[str], read: Callable[[dict], Sequence | None]) -> np.ndarray:
        """What is read off the numbers of stages, up to the first that has none: (stages, …)."""
        found = []
        for name in stages:
            numbers = self.numbers(name)
            values = numbers and read(numbers)
            if values is None:
                break
            found.append(values)
        return np.array(found)

    def accuracy(self, row: Row, runs: int | None = None, set_name: str = 'lfw') -> Measured | None:
        """Share of a set's pairs that recognisers trained on the row's faces answered rightly.

        Where the people of the pairs are known, as in the miniature, a pair (a, b) weighs multiplicity(a) ·
        multiplicity(b), a pair (a, a) multiplicity(a), as in `FaceVerification`. A `.bin` names no people: there pairs
        are resampled, as if they were independent.

        Args:
            row: The row.
            runs: At most so many; None for all that have run.
            set_name: Of `SETS`.
        """
        verified = [run.verify for run in row.runs[:runs]]
        correct = self._done(verified, lambda numbers: answers_of(numbers, set_name))  # (runs, P)
        if not len(correct):
            return None
        weights = self._pair_weights(set_name, correct.shape[1])
        return _over_runs(correct @ weights.T / weights.sum(1), correct.mean(1))

    def _pair_weights(self, set_name: str, pairs: int) -> np.ndarray:
        """(R, P)."""
        if set_name not in self._weights:
            parts = self.numbers('parts') if set_name == 'lfw' else None
            if parts is None:
                weights = list(resampled_identities(pairs, RESAMPLES))
            else:
                a, b = np.array(parts['pairs']).T
                weights = [
                    drawn[a] * np.where(a == b, 1, drawn[b])
                    for drawn in resampled_identities(max(a.max(), b.max()) + 1, RESAMPLES)
                ]
            self._weights[set_name] = np.array(weights)
        return self._weights[set_name]

    def separation(self, row: Row, judge: str, runs: int | None = None) -> Measured | None:
        """How well a judge tells the people of the row's faces apart: mean AUC over people.

        Runs that differ in their recognisers alone are one run here.
        """
        stages = dict.fromkeys(run.separation[judge] for run in row.runs if judge in run.separation)
        aucs = self._done(list(stages)[:runs], itemgetter('by_person'))  # (runs, people)
        if not len(aucs):
            return None
        drawn = np.array(list(resampled_identities(aucs.shape[1], RESAMPLES)))
        return _over_runs(aucs @ drawn.T / aucs.shape[1], aucs.mean(1))

    def leakage(self, row: Row) -> list[dict]:
        """What the audits of the row's releases kept, up to the first that has not run."""
        audits = map(self.numbers, dict.fromkeys(run.audit for run in row.runs if run.audit))
        return list(takewhile(bool, audits))


def difference(a: Measured, b: Measured) -> Measured:
    """a − b, paired by people and runs.

    Raises:
        ValueError: Different numbers of runs.
    """
    if a.runs != b.runs:
        raise ValueError(f'{a.runs} and {b.runs} runs are no pairs.')
    return _measured(a.resampled - b.resampled, [x - y for x, y in zip(a.by_run, b.by_run, strict=True)])


def worst_leakage(audit: dict, mode: str) -> list[float] | None:
    """[rate, low, high] of Original→released at K = 2 and the largest number of identities, by the worst attacker.

    Args:
        audit: What an audit kept.
        mode: 'with' or 'without' the faces made from the very photo.

    Returns:
        None where the mode was not measured.
    """
    points = [about['leakage']['original_released'][-1] for about in audit['attackers'].values()]
    return max((point[mode]['2'] for point in points if point.get(mode)), default=None)
