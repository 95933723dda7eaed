"""The report's tables, made of an audit's flat rows."""

import json

from .rows import COUNTED, attackers, dig, few_false_matches, find, headline_k, rate_of
from .table import Table
from .wording import COUNTED as COUNTED_WORDS
from .wording import measured, pairing_name, percent

_FEW = (
    ' *: at that rate fewer than five photos of people who are not in the set are accused. Such an interval is too '
    'narrow (at one it held the truth in 85\u00a0% of simulations, not in 95\u00a0%) and shows no leak alone.'
)


def headline_table(report: dict, rows: dict[str, list[dict]]) -> Table | None:
    """Attackers by what they find at each K, against chance and the real photos, and by membership."""
    k = headline_k(report)
    mine = [row for row in rows['leakage'] if row['pairing'] == 'original_released']
    ways = [way for way in COUNTED if any(row['counted'] == way for row in mine)]
    ks = sorted({row['k'] for row in mine})
    membership = [row for row in rows['membership'] if row['measure'] == 'TPR at FPR 0.01' and row['value'] is not None]
    if not mine and not membership:
        return None
    compared = ways[0] if ways else None
    table = Table(
        f'Attackers: leakage at K of {dig(report, "released", "name")}, and membership',
        ['Attacker', *(f'K = {size}' for _ in ways for size in ks)]
        + ([f'Originals, K = {k}', f'Difference, K = {k}'] if mine else [])
        + (['TPR at FPR 1\u00a0%'] if membership else []),
        [('', 1), *((f'Leakage, {COUNTED_WORDS[way]}', len(ks)) for way in ways)]
        + ([('Against the real photos', 2)] if mine else [])
        + ([('Membership', 1)] if membership else []),
        notes='The largest of a column is marked ▲. '
        + (
            'Difference: original → original minus original → released, '
            f'{COUNTED_WORDS[compared]}, in percentage points; positive where less is found. '
            if mine
            else ''
        )
        + ('Membership: the largest of the attacker’s scores.' if membership else ''),
    )
    names = list(attackers(report))
    columns = []
    for name in names:
        found = [find(mine, attacker=name, counted=way, k=size) for way in ways for size in ks]
        cells = [rate_of(cell) for cell in found]
        columns.append([None, *(cell and cell['rate'] for cell in found)])
        if mine:
            originals = find(rows['leakage'], attacker=name, pairing='original_original', k=k)
            differences = [
                row
                for row in rows['difference']
                if row['attacker'] == name and row['k'] == k and row['counted'] == compared
            ]
            cells += [rate_of(originals), rate_of(differences[-1], 'difference') if differences else None]
            columns[-1] += [None, None]
        if membership:
            scores = [row for row in membership if row['attacker'] == name]
            best = max(scores, key=lambda row: row['value'], default=None)
            cells.append(best and rate_of(best, 'value'))
            columns[-1].append(best and best['value'])
        first = name == dig(report, 'headline', 'attacker')
        table.add(f'{name} (headline)' if first else name, *cells, marked=first)
        if membership and best and few_false_matches(best):
            table.star(-1, _FEW)
    for column, rates in enumerate(zip(*columns)):
        table.mark_worst(column, list(rates))
    if mine:
        chances = [
            next((row for row in mine if row['counted'] == way and row['k'] == size), None)
            for way in ways
            for size in ks
        ]
        luck = [percent(row and row['chance']) for row in chances]
        table.add('chance', *luck, '', '', *(['1.0\u00a0%'] if membership else []))
    elif membership:
        table.add('chance', '1.0\u00a0%')
    return table


def curve_table(rows: dict[str, list[dict]], attacker: str) -> Table | None:
    """What an attacker's charts show, and how many were searched."""
    mine = [row for row in rows['curves'] if row['attacker'] == attacker]
    ks = sorted({row['k'] for row in mine})
    if not mine:
        return None
    table = Table(
        f'Leakage over the number of identities, attacker {attacker}',
        ['Searched', 'Counted', 'Identities', 'Draws', 'Photos', 'Searched faces', *(f'K = {k}' for k in ks)]
        + [f'Chance, K = {k}' for k in ks],
        words=(1,),
    )
    points = dict.fromkeys((row['pairing'], row['counted'], row['identities']) for row in mine)
    for pairing, counted, identities in points:
        if pairing in ('original_original', 'released_released') and counted == 'with':
            same = (pairing, 'without', identities)
            if same in points:
                continue  # the query itself is left out either way
        of = dict(pairing=pairing, counted=counted, identities=identities)
        found = [find(mine, k=k, **of) for k in ks]
        any_one = next(filter(None, found))
        own = pairing in ('original_original', 'released_released')
        table.add(
            pairing_name(pairing),
            'all but the query' if own else COUNTED_WORDS[counted],
            *(any_one[key] for key in ('identities', 'draws', 'queries', 'gallery')),
            *(rate_of(row) for row in found),
            *(percent(row and row['chance']) for row in found),
        )
    return table


def difference_table(rows: dict[str, list[dict]], attacker: str) -> Table | None:
    """Original → original minus original → released, over the number of identities."""
    mine = [row for row in rows['difference'] if row['attacker'] == attacker]
    ks = sorted({row['k'] for row in mine})
    if not mine:
        return None
    table = Table(
        f'Difference to the real photos, attacker {attacker}',
        ['Counted', 'Identities', *(f'K = {k}' for k in ks), 'Images drawn'],
        notes='Original → original minus original → released: positive where less is found in the released set. Both '
        'sets hold as many of every person: images of the larger one are drawn where they do not.',
    )
    for counted, identities in dict.fromkeys((row['counted'], row['identities']) for row in mine):
        found = [find(mine, k=k, counted=counted, identities=identities) for k in ks]
        drawn = next(filter(None, found))['drawn_to_equal']
        table.add(
            COUNTED_WORDS[counted],
            identities,
            *(row and rate_of(row, 'difference') for row in found),
            {True: 'yes', False: 'no'}.get(drawn),
        )
    return table


