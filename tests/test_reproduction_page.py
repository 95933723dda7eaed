"""The page of a reproduction, from records that are made up: every table, claims, figures, and what has not run."""

import numpy as np
import pytest

from facemae_mm.reproduction.claims import CLAIMS
from facemae_mm.reproduction.data_flow import Embedder
from facemae_mm.reproduction.miniature import Miniature
from facemae_mm.reproduction.page import write_page
from facemae_mm.reproduction.store import Store, content_digest
from facemae_mm.reproduction.tables import FIGURES, TABLES, Cells

PAIRS, PEOPLE = 60, 12
POINTS = [12, 24, 48]


class Records(Store):
    """A store whose records are given, by stage."""

    def __init__(self, stages, found, folder):
        super().__init__(stages, {}, folder / 'cache', folder / 'results')
        self.found = found

    def record(self, stage):
        return self.found.get(stage.name)

    def key(self, stage):
        return 'k' * 64


def curve(rate):
    rates = {str(k): [rate, rate - 0.05, rate + 0.05] for k in (2, 3, 4)}
    point = dict(queries=9, gallery=9, chance_with={str(k): 0.02 for k in (2, 3, 4)}, chance_without={})
    return [point | {'identities': n, 'with': rates, 'without': rates} for n in POINTS]


def made_up(stage, rng):
    """Numbers of each kind of stage."""
    kind = stage.numbers
    if kind == 'parts':
        people = dict.fromkeys(('start', 'train', 'deploy', 'test'), dict(people=9, images=99))
        return people | dict(pairs=rng.integers(PEOPLE, size=(PAIRS, 2)).tolist(), overlap=0.625)
    if kind == 'verification':
        digits = ''.join('01'[int(value)] for value in rng.random(PAIRS) < 0.8)
        return dict(answers=dict(lfw=f'{int("1" + digits, 2):x}'))
    if kind == 'separation':
        return dict(by_person=(0.7 + 0.1 * rng.random(PEOPLE)).tolist())
    if kind == 'audit':
        names = ('original_original', 'original_released', 'imitation:MAE', 'imitation:FaceMAE')
        leakage = {name: curve(0.9 - 0.2 * number) for number, name in enumerate(names)}
        return dict(attackers=dict(embedder=dict(leakage=leakage, difference=dict(points=curve(0.4)))))
    if kind == 'feature_map':
        names = ('zero', 'masked', 'synface', 'mae', 'facemae')
        distances = {measure: {name: [0.1, 0.05, 0.2] for name in names} for measure in ('frechet', 'mmd2')}
        pairs = [dict(a=a, b='facemae', frechet=[0.2, 0.1, 0.3], mmd2=[0.2, 0.1, 0.3]) for a in names[1:4]]
        return distances | dict(differences=pairs)
    if kind == 'compare_faces':
        regions = {
            region: dict(ssim=[0.5, 0.4, 0.6], detail=[0.5, 0.4, 0.6], match=[0.5, 0.4, 0.6])
            for region in ('eyes', 'mouth', 'face')
        }
        moved = dict(found=[0.1, 0.05, 0.2], landmark_error=[0.1, 0.05, 0.2])
        pairs = [dict(a='seed0', b=name) | moved for name in ('eyes', 'mouth')]
        compared = [dict(a='mae', b='facemae') | regions]
        return dict(photos=50, sets=dict(mae=regions), differences=compared, alignment=dict(differences=pairs))
    return dict(iterations=5)


@pytest.fixture
def page(repository, monkeypatch, tmp_path):
    """Writes a page; page(skip) leaves out the records of stages for which skip(name) holds."""
    monkeypatch.chdir(repository)

    def write(skip=lambda name: False, unseen=None):
        graph = Miniature(unseen)
        cells = Cells(graph, 2)
        tables = {name: table(cells) for name, table in TABLES.items()}
        for stages in FIGURES.values():
            stages(cells)
        rng = np.random.default_rng(0)
        about = dict(seconds=60.0, cpu_seconds=50.0, commit='abc', versions=dict(torch='2'), output=None)
        found = {
            stage.name: about | dict(numbers=made_up(stage, rng), command=['python', *stage.command])
            for stage in graph.stages.values()
            if not skip(stage.name)
        }
        store = Records(graph.stages, found, tmp_path)
        picture = store.folder(graph.stages['fig1']) / 'feature_map.svg'
        picture.parent.mkdir(parents=True, exist_ok=True)
        picture.write_text('<svg/>')
        if 'fig1' in found:
            found['fig1']['output'] = content_digest(picture)
        return write_page(tmp_path / 'page', store, graph, tables, 'python tools/reproduce.py all --scale mini')

    return write


