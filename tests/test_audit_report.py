"""The audit's report: sentences no stronger than the numbers, a page that works alone, tables that hold the dict."""

import base64
import csv
import html
import inspect
import json
import math
import os
import re
import shutil
import stat

import cv2
import numpy as np
import pytest

from facemae_mm.audit.membership import membership
from facemae_mm.audit.near_duplicates import near_duplicates
from facemae_mm.audit.report import findings, write_report
from facemae_mm.audit.report.axis import Axis
from facemae_mm.audit.report.chart import look
from facemae_mm.audit.report.wording import percent, share
from facemae_mm.audit.report.write_report import RESAMPLES

CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
IDENTITIES = [34, 68, 136, 272, 545]


def rate(value, spread=0.02):
    return [value, max(value - spread, 0.0), min(value + spread, 1.0)]


def curve(level, fall, sources=True):
    """Leakage that falls with the number of identities, as it does."""
    points = []
    for number, identities in enumerate(IDENTITIES):
        spread = 0.12 / math.sqrt(number + 1)
        by_k = {
            str(k): rate(min(level * (0.8 + 0.1 * k) * (34 / identities) ** fall, 1.0), spread * level)
            for k in (1, 2, 3, 4)
        }
        chance = {str(k): 1 - (1 - 1 / identities) ** k for k in (1, 2, 3, 4)}
        lower = {k: [(0.8 if sources else 1) * value for value in values] for k, values in by_k.items()}
        points.append(
            dict(
                identities=identities,
                draws=20 if identities < 545 else 1,
                queries=identities * 4.85,
                gallery=identities * 4.85 - 1,
                **{'with': by_k, 'without': lower},
                chance_with=chance,
                chance_without=chance,
            )
        )
    return dict(points=points)


def roc(power):
    fpr = np.geomspace(1e-3, 1, 300)
    tpr = fpr**power
    area = 1 / (1 + power)
    return dict(
        auc=rate(area, 0.015),
        tpr={'0.01': rate(0.01**power, 0.03), '0.001': rate(0.001**power, 0.02)},
        curve=dict(fpr=[0.0, *fpr.tolist()], tpr=[0.0, *tpr.tolist()]),
    )


def attacker(level):
    edges = np.linspace(-0.2, 1, 41)
    middle = (edges[1:] + edges[:-1]) / 2

    def bell(at, width, count):
        heights = np.exp(-((middle - at) ** 2) / (2 * width**2))
        return np.round(count * heights / heights.sum()).astype(int).tolist()

    leakage = {
        'original_original': curve(0.97, 0.02, sources=False),
        'original_released': curve(level, 0.45),
        'released_released': curve(0.75, 0.12, sources=False),
        'imitation:same masks': curve(1.2 * level, 0.4),
        'imitation:other masks': curve(0.9 * level, 0.5),
        'imitation:MAE': curve(0.5 * level, 0.6),
    }
    ends = [leakage[name]['points'] for name in ('original_original', 'original_released')]
    points = [
        dict(
            identities=original['identities'],
            drawn_to_equal=False,
            **{
                way: {k: rate(original[way][k][0] - released[way][k][0], 0.03) for k in released[way]}
                for way in ('with', 'without')
            },
        )
        for original, released in zip(*ends)
    ]
    worst = [
        dict(similarity=0.93 - 0.013 * number, is_source=number % 3 == 0, same_person=number % 4 != 1, by='embedding')
        for number in range(8)
    ]
    worst.append(dict(similarity=0.991, is_source=None, same_person=None, by='pixels'))
    return dict(
        kind='EmbedderAttacker',
        about=dict(file='w600k_mbf.onnx', sha256='9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f'),
        budget=dict(gpu_hours=0, pairs=1100),
        took=dict(seconds=41.25, faces=7462),
        leakage=leakage,
        difference=dict(points=points),
        membership=dict(
            photos=dict(members=2643, non_members=1202, member_identities=545, non_member_identities=430),
            photos_without=dict(members=2410, non_members=1187, member_identities=498, non_member_identities=421),
            **{
                'with': dict(calibrated=roc(0.62 - level), raw=roc(0.7 - level)),
                'without': dict(calibrated=roc(0.95 - level), raw=roc(1.02 - level)),
            },
        ),
        near_duplicates=dict(
            histogram=dict(
                edges=edges.tolist(),
                series={
                    'released face → nearest photo': bell(0.42, 0.1, 3731),
                    'photo → nearest photo of the same person': bell(0.72, 0.12, 3731),
                    'photo → nearest photo of another person': bell(0.36, 0.06, 3731),
                },
            ),
            source_nearest=rate(0.14),
            threshold=0.512,
            above_threshold=rate(level / 4),
            above_threshold_same_person=rate(level / 6),
            chance_same_person=0.0031,
            pixel_copies=dict(count=0, threshold=0.99),
            worst=worst,
        ),
    )


def sample():
    """A report with numbers such as an audit of a release of LFW faces yields."""
    digest = '3b7e151628aed2a6abf7158809cf4f3c762e7160f38b4da56a784d9045190cfe'
    utility = [
        dict(method='original', recogniser='R18', set='lfw', accuracy=[0.931, 0.915, 0.944], pairs=6000),
        dict(method='released', recogniser='R18', set='lfw', accuracy=[0.842, 0.821, 0.861], pairs=6000),
    ]
    return dict(
        format='facemae-audit',
        version=1,
        command='python tools/audit.py data/lfw112 releases/two --links releases/two.private/links.csv',
        date='2026-11-24',
        versions=dict(facemae_mm='0.1.0', torch='2.14.1', numpy='2.4.6', faiss='1.15.1'),
        seconds=312.4,
        real=dict(name='lfw112', images=13233, identities=5749, keys_sha256=digest),
        released=dict(name='two', images=3731, identities=779, manifest_sha256=digest[::-1]),
        matching=dict(
            by='links',
            sources=True,
            drawn_identities=545,
            left_out_identities=4970,
            owned_identities=234,
            owned_pairs=1100,
            notes=[
                '234 identities are the attackers’ own and are in no measured number.',
                '4,069 identities have one photo and cannot be looked for with another.',
            ],
        ),
        settings=dict(topk=[1, 2, 3, 4], draws=20, identities=IDENTITIES, depth=64, resamples=1000, seed=0, flip=True),
        attackers={
            'dlib ResNet': attacker(0.11),
            'MobileFaceNet, fine-tuned on owned pairs': attacker(0.31),
            'linear map': attacker(0.2),
        },
        headline=dict(attacker='MobileFaceNet, fine-tuned on owned pairs', k=2),
        utility=utility,
        compared=[
            dict(
                method='MAE',
                leakage={'2': [0.062, 0.048, 0.079]},
                chance={'2': 0.0037},
                attacker='MobileFaceNet, fine-tuned on owned pairs',
                utility=[
                    dict(method='released', recogniser='R18', set='lfw', accuracy=[0.723, 0.698, 0.75], pairs=6000)
                ],
            ),
            dict(
                method='75 % masked',
                leakage={'2': [0.43, 0.39, 0.47]},
                chance={'2': 0.0037},
                attacker='dlib ResNet',
                utility=[
                    dict(method='75 % masked', recogniser='R18', set='lfw', accuracy=[0.79, 0.77, 0.812], pairs=6000)
                ],
            ),
        ],
    )