def membership_table(rows: dict[str, list[dict]]) -> Table | None:
    """AUC and TPR of every attacker and score."""
    mine = rows['membership']
    if not any(row['value'] is not None for row in mine):
        return None
    measures = list(dict.fromkeys(row['measure'] for row in mine))
    heads = [
        measure if measure == 'AUC' else f'TPR at FPR {percent(float(measure.split()[-1]))}' for measure in measures
    ]
    table = Table(
        'Membership: is this person in the released set?',
        ['Attacker', 'Counted', 'Score', *heads],
        words=(1, 2),
        notes='‘–’: too few people who are not in the set to measure that rate. The largest of a column is marked ▲.',
    )
    values = []
    for attacker, counted, score in dict.fromkeys((row['attacker'], row['counted'], row['score']) for row in mine):
        found = [find(mine, attacker=attacker, counted=counted, score=score, measure=measure) for measure in measures]
        values.append([row and row['value'] for row in found])
        table.add(attacker, COUNTED_WORDS[counted], score, *(row and rate_of(row, 'value') for row in found))
        for column, row in enumerate(found, 3):
            if row and row['value'] is not None and few_false_matches(row):
                table.star(column, _FEW)
    for column, rates in enumerate(zip(*values), 3):
        table.mark_worst(column, list(rates))
    chances = [find(mine, measure=measure)['chance'] for measure in measures]
    table.add('chance', '', '', *map(percent, chances))
    return table


def near_table(rows: dict[str, list[dict]]) -> Table | None:
    """How near released faces lie to photos, for every attacker."""
    mine = rows['near_duplicates']
    if not mine:
        return None
    table = Table(
        'Near duplicates',
        [
            'Attacker',
            'Nearer than 99\u00a0% of strangers’ photos',
            'and to a photo of the same person',
            'the same person by chance',
            'Nearest photo is its own source',
            'Copies by pixels',
        ],
        notes='By chance 1\u00a0% would lie nearer than 99\u00a0% of strangers’ photos. The same person by chance: '
        'what is to be expected if released faces stood for people independently of what they show; the share counts '
        'as a leak where its interval lies above that, and above 1\u00a0%. The largest of a column is marked ▲.',
    )
    shares = []
    for attacker in dict.fromkeys(row['attacker'] for row in mine):
        above, same, own, copies = (
            find(mine, attacker=attacker, measure=measure)
            for measure in ('above_threshold', 'above_threshold_same_person', 'source_nearest', 'pixel_copies')
        )
        shares.append((above['value'], same['value'], None, own['value']))
        rates = [rate_of(row, 'value') for row in (above, same, own)]
        table.add(attacker, *rates[:2], percent(same['chance']), rates[2], copies['value'])
    for column, rates in enumerate(zip(*shares), 1):
        table.mark_worst(column, list(rates))
    return table


def histogram_table(rows: dict[str, list[dict]], attacker: str) -> Table | None:
    """The counts that a histogram shows."""
    mine = [row for row in rows['histogram'] if row['attacker'] == attacker]
    if not mine:
        return None
    series = {row['series']: [] for row in mine}
    for row in mine:
        series[row['series']].append(row)
    table = Table(f'Similarity of the nearest photo, attacker {attacker}: counts', ['Cosine similarity', *series])
    for bins in zip(*series.values(), strict=True):
        bounds = f'{bins[0]["from"]:.4g} to {bins[0]["to"]:.4g}'
        table.add(bounds.replace('-', '−'), *(row['count'] for row in bins))
    return table


def utility_table(rows: dict[str, list[dict]]) -> Table | None:
    """Verification accuracy beside leakage, for every method."""
    mine = rows['utility']
    if not mine:
        return None
    table = Table(
        'Utility against leakage',
        ['Method', 'Recogniser', 'Set', 'Accuracy', 'Pairs', 'Leakage', 'K', 'Counted', 'Attacker', 'Chance'],
        words=(1, 2, 7, 8),
    )
    for row in mine:
        leakage = [row['leakage'], row['leakage_low'], row['leakage_high']]
        table.add(
            row['method'],
            row['recogniser'],
            row['set'],
            rate_of(row, 'accuracy'),
            row['pairs'],
            leakage if measured(leakage) else None,
            row['k'],
            COUNTED_WORDS.get(row['counted']),
            row['attacker'],
            percent(row['chance']),
        )
    return table


def audited_table(report: dict) -> Table:
    """The two sets: names, sizes and hashes."""
    table = Table('What was audited', ['Set', 'Name', 'Images', 'Identities', 'SHA-256'], words=(1, 4))
    for part in ('real', 'released'):
        of = report.get(part) or {}
        what = next((what for what in ('manifest', 'keys') if of.get(f'{what}_sha256')), None)
        digest = f'{of[f"{what}_sha256"]} (of its {what})' if what else 'none'
        table.add(part, of.get('name') or 'unnamed', of.get('images'), of.get('identities'), digest)
    return table


def facts(of: dict | None) -> list[tuple[str, str]]:
    """A dict of JSON as (name, text)."""

    def text(value: object) -> str:
        if isinstance(value, str):
            return value
        if isinstance(value, bool) or value is None:
            return {True: 'yes', False: 'no', None: 'none'}[value]
        return json.dumps(value, ensure_ascii=False)

    return [(key, text(value)) for key, value in (of or {}).items()]
