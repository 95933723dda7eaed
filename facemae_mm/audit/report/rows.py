"""An audit's numbers as flat rows: what the CSV files hold, and what tables, charts and sentences are made of."""

from collections.abc import Iterator

from .wording import measured

#: Columns of each CSV file. Rates are fractions; low and high are the ends of the 95 % interval.
COLUMNS = {
    'leakage': 'attacker pairing counted k rate low high chance identities queries gallery',
    'curves': 'attacker pairing counted k rate low high chance identities queries gallery draws',
    'difference': 'attacker counted k difference low high identities drawn_to_equal',
    'membership': 'attacker counted score measure value low high chance false_matches',
    'roc': 'attacker counted score fpr tpr',
    'near_duplicates': 'attacker measure value low high chance',
    'worst_cases': 'attacker rank similarity by is_source same_person',
    'histogram': 'attacker series from to count',
    'utility': 'method recogniser set accuracy low high pairs '
    'leakage leakage_low leakage_high k counted attacker chance',
}
COUNTED = ('without', 'with')

#: False matches below which the interval of a TPR is too narrow: in simulations it held the truth in 85 % at one.
FEW = 5


def dig(value: object, *keys: str) -> object:
    """What lies under keys of nested dicts, or None where one of them is absent."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def all_rows(report: dict) -> dict[str, list[dict]]:
    """Every table of the report by its name in `COLUMNS`, each row a dict of those columns."""
    curves = list(_curves(report))
    last = {}
    for row in curves:
        key = row['attacker'], row['pairing']
        last[key] = max(last.get(key, 0), row['identities'])
    ends = [row for row in curves if row['identities'] == last[row['attacker'], row['pairing']]]
    tables = {
        'leakage': [{key: row[key] for key in COLUMNS['leakage'].split()} for row in ends],
        'curves': curves,
        'difference': list(_differences(report)),
        'membership': list(_membership(report)),
        'roc': list(_roc(report)),
        'near_duplicates': list(_near_duplicates(report)),
        'worst_cases': list(_worst_cases(report)),
        'histogram': list(_histogram(report)),
    }
    tables['utility'] = list(_utility(report, tables['leakage']))
    return tables


def attackers(report: dict) -> dict[str, dict]:
    """The attackers by name, the headline's first."""
    known = report.get('attackers') or {}
    first = dig(report, 'headline', 'attacker')
    return {name: known[name] or {} for name in sorted(known, key=lambda name: name != first)}


def headline_k(report: dict) -> int:
    """The K of the headline: 2, the paper's, where the report names none."""
    return int(dig(report, 'headline', 'k') or 2)


def find(rows: list[dict], **values: object) -> dict | None:
    """The first row that has these values."""
    return next((row for row in rows if all(row[key] == value for key, value in values.items())), None)


def rate_of(row: dict | None, name: str = 'rate') -> list | None:
    """[rate, low, high] of a row."""
    return row and [row[name], row['low'], row['high']]


def few_false_matches(row: dict) -> bool:
    """Whether a row of `membership` rests on so few false matches that its interval is too narrow."""
    return row['false_matches'] is not None and row['false_matches'] < FEW - 1e-9


def membership_photos(membership: dict | None, counted: str) -> dict:
    """How many photos and people one way of counting was measured with."""
    return dig(membership, 'photos' if counted == 'with' else 'photos_without') or {}


def _by_attacker(report: dict, part: str) -> Iterator[tuple[str, dict]]:
    for name, attacker in attackers(report).items():
        if dig(attacker, part):
            yield name, attacker[part]


def _points(curve: dict | None) -> list[dict]:
    return sorted(dig(curve, 'points') or [], key=lambda point: point['identities'])


def _by_k(rates: dict | None) -> list[tuple[int, list | float | None]]:
    return sorted(((int(k), rate) for k, rate in (rates or {}).items()), key=lambda item: item[0])


def _curves(report: dict) -> Iterator[dict]:
    for attacker, leakage in _by_attacker(report, 'leakage'):
        for pairing, curve in leakage.items():
            for point in _points(curve):
                for counted in COUNTED:
                    for k, rate in _by_k(point.get(counted)):
                        if not measured(rate):
                            continue
                        yield dict(
                            attacker=attacker,
                            pairing=pairing,
                            counted=counted,
                            k=k,
                            **_interval('rate', rate),
                            chance=dig(point, f'chance_{counted}', str(k)),
                            **{key: point.get(key) for key in ('identities', 'queries', 'gallery', 'draws')},
                        )


def _interval(name: str, rate: list | None) -> dict:
    rate, low, high = [*(rate or ()), None, None, None][:3]
    return {name: rate, 'low': low, 'high': high}