def test_everything_that_has_run_is_shown(page):
    path = page()
    text, charts = path.read_text(), {chart: chart.read_bytes() for chart in path.parent.glob('figures/*')}
    assert 'python tools/reproduce.py all --scale mini' in text
    for number in range(1, 9):
        assert f'## Table {number}:' in text
    for claim in CLAIMS:
        assert f'**{claim.name}**: {claim.sentence}' in text, claim.name
    assert 'Not run:' not in text and 'not run |' not in text
    assert '62% of the people deployed on' in text and 'β = 10 (28.28 at N = 32)' in text
    assert 'FaceMAE, R18 − MAE:' in text and '90% of Table 8 − 90% of Table 3:' in text
    assert '(MSE + IM + RM) − (IM + RM):' in text
    assert '[0](stages/verify.r18.original.s0.json), [1](stages/verify.r18.original.s1.json) | recogniser |' in text
    assert {chart.name for chart in charts} == {'leakage_embedder.svg', 'trade_off.svg', 'feature_map.svg'}
    assert all(f'figures/{chart.name}' in text for chart in charts)
    assert page().read_text() == text and {chart: chart.read_bytes() for chart in charts} == charts


def test_what_has_not_run_is_said_shortly(page):
    text = page(lambda name: 'mask_' in name or name in ('fig1', 'alignment')).read_text()
    (line,) = [line for line in text.splitlines() if line.startswith('Not run: ')]
    assert 'mask ratio (Table 3)' in line and 'eyes and mouth in alignment (Table 7)' in line
    assert 'order of the methods' not in line and '**order of the methods**' in text
    assert 'feature_map.svg' not in text and 'Figure 1: not run.' in text and 'Figure 4: not run.' not in text
    nothing = page(lambda name: True).read_text()
    assert nothing.count('none has run') == 2 and '## Table 8' in nothing
    assert all(f'{figure}: not run.' in nothing for figure in ('Figure 1', 'Figures 3 and 5', 'Figure 4'))


def test_one_run_says_so(page):
    """What one run decided is counted apart, and a cell of other runs than the accuracy's names how many."""
    text = page(lambda name: name.endswith('.s1')).read_text()
    assert '**, one run | FaceMAE, R18 − MAE' in text and 'by one run)' in text and 'accuracy (LFW) 1' not in text
    rows = {line.partition(' |')[0].removeprefix('| '): line for line in text.splitlines() if line.startswith('| ')}
    assert rows['75 % masked'].count(' (2 runs) |') == 1
    both = page().read_text()
    assert '**, 2 runs | FaceMAE, R18 − MAE' in both and '(2 runs)' not in both
    rows = {line.partition(' |')[0].removeprefix('| '): line for line in both.splitlines() if line.startswith('| ')}
    assert rows['original'].count(' (one run) |') == 1 and '(one run)' not in rows['75 % masked']
    assert '**, 2 runs | 40.0 [35.0, 45.0] points lower' in both
    text = page(lambda name: name.startswith('audit') and name.endswith('.m1')).read_text()
    assert '**, one run | 40.0 [35.0, 45.0] points lower' in text
    by_seed = [line for line in both.splitlines() if '| seed 0 − seed 1' in line]
    assert len(by_seed) == 2 and '2 runs' in by_seed[0] and 'one run' in by_seed[1]  # one release each
    assert (
        'the standard deviation between runs that train everything anew is, pooled over rows, accuracy (LFW) ' in both
    )
    nothing = page(lambda name: not name.endswith('.s0')).read_text()
    assert 'Intervals cover the people of the test alone' in nothing


def test_the_page_says_who_judges_and_attacks(page):
    text = page().read_text()
    assert 'tested on 60 pairs of 9 people' in text
    assert 'by the worst attacker of `embedder`, which is φ. "Without"' in text
    text = page(unseen=dict(pack=Embedder())).read_text()
    assert '`pack`: from outside' in text and 'and `second_embedder`, which is pack, a judge of separation too' in text
    assert ' Leakage among the originals themselves: 90.0 [85.0, 95.0]; chance: 2.0.' in text


def test_charts_of_numbers_that_are_no_longer_there_go(page):
    folder = page().parent / 'figures'
    (folder / 'of_the_reader.txt').touch()
    page(lambda name: name.startswith('audit'))
    assert {file.name for file in folder.iterdir()} == {'feature_map.svg', 'of_the_reader.txt'}


def test_a_picture_of_another_run_is_not_shown(page, tmp_path):
    assert 'figures/feature_map.svg' in page().read_text()
    (tmp_path / 'page/figures/feature_map.svg').write_text('<svg>of before</svg>')
    text = page(lambda name: name == 'fig1').read_text()
    assert 'feature_map.svg' not in text
