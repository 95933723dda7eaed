"""The report's charts, made of an audit's flat rows."""

import math

import numpy as np

from .axis import Axis
from .chart import Chart
from .rows import COUNTED, attackers, find, headline_k, rate_of
from .wording import COUNTED as COUNTED_WORDS
from .wording import has_interval, pairing_name, with_interval

_SPREAD, _MOST = 3.5, 28  # units between the bars of neighbouring series, and between the first and the last
_NARROWEST = 0.2  # least width of an axis of cosines


def attackers_chart(report: dict, rows: dict[str, list[dict]]) -> Chart | None:
    """What each attacker finds at the headline's K, one line an attacker, against the real photos and chance."""
    k = headline_k(report)
    kinds = (
        ('original_original', None, 'real photos among themselves'),
        ('original_released', 'without', 'released faces, without the same source'),
        ('original_released', 'with', 'released faces, every one'),
    )
    found = {
        attacker: [
            find(rows['leakage'], attacker=attacker, pairing=pairing, k=k, **({'counted': counted} if counted else {}))
            for pairing, counted, _ in kinds
        ]
        for attacker in attackers(report)
    }
    found = {attacker: cells for attacker, cells in found.items() if any(cells[1:])}
    if not found:
        return None
    cells = [cell for row in found.values() for cell in row if cell]
    said = [
        f'{attacker}: '
        + '; '.join(f'{kind[2]} {with_interval(rate_of(cell))}' for kind, cell in zip(kinds, row) if cell)
        for attacker, row in found.items()
    ]
    chart = Chart(
        'attackers',
        f'What each attacker finds, K = {k}',
        '. '.join(said),
        Axis.of_rates('photos whose person is found', _ends(cells)),
        Axis('', 0, len(found), ()),
        height=72 + 56 * len(found),
        left=14,
    )
    chart_rows = list(enumerate(found.items()))
    for style, (_, _, label) in enumerate(kinds):
        first = True
        for place, (_, row) in chart_rows:
            if row[style]:
                height = len(found) - place - 0.62
                shift = 9 * (style - 1)
                chart.point(style, label if first else None, rate_of(row[style]), (height, None, None), shift)
                first = False
    lines = []
    for place, (attacker, row) in chart_rows:
        chart.words(_short(attacker), 0, len(found) - place - 0.62, 21)
        chance = next((cell['chance'] for cell in row[1:] if cell and cell['chance'] is not None), None)
        if chance is not None:
            lines.append([(chance, len(found) - place - 0.37), (chance, len(found) - place - 0.94)])
    if lines:
        chart.chance('chance', *lines)
    return chart


def curve_chart(name: str, rows: dict[str, list[dict]], attacker: str, k: int) -> Chart | None:
    """Leakage at K over the number of identities, a curve for each pairing (Figures 3 and 5)."""
    mine = [row for row in rows['curves'] if row['attacker'] == attacker and row['k'] == k]
    pairings = list(dict.fromkeys(row['pairing'] for row in mine))
    curves = []  # each kind of curve has its style in every chart of the page
    for style, pairing, way in (
        (0, 'original_original', None),
        (1, 'original_released', 'without'),
        (2, 'original_released', 'with'),
        (3, 'released_released', None),
        *(
            (style, name, None)
            for style, name in enumerate(filter(lambda name: name.startswith('imitation:'), pairings), 4)
        ),
    ):
        found = [row for row in mine if row['pairing'] == pairing]
        way = way or next((way for way in COUNTED if any(row['counted'] == way for row in found)), None)
        curve = [row for row in found if row['counted'] == way]
        label = pairing_name(pairing)
        if pairing == 'original_released' or (pairing.startswith('imitation:') and way == 'with'):
            label += f', {COUNTED_WORDS[way]}'
        if curve:
            curves.append((style, label, curve))
    if not curves:
        return None
    last = '; '.join(f'{label}: {with_interval(rate_of(curve[-1]))}' for _, label, curve in curves)
    counts = [row['identities'] for row in mine]
    chart = Chart(
        name,
        f'Leakage at K = {k} over the number of identities',
        f'With {max(counts):,} identities: {last}.',
        Axis.of_counts('identities (logarithmic)', counts),
        Axis.of_rates(f'found, K = {k}', _ends(mine)),
        whose=attacker,
    )
    lucky = next((row for row in mine if row['pairing'] == 'original_released' and row['chance'] is not None), None)
    if lucky:
        line = [row for row in mine if all(row[key] == lucky[key] for key in ('pairing', 'counted'))]
        chart.chance('chance', [(row['identities'], row['chance']) for row in line if row['chance'] is not None])
    spread = min(_SPREAD, _MOST / len(curves))
    for place, (style, label, curve) in enumerate(curves):
        chart.series(
            style,
            label,
            [(row['identities'], row['rate']) for row in curve],
            [(row['low'], row['high']) if has_interval(rate_of(row)) else None for row in curve],
            shift=spread * (place - (len(curves) - 1) / 2),
        )
    return chart


