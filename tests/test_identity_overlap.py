"""Shared identities are found, what chance gives is kept, and the tool writes, caches and refuses."""

import csv
import importlib.util
import json
import os
import shutil
import stat
import sys

import numpy as np
import pytest
import torch
from tiny import write_faces

from facemae_mm.evaluation.identity_overlap import (
    NEIGHBOUR,
    ChanceTail,
    closest_pairs,
    identity_templates,
    pairs_above,
)
from facemae_mm.models.embedders import FaceEmbedder, IResNet, resolve_checkpoint


def people(rng, number, dimension=24):
    """Unit vectors around a common direction, as a network's embeddings are."""
    return unit(rng.normal(size=(number, dimension)) + 1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def two_sets(seed, number=400, shared=30, noise=0.12):
    """Templates of two sets; the first `shared` rows of both are the same people."""
    rng = np.random.default_rng(seed)
    a, b = people(rng, number), people(rng, number)
    b[:shared] = a[:shared]
    return [unit(x + noise / x.shape[1] ** 0.5 * rng.normal(size=x.shape)).astype(np.float32) for x in (a, b)]


pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. .* has no checkpoint')


# Library


def test_a_template_is_the_mean_of_unit_embeddings():
    embeddings = np.array([[3.0, 0, 0], [0, 0, 5], [0, 2, 0], [0, 0, 1]], np.float32)
    templates = identity_templates(embeddings, np.array([1, 0, 1, 0]))
    np.testing.assert_allclose(templates, [[0, 0, 1], [0.5**0.5, 0.5**0.5, 0]], atol=1e-7)
    with pytest.raises(ValueError, match='not finite'):
        identity_templates(np.array([[1.0, 0], [np.nan, 0]]), np.array([0, 1]))
    with pytest.raises(ValueError, match='sum of identity 0 is zero'):
        identity_templates(np.array([[1.0, 0], [-1, 0]]), np.array([0, 0]))


def test_blocks_equal_a_loop_in_float64(monkeypatch):
    monkeypatch.setattr('facemae_mm.evaluation.identity_overlap._BLOCK', 1000)  # rows by threes and sixes
    a, b = (x[:n].astype(np.float64) for x, n in zip(two_sets(0), (150, 170)))
    result = closest_pairs(a.astype(np.float32), b.astype(np.float32))

    cohort = np.concatenate([a, b])
    others = [sorted(1 - x @ y for m, y in enumerate(cohort) if m != n) for n, x in enumerate(cohort)]
    scale = np.sqrt([distances[NEIGHBOUR - 1] for distances in others])

    def distance(i, j):
        return (1 - cohort[i] @ cohort[j]) / scale[i] / scale[j]

    within = [distance(i, j) for x in (range(150), range(150, 320)) for i in x for j in x if i < j]
    assert result.tail.seen == len(within) == 150 * 149 // 2 + 170 * 169 // 2
    within = sorted(within)[: result.tail.count + 1]
    assert result.tail.count == 640 and result.tail.start == pytest.approx(within[-1], rel=1e-5)
    logs = [np.log(within[-1] / d) for d in within[:-1]]
    power = (640 - 64) / (sum(logs[64:]) + 64 * logs[64])
    assert result.tail.power == pytest.approx(power, rel=1e-4)

    cross = {(i, j): distance(i, 150 + j) for i in range(150) for j in range(170)}
    found = dict(zip(zip(result.a, result.b), result.expected_false))
    edge = within[-1]
    assert {p for p, d in cross.items() if d < edge * 0.99999} <= set(found)
    assert set(found) <= {p for p, d in cross.items() if d < edge * 1.00001}
    for pair, value in found.items():
        law = 150 * 170 * 640 / len(cross) * len(cross) / result.tail.seen * (cross[pair] / edge) ** power
        assert value == pytest.approx(law, rel=0.01)
    np.testing.assert_allclose(result.similarity, [a[i] @ b[j] for i, j in found], atol=1e-6)


def test_expected_false_grows_with_distance():
    result = closest_pairs(*two_sets(1))
    assert (np.diff(result.expected_false) >= 0).all() and (np.diff(result.impostors) >= 0).all()
    assert result.expected_false[-1] <= 400 * 400 * result.tail.count / result.tail.seen * 1.001
    distance = np.linspace(0, result.tail.start, 9)
    assert (np.diff(result.tail.expected(distance, 100)) > 0).all()
    assert result.tail.expected(distance, 200) == pytest.approx(2 * result.tail.expected(distance, 100))


def test_shared_people_are_listed_and_chance_is_as_expected():
    listed, false = {1: [], 30: []}, {1: [], 30: []}
    for seed in range(12):
        result = closest_pairs(*two_sets(seed))
        true = (result.a == result.b) & (result.a < 30)
        for limit in listed:
            listed[limit].append(true[result.expected_false <= limit].sum())
            false[limit].append((~true)[result.expected_false <= limit].sum())
    assert np.mean(listed[1]) > 29
    assert np.mean(false[1]) < 3
    assert 30 / 2 < np.mean(false[30]) < 30 * 2, false


def test_people_under_two_names_in_one_set_do_not_move_the_law():
    a, b = two_sets(2)
    before = closest_pairs(a, b).tail
    rng = np.random.default_rng(3)
    a[200:220] = unit(a[180:200] + 0.02 * rng.normal(size=(20, 24)))
    after = closest_pairs(a, b).tail
    assert after.power == pytest.approx(before.power, rel=0.1)
    uncensored = 1 / np.log(1 / (np.arange(1, 1000) / 1000)).mean()
    assert ChanceTail.fit(np.append(np.arange(1, 1000) / 1000, 1.0), 9999).power == pytest.approx(uncensored, rel=0.02)


def test_a_set_without_identities_teaches_nothing():
    a, b = two_sets(4)
    b[100:200] = b[300]  # one image a hundred times
    result = closest_pairs(a, b, (True, False))
    assert result.tail.seen == 400 * 399 // 2
    sure = result.expected_false < 1
    assert set(range(30)) <= set(result.a[sure & (result.a == result.b)])


def test_too_few_or_equal_identities_are_refused():
    a, b = two_sets(5)
    with pytest.raises(ValueError, match='870 pairs .* 1000 are needed'):
        closest_pairs(a[:30], b[:30])
    with pytest.raises(ValueError, match='0 pairs'):
        closest_pairs(a, b, (False, False))
    with pytest.raises(ValueError, match='same embedding'):
        closest_pairs(np.ones_like(a) / 24**0.5, np.ones_like(b) / 24**0.5)


def test_a_given_threshold(monkeypatch):
    a, b = two_sets(6)
    result = pairs_above(a[:20], b[:20], 0.95)
    expected = {(i, j) for i in range(20) for j in range(20) if float(a[i].astype(float) @ b[j]) >= 0.95}
    assert set(zip(result.a, result.b)) == expected and len(expected) >= 15
    assert (np.diff(result.similarity) <= 1e-6).all() and result.expected_false is None
    assert len(pairs_above(a[:1], a[:1], 1.0).a) == 1
    monkeypatch.setattr('facemae_mm.evaluation.identity_overlap.MOST_PAIRS', 100)
    with pytest.raises(ValueError, match='More than 100 pairs'):
        pairs_above(a, b, -1)


# Tool


@pytest.fixture(scope='module')
def face_sets(tmp_path_factory):
    """36 people a set, of two images each; person_0 … person_4 of A are twin_0 … twin_4 of B."""
    folder = tmp_path_factory.mktemp('faces')
    a, b = write_faces(folder / 'a', 36, 2, seed=0), write_faces(folder / 'b', 31, 2, seed=1)
    for number in range(5):
        shutil.copytree(a / f'person_{number}', b / f'twin_{number}')
    return a, b


@pytest.fixture(scope='module')
def tool(repository):
    spec = importlib.util.spec_from_file_location('tools_identity_overlap', repository / 'tools/identity_overlap.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Pooled(torch.nn.Module):
    """A φ without weights: the face in 7×7 pixels."""

    input_size, channel_order, embedding_dim, template = 112, 'rgb', 147, None
    mean, std = (127.5,) * 3, (127.5,) * 3

    def forward(self, faces):
        return (torch.nn.functional.avg_pool2d(faces, 16).flatten(1),)


@pytest.fixture
def overlap(tool, monkeypatch):
    """Runs the tool in this process, with `Pooled` as φ; gives its exit code."""

    def run(*args):
        monkeypatch.setattr(tool, 'open_embedder', lambda *_, **__: FaceEmbedder(Pooled()))
        monkeypatch.setattr(sys, 'argv', ['identity_overlap.py', *map(str, args)])
        try:
            tool.main()
        except SystemExit as end:
            return end.code
        return 0

    return run


def read_csv(path):
    with path.open(newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


def test_the_tool_finds_the_same_pictures(tool, face_sets, tmp_path, monkeypatch, capsys):
    """With an IResNet's checkpoint, random and narrow, and a worker."""
    torch.manual_seed(0)
    torch.save(IResNet(depth=18, base_channels=4).state_dict(), tmp_path / 'phi.pth')
    out = tmp_path / 'out'
    args = [*face_sets, '--out', out, '--phi', tmp_path / 'phi.pth', '--workers', '1', '--no-flip']
    monkeypatch.setattr(sys, 'argv', ['tool', *map(str, args)])
    tool.main()
    text = capsys.readouterr().out
    rows = read_csv(out / 'overlap.csv')
    pairs = {(row['identity_a'], row['identity_b']) for row in rows[:5]}
    assert pairs == {(f'person_{n}', f'twin_{n}') for n in range(5)}
    for row in rows[:5]:
        assert float(row['similarity']) > 0.9999 and float(row['expected_false']) < 0.01
        assert (row['images_a'], row['images_b']) == ('2', '2')
    dropped = (out / 'identities_to_drop.txt').read_text().splitlines()
    assert dropped == sorted({row['identity_b'] for row in rows}) and len(dropped) < 12
    report = json.loads((out / 'overlap.json').read_text())
    assert report['A'] | dict(path='') == dict(path='', identities=36, images=72, embedded=72, skipped=0)
    assert report['identity_pairs'] == 1296 and report['listed'] == len(rows)
    assert (out / 'overlap.png').read_bytes().startswith(b'\x89PNG') and not (out / 'pairs.png').exists()
    assert stat.S_IMODE(out.stat().st_mode) == 0o700
    assert not list(out.rglob('*.tmp'))
    assert f'{len(rows)} of 1,296 pairs look like one person, 1 of them expected by chance' in text


def test_a_second_run_embeds_nothing_and_a_changed_set_all(overlap, tool, face_sets, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, 'draw_curve', lambda *_: None)  # for speed
    seen = []
    forward = FaceEmbedder.forward
    monkeypatch.setattr(FaceEmbedder, 'forward', lambda self, faces: seen.append(len(faces)) or forward(self, faces))
    a, b = shutil.copytree(face_sets[0], tmp_path / 'a'), face_sets[1]
    args = a, b, '--out', tmp_path / 'out'
    assert overlap(*args) == 0 and sum(seen) == 288  # each twice, for its mirror image
    first = (tmp_path / 'out/overlap.csv').read_bytes()
    seen.clear()
    assert overlap(*args) == 0 and sum(seen) == 0
    assert (tmp_path / 'out/overlap.csv').read_bytes() == first
    assert overlap(*args, '--max-images-per-identity', 1) == 0 and sum(seen) == 144
    seen.clear()
    parts = sorted((tmp_path / 'out/embeddings').glob('*.npy'), key=lambda path: path.stat().st_mtime)
    parts[0].unlink()  # of A with two images
    assert overlap(*args) == 0 and sum(seen) == 144
    seen.clear()
    (a / 'person_7/0.png').rename(a / 'person_7/2.png')
    assert overlap(*args) == 0 and sum(seen) == 144
    seen.clear()
    os.utime(a)
    assert overlap(*args) == 0 and sum(seen) == 0
    shutil.copy(a / 'person_6/0.png', a / 'person_7/1.png')
    assert overlap(*args) == 0 and sum(seen) == 144


def test_an_unreadable_image_stops_or_is_left_out(overlap, face_sets, tmp_path, capsys):
    a = shutil.copytree(face_sets[0], tmp_path / 'a')
    for image in (a / 'person_7').iterdir():
        image.write_bytes(b'no image')
    args = a, face_sets[1], '--out', tmp_path / 'out'
    assert overlap(*args) == 2
    text = capsys.readouterr().err
    assert 'person_7/0' in text and 'damaged' in text and '--on-error skip' in text
    assert not (tmp_path / 'out/overlap.csv').exists()
    assert overlap(*args, '--on-error', 'skip') == 0
    report = json.loads((tmp_path / 'out/overlap.json').read_text())
    assert (report['A']['identities'], report['A']['embedded'], report['A']['skipped']) == (35, 70, 2)
    assert {row['identity_a'] for row in read_csv(tmp_path / 'out/overlap.csv')} >= {f'person_{n}' for n in range(5)}
    assert overlap(*args) == 2, 'what was skipped is no embedding'


def test_what_is_refused(overlap, face_sets, tmp_path, capsys):
    def refusal(*args):
        assert overlap(*args) == 2
        return capsys.readouterr().err

    few = write_faces(tmp_path / 'few', 4, 1)
    assert '--threshold' in refusal(few, few, '--out', tmp_path / 'out')
    assert overlap(few, few, '--out', tmp_path / 'out', '--threshold', '0.9999', '--sheet') == 0
    rows = read_csv(tmp_path / 'out/overlap.csv')
    assert len(rows) == 4 and all(row['expected_false'] == '' for row in rows)
    for name in ('overlap.png', 'pairs.png'):
        assert (tmp_path / 'out' / name).read_bytes().startswith(b'\x89PNG')
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.tex').touch()
    assert 'not written by this tool' in refusal(few, few, '--out', tmp_path / 'mine')
    (tmp_path / 'empty').mkdir()
    assert 'no images' in refusal(tmp_path / 'empty', few, '--out', tmp_path / 'new')
    assert not (tmp_path / 'new').exists()
    assert 'above 0' in refusal(*face_sets, '--out', tmp_path / 'new', '--false-matches', '0')
    assert 'known up to' in refusal(*face_sets, '--out', tmp_path / 'new', '--false-matches', '1e9')


@pytest.mark.slow
def test_people_of_lfw_on_both_sides(tool, shared, tmp_path, monkeypatch):
    """Identities of folds 7 and 8: every other one with several images is split between A and B."""
    try:
        resolve_checkpoint(tool.DLIB)
    except FileNotFoundError:
        pytest.skip("face_recognition_models (extra 'demo') is not installed")
    lines = (shared / 'faces/lfw_pairs.txt').read_text().splitlines()[1:][6 * 600 : 8 * 600]
    people = sorted({name for fields in map(str.split, lines) for name in fields if not name.isdecimal()})
    both = 0
    for number, person in enumerate(people):
        images = sorted((shared / 'faces/lfw112' / person).iterdir())
        split = number % 2 == 0 and len(images) > 1
        both += split
        for place, image in enumerate(images):
            folder = tmp_path / 'ab'[place % 2 if split else number // 2 % 2] / person
            folder.mkdir(parents=True, exist_ok=True)
            (folder / image.name).symlink_to(image)
    assert both > 100

    def listed(limit):
        args = [str(tmp_path / name) for name in ('a', 'b', 'out')]
        argv = ['tool', *args[:2], '--out', args[2], '--no-flip', '--false-matches', str(limit)]
        monkeypatch.setattr(sys, 'argv', argv)
        tool.main()
        rows = read_csv(tmp_path / 'out/overlap.csv')
        true = sum(row['identity_a'] == row['identity_b'] for row in rows)
        return true / both, len(rows) - true

    recall, false = listed(1)
    assert recall > 0.6 and false <= 4, (recall, false)
    recall, false = listed(30)
    assert recall > 0.8 and 10 <= false <= 90, (recall, false)
