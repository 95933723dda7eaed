"""The plain-language summary of an audit, made of its numbers so that it says no more than they do."""

from collections.abc import Iterator, Sequence

from .finding import Finding
from .rows import all_rows, attackers, dig, few_false_matches, find, headline_k, membership_photos, rate_of
from .wording import (
    COUNTED,
    NOT_FROM_THIS_PHOTO,
    has_interval,
    measured,
    number,
    percent,
    plural,
    with_interval,
)

_FINDING = 'Finding a person'
_REDUCTION = 'Against the real photos'

#: Verdict and sentence, by where the interval of a rate lies.
_AGAINST_CHANCE = {
    'leaks': 'That is above chance: it leaks.',
    'cannot tell from chance': 'The interval includes chance: this sample cannot tell it from chance, which does not '
    'show that nothing leaks.',
    'below chance': 'That is below chance. A few released faces that lie near to every photo do that, and so do people '
    'who are matched wrongly; it does not show that nothing leaks.',
    'to be looked at': 'It is above chance only where fewer than five photos of others are accused. There an interval '
    'is too narrow (at one it held the truth in 85\u00a0% of simulations), and the sample too small to say that it '
    'leaks.',
    'not measured': 'There is no interval or no chance level to hold it against, so nothing follows from it.',
}


def findings(report: dict, rows: dict[str, list[dict]] | None = None) -> list[Finding]:
    """What the numbers of a report say, in the order in which a privacy officer asks.

    A rate counts as leaking only where its whole interval lies above chance, a reduction as shown only where the
    whole interval of the difference lies above 0; else the sentence says that this sample cannot tell.

    Args:
        report: What report.json holds.
        rows: `all_rows(report)`, where it is at hand.
    """
    rows = all_rows(report) if rows is None else rows
    return [
        *_leakage(report, rows),
        *_reduction(report, rows),
        *_same_source(report, rows),
        *_imitation(report, rows),
        *_linkage(report, rows),
        *_membership(report, rows),
        *_near_duplicates(rows),
        *_utility(rows),
        *_limits(report),
    ]


def against_chance(rate: Sequence | None, chance: float | None) -> str:
    """Where the interval of [rate, low, high] lies: 'leaks' above chance, 'below chance', or neither."""
    if chance is None or not has_interval(rate):
        return 'not measured'
    if rate[1] > chance:
        return 'leaks'
    return 'below chance' if rate[2] < chance else 'cannot tell from chance'


def against_none(difference: Sequence | None) -> str:
    """Whether the interval of a reduction [difference, low, high] shows one."""
    if not measured(difference):
        return 'not measured'
    if not has_interval(difference):
        return 'no reduction shown'
    if difference[1] > 0:
        return 'reduced'
    return 'leaks more' if difference[2] < 0 else 'no reduction shown'


def _rated(topic: str, finding: str, rate: Sequence | None, chance: float | None) -> Finding:
    verdict = against_chance(rate, chance)
    level = f' By chance it would be {percent(chance)}.' if chance is not None else ''
    return Finding(verdict, topic, f'{finding}{level} {_AGAINST_CHANCE[verdict]}')


def _released(report: dict, rows: dict, counted: str) -> list[dict]:
    """What every attacker finds in the released set at the headline's K, the most first."""
    leakage = [
        row
        for row in rows['leakage']
        if row['pairing'] == 'original_released' and row['counted'] == counted and row['k'] == headline_k(report)
    ]
    return sorted(leakage, key=lambda row: -row['rate'])


def _headline(report: dict, rows: dict) -> dict | None:
    first = next(iter(attackers(report)), None)
    for counted in ('without', 'with'):
        row = find(_released(report, rows, counted), attacker=first)
        if row:
            return row
    return None


def _among(k: int) -> str:
    return 'the released face' if k == 1 else f'one of the {k} released faces'


def _sample(row: dict) -> str:
    people = plural(row['identities'], 'person', 'people')
    return people if row['queries'] is None else f'{plural(row["queries"], "photo", "photos")} of {people}'


