"""tools/audit.py: the command from faces to a report, against the metric and literal counts, and what is refused."""

import csv
import json
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import torch
from mmpretrain.registry import MODELS
from test_embedders import randomised
from test_release import config, write_release  # noqa: F401, a fixture
from tiny import write_faces

from facemae_mm.audit.audit import equal_galleries
from facemae_mm.command_line import without_folders
from facemae_mm.datasets import open_faces
from facemae_mm.datasets.resumable import lock_folder
from facemae_mm.evaluation import RetrievalLeakage
from facemae_mm.evaluation.embed_faces import FaceImages, embed_faces
from facemae_mm.evaluation.embedded_faces import EmbeddedFaces
from facemae_mm.models.embedders import FaceEmbedder

SMALL = dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16)
PEOPLE, PHOTOS, RELEASED = 14, 4, 12

RECIPE = """
custom_imports = dict(imports=['facemae_mm.audit.attackers'], allow_failed_imports=False)
embedder = dict(checkpoint='{phi}')
attackers = dict(
    plain=dict(type='EmbedderAttacker', embedder=embedder),
    linear_map=dict(type='LinearMapAttacker', embedder=embedder, pairs=100),
)
"""


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Photos, a release of noisy ones of most people under numbers, its links, attackers, and strangers."""
    folder = tmp_path_factory.mktemp('audit')
    write_faces(folder / 'real', PEOPLE, PHOTOS)
    write_faces(folder / 'strangers', 5, 3, seed=9)
    rng = np.random.default_rng(1)
    rows = [('released_path', 'released_label', 'source_key', 'source_label')]
    for label, person in enumerate(rng.permutation(PEOPLE)[:RELEASED]):
        (folder / 'released' / f'{label:06d}').mkdir(parents=True)
        for image in range(PHOTOS):
            face = cv2.imread(str(folder / 'real' / f'person_{person}' / f'{image}.png')).astype(np.float32)
            face = cv2.GaussianBlur(face, (0, 0), 6) + rng.normal(0, 25, face.shape)
            path = f'{label:06d}/{image:06d}.png'
            cv2.imwrite(str(folder / 'released' / path), face.clip(0, 255).round().astype(np.uint8))
            rows.append((path, label, f'person_{person}/{image}', f'person_{person}'))
    with open(folder / 'links.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    torch.manual_seed(0)
    torch.save(randomised(MODELS.build(SMALL)).state_dict(), folder / 'phi.pth')
    (folder / 'attackers.py').write_text(RECIPE.format(phi=folder / 'phi.pth'))
    return folder


def arguments(data, *more, out):
    sets = data / 'real', data / 'released', '--attackers', data / 'attackers.py'
    return *sets, '--out', out, '--draws', 5, *more


def report_of(out):
    return json.loads((out / 'report.json').read_text())


def embeddings(data, folder):
    source = open_faces(data / folder)
    phi = FaceEmbedder(SMALL, data / 'phi.pth')
    return source, embed_faces(FaceImages(source, np.arange(len(source))), phi)[0]


def test_numbers_are_those_of_the_metric(audit, data, tmp_path):
    """Of the attacker who learns nothing and of the last point; membership and nearest photos by hand."""
    code, text = audit(*arguments(data, '--links', data / 'links.csv', '--only', 'plain', out=tmp_path / 'out'))
    assert code == 0, text
    report = report_of(tmp_path / 'out')
    about = report['attackers']['plain']
    real, photos = embeddings(data, 'real')
    released, faces = embeddings(data, 'released')
    links = {row['released_path'][:-4]: row for row in csv.DictReader(open(data / 'links.csv'))}
    number = {key: i for i, key in enumerate(real.keys)}
    source = np.array([number[links[key]['source_key']] for key in released.keys])
    who, stands_for = real.labels, real.labels[source]

    expected = RetrievalLeakage.calculate(photos, who, faces, stands_for, source)
    last = about['leakage']['original_released']['points'][-1]
    assert last['identities'] == expected['identities'] == RELEASED and last['queries'] == expected['queries']
    for mode, suffix in (('with', '_with'), ('without', '')):
        for k in (1, 2, 3, 4):
            names = [f'top{k}_{mode}{end}' for end in ('', '_lo', '_hi')]
            assert last[mode][str(k)] == pytest.approx([expected[name] for name in names])
            assert last[f'chance_{mode}'][str(k)] == pytest.approx(expected[f'chance_top{k}{suffix}'])
    asked = np.isin(who, stands_for)
    alone = RetrievalLeakage.calculate(photos[asked], who[asked])
    assert about['leakage']['original_original']['points'][-1]['with']['2'][0] == pytest.approx(alone['top2_with'])
    within = RetrievalLeakage.calculate(faces, stands_for)
    assert about['leakage']['released_released']['points'][-1]['with']['1'][0] == pytest.approx(within['top1_with'])
    gap = about['difference']['points'][-1]['without']['2'][0]
    assert gap == pytest.approx(alone['top2_without'] - expected['top2_without'])

    unit_photos, unit_faces = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (photos, faces))
    cosine = unit_photos @ unit_faces.T
    best = cosine.max(1)
    pairs = best[asked][:, None] - best[~asked]
    auc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    assert about['membership']['with']['raw']['auc'][0] == pytest.approx(auc, abs=1e-6)
    nearest = cosine.argmax(0)
    assert about['near_duplicates']['source_nearest'][0] == pytest.approx((nearest == source).mean())
    assert report['matching']['drawn_identities'] == RELEASED and report['matching']['owned_identities'] == 0
    assert report['headline'] == dict(attacker='plain', k=2)
    row = next(line for line in text.splitlines() if line.startswith('plain  (worst)'))
    assert f'{expected["top2_without"]:.1%}' in row and f'{alone["top2_without"] - expected["top2_without"]:.1%}' in row


def test_other_faces_under_the_same_names_are_looked_at_anew(audit, data, tmp_path):
    """A release that is made again has the keys of the one before, and its numbers must not stay."""
    shutil.copytree(data / 'released', tmp_path / 'released')
    args = data / 'real', tmp_path / 'released', '--links', data / 'links.csv', '--attackers', data / 'attackers.py'
    args = *args, '--only', 'plain', '--draws', 5
    assert audit(*args, '--out', tmp_path / 'out')[0] == 0
    before = numbers(tmp_path / 'out')
    for row in csv.DictReader(open(data / 'links.csv')):
        shutil.copy(data / 'real' / f'{row["source_key"]}.png', tmp_path / 'released' / row['released_path'])
    assert audit(*args, '--out', tmp_path / 'out')[0] == 0
    assert audit(*args, '--out', tmp_path / 'fresh')[0] == 0
    assert numbers(tmp_path / 'out') == numbers(tmp_path / 'fresh') != before
    near = report_of(tmp_path / 'out')['attackers']['plain']['near_duplicates']
    assert near['pixel_copies']['count'] == RELEASED * PHOTOS


def test_files_and_their_rights(audit, data, tmp_path):
    out = tmp_path / 'out'
    code, text = audit(*arguments(data, '--links', data / 'links.csv', '--only', 'plain', out=out))
    assert code == 0, text
    private = out / 'private'
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    arrays = list(private.glob('*.npy'))
    assert arrays and {stat.S_IMODE(path.stat().st_mode) for path in arrays} == {0o600}
    keys = list(csv.DictReader(open(private / 'worst_cases_keys.csv')))
    assert keys and {row['photo_key'].split('/')[0] for row in keys} <= {f'person_{i}' for i in range(PEOPLE)}
    worst = report_of(out)['attackers']['plain']['near_duplicates']['worst']
    assert len(keys) == len(worst)
    public = [path for path in out.iterdir() if path.is_file()]
    assert {path.name for path in public} >= {'report.html', 'report.json', 'curves.csv', 'leakage.csv'}
    for path in public:  # nothing of the owner's keys, names or folders
        text = path.read_text()
        assert 'person_' not in text, path
        assert str(data) not in text, path
    assert not list(private.glob('*part*'))


def test_attackers_who_learn_own_people_that_are_not_asked_about(audit, data, tmp_path):
    code, text = audit(*arguments(data, '--links', data / 'links.csv', '--owned', 0.85, out=tmp_path / 'out'))
    assert code == 0, text
    report = report_of(tmp_path / 'out')
    assert list(report['attackers']) == ['plain', 'linear_map']
    assert report['matching']['owned_identities'] == 10 and report['matching']['owned_pairs'] == 40
    for about in report['attackers'].values():
        assert about['leakage']['original_released']['points'][-1]['identities'] == 2
    assert report['attackers']['linear_map']['took']['pairs'] > 0
    few = audit(*arguments(data, '--links', data / 'links.csv', '--owned', 0.3, out=tmp_path / 'few'))
    assert few[0] == 0 and 'Attacker linear_map was left out' in few[1]
    assert list(report_of(tmp_path / 'few')['attackers']) == ['plain']


def test_without_links_nothing_is_guessed(audit, data, tmp_path):
    """Numbers are no names, so only near duplicates are left, and membership where others are given."""
    code, text = audit(*arguments(data, '--only', 'plain', out=tmp_path / 'out'))
    assert code == 0, text
    about = report_of(tmp_path / 'out')['attackers']['plain']
    assert about['leakage'] == {} and about['difference'] is None and about['membership'] is None
    assert about['near_duplicates']['source_nearest'] is None
    assert 'No identity has the same name' in text and '--non-members' in text
    strangers = audit(*arguments(data, '--only', 'plain', '--non-members', data / 'strangers', out=tmp_path / 'more'))
    assert strangers[0] == 0, strangers[1]
    found = report_of(tmp_path / 'more')['attackers']['plain']['membership']
    assert found['photos']['members'] == PEOPLE * PHOTOS and found['photos']['non_members'] == 15
    assert found['without'] is None


def test_equal_names_match_without_sources(audit, data, tmp_path):
    args = data / 'real', data / 'real', '--attackers', data / 'attackers.py', '--only', 'plain', '--draws', 2
    code, text = audit(*args, '--out', tmp_path / 'out')
    assert code == 0, text
    report = report_of(tmp_path / 'out')
    last = report['attackers']['plain']['leakage']['original_released']['points'][-1]
    assert report['matching']['by'] == 'names' and last['without'] is None and last['with']['1'][0] == 1
    assert report['attackers']['plain']['near_duplicates']['pixel_copies']['count'] == PEOPLE * PHOTOS


def test_imitation_and_other_methods(audit, data, tmp_path):
    """A model that gives the very same faces finds them all; numbers of other reports go into one plot."""
    links = data / 'links.csv'
    first = arguments(data, '--links', links, '--only', 'plain', out=tmp_path / 'first')
    assert audit(*first)[0] == 0
    verified = dict(sets=dict(lfw=dict(metrics=dict(accuracy=0.8, accuracy_lo=0.7, accuracy_hi=0.9, pairs=600))))
    (tmp_path / 'verify.json').write_text(json.dumps(verified))
    more = ['--imitation', f'same masks={data / "released"}:{links}', '--utility', f'released={tmp_path}/verify.json']
    more += ['--compare', f'MAE={tmp_path}/first/report.json']
    code, text = audit(*arguments(data, '--links', links, '--only', 'plain', *more, out=tmp_path / 'second'))
    assert code == 0, text
    report = report_of(tmp_path / 'second')
    imitated = report['attackers']['plain']['leakage']['imitation:same masks']['points'][-1]
    assert imitated['with']['1'] == [1, pytest.approx(0.757, abs=0.01), 1]  # Wilson's for 12 people
    assert report['utility'] == [dict(method='released', recogniser='', set='lfw', accuracy=[0.8, 0.7, 0.9], pairs=600)]
    assert report['compared'][0]['method'] == 'MAE' and report['compared'][0]['attacker'] == 'plain'
    rows = list(csv.DictReader(open(tmp_path / 'second' / 'utility.csv')))
    assert [row['method'] for row in rows] == ['released', 'MAE']
    other = arguments(data, '--links', links, '--owned', 0.85, *more[-2:], out=tmp_path / 'third')
    code, text = audit(*other)
    assert code == 2 and 'asks about 12 people, and this audit about 2' in text and not (tmp_path / 'third').exists()


def test_an_imitation_of_few_people(audit, data, tmp_path):
    """Points at which none of them is drawn have no numbers; one of nobody is refused."""
    lines = (data / 'links.csv').read_text().splitlines()
    few = tmp_path / 'few'
    (few / '000000').mkdir(parents=True)
    shutil.copy(data / 'released' / '000000' / '000000.png', few / '000000')
    (tmp_path / 'few.csv').write_text('\n'.join([lines[0], *(row for row in lines if row.startswith('000000/000000'))]))
    args = arguments(data, '--links', data / 'links.csv', '--only', 'plain', '--identities', 1, out=tmp_path / 'out')
    code, text = audit(*args, '--imitation', f'few={few}:{tmp_path}/few.csv', '--draws', 1)
    assert code == 0, text
    first, last = report_of(tmp_path / 'out')['attackers']['plain']['leakage']['imitation:few']['points']
    assert last['queries'] == 1 and last['with']['1'][0] == 1
    assert first['with'] is None or first['queries'] == 1
    code, text = audit(*args, '--imitation', f'few={few}')
    assert code == 2 and "Imitation 'few' shows nobody who is asked about" in text


def test_reports_that_are_none_are_refused_before_the_work(audit, data, tmp_path):
    """And one of other photos."""
    links = data / 'links.csv'
    assert audit(*arguments(data, '--links', links, '--only', 'plain', out=tmp_path / 'first'))[0] == 0
    report = report_of(tmp_path / 'first')

    def changed(*path, value):
        other = json.loads(json.dumps(report))
        inner = other
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        (tmp_path / 'other.json').write_text(json.dumps(other))
        code, text = audit(
            *arguments(data, '--links', links, '--compare', f'x={tmp_path}/other.json', out=tmp_path / 'second')
        )
        assert code == 2 and not (tmp_path / 'second').exists(), text
        return text

    last = ('attackers', 'plain', 'leakage', 'original_released', 'points', -1)
    for path, value in (
        ((*last, 'without'), {'2': 0.4}),
        ((*last, 'without'), {'2': ['a', 0, 1]}),
        ((*last, 'without'), {'2': [float('nan'), 0, 1]}),
        ((*last, 'chance_without'), {'2': '<b>'}),
        ((*last, 'chance_without'), None),
        (('utility',), ['lfw']),
        (('headline',), None),
    ):
        assert 'other.json is no report.json of an audit' in changed(*path, value=value)
    assert 'is the audit of other photos' in changed('real', 'keys_sha256', value='0' * 64)


def test_owned_people_count_for_copies_alone(audit, data, tmp_path):
    """An attacker who knows his pairs by heart must not look as if he found duplicates."""
    code, text = audit(*arguments(data, '--links', data / 'links.csv', '--owned', 0.85, out=tmp_path / 'out'))
    assert code == 0, text
    report = report_of(tmp_path / 'out')
    for about in report['attackers'].values():
        near = about['near_duplicates']
        assert sum(near['histogram']['series']['released face → nearest photo']) == 2 * PHOTOS
        assert near['pixel_copies'] is not None and len(near['worst']) <= 4


def command(repository, data, out, *more):
    tool = [sys.executable, repository / 'tools' / 'audit.py']
    return [*map(str, [*tool, *everything(data, *more, out=out)])]


def everything(data, *more, out):
    """An attacker who learns, strangers and an imitation too."""
    links = data / 'links.csv'
    more = (
        '--owned',
        0.85,
        '--non-members',
        data / 'strangers',
        '--imitation',
        f'same={data / "released"}:{links}',
        *more,
    )
    return arguments(data, '--links', links, *more, out=out)


def numbers(out):
    report = report_of(out)
    for about in report['attackers'].values():
        about.get('took', {}).pop('seconds', None)
    return {key: report[key] for key in ('attackers', 'matching', 'headline')}


def test_processes_and_a_killed_run_give_the_same(repository, data, tmp_path):
    environment = dict(os.environ, PYTHONPATH=str(repository), OMP_NUM_THREADS='1')
    for name, flags in (('one', ()), ('two', ('--processes', 2))):  # one thread each: two may round otherwise
        words = command(repository, data, tmp_path / name, *flags)
        done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr
    assert len(report_of(tmp_path / 'one')['attackers']) == 2
    assert numbers(tmp_path / 'two') == numbers(tmp_path / 'one')

    run = subprocess.Popen(command(repository, data, tmp_path / 'killed'), stderr=subprocess.PIPE, env=environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob('killed/private/faces-*.npy')) and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not (tmp_path / 'killed' / 'report.json').exists()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob('killed/private/faces-*.npy')}
    assert kept
    done = subprocess.run(
        command(repository, data, tmp_path / 'killed'), capture_output=True, text=True, timeout=300, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert numbers(tmp_path / 'killed') == numbers(tmp_path / 'one')
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # nothing was embedded twice


@pytest.mark.parametrize('layout', ['folders', 'records'])
def test_a_release_gets_its_card(audit, data, tmp_path, config, monkeypatch, layout):  # noqa: F811
    monkeypatch.setattr('test_release.SIZE', 112)
    release = write_release(tmp_path / 'release', config, layout, counts=(3, 2, 4))
    faces = open_faces(release)
    rows = [('released_path', 'released_label', 'source_key', 'source_label')]
    for i, key in enumerate(faces.keys):
        person = f'person_{faces.labels[i]}'
        rows.append((f'{key}.png' if layout == 'folders' else key, faces.labels[i], f'{person}/{i % 4}', person))
    with open(tmp_path / 'links.csv', 'w', newline='') as file:
        csv.writer(file).writerows(rows)
    args = data / 'real', release, '--links', tmp_path / 'links.csv', '--attackers', data / 'attackers.py'
    args = *args, '--only', 'plain'
    code, text = audit(*args, '--out', tmp_path / 'out', '--no-card')
    assert code == 0, text
    assert not (release / 'audit.json').exists()
    monkeypatch.chdir(tmp_path)
    code, text = audit(*args)
    assert code == 0, text
    written = json.loads((release / 'audit.json').read_text())
    report = report_of(tmp_path / 'work_dirs/audit/release')
    assert report['released']['name'] == 'release'
    assert written['release'] == report['released']['manifest_sha256']
    last = report['attackers']['plain']['leakage']['original_released']['points'][-1]
    assert written['leakage']['plain']['top2_without'] == last['without']['2'][0]
    assert written['leakage']['plain']['chance_top2_with'] == last['chance_with']['2']
    assert f'| plain | 2 | {last["without"]["2"][0]:.1%}' in (release / 'README.md').read_text()


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        (['--topk', 60], r'K = 60, and the people who are asked about have 36 released images'),
        (['--identities', 13], '13 identities cannot be drawn of 9'),
        (['--only', 'nobody'], '--only nobody: .* has the attackers plain, linear_map'),
        (['--owned', 1.5], 'owns a share of 1.5'),
        (['--links', 'absent.csv'], 'absent.csv'),
        (['--non-members', 'absent'], 'absent does not exist'),
        (['--compare', 'MAE=absent.json'], 'absent.json'),
        (['--utility', 'released'], 'give NAME='),
        (['--utility', 'MAE=verify.json'], 'knows the methods original and released'),
        (['--imitation', 'MAE=absent:links.csv'], 'absent does not exist'),
        (['--draws', 0], 'must be 1 or more'),
        (['--launcher', 'pytorch'], '--launcher pytorch: RANK, WORLD_SIZE.* not set'),
        (['--topk', 101], '100 at most'),
    ],
)
def test_clear_errors(audit, data, tmp_path, more, message):
    code, text = audit(*arguments(data, '--links', data / 'links.csv', *more, out=tmp_path / 'out'))
    assert code == 2
    assert re.search(message, text), text
    assert 'Traceback' not in text and not (tmp_path / 'out' / 'report.json').exists()


def test_two_runs_in_one_folder(audit, data, tmp_path):
    private = tmp_path / 'out' / 'private'
    private.mkdir(parents=True)
    holds = 'import fcntl, sys, time; f = open(sys.argv[1], "a"); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True)'
    holder = [sys.executable, '-c', f'{holds}; time.sleep(60)', str(private / 'lock')]
    other = subprocess.Popen(holder, stdout=subprocess.PIPE)
    other.stdout.readline()
    try:
        code, text = audit(*arguments(data, '--links', data / 'links.csv', out=tmp_path / 'out'))
    finally:
        other.kill()
        other.wait()
    assert code == 2 and 'Another process is at work' in text
    lock_folder(private).close()


def test_nothing_is_written_among_the_faces_and_members_are_no_strangers(audit, data, tmp_path):
    code, text = audit(*arguments(data, out=data / 'released' / 'audit'))
    assert code == 2 and 'among the faces' in text and not (data / 'released' / 'audit').exists()
    code, text = audit(*arguments(data, '--non-members', data / 'real', out=tmp_path / 'out'))
    assert code == 2 and 'holds the photos of' in text


def test_a_full_disk_is_said(audit, data, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    args = arguments(data, '--links', data / 'links.csv', '--only', 'plain', '--no-pixels', out=tmp_path / 'out')
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        code, text = audit(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and 'free some space' in text, text
    assert audit(*args)[0] == 0


def test_a_damaged_file_is_named(audit, data, tmp_path):
    args = arguments(data, '--links', data / 'links.csv', '--only', 'plain', out=tmp_path / 'out')
    assert audit(*args)[0] == 0
    file = next((tmp_path / 'out' / 'private').glob('near-*.npy'))
    file.write_bytes(file.read_bytes()[:100])
    code, text = audit(*args)
    assert code == 2 and f'{file} is damaged' in text and 'Delete it' in text


@pytest.mark.parametrize(
    ('word', 'shown'),
    [
        ('/home/Jane Doe/secret project/lfw', 'lfw'),
        ('MAE=/a b/made:/keys of/links.csv', 'MAE=made:links.csv'),
        ('attackers=[/one/a.pth,two/b.pth]', 'attackers=[a.pth,b.pth]'),
        ('pack=mini:123.675/116.28/103.53', 'pack=mini:123.675/116.28/103.53'),
        ('0.3', '0.3'),
    ],
)
def test_a_command_does_not_tell_where_things_lie(word, shown):
    assert without_folders(word) == shown


@pytest.mark.parametrize('sources', [True, False])
def test_equal_galleries(sources):
    generator = np.random.default_rng(0)
    identity = np.repeat(np.arange(6), [1, 3, 5, 2, 4, 2])
    made = np.concatenate([generator.permutation(17)[:11], [3, 3, 16]])
    source = made if sources else np.full(14, -1)
    real = EmbeddedFaces(np.ones((17, 2)), identity, np.arange(17))
    released = EmbeddedFaces(np.ones((14, 2)), identity[made], source)
    photos, faces = equal_galleries(real, released, 0)
    counts = [np.bincount(who, minlength=6) for who in (identity[photos], identity[made][faces])]
    assert (counts[0] == counts[1]).all() and photos.sum() >= 11 - 1
    if sources:
        assert sorted(source[faces]) == np.flatnonzero(photos).tolist()
    else:
        assert (counts[0] == np.minimum(np.bincount(identity), np.bincount(identity[made], minlength=6))).all()
