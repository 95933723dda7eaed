"""What a cell measured, over its runs, with intervals; and differences between cells, paired."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from operator import itemgetter

import numpy as np

from ..evaluation.intervals import resampled_identities
from ..randomness import keyed_seed
from .numbers import answers_of
from .store import Store
from .tables import ALL, Row, Table

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
        resampled: Means in each resample (R,), of the same people in every `Measured` of the same kind, each moved as
            far as other trainings might move it.
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


class Measures:
    """Reads cells off the records of a store.

    Every resample draws the people of the test anew, with replacement, the same for all cells, so that a difference of
    two is paired by people. What another training would change is added, each row's by itself: Student's t, of the
    standard deviation between the runs of rows that train everything anew in each (`between_trainings`), over the root
    of the row's trainings. Where no row has two such runs, intervals are of the people alone.

    Args:
        store: With the records.
        tables: Whose rows tell how far trainings differ.
    """

    def __init__(self, store: Store, tables: Iterable[Table] = ()) -> None:
        self.store = store
        rows = [row for table in tables for row in table.rows.values() if row.varies == ALL and row.runs]
        self._trained_anew = list({row.runs[0].verify: row for row in rows}.values())
        self._weights: dict[str, np.ndarray] = {}
        self._between: dict[str, tuple[float, int]] = {}

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

    def accuracy(self, row: Row, set_name: str = 'lfw') -> Measured | None:
        """Share of a set's pairs that recognisers trained on the row's faces answered rightly.

        Where the people of the pairs are known, as in the miniature, a pair (a, b) weighs multiplicity(a) ·
        multiplicity(b), a pair (a, a) multiplicity(a), as in `FaceVerification`. A `.bin` names no people: there pairs
        are resampled, as if they were independent.

        Args:
            row: The row.
            set_name: Of `SETS`.
        """
        correct = self._correct(row, set_name)
        if not len(correct):
            return None
        weights = self._pair_weights(set_name, correct.shape[1])
        people = correct.mean(0) @ weights.T / weights.sum(1)
        return self._with_trainings(f'accuracy {set_name}', row, people, correct.mean(1))

    def _correct(self, row: Row, set_name: str) -> np.ndarray:
        """Which pairs of a set were answered rightly in each run, (runs, P) bool."""
        return self._done([run.verify for run in row.runs], lambda numbers: answers_of(numbers, set_name))

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

    def separation(self, row: Row, judge: str) -> Measured | None:
        """How well a judge tells the people of the row's faces apart: mean AUC over people.

        Runs that differ in their recognisers alone are one run here.
        """
        aucs = self._aucs(row, judge)
        if not len(aucs):
            return None
        drawn = np.array(list(resampled_identities(aucs.shape[1], RESAMPLES)))
        return self._with_trainings(f'separation {judge}', row, aucs.mean(0) @ drawn.T / aucs.shape[1], aucs.mean(1))

    def _aucs(self, row: Row, judge: str) -> np.ndarray:
        """AUC of each person in each run, (runs, people)."""
        stages = dict.fromkeys(run.separation[judge] for run in row.runs if judge in run.separation)
        return self._done(stages, itemgetter('by_person'))

    def between_trainings(self, kind: str) -> tuple[float, int]:
        """Standard deviation between runs that train everything anew, pooled over rows, and its degrees of freedom.

        Args:
            kind: 'accuracy SET' or 'separation JUDGE'.

        Returns:
            (0, 0) where no row has two such runs.
        """
        if kind not in self._between:
            what, _, name = kind.partition(' ')
            read = self._correct if what == 'accuracy' else self._aucs
            found = [values.mean(1) for values in (read(row, name) for row in self._trained_anew) if len(values) > 1]
            freedom = sum(len(runs) - 1 for runs in found)
            squares = sum(len(runs) * np.var(runs) for runs in found)
            self._between[kind] = (float(squares / freedom) ** 0.5, freedom) if freedom else (0.0, 0)
        return self._between[kind]

    def _with_trainings(self, kind: str, row: Row, people: np.ndarray, by_run: np.ndarray) -> Measured:
        """Means over runs in each resample of people (R,), moved as other trainings might; each run's own (runs,)."""
        deviation, freedom = self.between_trainings(kind)
        if freedom and (row.reconstructed or kind.startswith('accuracy')):
            trainings = len(by_run) if row.varies == ALL or not row.reconstructed else 1
            generator = np.random.default_rng(keyed_seed('trainings', kind, row.runs[0].verify))
            people = people + deviation / trainings**0.5 * generator.standard_t(freedom, RESAMPLES)
        return _measured(people, by_run.tolist())

    def leakage(self, row: Row) -> list[dict]:
        """What the audits of the row's releases kept, up to the first that has not run."""
        audits = map(self.numbers, dict.fromkeys(run.audit for run in row.runs if run.audit))
        return list(takewhile(bool, audits))


def difference(a: Measured, b: Measured) -> Measured:
    """a − b, paired by people; of as many runs as both have."""
    found = _measured(a.resampled - b.resampled, [x - y for x, y in zip(a.by_run, b.by_run)])
    return replace(found, mean=a.mean - b.mean)


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