def _differences(report: dict) -> Iterator[dict]:
    for attacker, difference in _by_attacker(report, 'difference'):
        for point in _points(difference):
            for counted in COUNTED:
                for k, rate in _by_k(point.get(counted)):
                    if measured(rate):
                        yield dict(
                            attacker=attacker,
                            counted=counted,
                            k=k,
                            **_interval('difference', rate),
                            identities=point['identities'],
                            drawn_to_equal=point.get('drawn_to_equal'),
                        )


def _scores(report: dict) -> Iterator[tuple[dict, dict]]:
    for attacker, membership in _by_attacker(report, 'membership'):
        for counted in COUNTED:
            for score in ('calibrated', 'raw'):
                roc = dig(membership, counted, score)
                if roc:
                    yield dict(attacker=attacker, counted=counted, score=score), roc


def _membership(report: dict) -> Iterator[dict]:
    for of, roc in _scores(report):
        yield of | dict(measure='AUC', **_interval('value', roc.get('auc')), chance=0.5, false_matches=None)
        photos = membership_photos(dig(report, 'attackers', of['attacker'], 'membership'), of['counted'])
        others = photos.get('non_members')
        for fpr, rate in sorted((roc.get('tpr') or {}).items(), key=lambda item: -float(item[0])):
            yield of | dict(
                measure=f'TPR at FPR {fpr}',
                **_interval('value', rate),
                chance=float(fpr),
                false_matches=None if others is None else float(fpr) * others,
            )


def _roc(report: dict) -> Iterator[dict]:
    for of, roc in _scores(report):
        for fpr, tpr in zip(dig(roc, 'curve', 'fpr') or (), dig(roc, 'curve', 'tpr') or (), strict=True):
            yield of | dict(fpr=fpr, tpr=tpr)


def _near_duplicates(report: dict) -> Iterator[dict]:
    images = dig(report, 'real', 'images')
    for attacker, near in _by_attacker(report, 'near_duplicates'):
        for measure, chance in (
            ('above_threshold', 0.01),
            ('above_threshold_same_person', near.get('chance_same_person')),
            ('source_nearest', 1 / images if images else None),
        ):
            yield dict(attacker=attacker, measure=measure, **_interval('value', near.get(measure)), chance=chance)
        for measure, value in (
            ('threshold', near.get('threshold')),
            ('pixel_copies', dig(near, 'pixel_copies', 'count')),
            ('pixel_copies_threshold', dig(near, 'pixel_copies', 'threshold')),
        ):
            yield dict(attacker=attacker, measure=measure, **_interval('value', [value]), chance=None)


def _worst_cases(report: dict) -> Iterator[dict]:
    for attacker, near in _by_attacker(report, 'near_duplicates'):
        for rank, case in enumerate(near.get('worst') or (), 1):
            keys = ('similarity', 'by', 'is_source', 'same_person')
            yield dict(attacker=attacker, rank=rank, **{key: case.get(key) for key in keys})


def _histogram(report: dict) -> Iterator[dict]:
    for attacker, near in _by_attacker(report, 'near_duplicates'):
        edges = dig(near, 'histogram', 'edges') or []
        for series, counts in (dig(near, 'histogram', 'series') or {}).items():
            for low, high, count in zip(edges[:-1], edges[1:], counts or [0] * len(edges[1:]), strict=True):
                yield {'attacker': attacker, 'series': series, 'from': low, 'to': high, 'count': count}


def _utility(report: dict, leakage: list[dict]) -> Iterator[dict]:
    k = headline_k(report)
    attacker = next(iter(attackers(report)), None)

    def found(method: str) -> dict:
        """Leakage of a method of this audit, as its headline attacker sees it."""
        pairing = {'original': 'original_original', 'released': 'original_released'}.get(method)
        rows = (find(leakage, attacker=attacker, pairing=pairing, k=k, counted=counted) for counted in COUNTED)
        return next(filter(None, rows), {})

    def row(method: str, entry: dict, leaks: dict) -> dict:
        return dict(
            method=method,
            recogniser=entry.get('recogniser'),
            set=entry.get('set'),
            **_interval('accuracy', entry.get('accuracy')),
            pairs=entry.get('pairs'),
            leakage=leaks.get('rate'),
            leakage_low=leaks.get('low'),
            leakage_high=leaks.get('high'),
            k=leaks.get('k'),
            counted=leaks.get('counted'),
            attacker=leaks.get('attacker'),
            chance=leaks.get('chance'),
        )

    for entry in report.get('utility') or ():
        yield row(entry['method'], entry, found(entry['method']))
    for other in report.get('compared') or ():
        leaks = {}
        if measured(dig(other, 'leakage', str(k))):
            leaks = _interval('rate', other['leakage'][str(k)]) | dict(
                k=k, attacker=other.get('attacker'), chance=dig(other, 'chance', str(k)), counted=other.get('counted')
            )
        for entry in other.get('utility') or [{}]:
            if entry.get('method', 'released') in ('released', other['method']):  # its originals are those of here
                yield row(other['method'], entry, leaks)
