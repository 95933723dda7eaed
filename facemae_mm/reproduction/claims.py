"""Sentences of the paper that compare two numbers, by name, held against ours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .measures import SETS, Measured, Measures, difference
from .tables import Row, Table

HOLDS, FAILS, OPEN, NOT_RUN = 'holds', 'does not hold', 'not decided at this size', 'not run'

#: Place of a claim that is not the paper's.
OURS_ALONE = 'not in the paper'

#: Differences of less are called none, where the paper says that something does not matter.
NEGLIGIBLE = 0.02


@dataclass(frozen=True)
class Verdict:
    """What one measure says of one comparison.

    Attributes:
        measure: 'accuracy' (on LFW), or 'accuracy CFP-FP', or 'separation (judge)', or 'leakage (attacker)'.
        verdict: HOLDS, FAILS, OPEN or NOT_RUN.
        figures: The numbers, for people.
        runs: Of which it is; 0 of none.
    """

    measure: str
    verdict: str
    figures: str
    runs: int = 0


@dataclass(frozen=True)
class Claim:
    """A sentence of the paper.

    Attributes:
        name: Short.
        sentence: What the paper says, in its words where they are short.
        place: Where; `OURS_ALONE` for a sentence that it does not say.
        check: Reads the verdicts off the tables.
    """

    name: str
    sentence: str
    place: str
    check: Callable[['Evidence'], list[Verdict]]


class Evidence:
    """Cells by table and row, as claims ask for them.

    Args:
        measures: Of the cells.
        tables: By name.
        judges: Names of the embedders that training never saw.
    """

    def __init__(self, measures: Measures, tables: dict[str, Table], judges: Sequence[str]) -> None:
        self.measures = measures
        self.tables = tables
        self.judges = list(judges)
        self.sets = measures.sets(tables.values())

    def row(self, place: str) -> Row | None:
        """Of 'table.row'; None where the table is not shown."""
        table, _, row = place.partition('.')
        return self.tables[table].rows.get(row) if table in self.tables else None

    def minus(self, a: str, b: str) -> str:
        """'a − b', as their rows are called; of two of one name, with their tables."""
        labels = [row.label if row else place for place, row in ((place, self.row(place)) for place in (a, b))]
        if labels[0] == labels[1]:
            numbers = [place.partition('.')[0].removeprefix('table') for place in (a, b)]
            return ' − '.join(f'{label} of Table {number}' for label, number in zip(labels, numbers))
        return ' − '.join(f'({label})' if '+' in label else label for label in labels)

    def _pair(self, a: str, b: str, measure: Callable[[Row], Measured | None]) -> Measured | None:
        """a − b."""
        found = [row and measure(row) for row in (self.row(a), self.row(b))]
        return None if None in found else difference(*found)

    def differences(self, a: str, b: str) -> dict[str, Measured | None]:
        """a − b by every measure of utility, paired."""
        found = {'accuracy': self._pair(a, b, self.measures.accuracy)}
        for name in self.sets:
            measure = lambda row, name=name: self.measures.accuracy(row, name)  # noqa: E731
            found[f'accuracy {SETS[name]}'] = self._pair(a, b, measure)
        for judge in self.judges:
            measure = lambda row, judge=judge: self.measures.separation(row, judge)  # noqa: E731
            found[f'separation ({judge})'] = self._pair(a, b, measure)
        return found


def _points(value: Measured) -> str:
    return f'{100 * value.mean:+.1f} [{100 * value.low:+.1f}, {100 * value.high:+.1f}]'


def _paired(evidence: Evidence, a: str, b: str, value: Measured) -> str:
    """The figures of a comparison."""
    return f'{evidence.minus(a, b)}: {_points(value)} points'


def _compared(a: str, b: str, judge: Callable[[float, float], str]) -> Callable[[Evidence], list[Verdict]]:
    """What the interval of a − b says, by every measure of utility."""

    def check(evidence: Evidence) -> list[Verdict]:
        return [
            Verdict(measure, NOT_RUN, '')
            if value is None
            else Verdict(measure, judge(value.low, value.high), _paired(evidence, a, b, value), value.runs)
            for measure, value in evidence.differences(a, b).items()
        ]

    return check


def _above(a: str, b: str) -> Callable[[Evidence], list[Verdict]]:
    """a is above b."""
    return _compared(a, b, _positive)


def _above_each(a: str, others: Sequence[str]) -> Callable[[Evidence], list[Verdict]]:
    """a is above all of others that the scale has, by accuracy: their faces are of other people."""

    def check(evidence: Evidence) -> list[Verdict]:
        checks = [_accuracy(_above(a, b)) for b in others if evidence.row(b)]
        return _all(*checks)(evidence)

    return check


def _accuracy(check: Callable[[Evidence], list[Verdict]]) -> Callable[[Evidence], list[Verdict]]:
    """By accuracy alone, where the faces are of different people, whose separation is no pair."""
    return lambda evidence: [one for one in check(evidence) if one.measure.startswith('accuracy')]


def _same(a: str, b: str) -> Callable[[Evidence], list[Verdict]]:
    """a and b differ by less than what is negligible."""

    def judge(low: float, high: float) -> str:
        outside = low > NEGLIGIBLE or high < -NEGLIGIBLE
        return HOLDS if -NEGLIGIBLE < low and high < NEGLIGIBLE else FAILS if outside else OPEN

    return _compared(a, b, judge)


def _no_better(a: str, b: str) -> Callable[[Evidence], list[Verdict]]:
    """a is not above b: it fails where a is above at all, and holds where a can be so by what is negligible alone."""
    return _compared(a, b, lambda low, high: FAILS if low > 0 else HOLDS if high < NEGLIGIBLE else OPEN)


def _all(*checks: Callable[[Evidence], list[Verdict]]) -> Callable[[Evidence], list[Verdict]]:
    """Every one of several comparisons."""

    def check(evidence: Evidence) -> list[Verdict]:
        by_measure: dict[str, list[Verdict]] = {}
        for verdict in (verdict for one in checks for verdict in one(evidence)):
            by_measure.setdefault(verdict.measure, []).append(verdict)
        return [
            Verdict(
                measure,
                worst([verdict.verdict for verdict in found]),
                '; '.join(verdict.figures for verdict in found if verdict.figures),
                min((verdict.runs for verdict in found if verdict.runs), default=0),
            )
            for measure, found in by_measure.items()
        ]

    return check


def worst(verdicts: Sequence[str]) -> str:
    """Of several comparisons: one that fails decides, then one that is open."""
    return next((one for one in (FAILS, OPEN, NOT_RUN) if one in verdicts), HOLDS)


def _error_halved(ours: str, others: Sequence[str]) -> Callable[[Evidence], list[Verdict]]:
    """The error of ours is at most half of that of the best of others, on every set."""

    def on_set(evidence: Evidence, rows: dict[str, Row | None], name: str) -> Verdict:
        measure = 'accuracy' if name == 'lfw' else f'accuracy {SETS[name]}'
        found = {place: evidence.measures.accuracy(row, name) for place, row in rows.items() if row and row.runs}
        if ours not in found or len(found) < 2 or None in found.values():
            return Verdict(measure, NOT_RUN, '')
        best = max((place for place in found if place != ours), key=lambda place: found[place].mean)
        a, b = found[ours], found[best]
        with np.errstate(divide='ignore', invalid='ignore'):  # some resample may hold no error of one or of both
            ratios = (1 - a.resampled) / (1 - b.resampled)
        ratios = np.sort(np.where(np.isnan(ratios), 1, ratios))
        low, high = ratios[int(0.025 * len(ratios))], ratios[int(0.975 * len(ratios))]
        ratio = (1 - a.mean) / (1 - b.mean)
        verdict = HOLDS if high <= 0.5 else FAILS if low > 0.5 else OPEN
        figures = f'error {ratio:.2f} [{low:.2f}, {high:.2f}] of that of {rows[best].label}'
        return Verdict(measure, verdict, figures, min(a.runs, b.runs))

    def check(evidence: Evidence) -> list[Verdict]:
        rows = {place: evidence.row(place) for place in (ours, *others)}
        return [on_set(evidence, rows, name) for name in ('lfw', *evidence.sets)]

    return check


def _sharper(low: str, middle: str, high: str) -> Callable[[Evidence], list[Verdict]]:
    """From low to middle utility falls less than from middle to high, and there it falls."""

    def check(evidence: Evidence) -> list[Verdict]:
        found = []
        first, second = evidence.differences(low, middle), evidence.differences(middle, high)
        for measure, a in first.items():
            b = second[measure]
            if a is None or b is None:
                found.append(Verdict(measure, NOT_RUN, ''))
                continue
            more = difference(b, a)
            verdict = HOLDS if more.low > 0 and b.low > 0 else FAILS if more.high < 0 or b.high < 0 else OPEN
            figures = f'{_paired(evidence, low, middle, a)}; {_paired(evidence, middle, high, b)}'
            found.append(Verdict(measure, verdict, figures, more.runs))
        return found

    return check


def _in_each_run(check: Callable[..., list[tuple[Verdict, str]]], *places: str) -> Callable[[Evidence], list[Verdict]]:
    """What the audits of rows say, run by run: it holds where it does so in every run that all rows have.

    Args:
        check: From the evidence and an audit of each row: verdicts of one run, and what to say of a run but the first.
        places: The rows.
    """

    def over_runs(evidence: Evidence) -> list[Verdict]:
        rows = [evidence.row(place) for place in places]
        audits = zip(*(evidence.measures.leakage(row) if row else [] for row in rows))
        by_run = [said for said in (check(evidence, *of_run) for of_run in audits) if said]
        found = []
        for runs in zip(*by_run):
            (first, _), others = runs[0], [short for _, short in runs[1:]]
            figures = first.figures + (f'; in other runs {", ".join(others)}' if others else '')
            found.append(Verdict(first.measure, worst([one.verdict for one, _ in runs]), figures, len(runs)))
        return found or [Verdict('leakage', NOT_RUN, '')]

    return over_runs


def _rates(audit: dict, pairing: str, mode: str) -> dict[str, list[tuple[int, list[float]]]]:
    """Leakage at K = 2 by attacker, at every number of identities: (N, [rate, low, high])."""
    found = {}
    for attacker, about in sorted(audit['attackers'].items()):
        points = about['leakage'].get(pairing, [])
        rates = [(point['identities'], point[mode]['2']) for point in points if point.get(mode)]
        if rates:
            found[f'leakage ({attacker})'] = rates
    return found


def percent(rate: Sequence[float]) -> str:
    """A rate and its interval, in hundredths."""
    return f'{100 * rate[0]:.1f} [{100 * rate[1]:.1f}, {100 * rate[2]:.1f}]'


def _points_lower(difference: Sequence[float]) -> str:
    return f'{percent(difference)} points lower'


def _leaks_less(a: tuple[str, str], b: tuple[str, str]) -> Callable[[Evidence], list[Verdict]]:
    """At the largest number of identities a curve (row, pairing) lies under another; unpaired."""

    def check(evidence: Evidence, *audits: dict) -> list[tuple[Verdict, str]]:
        found = []
        for mode in ('without', 'with'):
            first, second = (_rates(audit, pairing, mode) for audit, (_, pairing) in zip(audits, (a, b)))
            for attacker in first.keys() & second.keys():
                x, y = first[attacker][-1][1], second[attacker][-1][1]
                lower = _unpaired_difference(y, x)
                figures = ', '.join(
                    f'{evidence.row(place).label}, {pairing.replace("_", " → ")}: {percent(rate)} %'
                    for (place, pairing), rate in ((a, x), (b, y))
                )
                figures += f'; {_points_lower(lower)}, {mode} the source'
                found.append((Verdict(attacker, _positive(*lower[1:]), figures), percent(lower)))
        return sorted(found, key=lambda one: one[0].measure)

    return _in_each_run(check, a[0], b[0])


def _unpaired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """a − b of two rates with intervals, and its own, from theirs (Newcombe's square-and-add)."""
    (x, x_low, x_high), (y, y_low, y_high) = a, b
    return x - y, x - y - np.hypot(x - x_low, y_high - y), x - y + np.hypot(x_high - x, y - y_low)


def _leakage_cut(place: str, points: float) -> Callable[[Evidence], list[Verdict]]:
    """Original→Original minus Original→released, at equal galleries, is so many points or more at the largest N."""

    def check(evidence: Evidence, audit: dict) -> list[tuple[Verdict, str]]:
        found = []
        for attacker, about in sorted(audit['attackers'].items()):
            last = about['difference']['points'][-1]
            for mode in ('without', 'with'):
                rate = (last.get(mode) or {}).get('2')
                if rate:
                    verdict = HOLDS if rate[1] >= points else FAILS if rate[2] < points else OPEN
                    figures = f'{_points_lower(rate)}, {mode} the source, {last["identities"]} identities'
                    found.append((Verdict(f'leakage ({attacker})', verdict, figures), percent(rate)))
        return found

    return _in_each_run(check, place)


def _falls_more(place: str) -> Callable[[Evidence], list[Verdict]]:
    """Original→released falls by a larger share with the number of identities than Original→Original."""

    def check(evidence: Evidence, audit: dict) -> list[tuple[Verdict, str]]:
        found = []
        kept = _rates(audit, 'original_original', 'without') or _rates(audit, 'original_original', 'with')
        released = _rates(audit, 'original_released', 'without')
        for attacker in sorted(kept.keys() & released.keys()):
            ends = [(rates[0], rates[-1]) for rates in (released[attacker], kept[attacker])]
            (few, _), (many, _) = ends[0]
            if any(first[1] == 0 for (_, first), _ in ends):
                short = f'among {few} identities a rate may be 0'
                found.append((Verdict(attacker, OPEN, short), short))
                continue
            a, b = (
                (1 - last[0] / first[0], 1 - last[2] / first[1], 1 - last[1] / first[2])
                for (_, first), (_, last) in ends
            )
            verdict = HOLDS if a[1] > b[2] else FAILS if a[2] < b[1] else OPEN
            figures = (
                f'from {few} to {many} identities the released loses {percent(a)} % of its rate, '
                f'the original {percent(b)} %'
            )
            found.append((Verdict(attacker, verdict, figures), percent(a)))
        return found

    return _in_each_run(check, place)


def _difference_of(differences: Sequence[dict], a: str, b: str, *keys: str) -> list[float] | None:
    """[a − b, low, high]; None where there is none.

    Args:
        differences: Of sets 'a' and 'b'.
        a: Name of a set.
        b: Likewise.
        keys: Which lead to the values in a difference.
    """
    values = next((one for one in differences if {one['a'], one['b']} == {a, b}), None)
    turned = values is not None and values['a'] == b
    for key in keys:
        values = values and values[key]
    if values is None or not turned:
        return values
    mean, low, high = values
    return [-mean, -high, -low]


def _positive(low: float, high: float) -> str:
    return HOLDS if low > 0 else FAILS if high < 0 else OPEN


def _more_detail(ours: str, other: str) -> Callable[[Evidence], list[Verdict]]:
    """Ours has more of the original's detail at eyes and mouth (Figure 4), without an embedder.

    Not asked is how much detail there is: beyond the original's it is noise.
    """

    def check(evidence: Evidence) -> list[Verdict]:
        numbers = evidence.measures.numbers('fig4')
        if numbers is None:
            return [Verdict('similarity at eyes and mouth', NOT_RUN, '')]
        verdicts = []
        for measure in ('match', 'ssim'):
            found = {
                region: _difference_of(numbers['differences'], ours, other, region, measure)
                for region in ('eyes', 'mouth')
            }
            if None in found.values():
                verdicts.append(Verdict(measure, NOT_RUN, ''))
                continue
            verdict = worst([_positive(value[1], value[2]) for value in found.values()])
            figures = '; '.join(
                f'{region} {ours} − {other} {mean:.3f} [{low:.3f}, {high:.3f}]'
                for region, (mean, low, high) in found.items()
            )
            verdicts.append(Verdict(measure, verdict, figures, 1))
        return verdicts

    return check


def _apart(
    stage: str,
    read: Callable[[dict], Sequence[dict]],
    reference: str,
    others: Sequence[str],
    measures: Sequence[tuple[str, str, int]],
) -> Callable[[Evidence], list[Verdict]]:
    """Every other set lies above the reference by a measure with sign 1, below it by one with sign −1.

    Args:
        stage: Whose numbers have the differences of sets.
        read: Finds these among the numbers.
        reference: Name of a set.
        others: Likewise.
        measures: Key, title and sign of each.
    """

    def check(evidence: Evidence) -> list[Verdict]:
        numbers = evidence.measures.numbers(stage)
        if numbers is None:
            return [Verdict(title, NOT_RUN, '') for _, title, _ in measures]
        verdicts = []
        for key, title, sign in measures:
            found = {other: _difference_of(read(numbers), other, reference, key) for other in others}
            if None in found.values():
                verdicts.append(Verdict(title, NOT_RUN, ''))
                continue
            each = [_positive(*((low, high) if sign > 0 else (-high, -low))) for _, low, high in found.values()]
            figures = '; '.join(
                f'{other} − {reference} {mean:+.4f} [{low:+.4f}, {high:+.4f}]'
                for other, (mean, low, high) in found.items()
            )
            verdicts.append(Verdict(title, worst(each), figures, 1))
        return verdicts

    return check


def _nearer(ours: str, *others: str) -> Callable[[Evidence], list[Verdict]]:
    """Others lie farther from the originals than ours in a judge's space (Figure 1)."""
    measures = (('frechet', 'Fréchet distance', 1), ('mmd2', 'MMD²', 1))
    return _apart('fig1', lambda numbers: numbers['differences'], ours, others, measures)


def _aligns_worse(reference: str, *others: str) -> Callable[[Evidence], list[Verdict]]:
    """Others' faces are found more rarely than those of the reference, or their landmarks lie farther off (Table 7)."""
    measures = (
        ('landmark_error', 'landmark error, in distances of the eyes', 1),
        ('found', 'share of faces found', -1),
    )
    return _apart('alignment', lambda numbers: numbers['alignment']['differences'], reference, others, measures)


MAE, OURS = 'table2.mse', 'table2.im_rm'
RELEASED = 'original_released'
SYNFACE = ('table1.synface', 'table1.synface_im', 'table1.synface_dm', 'table1.synthetic')

CLAIMS = (
    Claim(
        'half the error of SynFace',
        'The error rate is reduced at least 50 % compared to SynFace.',
        'Table 1',
        _error_halved('table1.facemae', SYNFACE),
    ),
    Claim(
        'order of the methods',
        'FaceMAE serves better than MAE, MAE than 75 % masked faces, these than parts of faces.',
        'Table 1',
        _all(
            _above('table1.facemae', 'table1.mae'),
            _above('table1.mae', 'table1.masked'),
            _above('table1.masked', 'table1.parts'),
        ),
    ),
    Claim(
        'IM and RM together',
        'The best results are achieved when jointly using IM and RM.',
        'Table 2',
        _all(_above(OURS, 'table2.im'), _above(OURS, 'table2.rm')),
    ),
    Claim(
        'IM or RM alone beats MSE',
        'Either alone brings non-trivial improvement over MSE.',
        'Table 2',
        _all(_above('table2.im', MAE), _above('table2.rm', MAE)),
    ),
    Claim('MSE does not help', 'Adding MSE cannot further improve.', 'Table 2', _no_better('table2.all', OURS)),
    Claim(
        'IRM and not its start',
        'FaceMAE serves better than its start does, trained on by MSE of the whole face for as many faces.',
        OURS_ALONE,
        _above(OURS, 'table2.mse_whole'),
    ),
    Claim(
        'IRM leaks less than MSE',
        'FaceMAE leaks less than its start does, trained on by MSE of the whole face for as many faces.',
        OURS_ALONE,
        _leaks_less((OURS, RELEASED), ('table2.mse_whole', RELEASED)),
    ),
    Claim(
        'mask ratio',
        'From 30 to 75 % performance degrades slightly, at 90 % obviously.',
        'Table 3',
        _sharper('table3.r30%', 'table3.r75%', 'table3.r90%'),
    ),
    Claim(
        'a larger deployment set',
        'Deploying on a larger dataset gives better verification.',
        'Table 4',
        _accuracy(_above('table4.c_w', 'table4.w_c')),
    ),
    Claim(
        'identity overlap',
        'It generalises no matter whether identities overlap.',
        'Table 4',
        _same('table4.overlap', 'table4.w_c'),
    ),
    Claim('deeper recognisers', 'R100 outperforms R18.', 'Table 5', _above('table5.r100', 'table5.r18')),
    Claim(
        'any architecture',
        'The reconstructed faces are not sensitive to network architectures.',
        'Table 5',
        _all(_same('table5.r18', 'table5.mbf'), _same('table5.r18', 'table5.vit')),
    ),
    Claim(
        'β up to 1',
        'Performance increases monotonically when β rises from 0.1 to 1.',
        'Table 6',
        _all(_above('table6.b0.5', 'table6.b0.1'), _above('table6.b1', 'table6.b0.5')),
    ),
    Claim('β = 10', 'At β = 10 performance degrades significantly.', 'Table 6', _above('table6.b1', 'table6.b10')),
    Claim(
        'mask seed',
        'Changing the random seed has very little influence.',
        'Table 7',
        _same('table7.seed0', 'table7.seed1'),
    ),
    Claim(
        'eyes and mouth',
        'Masking eyes or mouth consistently degrades.',
        'Table 7',
        _all(_above('table7.seed0', 'table7.eyes'), _above('table7.seed0', 'table7.mouth')),
    ),
    Claim(
        'eyes and mouth in alignment',
        'Masking these areas also causes difficulties for face alignment.',
        'Table 7',
        _aligns_worse('seed0', 'eyes', 'mouth'),
    ),
    Claim(
        'fewer masks at deployment',
        'It performs better on 30 % and 50 % masked faces.',
        'Table 8',
        _all(_above('table8.r30%', 'table8.r75%'), _above('table8.r50%', 'table8.r75%')),
    ),
    Claim(
        '90 % at deployment alone',
        'Trained at 75 % and deployed at 90 % it beats training at 90 %.',
        'Tables 3, 8',
        _above('table8.r90%', 'table3.r90%'),
    ),
    Claim(
        '85 % beats GANs',
        'At 85 % it still performs better than GAN-based methods.',
        'Table 8',
        _above_each('table8.r85%', SYNFACE),
    ),
    Claim(
        '85 % beats masking',
        'At 85 % it still performs better than mask-based methods.',
        'Table 8',
        _above('table8.r85%', 'table1.masked'),
    ),
    Claim(
        'leakage cut by 20 points',
        'Original→FaceMAE lies around 20 points under Original→Original (tested: 20 or more).',
        'Figure 3 (b)',
        _leakage_cut(OURS, 0.2),
    ),
    Claim(
        'MAE leaks less than the originals',
        'Original→MAE lies under Original→Original.',
        'Figure 3 (a)',
        _leakage_cut(MAE, 0.0),
    ),
    Claim(
        'MAE leaks less with many identities',
        'Original→MAE degrades largely with their number, Original→Original slightly.',
        'Figure 3 (a)',
        _falls_more(MAE),
    ),
    Claim('FaceMAE leaks less with many identities', 'So does Original→FaceMAE.', 'Figure 3 (b)', _falls_more(OURS)),
    Claim(
        'FaceMAE leaks more than MAE',
        'Original→FaceMAE is higher than Original→MAE.',
        'Figure 3',
        _leaks_less((MAE, RELEASED), (OURS, RELEASED)),
    ),
    Claim(
        'FaceMAE serves better than MAE',
        'It achieves remarkable improvement over MAE.',
        'Section 4.5',
        _above(OURS, MAE),
    ),
    Claim(
        'FaceMAE serves augmented recognisers better',
        'The same, where recognisers train longer and with augmentation.',
        OURS_ALONE,
        _accuracy(_above('table1.facemae_augmented', 'table1.mae_augmented')),
    ),
    Claim(
        'more detail than MAE',
        'Around eyes and mouth, FaceMAE reconstructs more details than vanilla MAE.',
        'Figure 4',
        _more_detail('facemae', 'mae'),
    ),
    Claim(
        'nearer to the originals',
        'FaceMAE faces are distributed more like the originals than masked or generated faces.',
        'Figure 1',
        _nearer('facemae', 'masked', 'synface'),
    ),
    Claim(
        'imitation by MAE',
        'Retrieving with MAE-processed images is much more challenging.',
        'Figure 3 (c)',
        _leaks_less((OURS, 'imitation:MAE'), (OURS, RELEASED)),
    ),
    Claim(
        'imitation by FaceMAE',
        'The same, where the attacker has the model and other masks.',
        OURS_ALONE,
        _leaks_less((OURS, 'imitation:FaceMAE'), (OURS, RELEASED)),
    ),
)