def _leakage(report: dict, rows: dict) -> Iterator[Finding]:
    if not attackers(report):
        why = ' See the notes below the summary.' if dig(report, 'matching', 'notes') else ''
        yield Finding(
            'not measured',
            'No attacker',
            'There is no attacker in this report: none was named, or every one was left out. No leakage was measured, '
            f'so nothing follows about what the released set leaks.{why}',
        )
        return
    row = _headline(report, rows)
    if row is None:
        yield Finding(
            'not measured',
            _FINDING,
            'How often a photo finds its person in the released set was not measured. What follows does not stand in '
            'for it.',
        )
        return
    others = _released(report, rows, row['counted'])
    who = f'the attacker “{row["attacker"]}”'
    if len(others) > 1:
        worst = others[0]['rate'] <= row['rate']
        who = f'the {"worst" if worst else "headline’s"} of {len(others)} attackers, “{row["attacker"]}”'
    left_out = f', {NOT_FROM_THIS_PHOTO}' if row['counted'] == 'without' else ''
    text = (
        f'With {who}, {_among(row["k"])} most like a photo shows the same person for {with_interval(rate_of(row))} '
        f'of {_sample(row)}{left_out}.'
    )
    found = _rated(_FINDING, text, rate_of(row), row['chance'])
    more = others[0]
    if more['rate'] > row['rate']:
        text = f'{found.text} Attacker “{more["attacker"]}” finds more: {with_interval(rate_of(more))}.'
        found = Finding(found.verdict, found.topic, text)
    yield found


def _reduction(report: dict, rows: dict) -> Iterator[Finding]:
    row = _headline(report, rows)
    if row is None:
        return
    shown = {}
    for attacker in attackers(report):
        points = [
            difference
            for difference in rows['difference']
            if difference['attacker'] == attacker
            and difference['k'] == row['k']
            and difference['counted'] == row['counted']
            and difference['identities'] == row['identities']
        ]
        if points:
            shown[attacker] = points[-1]
    point = shown.get(row['attacker'])
    originals = find(
        rows['leakage'], attacker=row['attacker'], pairing='original_original', k=row['k'], counted=row['counted']
    ) or find(rows['leakage'], attacker=row['attacker'], pairing='original_original', k=row['k'])
    beside = (
        f'Among the real photos themselves the same attacker finds the person for {with_interval(rate_of(originals))}. '
        if originals
        else ''
    )
    if point is None:
        yield Finding(
            'not measured',
            _REDUCTION,
            f'{beside}The difference between real and released faces, with its interval, was not measured, so nothing '
            'is said about a reduction.',
        )
        return
    difference = rate_of(point, 'difference')
    verdict = against_none(difference)
    amount = with_interval(difference, 'percentage points')
    if verdict == 'reduced':
        text = f'In the released set he finds less, by {amount}: the release reduces what this attacker finds. '
        text += (
            'It does not remove it: what is left is above chance.'
            if against_chance(rate_of(row), row['chance']) == 'leaks'
            else '‘Reduces’ is not ‘removes’: that nothing is left was not shown.'
        )
    elif verdict == 'leaks more':
        text = (
            'In the released set he finds more, not less: original minus released is '
            f'{amount}. The release does not reduce what this attacker finds.'
        )
    else:
        reason = 'the interval includes 0' if has_interval(difference) else 'there is no interval'
        text = f'Original minus released is {amount}. No reduction was shown: {reason}.'
    if point['drawn_to_equal']:
        text += ' For the difference, images of both sets were drawn so that both hold as many of every person.'
    if len(shown) > 1:
        count = sum(against_none(rate_of(other, 'difference')) == 'reduced' for other in shown.values())
        text += f' Over all attackers, a reduction was shown for {count} of {len(shown)}.'
    yield Finding(verdict, _REDUCTION, beside + text)


def _same_source(report: dict, rows: dict) -> Iterator[Finding]:
    headline = _headline(report, rows)
    if headline is None or headline['counted'] == 'with':
        return
    every = _released(report, rows, 'with')
    if every:
        row = every[0]
        yield _rated(
            'If the attacker holds the very photo',
            f'An attacker who holds the very photo from which a face was made finds the person for '
            f'{with_interval(rate_of(row))} (attacker “{row["attacker"]}”, K = {row["k"]}).',
            rate_of(row),
            row['chance'],
        )


def _imitation(report: dict, rows: dict) -> Iterator[Finding]:
    k = headline_k(report)
    for counted in ('without', 'with'):
        imitations = [
            row
            for row in rows['leakage']
            if row['pairing'].startswith('imitation:') and row['counted'] == counted and row['k'] == k
        ]
        if not imitations:
            continue
        row = max(imitations, key=lambda row: row['rate'])
        plain = find(rows['leakage'], attacker=row['attacker'], pairing='original_released', counted=counted, k=k)
        model = row['pairing'].partition(':')[2]
        models = len({row['pairing'] for row in imitations})
        text = (
            f'An attacker who first makes such faces of his own photos (by “{model}”, the one of '
            f'{plural(models, "imitation", "imitations")} that finds most) and searches with '
            f'“{row["attacker"]}” finds the person for {with_interval(rate_of(row))} at K = {k}'
        )
        if plain:
            order = 'more than' if row['rate'] > plain['rate'] else 'no more than'
            text += f', {order} the {percent(plain["rate"])} of plain photos'
        yield _rated('If the attacker imitates the release', f'{text}.', rate_of(row), row['chance'])
        return