def pictures(report, seed=0):
    """Pairs of noise for every worst case: detail that a blurred picture must not hold."""
    generator = np.random.default_rng(seed)
    return {
        name: [
            tuple(generator.integers(0, 256, (112, 112, 3), dtype=np.uint8) for _ in range(2))
            for _ in of['near_duplicates']['worst']
        ]
        for name, of in report['attackers'].items()
    }


def verdicts(report):
    return {finding.topic: finding.verdict for finding in findings(report)}


def texts(report):
    return {finding.topic: finding.text.replace('\u00a0', ' ') for finding in findings(report)}


def headline(report):
    return report['attackers'][report['headline']['attacker']]


def set_leakage(report, rates, way='without', chance=0.004):
    """Gives the headline's attacker another leakage at K = 2 of all identities."""
    last = headline(report)['leakage']['original_released']['points'][-1]
    last[way]['2'] = rates
    last[f'chance_{way}']['2'] = chance


def table(folder, name):
    with open(folder / f'{name}.csv', encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def embedded(page):
    """The pictures of a page, decoded."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_COLOR) for data in found]


# What the sentences say


@pytest.mark.parametrize(
    ('rates', 'verdict', 'says', 'never'),
    [
        ([0.071, 0.058, 0.084], 'leaks', 'above chance: it leaks', 'cannot tell'),
        ([0.005, 0.002, 0.009], 'cannot tell from chance', 'does not show that nothing leaks', 'it leaks'),
        ([0.005, 0.004, 0.009], 'cannot tell from chance', 'cannot tell it from chance', 'it leaks'),
        ([0.001, 0.0005, 0.002], 'below chance', 'it does not show that nothing leaks', 'safe'),
        ([0.071, None, None], 'not measured', 'nothing follows', 'it leaks'),
    ],
)
def test_leakage_is_said_to_lie_where_its_interval_lies(rates, verdict, says, never):
    report = sample()
    set_leakage(report, rates)
    assert verdicts(report)['Finding a person'] == verdict
    text = texts(report)['Finding a person']
    assert says in text and never not in text
    assert '2,643 photos of 545 people' in text and 'made from that very photo left out' in text


def test_leakage_without_a_chance_level_is_not_judged():
    report = sample()
    set_leakage(report, [0.5, 0.4, 0.6], chance=None)
    assert verdicts(report)['Finding a person'] == 'not measured'


@pytest.mark.parametrize(
    ('difference', 'verdict', 'says'),
    [
        ([0.8, 0.7, 0.9], 'reduced', 'the release reduces what this attacker finds. It does not remove it'),
        ([0.02, -0.01, 0.05], 'no reduction shown', 'No reduction was shown: the interval includes 0'),
        ([0.02, 0.0, 0.05], 'no reduction shown', 'No reduction was shown: the interval includes 0'),
        (
            [-0.1, -0.2, -0.05],
            'leaks more',
            'he finds more, not less: original minus released is −10.0 percentage points',
        ),
        ([0.5, None, None], 'no reduction shown', 'No reduction was shown: there is no interval'),
    ],
)
def test_a_reduction_is_said_to_be_shown_only_where_its_whole_interval_is_above_0(difference, verdict, says):
    report = sample()
    headline(report)['difference']['points'][-1]['without']['2'] = difference
    assert verdicts(report)['Against the real photos'] == verdict
    text = texts(report)['Against the real photos']
    assert says in text
    assert ('reduces' in text.replace('does not reduce', '')) == (verdict == 'reduced')
    assert f'Over all attackers, a reduction was shown for {2 + (verdict == "reduced")} of 3.' in text


def test_a_reduction_to_the_level_of_chance_is_no_removal():
    report = sample()
    set_leakage(report, [0.005, 0.002, 0.009])
    assert 'It does not remove it' not in texts(report)['Against the real photos']
    assert '‘Reduces’ is not ‘removes’: that nothing is left was not shown' in texts(report)['Against the real photos']


def test_images_that_were_drawn_are_said_to_be_so():
    report, drawn = sample(), 'images of both sets were drawn so that both hold as many of every person'
    assert drawn not in texts(report)['Against the real photos']
    headline(report)['difference']['points'][-1]['drawn_to_equal'] = True
    assert drawn in texts(report)['Against the real photos']


def test_the_difference_of_fewer_identities_does_not_stand_in_for_that_of_all():
    report = sample()
    headline(report)['difference']['points'].pop()
    assert verdicts(report)['Against the real photos'] == 'not measured'


def test_an_attacker_who_finds_more_than_the_headline_is_named():
    report = sample()
    assert 'worst of 3 attackers' in texts(report)['Finding a person']
    report['headline']['attacker'] = 'dlib ResNet'
    text = texts(report)['Finding a person']
    assert 'worst' not in text and 'the headline’s of 3 attackers, “dlib ResNet”' in text
    assert 'Attacker “MobileFaceNet, fine-tuned on owned pairs” finds more' in text


def test_membership_is_judged_by_the_worst_of_all_attackers_and_by_intervals():
    report = sample()
    with_all = 'Membership, every released face'
    assert verdicts(report)[with_all] == 'leaks'
    for attacker in report['attackers'].values():
        for way in ('with', 'without'):
            for score in ('calibrated', 'raw'):
                attacker['membership'][way][score] |= dict(
                    auc=[0.5, 0.48, 0.52], tpr={'0.01': [0.011, 0.006, 0.017], '0.001': None}
                )
    assert verdicts(report)[with_all] == 'cannot tell from chance'
    assert 'does not show that nothing leaks' in texts(report)[with_all]
    report['attackers']['linear map']['membership']['with']['raw']['auc'] = [0.6, 0.56, 0.64]
    assert verdicts(report)[with_all] == 'leaks'
    assert 'Another attacker or score is above chance' in texts(report)[with_all]


def test_too_few_non_members_leave_only_the_area():
    report = sample()
    for attacker in report['attackers'].values():
        for way in ('with', 'without'):
            for score in ('calibrated', 'raw'):
                attacker['membership'][way][score]['tpr'] = {'0.01': None, '0.001': None}
    text = texts(report)['Membership, every released face']
    assert 'too few people' in text and 'area under the curve of' in text and 'accusing' not in text


def test_each_way_of_counting_names_the_photos_it_was_measured_with():
    said = texts(sample())
    for way, members, others in (
        ('every released face', '2,643 photos of 545 people', '1,202 photos of 430 people'),
        ('without the same source', '2,410 photos of 498 people', '1,187 photos of 421 people'),
    ):
        assert f'Measured with {members} who are in it and {others} who are not in it.' in said[f'Membership, {way}']


def set_membership(report, auc, common, rare, non_members):
    for attacker in report['attackers'].values():
        of = attacker['membership']
        of['photos'] = dict(members=2643, non_members=non_members, member_identities=545, non_member_identities=100)
        of['without'] = of['photos_without'] = None
        for score in of['with'].values():
            score |= dict(auc=auc, tpr={'0.01': common, '0.001': rare})


@pytest.mark.parametrize(
    ('common', 'rare', 'non_members', 'verdict', 'says'),
    [
        ([0.3, 0.2, 0.4], None, 500, 'leaks', 'That is above chance'),
        ([0.3, 0.2, 0.4], None, 499, 'to be looked at', 'the sample too small to say that it leaks'),
        ([0.3, 0.2, 0.4], None, 100, 'to be looked at', 'the sample too small to say that it leaks'),
        ([0.011, 0.005, 0.02], [0.1, 0.05, 0.2], 4999, 'to be looked at', 'the sample too small to say that it leaks'),
        ([0.011, 0.005, 0.02], [0.1, 0.05, 0.2], 5000, 'leaks', 'That is above chance'),
        ([0.3, 0.2, 0.4], [0.1, 0.05, 0.2], 4999, 'leaks', 'At 0.1 % fewer than five photos of others are accused'),
        ([0.011, 0.005, 0.02], None, 100, 'cannot tell from chance', 'At 1.0 % fewer than five photos of others'),
    ],
)
def test_fewer_than_five_false_matches_show_no_leak_alone(tmp_path, common, rare, non_members, verdict, says):
    report = sample()
    set_membership(report, [0.5, 0.48, 0.52], common, rare, non_members)
    topic = 'Membership, every released face'
    assert verdicts(report)[topic] == verdict and says in texts(report)[topic]
    page = write_report(report, tmp_path).read_text(encoding='utf-8')
    few = non_members < 500 or (rare and non_members < 5000)
    assert ('85\u00a0% of simulations, not in 95' in page) == bool(few)
    assert ('85 % of simulations' in texts(report)[topic]) == bool(few)
    rows = {row['measure']: row for row in table(tmp_path, 'membership')}
    assert float(rows['TPR at FPR 0.01']['false_matches']) == pytest.approx(0.01 * non_members)
    starred = re.findall(r'([\d.]+\u00a0%)\u00a0\*', page)
    shown = {percent(rate[0]) for rate, fpr in ((common, 0.01), (rare, 0.001)) if rate and fpr * non_members < 5 - 1e-9}
    assert set(starred) == shown


def test_another_score_above_chance_at_few_false_matches_is_to_be_looked_at():
    report = sample()
    set_membership(report, [0.5, 0.48, 0.52], [0.012, 0.006, 0.02], [0.001, 0.0, 0.002], 1202)
    topic = 'Membership, every released face'
    assert verdicts(report)[topic] == 'cannot tell from chance'
    report['attackers']['linear map']['membership']['with']['raw']['tpr'] = {
        '0.01': [0.011, 0.006, 0.02],
        '0.001': [0.01, 0.005, 0.02],
    }
    assert verdicts(report)[topic] == 'to be looked at'
    assert 'Another attacker or score is above chance, but' in texts(report)[topic]


@pytest.mark.parametrize(
    ('same', 'chance', 'verdict', 'says'),
    [
        ([0.05, 0.03, 0.07], 0.002, 'leaks', '(by chance 0.2 %; held against 1.0 %)'),
        ([0.05, 0.03, 0.07], 0.029, 'leaks', '(by chance 2.9 %)'),
        ([0.05, 0.03, 0.07], 0.03, 'to be looked at', '(by chance 3.0 %)'),
        ([0.006, 0.005, 0.007], 0.002, 'to be looked at', '(by chance 0.2 %; held against 1.0 %)'),
        ([0.05, 0.03, 0.07], None, 'to be looked at', 'what chance would make it was not measured'),
    ],
)
def test_the_right_person_nearby_is_held_against_its_own_chance(tmp_path, same, chance, verdict, says):
    report = sample()
    for attacker in report['attackers'].values():
        attacker['near_duplicates'] |= dict(
            above_threshold=[0.3, 0.2, 0.4],
            above_threshold_same_person=same,
            chance_same_person=chance,
            source_nearest=None,
        )
    assert verdicts(report)['Near duplicates'] == verdict and says in texts(report)['Near duplicates']
    page = write_report(report, tmp_path).read_text(encoding='utf-8')
    cells = re.search('<caption id="near-table">.*?</table>', page, re.S)[0].split('<tr')[2]
    cells = re.findall('<td[^>]*>(.*?)</td>', cells)
    assert 'the same person by chance' in page and cells[2] == percent(chance)
    rows = {row['measure']: row['chance'] for row in table(tmp_path, 'near_duplicates')}
    assert rows['above_threshold_same_person'] == ('' if chance is None else str(chance))
    assert rows['above_threshold'] == '0.01' and float(rows['source_nearest']) == 1 / 13233


def test_nearness_is_told_of_an_attacker_for_whom_it_leaks():
    report = sample()
    for number, attacker in enumerate(report['attackers'].values()):
        same, chance = ([0.04, 0.03, 0.05], 0.001) if number == 1 else ([0.06, 0.05, 0.07], 0.06)
        attacker['near_duplicates'] |= dict(
            above_threshold=[0.3, 0.2, 0.4],
            above_threshold_same_person=same,
            chance_same_person=chance,
            source_nearest=None,
        )
    assert verdicts(report)['Near duplicates'] == 'leaks'
    assert list(report['attackers'])[1] in texts(report)['Near duplicates']


@pytest.mark.parametrize(
    ('above', 'same', 'own', 'verdict', 'says'),
    [
        (
            [0.08, 0.06, 0.1],
            [0.05, 0.03, 0.07],
            None,
            'leaks',
            'the very person whom the face stands for (by chance 0.3 %; held against 1.0 %). That is above',
        ),
        ([0.08, 0.06, 0.1], [0.0, 0.0, 0.005], [0.001, 0.0005, 0.002], 'leaks', '(by chance 0.0076 %). That is above'),
        ([0.08, 0.06, 0.1], [0.005, 0.0, 0.012], [0.0, 0.0, 0.001], 'to be looked at', 'Nearness alone is no leak'),
        ([0.08, 0.06, 0.1], None, None, 'to be looked at', 'Nearness alone is no leak'),
        ([0.012, 0.008, 0.02], None, None, 'cannot tell from chance', 'does not show that nothing leaks'),
        ([0.001, 0.0, 0.004], None, None, 'note', 'like nobody’s photo'),
        ([0.08, None, None], None, None, 'not measured', 'nothing follows'),
    ],
)
def test_nearness_leaks_only_where_it_is_the_right_person(above, same, own, verdict, says):
    report = sample()
    for attacker in report['attackers'].values():
        attacker['near_duplicates'] |= dict(above_threshold=above, above_threshold_same_person=same, source_nearest=own)
    assert verdicts(report)['Near duplicates'] == verdict
    assert says in texts(report)['Near duplicates']
    assert ('it leaks' in texts(report)['Near duplicates']) == (verdict == 'leaks')


def test_copies_by_pixels_are_to_be_looked_at():
    report = sample()
    assert verdicts(report)['Copies by pixels'] == 'note'
    headline(report)['near_duplicates']['pixel_copies']['count'] = 1
    assert verdicts(report)['Copies by pixels'] == 'to be looked at'
    assert '1 released face is all but a copy' in texts(report)['Copies by pixels']
    for attacker in report['attackers'].values():
        attacker['near_duplicates']['pixel_copies'] = None
    assert 'Copies by pixels' not in verdicts(report)


def test_imitations_are_counted_once_for_all_attackers():
    told = texts(sample())['If the attacker imitates the release']
    assert 'by “same masks”, the one of 3 imitations that finds most' in told


def test_utility_that_may_be_guessing_is_said_to_be_so():
    report = sample()
    assert 'guessing' not in texts(report)['Utility'] and 'do not overlap' in texts(report)['Utility']
    for row in report['utility']:
        row['recogniser'] = ''
    report['utility'][1]['accuracy'] = [0.51, 0.49, 0.53]
    assert texts(report)['Utility'].startswith('A recogniser trained on released faces verifies 51.0 %')
    assert 'cannot tell it from guessing' in texts(report)['Utility']


def test_nothing_measured_is_said_and_no_attack_is_called_harmless():
    for report in ({}, dict(attackers=None), dict(attackers={'a': {}}, headline=None)):
        assert findings(report)[0].verdict == 'not measured'
    everything = ' '.join(finding.text for finding in findings(sample()))
    assert 'no evidence that none can' in everything
    assert not re.search(r'\b(safe|secure|anonymous|removed|harmless)\b', everything)


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        (0.0713, '7.1'),
        (0.0, '0.0'),
        (1.0, '100.0'),
        (0.99996, '>99.99'),
        (0.9996, '99.96'),
        (0.0004, '0.04'),
        (3e-6, '0.0003'),
        (1e-9, '<0.0001'),
        (-0.1, '−10.0'),
        (None, '–'),
        (123.456, '12,345.6'),
    ],
)
def test_rounding_makes_neither_nothing_nor_everything(value, text):
    assert share(value) == text
    assert percent(value) == (text if value is None else f'{text}\u00a0%')


def test_no_two_of_twenty_lines_look_alike():
    looks = [look(style) for style in range(20)]
    assert len({(marker, dash) for marker, dash, _ in looks}) == 20
    for number, one in enumerate(looks[:12]):
        assert all(0 <= of < 8 for of in one)
        for other in looks[:number]:
            assert sum(a == b for a, b in zip(one, other)) <= 1


@pytest.mark.parametrize('edges', [np.ones(61), np.linspace(1 - 3e-16, 1, 61), np.linspace(0.95, 1, 61)])
def test_a_histogram_of_no_width_is_drawn_and_its_counts_are_told(tmp_path, edges):
    report = sample()
    counts = [0] * 59 + [25, 75]
    headline(report)['near_duplicates']['histogram'] = dict(
        edges=edges.tolist(), series={'released': counts[1:], 'photos': [40] + [0] * 59}
    )
    page = write_report(report, tmp_path).read_text(encoding='utf-8')
    name = report['headline']['attacker']
    cells = re.search(f'Similarity of the nearest photo, attacker {name}: counts.*?</table>', page, re.S)[0]
    told = [[int(of) for of in re.findall(r'<td>(\d+)</td>', row)] for row in cells.split('<tr')[2:]]
    assert told == [[one, other] for one, other in zip(counts[1:], [40] + [0] * 59)]
    assert 'released: 100, half of them up to 1;' in page
    chart = re.search('<svg class="chart"[^>]*histogram-0.*?</svg>', page, re.S)[0]
    assert chart.count('class="line"') == 2 and '>1</text>' in chart


@pytest.mark.parametrize('rates', [[0.0], [1e-9], [0.0123, 0.7], [1.0], [-0.3, 0.4], [0.01, 0.011]])
def test_an_axis_of_rates_holds_them_between_round_numbers(rates):
    axis = Axis.of_rates('', rates)
    assert axis.low <= min(rates) and max(rates) <= axis.high
    assert 2 <= len(axis.ticks) <= 8 and len({text for _, text in axis.ticks}) == len(axis.ticks)
    assert axis.position(axis.low) == 0 and axis.position(axis.high) == 1


# What is written


def test_tables_hold_the_numbers_of_the_dict(tmp_path):
    report = sample()
    write_report(report, tmp_path / 'new' / 'audit')
    folder = tmp_path / 'new' / 'audit'
    assert json.loads((folder / 'report.json').read_text()) == report

    read = {
        (row['attacker'], row['pairing'], int(row['identities']), row['counted'], row['k']): row
        for row in table(folder, 'curves')
    }
    expected = 0
    for name, of in report['attackers'].items():
        for pairing, curve in of['leakage'].items():
            for point in curve['points']:
                for way in ('with', 'without'):
                    for k, rates in point[way].items():
                        row = read[name, pairing, point['identities'], way, k]
                        assert [float(row[key]) for key in ('rate', 'low', 'high')] == rates
                        assert float(row['chance']) == point[f'chance_{way}'][k]
                        expected += 1
    assert len(read) == expected
    last = [row for row in read.values() if row['identities'] == '545']
    assert table(folder, 'leakage') == [{key: row[key] for key in row if key != 'draws'} for row in last]

    one = table(folder, 'difference')
    assert len(one) == 3 * 5 * 2 * 4
    first = headline(report)['difference']['points'][0]['without']['1']
    assert [float(one[0][key]) for key in ('difference', 'low', 'high')] == first

    curve = report['attackers']['linear map']['membership']['without']['raw']['curve']
    mine = dict(attacker='linear map', counted='without', score='raw')
    points = [row for row in table(folder, 'roc') if mine.items() <= row.items()]
    assert [float(row['fpr']) for row in points] == curve['fpr']
    assert [float(row['tpr']) for row in points] == curve['tpr']
    rates = [row for row in table(folder, 'membership') if mine.items() <= row.items()]
    of = report['attackers']['linear map']['membership']['without']['raw']
    assert [float(row['value']) for row in rates] == [of['auc'][0], of['tpr']['0.01'][0], of['tpr']['0.001'][0]]

    utility = {row['method']: row for row in table(folder, 'utility')}
    assert list(utility) == ['original', 'released', 'MAE', '75 % masked']
    released = headline(report)['leakage']['original_released']['points'][-1]['without']['2']
    assert [float(utility['released'][key]) for key in ('leakage', 'leakage_low', 'leakage_high')] == released
    assert float(utility['MAE']['leakage']) == 0.062 and utility['MAE']['accuracy'] == '0.723'
    histogram = [row for row in table(folder, 'histogram') if row['attacker'] == 'linear map']
    series = report['attackers']['linear map']['near_duplicates']['histogram']['series']
    assert [int(row['count']) for row in histogram] == [count for counts in series.values() for count in counts]
    assert [row['is_source'] for row in table(folder, 'worst_cases')[:9]][-2:] == ['False', '']


def test_names_are_shown_as_text_and_never_run(tmp_path):
    evil = '<script>alert(1)</script>"\'&</style></title></svg>{{ 7 * 7 }}\udc80'
    report = sample()
    attackers = report['attackers']
    attackers[evil] = attackers.pop(report['headline']['attacker'])
    report['headline']['attacker'] = evil
    attackers[evil]['leakage'][f'imitation:{evil}'] = attackers[evil]['leakage'].pop('imitation:MAE')
    attackers[evil]['kind'] = attackers[evil]['about']['file'] = evil
    attackers[evil]['near_duplicates']['histogram']['series'][evil] = [1] * 40
    attackers[evil]['near_duplicates']['worst'][0]['by'] = evil
    for part in ('real', 'released'):
        report[part] |= dict(name=evil, keys_sha256=evil, manifest_sha256=evil)
    report |= dict(command=evil, date=evil, settings={evil: {evil: [evil]}}, versions=dict(facemae_mm=evil))
    report['matching']['notes'] = report['matching']['by'] = evil
    report['matching']['notes'] = [evil]
    report['utility'][0] |= dict(method=evil, recogniser=evil, set=evil)
    report['compared'][0] |= dict(method=evil, attacker=evil)
    page = write_report(report, tmp_path, pictures(report)).read_text(encoding='utf-8')
    assert (
        '<script' not in page
        and page.count('</style>') == page.count('</title>') - page.count('<svg class="chart"') == 1
    )
    assert page.count('<svg') == page.count('</svg>')
    assert '{{ 7 * 7 }}' in page
    assert html.escape('<script>alert(1)</script>') in page
    assert {row['attacker'].replace('\\udc80', '\udc80') for row in table(tmp_path, 'leakage')} >= {evil}


def test_a_spreadsheet_runs_no_name(tmp_path):
    report = sample()
    report['attackers']['=HYPERLINK("x")'] = report['attackers'].pop('linear map')
    headline(report)['difference']['points'][-1]['without']['2'] = [-0.25, -0.3, -0.2]
    write_report(report, tmp_path)
    assert '\'=HYPERLINK("x")' in {row['attacker'] for row in table(tmp_path, 'leakage')}
    assert '-0.25' in {row['difference'] for row in table(tmp_path, 'difference')}


def without(report, *path):
    of = report
    for key in path[:-1]:
        of = of[key]
    of[path[-1]] = None
    return report


def only_strangers(report):
    """No links and no names: near duplicates alone."""
    for attacker in report['attackers'].values():
        attacker |= dict(leakage={}, difference=None, membership=None)
        attacker['near_duplicates'] |= dict(source_nearest=None, above_threshold_same_person=None)
    return report | dict(headline=None, utility=[], compared=None)


def only_membership(report):
    for attacker in report['attackers'].values():
        del attacker['leakage'], attacker['difference']
    return report | dict(headline=dict(attacker=None, k=2))


def nothing_but_names(report):
    """Every value is None."""
    return {key: None for key in report} | dict(attackers={name: None for name in report['attackers']})


def hollow(value):
    """The same structure, each of its numbers and words None."""
    if isinstance(value, dict):
        return {key: of if key in ('identities', 'method', 'k') else hollow(of) for key, of in value.items()}
    if isinstance(value, list):
        return [hollow(of) for of in value] if value and isinstance(value[0], dict) else None
    return None


def one_way(report):
    """No sources are known: every released image counts, and a single number of identities."""
    for attacker in report['attackers'].values():
        for curve in attacker['leakage'].values():
            del curve['points'][:-1]
            curve['points'][0] |= dict(without=None, chance_without=None)
        attacker['difference']['points'] = [attacker['difference']['points'][-1] | dict(without=None)]
        attacker['membership']['without'] = None
    return report


def extreme(report):
    """Numbers as large and as small as they come."""
    leakage = headline(report)['leakage']['original_released']['points']
    for point, value in zip(leakage, (0.0, 1e-300, 1e-12, 0.9999999, 1.0)):
        point['without'] = {k: [value] * 3 for k in point['without']}
        point['queries'] = 4.2e7
    leakage[-1]['identities'] = 42_000_000
    headline(report)['near_duplicates']['pixel_copies']['count'] = 10**12
    headline(report)['near_duplicates']['histogram'] = dict(
        edges=[-1e9, 0, 1e9], series={'a': [0, 0], 'b': [10**15, 1]}
    )
    return report | dict(settings=dict(seed=2**63, nothing=5e-324), seconds=1e9)


def no_attacker(report):
    """Every attacker was left out."""
    report['matching']['notes'] = ['Attacker linear map was left out: 0 pairs are too few to learn from.']
    return report | dict(attackers={}, headline=dict(attacker=None, k=2))


def eight_imitations(report):
    for number in range(5):
        headline(report)['leakage'][f'imitation:model {number}'] = curve(0.1 + number / 20, 0.4)
    return report


def few_others(report):
    set_membership(report, [0.5, 0.48, 0.52], [0.3, 0.2, 0.4], None, 150)
    return report


def all_alike(report):
    """Every photo is the same one."""
    for attacker in report['attackers'].values():
        histogram = attacker['near_duplicates']['histogram']
        histogram['edges'] = [1.0] * len(histogram['edges'])
    return report


def unmeasured_intervals(report):
    """No rate has an interval."""

    def strip(value):
        if isinstance(value, dict):
            return {key: strip(of) for key, of in value.items()}
        if isinstance(value, list) and len(value) == 3 and all(isinstance(of, float) for of in value):
            return [value[0], None, None]
        return [strip(of) for of in value] if isinstance(value, list) else value

    return strip(report)


CHANGES = [
    only_strangers,
    only_membership,
    nothing_but_names,
    no_attacker,
    eight_imitations,
    few_others,
    all_alike,
    hollow,
    one_way,
    extreme,
    unmeasured_intervals,
]


@pytest.mark.parametrize('change', [*CHANGES, lambda report: {}], ids=lambda change: change.__name__)
def test_what_is_missing_is_said_and_the_rest_is_there(tmp_path, change):
    report = change(sample())
    page = write_report(report, tmp_path).read_text(encoding='utf-8')
    assert 'nan' not in re.sub('<style>.*?</style>', '', page, flags=re.S).lower().replace('finance', '')
    assert not re.search(r'>\s*(None|inf|\[\]|Undefined)\s*<', page)
    for name in ('leakage', 'curves', 'membership', 'roc', 'utility', 'worst_cases'):
        assert (tmp_path / f'{name}.csv').read_text().count('\n') >= 1
    measured = {
        'Leakage by retrieval was not measured': not any(
            (of or {}).get('leakage') for of in (report.get('attackers') or {}).values()
        ),
        'No verification results were given': not (report.get('utility') or report.get('compared')),
        'Near duplicates were not looked for': not any(
            (of or {}).get('near_duplicates') for of in (report.get('attackers') or {}).values()
        ),
    }
    if change is not hollow:
        assert {sentence: sentence in page for sentence in measured} == measured


def test_a_report_without_attackers_says_so_plainly(tmp_path):
    report = no_attacker(sample())
    first = findings(report)[0]
    assert (first.verdict, first.topic) == ('not measured', 'No attacker')
    assert 'every one was left out' in first.text and 'nothing follows' in first.text and 'See the notes' in first.text
    page = write_report(report, tmp_path).read_text(encoding='utf-8')
    assert html.escape(first.text) in page and 'Attacker linear map was left out' in page
    assert 'There is no attacker in this report, so no leakage was measured.' in page
    assert 'the notes' not in findings({})[0].text
    assert not {finding.verdict for finding in findings(report)} & {'leaks', 'reduced', 'cannot tell from chance'}


def test_the_page_says_how_many_resamples_each_interval_had(tmp_path):
    for measure in (membership, near_duplicates):
        assert inspect.signature(measure).parameters['resamples'].default == RESAMPLES == 1000
    report = sample()
    report['settings']['resamples'] = 200
    page = write_report(report, tmp_path).read_text(encoding='utf-8')
    assert 'drawn anew: 200 times for leakage, 1,000 times for membership and near duplicates.' in page
    assert '<dt>resamples of the leakage curves</dt><dd>200</dd>' in page and '<dt>resamples</dt>' not in page


def test_numbers_that_are_none_are_refused_before_anything_is_written(tmp_path):
    report = sample()
    report['utility'][0]['accuracy'][0] = math.nan
    with pytest.raises(ValueError, match='None for what was not measured'):
        write_report(report, tmp_path / 'audit')
    assert not (tmp_path / 'audit').exists()


def test_pictures_that_are_not_those_of_the_worst_cases_are_refused(tmp_path):
    report = sample()
    given = pictures(report)
    given['linear map'].pop()
    with pytest.raises(ValueError, match="'linear map' has 9 .* and 8 pairs"):
        write_report(report, tmp_path / 'audit', given)
    with pytest.raises(ValueError, match=r'uint8 in BGR, not float64 \(4, 4, 3\)'):
        write_report(report, tmp_path / 'audit', {'linear map': [(np.zeros((4, 4, 3)),) * 2] * 9})
    with pytest.raises(ValueError, match="'nobody' has 0"):
        write_report(report, tmp_path / 'audit', {'nobody': given['linear map']})
    assert not (tmp_path / 'audit').exists()


def test_blurred_faces_hold_the_mean_of_6_by_6_parts_and_no_more(tmp_path):
    report = sample()
    given = pictures(report)
    page = write_report(report, tmp_path, given).read_text(encoding='utf-8')
    order = [report['headline']['attacker'], *(name for name in given if name != report['headline']['attacker'])]
    faces = [face for name in order for pair in given[name] for face in pair]
    shown = embedded(page)
    assert len(shown) == len(faces) == 54
    edges = np.linspace(0, 112, 7)
    weights = np.clip(
        np.minimum(np.arange(112) + 1, edges[1:, None]) - np.maximum(np.arange(112), edges[:-1, None]), 0, 1
    )
    weights /= weights.sum(1, keepdims=True)  # how much of each pixel lies in each part
    for face, blurred in zip(faces, shown):
        assert blurred.shape == (6, 6, 3)
        mean = np.einsum('ph,qw,hwc->pqc', weights, weights, face.astype(np.float64))
        assert np.abs(blurred - mean).max() <= 0.51 + 1e-6 * 255
    assert 'PRIVATE' not in page and stat.S_IMODE((tmp_path / 'report.html').stat().st_mode) & 0o044


def test_faces_are_shown_only_to_the_owner_who_asks(tmp_path):
    report = sample()
    given = pictures(report)
    path = write_report(report, tmp_path, given)
    assert write_report(report, tmp_path, given, show_faces=True) == path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    page = path.read_text(encoding='utf-8')
    assert 'PRIVATE: this file shows faces of real people' in page and '<title>PRIVATE' in page
    first = given[report['headline']['attacker']][0]
    assert all(np.array_equal(shown, face) for shown, face in zip(embedded(page), first))
    write_report(report, tmp_path, given)
    assert stat.S_IMODE(path.stat().st_mode) & 0o044


def test_a_report_that_cannot_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    path = write_report(sample(), tmp_path)
    before = path.read_bytes()
    report = sample() | dict(date='later')
    monkeypatch.setattr(os, 'fsync', lambda _: (_ for _ in ()).throw(OSError('the disk is full')))
    with pytest.raises(OSError, match='the disk is full'):
        write_report(report, tmp_path)
    assert path.read_bytes() == before and not list(tmp_path.glob('*.partial'))


# The page in a browser

#: Colours of all texts against what lies behind them, as WCAG 2 reckons contrast; and of the charts' lines.
CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const channel = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
      if (colour[3] !== 0) throw Error('half transparent');
    }
    throw Error('no background');
  };
  const contrast = (colour, element) => {
    const [a, b] = [luminance(parse(colour)), luminance(behind(element))].sort((a, b) => b - a);
    return (a + 0.05) / (b + 0.05);
  };
  const found = {text: [], chart: [], line: [], paper: luminance(behind(document.body))};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest('title, desc')) continue;
    const style = getComputedStyle(element), drawn = element.closest('svg');
    found[drawn ? 'chart' : 'text'].push([contrast(drawn ? style.fill : style.color, element), element.textContent]);
  }
  for (const line of document.querySelectorAll('.line, .bar, .chance, .rule, .axis, .marker.hollow'))
    found.line.push([contrast(getComputedStyle(line).stroke, line), line.getAttribute('class')]);
  return found;
}"""
#: What is cut off at the right, what overlaps, and what leaves its chart.
LAYOUT = """() => {
  const faults = [], boxes = [];
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) faults.push(`the page is ${wide} wide`);
  const hit = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1.5
    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1.5;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.data.trim() || element.closest('svg, .scroll, .skip, h4 + figure > figcaption')) continue;
    if (!element.checkVisibility()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects()) boxes.push([box, node.data]);
  }
  boxes.forEach(([box, text], n) => {
    if (box.left < -0.5 || box.right > innerWidth + 0.5) faults.push(`cut off: ${text}`);
    for (const [other, words] of boxes.slice(n + 1, n + 40)) if (hit(box, other)) faults.push(`${text} over ${words}`);
  });
  for (const chart of document.querySelectorAll('.chart')) {
    if (!chart.checkVisibility()) continue;
    const frame = chart.getBoundingClientRect();
    const texts = [...chart.querySelectorAll('text')].map(text => [text.getBoundingClientRect(), text.textContent]);
    if (frame.width < 250) faults.push(`a chart is ${frame.width} wide`);
    texts.forEach(([box, text], n) => {
      if (box.left < Math.max(frame.left - 8, 0) || box.right > Math.min(frame.right + 8, innerWidth)
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1) faults.push(`out of its chart: ${text}`);
      if (box.height < 10) faults.push(`${text} is ${box.height} high`);
      for (const [other, words] of texts.slice(n + 1)) if (hit(box, other)) faults.push(`${text} over ${words}`);
    });
    for (const mark of chart.querySelectorAll('.marker, .bar, .line, .chance')) {
      const box = mark.getBoundingClientRect();
      if (box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom)
        faults.push(`a ${mark.getAttribute('class')} leaves its chart`);
    }
  }
  for (const picture of document.images)
    if (!picture.complete || !picture.naturalWidth) faults.push(`no picture: ${picture.alt}`);
  return [faults, boxes.length];
}"""
STRUCTURE = """() => {
  const faults = [], all = [...document.querySelectorAll('h1, h2, h3, h4, h5, h6')];
  const heads = all.map(head => Number(head.tagName[1]));
  if (heads.filter(level => level === 1).length !== 1 || heads[0] !== 1) faults.push('h1');
  heads.forEach((level, n) => { if (n && level > heads[n - 1] + 1) faults.push(`h${heads[n - 1]} then h${level}`); });
  if (document.documentElement.lang !== 'en') faults.push('lang');
  for (const landmark of ['header', 'nav', 'main', 'footer'])
    if (document.querySelectorAll(`body > ${landmark}`).length !== 1) faults.push(landmark);
  const ids = [...document.querySelectorAll('[id]')].map(element => element.id);
  if (new Set(ids).size !== ids.length) faults.push('an id twice');
  for (const table of document.querySelectorAll('table')) {
    if (!table.caption?.textContent.trim()) faults.push('a table without caption');
    if ([...table.querySelectorAll('th')].some(head => !head.scope)) faults.push('a head without scope');
    const region = table.closest('[role=region]');
    if (region?.tabIndex !== 0 || region.getAttribute('aria-labelledby') !== table.caption.id) faults.push('region');
  }
  for (const chart of document.querySelectorAll('.chart')) {
    if (chart.getAttribute('role') !== 'img') faults.push('a chart is no image');
    for (const id of chart.getAttribute('aria-labelledby').split(' '))
      if (!document.getElementById(id)?.textContent.trim()) faults.push(`${id} says nothing`);
    const looks = [...chart.querySelectorAll('.line')].map(line =>
      `${line.getAttribute('stroke-dasharray')} and ${line.parentElement.querySelector('.marker')?.getAttribute('d')}`);
    if (new Set(looks).size !== looks.length) faults.push('two lines differ in colour alone');
  }
  for (const link of document.querySelectorAll('a'))
    if (!document.querySelector(link.getAttribute('href'))) faults.push(`${link.href} leads nowhere`);
  for (const picture of document.images) if (!picture.alt) faults.push('a picture without alt');
  return faults;
}"""

FOCUSED = """() => {
  const element = document.activeElement, style = getComputedStyle(element);
  return [`${element.tagName}.${element.className}`, style.outlineStyle + parseFloat(style.outlineWidth)];
}"""


@pytest.fixture(scope='module')
def browser():
    if CHROMIUM is None:
        pytest.skip('no Chromium is installed (chromium, chromium-browser or google-chrome)')
    playwright = pytest.importorskip('playwright.sync_api', reason='the extra `test` brings playwright')
    with playwright.sync_playwright() as running:
        root = hasattr(os, 'geteuid') and os.geteuid() == 0
        browser = running.chromium.launch(executable_path=CHROMIUM, args=['--no-sandbox'] if root else [])
        yield browser
        browser.close()


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    report = sample()
    return write_report(report, tmp_path_factory.mktemp('audit'), pictures(report))


@pytest.fixture
def opened(browser):
    """Opens a page; gives it, what it asked for and what it complained of."""
    contexts = []

    def open_page(path, width=1280, scheme='light', **more):
        context = browser.new_context(viewport=dict(width=width, height=844), color_scheme=scheme, offline=True, **more)
        contexts.append(context)
        page = context.new_page()
        asked, said = [], []
        page.on('request', lambda request: asked.append(request))
        page.on('console', lambda message: said.append(message.text))
        page.on('pageerror', lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        return page, asked, said

    yield open_page
    for context in contexts:
        context.close()


def open_all(page):
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")


@pytest.mark.parametrize('scheme', ['light', 'dark'])
@pytest.mark.parametrize('width', [1280, 390])
def test_the_page_is_whole_and_readable_in_a_browser(opened, written, width, scheme):
    page, asked, said = opened(written, width, scheme)
    for _ in range(2):
        faults, texts = page.evaluate(LAYOUT)
        assert faults == [] and texts > 100
        open_all(page)
    contrast = page.evaluate(CONTRAST)
    assert (contrast['paper'] < 0.02) == (scheme == 'dark')
    for kind, least in (('text', 4.5), ('chart', 4.5), ('line', 3.0)):
        assert len(contrast[kind]) > 50
        assert [found for found in contrast[kind] if found[0] < least] == []
    assert [request.url for request in asked if not request.url.startswith('data:')] == [written.as_uri()]
    assert said == []


def test_the_page_lets_nothing_in(opened, written, tmp_path):
    """The policy stops what a fault in escaping would let in, and the test above would hear it."""
    page = written.read_text(encoding='utf-8')
    for name, evil in (
        ('script', '<script>document.title = "taken"</script>'),
        ('image', '<img src="https://example.invalid/a.png" onerror="document.title = `taken`">'),
        ('style', '<style>body { display: none }</style>'),
    ):
        changed = tmp_path / f'{name}.html'
        changed.write_text(page.replace('<main', f'{evil}<main'), encoding='utf-8')
        shown, asked, said = opened(changed)
        assert any('Content Security Policy' in line for line in said), name
        assert 'taken' not in shown.title() and shown.locator('h1').is_visible()
        sent = [request for request in asked if not request.url.startswith(('data:', 'file:'))]
        assert [request.failure for request in sent] == ['csp'] * (name == 'image')


@pytest.mark.parametrize('change', [None, *CHANGES], ids=lambda change: getattr(change, '__name__', 'whole'))
def test_headings_tables_and_charts_have_their_names(opened, tmp_path, change):
    report = sample() if change is None else change(sample())
    page, _, said = opened(write_report(report, tmp_path), 390)
    open_all(page)
    assert page.evaluate(STRUCTURE) == [] and said == []
    assert page.evaluate(LAYOUT)[0] == []


def test_names_of_any_length_and_kind_leave_the_page_its_width(opened, tmp_path):
    name = 'a_name_without_any_space_' * 12 + '<b>'
    report = sample()
    report['attackers'][name] = report['attackers'].pop(report['headline']['attacker'])
    report['headline']['attacker'] = name
    report['released']['name'] = report['matching']['notes'][0] = report['utility'][1]['recogniser'] = name
    page, _, said = opened(write_report(report, tmp_path), 390)
    open_all(page)
    assert page.evaluate(LAYOUT)[0] == [] and said == []
    assert name in page.locator('h1').inner_text()


def test_everything_is_reached_by_keyboard(opened, written):
    page, _, _ = opened(written, 390)
    focused = 'document.activeElement'
    page.keyboard.press('Tab')
    assert page.evaluate(f'{focused}.className') == 'skip'
    assert page.evaluate(f'{focused}.getBoundingClientRect().top') >= 0
    page.keyboard.press('Enter')
    assert page.evaluate(f'{focused}.id') == 'main'

    page.evaluate('document.activeElement.blur(); scrollTo(0, 0)')
    page.reload()
    reached, unmarked = [], []
    for _ in range(400):
        page.keyboard.press('Tab')
        kind, style = page.evaluate(FOCUSED)
        if kind == 'BODY.':
            break
        reached.append(kind)
        if kind != 'A.skip' and (style.startswith('none') or float(re.search('[0-9.]+', style)[0]) < 2):
            unmarked.append(kind)
    rules = {'A.': 'nav a', 'DIV.scroll': '.scroll', 'SUMMARY.': 'summary'}
    count = {kind: page.locator(f'{rule}:visible').count() for kind, rule in rules.items()}
    assert unmarked == [] and min(count.values()) > 4
    assert {kind: reached.count(kind) for kind in count} == count

    summary = page.locator('summary', has_text='The numbers of these curves').first
    summary.focus()
    page.keyboard.press('Enter')
    region = page.locator('[aria-labelledby=curves-0]')
    assert 'Leakage over the number of identities' in page.locator('#curves-0').inner_text()
    assert region.is_visible()
    page.keyboard.press('Tab')
    assert region.evaluate('element => element === document.activeElement')
    page.keyboard.press('ArrowRight')
    for _ in range(40):  # scrolling is smooth; the page's policy forbids wait_for_function
        if region.evaluate('element => element.scrollLeft') > 0:
            break
        page.wait_for_timeout(50)
    else:
        pytest.fail('an arrow key did not scroll the table')
    page.keyboard.press('Shift+Tab')
    page.keyboard.press('Enter')
    assert not region.is_visible()


def test_print_shows_what_is_folded_and_motion_stops_where_asked(opened, written):
    page, _, _ = opened(written, 1280, 'dark', reduced_motion='reduce')
    assert page.evaluate('getComputedStyle(document.documentElement).scrollBehavior') == 'auto'
    folded = page.locator('[aria-labelledby=curves-1]')
    assert not folded.is_visible() and page.locator('nav').is_visible()
    page.emulate_media(media='print')
    assert folded.is_visible() and not page.locator('nav').is_visible()
    page.set_viewport_size(dict(width=718, height=1000))  # A4 between Chromium's margins
    assert page.evaluate('document.documentElement.scrollWidth') <= 718
    assert page.evaluate(CONTRAST)['paper'] > 0.9


def test_the_warning_of_a_private_page_is_the_first_thing_seen(opened, tmp_path):
    report = sample()
    page, _, said = opened(write_report(report, tmp_path, pictures(report), show_faces=True), 390)
    banner = page.get_by_role('complementary', name='Warning')
    assert banner.bounding_box()['y'] < 100 and 'for its owner alone' in banner.inner_text()
    assert page.evaluate(LAYOUT)[0] == [] and said == []