def roc_chart(name: str, rows: dict[str, list[dict]], attacker: str) -> Chart | None:
    """Membership: true against false positives, the latter on a logarithmic axis, with chance."""
    mine = [row for row in rows['roc'] if row['attacker'] == attacker]
    if not mine:
        return None
    smallest = min((row['fpr'] for row in mine if row['fpr'] > 0), default=0.01)
    decade = min(max(math.floor(math.log10(smallest) + 1e-9), -5), -2)
    start = 10.0 ** (decade - 0.15)  # the bars of the first rate stand clear of the axis
    ticks = tuple((10.0**power, f'{100 * 10.0**power:.6g}\u00a0%') for power in range(decade, 1))
    keys = list(dict.fromkeys((row['counted'], row['score']) for row in mine))
    said, curves = [], []
    for counted, score in keys:
        of = dict(attacker=attacker, counted=counted, score=score)
        label = f'{score}, {COUNTED_WORDS[counted]}'
        area = find(rows['membership'], measure='AUC', **of)
        said.append(f'{label}: area under the curve {with_interval(area and rate_of(area, "value"))}')
        curves.append((label, of, [row for row in mine if row['counted'] == counted and row['score'] == score]))
    chart = Chart(
        name,
        'True against false positive rate',
        '; '.join(said) + '.',
        Axis('false positive rate (logarithmic)', start, 1.0, ticks, True),
        Axis.of_rates('true positive rate', [1.0]),
        whose=attacker,
    )
    luck = np.geomspace(start, 1, 60)
    chart.chance('chance', list(zip(luck, luck)))
    for style, (label, of, curve) in enumerate(curves):
        enters = float(np.interp(start, [row['fpr'] for row in curve], [row['tpr'] for row in curve]))
        seen = {}
        for row in (
            row for row in curve if row['fpr'] >= start
        ):  # what lies in one unit of the chart shows as its last point
            seen[round(chart.x.position(row['fpr']), 2)] = (row['fpr'], row['tpr'])
        chart.series(style, label, [(start, enters), *seen.values()], markers=False)
        for measured in rows['membership']:
            if measured['measure'] != 'AUC' and measured['value'] is not None and of.items() <= measured.items():
                beside = measured['chance'] * 10 ** (0.04 * (style - (len(curves) - 1) / 2))  # bars hide no other
                chart.point(style, None, (beside, None, None), rate_of(measured, 'value'))
    return chart


def histogram_chart(name: str, rows: dict[str, list[dict]], report: dict, attacker: str) -> Chart | None:
    """How alike the nearest photos are: to released faces, and to photos of the same and of other people."""
    mine = [row for row in rows['histogram'] if row['attacker'] == attacker]
    series = {row['series']: [] for row in mine}
    for row in mine:
        series[row['series']].append(row)
    edges = [row['from'] for row in mine[:1]] + [row['to'] for row in next(iter(series.values()), ())]
    series = {label: [row['count'] for row in bins] for label, bins in series.items()}
    series = {label: counts for label, counts in series.items() if sum(counts)}
    if not series:
        return None
    low, high = min(edges[0], edges[-1] - _NARROWEST), edges[-1]
    shares = {label: np.array(counts) / sum(counts) for label, counts in series.items()}
    step = next(step for step in (0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10**9) if high - low <= 7 * step)
    ticks = [number * step for number in range(math.ceil(low / step - 1e-9), 1 + math.floor(high / step + 1e-9))]
    said = []
    for label, heights in shares.items():
        half = int(np.searchsorted(np.cumsum(heights), 0.5 - 1e-12))
        said.append(f'{label}: {sum(series[label]):,}, half of them up to {edges[half + 1]:g}')
    chart = Chart(
        name,
        'Similarity of the nearest photo',
        '; '.join(said) + '.',
        Axis(
            'cosine similarity (1: the same)',
            low,
            high,
            tuple((tick, f'{tick:.4g}'.replace('-', '−')) for tick in ticks),
        ),
        Axis.of_rates('share of each', [float(max(heights.max() for heights in shares.values()))]),
        whose=attacker,
    )
    for style, (label, heights) in enumerate(shares.items()):
        chart.steps(style, label, edges, heights)
    threshold = find(rows['near_duplicates'], attacker=attacker, measure='threshold')
    if threshold and threshold['value'] is not None and low <= threshold['value'] <= high:
        chart.rule(f'{threshold["value"]:.3f}: 99\u00a0% of photos of other people lie left of it', threshold['value'])
    return chart


def utility_charts(report: dict, rows: dict[str, list[dict]]) -> list[Chart]:
    """Utility against leakage, a chart for each recogniser and set, methods in one style throughout."""
    placed = [row for row in rows['utility'] if row['accuracy'] is not None and row['leakage'] is not None]
    methods = list(dict.fromkeys(row['method'] for row in placed))
    charts = []
    for number, (recogniser, pairs) in enumerate(dict.fromkeys((row['recogniser'], row['set']) for row in placed)):
        mine = [row for row in placed if (row['recogniser'], row['set']) == (recogniser, pairs)]
        both = [((row['leakage'], row['leakage_low'], row['leakage_high']), rate_of(row, 'accuracy')) for row in mine]
        said = '; '.join(
            f'{row["method"]}: accuracy {with_interval(accuracy)}, leakage {with_interval(leakage)}'
            for row, (leakage, accuracy) in zip(mine, both)
        )
        chart = Chart(
            f'utility-{number}',
            f'Utility against leakage: {" on ".join(filter(None, (recogniser, pairs)))}',
            said + '. Better is up and left.',
            Axis.of_rates(f'leakage at K = {headline_k(report)}', _known(leakage for leakage, _ in both)),
            Axis.of_rates('verification accuracy', _known(rate for _, rate in both), floor=1.0),
        )
        for row, (leakage, accuracy) in zip(mine, both):
            chart.point(methods.index(row['method']), row['method'], leakage, accuracy)
        charts.append(chart)
    return charts


def _ends(rows: list[dict]) -> list[float]:
    return _known(rate_of(row) for row in rows)


def _known(rates) -> list[float]:
    return [value for rate in rates for value in rate if value is not None]


def _short(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f'{text[: most - 1]}…'