def _linkage(report: dict, rows: dict) -> Iterator[Finding]:
    row = _headline(report, rows)
    attacker = row['attacker'] if row else next(iter(attackers(report)), None)
    linked = find(rows['leakage'], attacker=attacker, pairing='released_released', k=headline_k(report))
    if linked:
        yield Finding(
            'note',
            'Released faces among themselves',
            f'Released faces of one person find one another for {with_interval(rate_of(linked))} at K = {linked["k"]}. '
            'A recogniser learns from that; it also means that whoever names one of them names the others.',
        )


def _membership(report: dict, rows: dict) -> Iterator[Finding]:
    for counted in ('with', 'without'):
        scores = [row for row in rows['membership'] if row['counted'] == counted and row['value'] is not None]
        accused = [row for row in scores if row['measure'] == 'TPR at FPR 0.01']
        areas = [row for row in scores if row['measure'] == 'AUC']
        if not scores:
            continue
        worst = max(accused or areas or scores, key=lambda row: row['value'])
        area = find(areas, attacker=worst['attacker'], score=worst['score'])
        rare = find(scores, attacker=worst['attacker'], score=worst['score'], measure='TPR at FPR 0.001')
        photos = membership_photos(attackers(report)[worst['attacker']]['membership'], counted)
        which = 'Counting every released face' if counted == 'with' else f'With {NOT_FROM_THIS_PHOTO}'
        topic = f'Membership, {COUNTED[counted]}'
        tried = f', the worst of {len(accused or areas or scores)}' if len(accused or areas or scores) > 1 else ''
        text = f'Is this person in the released set? {which}, attacker “{worst["attacker"]}” with the '
        text += f'{worst["score"]} score{tried}, '
        if accused:
            text += (
                f'recognises {with_interval(rate_of(worst, "value"))} of members’ photos at the price of accusing '
                '1\u00a0% of the photos of people who are not in it (chance: 1\u00a0%)'
            )
            if rare:
                text += f', and {with_interval(rate_of(rare, "value"))} at 0.1\u00a0% (chance: 0.1\u00a0%)'
            if area:
                text += f'; area under the curve {with_interval(rate_of(area, "value"))} (chance: 50\u00a0%)'
        elif areas:
            text += (
                f'has an area under the curve of {with_interval(rate_of(worst, "value"))} (chance: 50\u00a0%); there '
                'are too few people who are not in the set to measure rare false accusations'
            )
        else:
            text += f'has {worst["measure"]} {with_interval(rate_of(worst, "value"))}'
        people = [
            f'{number(photos[key])} photos of {plural(photos[identities], "person", "people")} who {are} in it'
            for key, identities, are in (
                ('members', 'member_identities', 'are'),
                ('non_members', 'non_member_identities', 'are not'),
            )
            if photos.get(key) is not None and photos.get(identities) is not None
        ]
        text += f'. Measured with {" and ".join(people)}.' if people else '.'
        told = [row for row in (worst, area, rare) if row]
        verdicts = [{_of_membership(row) for row in those} for those in (told, scores)]
        order = ('leaks', 'to be looked at', 'cannot tell from chance', 'below chance', 'not measured')
        verdict, strongest = (next(verdict for verdict in order if verdict in found) for found in verdicts)
        text += f' {_AGAINST_CHANCE[verdict]}'
        few = sorted({row['chance'] for row in told if few_false_matches(row)}, reverse=True)
        if few and verdict != 'to be looked at':
            text += (
                f' At {" and ".join(map(percent, few))} fewer than five photos of others are accused: such an interval '
                'is too narrow (at one it held the truth in 85\u00a0% of simulations) and shows no leak alone.'
            )
        if verdict != 'leaks' and strongest == 'leaks':
            verdict = 'leaks'
            text += ' Another attacker or score is above chance: see the table.'
        elif verdict not in ('leaks', 'to be looked at') and strongest == 'to be looked at':
            verdict = strongest
            text += (
                ' Another attacker or score is above chance, but with fewer than five photos of others accused, where '
                'the sample is too small to say that it leaks: see the table.'
            )
        yield Finding(verdict, topic, text)


def _of_membership(row: dict) -> str:
    """What a row of `membership` says by itself; the interval of few false matches shows no leak alone."""
    verdict = against_chance(rate_of(row, 'value'), row['chance'])
    return 'to be looked at' if verdict == 'leaks' and few_false_matches(row) else verdict


def _near_duplicates(rows: dict) -> Iterator[Finding]:
    near = [row for row in rows['near_duplicates'] if row['value'] is not None]
    found = []
    for attacker in dict.fromkeys(row['attacker'] for row in near):
        above, same, own = (
            find(near, attacker=attacker, measure=measure)
            for measure in ('above_threshold', 'above_threshold_same_person', 'source_nearest')
        )
        if above:
            leaks = 'leaks' in (
                same and against_chance(rate_of(same, 'value'), _same_person_level(same)),
                own and against_chance(rate_of(own, 'value'), own['chance']),
            )
            found.append((leaks, (same or above)['value'], attacker, above, same, own))
    if found:
        leaks, _, attacker, *shares = max(found, key=lambda of: of[:2])
        above, same, own = (rate_of(row, 'value') for row in shares)
        text = (
            f'For attacker “{attacker}”, {with_interval(above)} of the released faces lie nearer to a real photo than '
            '99\u00a0% of photos lie to any photo of another person (strangers would make it 1\u00a0%).'
        )
        if same:
            text += f' For {with_interval(same)} that photo shows the very person whom the face stands for'
            chance = shares[1]['chance']
            if chance is None:
                text += ' (what chance would make it was not measured).'
            else:
                level = f'; held against {percent(0.01)}' if chance < 0.01 else ''
                text += f' (by chance {percent(chance)}{level}).'
        if own:
            chance = shares[2]['chance']
            text += f' For {with_interval(own)} the nearest of all photos is the very one that the face was made from'
            text += f' (by chance {percent(chance)}).' if chance is not None else '.'
        verdict = against_chance(above, shares[0]['chance'])
        if leaks:
            verdict = 'leaks'
            text += f' {_AGAINST_CHANCE[verdict]}'
        elif verdict == 'leaks':
            verdict = 'to be looked at'
            text += (
                ' Nearness alone is no leak, for a blurred photo may lie near to every face. Look at the worst cases.'
            )
        elif verdict == 'below chance':
            verdict = 'note'
            text += ' By this measure released faces look like nobody’s photo.'
        else:
            text += f' {_AGAINST_CHANCE[verdict]}'
        yield Finding(verdict, 'Near duplicates', text)
    copies = [row for row in near if row['measure'] == 'pixel_copies']
    if copies:
        row = max(copies, key=lambda row: row['value'])
        threshold = find(near, attacker=row['attacker'], measure='pixel_copies_threshold')
        bar = f' (correlation at least {threshold["value"]:g})' if threshold else ''
        if row['value']:
            are = plural(row['value'], 'released face is', 'released faces are')
            yield Finding(
                'to be looked at',
                'Copies by pixels',
                f'Made small and grey, {are} all but a copy of a photo{bar}: see the worst cases.',
            )
        else:
            yield Finding(
                'note',
                'Copies by pixels',
                f'Made small and grey, no released face is all but a copy of a photo{bar}. Copies that were turned, '
                'cut or changed in part need not show in this search.',
            )


def _same_person_level(row: dict) -> float | None:
    """What the share of faces that are near to their own person is held against: chance, and 1 % at least."""
    return None if row['chance'] is None else max(0.01, row['chance'])


def _utility(rows: dict) -> Iterator[Finding]:
    for row in rows['utility']:
        if row['method'] != 'released' or row['accuracy'] is None:
            continue
        rate = rate_of(row, 'accuracy')
        who = f'“{row["recogniser"]}”' if row['recogniser'] else 'A recogniser'
        text = f'{who} trained on released faces verifies {with_interval(rate)} of pairs of '
        text += f'“{row["set"]}” rightly'
        text += f' ({number(row["pairs"])} pairs)' if row['pairs'] else ''
        originals = find(rows['utility'], method='original', recogniser=row['recogniser'], set=row['set'])
        if originals and originals['accuracy'] is not None:
            real = rate_of(originals, 'accuracy')
            text += f', trained on originals {with_interval(real)}.'
            if has_interval(rate) and has_interval(real):
                apart = rate[2] < real[1] or real[2] < rate[1]
                text += ' The intervals do not overlap.' if apart else ' The intervals overlap.'
        else:
            text += '; no recogniser trained on originals is at hand to compare.'
        if has_interval(rate) and rate[1] <= 0.5:
            text += ' This sample cannot tell it from guessing (50\u00a0%).'
        yield Finding('note', 'Utility', text)


def _limits(report: dict) -> Iterator[Finding]:
    names = [f'“{name}”' for name in attackers(report)]
    if names:
        yield Finding(
            'note',
            'Stronger attackers',
            f'Tried: {", ".join(names)}. An attacker who is not among these, a stronger one or one who knows more, may '
            'find more: that none of these found something is no evidence that none can.',
        )
    yield Finding(
        'note',
        'What the intervals mean',
        'Intervals (95\u00a0%) say how far the numbers would move with other people of the same kind. They know '
        'nothing of other kinds of people, other photos, or other attackers. ‘Reduces’ is not ‘removes’.',
    )
