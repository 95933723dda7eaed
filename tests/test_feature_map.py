"""Distances of Figure 1 against literal formulas and known Gaussians; the map's tool draws, measures and refuses."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import _runner
from scipy.linalg import sqrtm
from tiny import write_faces

from facemae_mm.models.embedders import FaceEmbedder, IResNet
from facemae_mm.reproduction.distances import (
    Gaussian,
    PeopleKernels,
    frechet_distance,
    kernel_sums,
    median_bandwidth,
)
from facemae_mm.reproduction.feature_distances import ZERO, HalfSet, feature_distances
from facemae_mm.reproduction.named_faces import NamedFaces
from facemae_mm.reproduction.projection import Projection

# Distances


def test_frechet_is_the_formula_with_a_matrix_root():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(50, 7)) + 0.5
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    literal = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert frechet_distance(Gaussian.fit(a), Gaussian.fit(b)) == pytest.approx(literal, rel=1e-9)
    assert frechet_distance(Gaussian.fit(b), Gaussian.fit(a)) == pytest.approx(literal, rel=1e-9)
    assert frechet_distance(Gaussian.fit(a), Gaussian.fit(a)) < 1e-9
    few = rng.normal(size=(4, 7))  # a singular covariance
    root = sqrtm(covariances[1])
    product = np.linalg.eigvals(root @ np.cov(few, rowvar=False) @ root).real
    literal = ((few.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(few, rowvar=False) + covariances[1])
    literal -= 2 * np.sqrt(product[product > 1e-12]).sum()
    assert frechet_distance(Gaussian.fit(few), Gaussian.fit(b)) == pytest.approx(literal, rel=1e-6)


def test_frechet_of_known_gaussians():
    a = Gaussian(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = Gaussian(np.array([1.0, 2.0, 2.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(9 + 1 + 0 + 4)


def test_a_row_that_counts_twice_is_two_rows():
    rng = np.random.default_rng(1)
    rows, times = rng.normal(size=(20, 4)), rng.integers(0, 4, 20)
    one, other = Gaussian.fit(rows, times), Gaussian.fit(np.repeat(rows, times, 0))
    np.testing.assert_allclose(one.mean, other.mean, atol=1e-12)
    np.testing.assert_allclose(one.covariance, np.cov(np.repeat(rows, times, 0), rowvar=False), atol=1e-12)


def test_frechets_bias_halves_with_twice_the_samples():
    rng = np.random.default_rng(2)

    def bias(samples):
        pairs = (rng.normal(size=(2, samples, 6)) for _ in range(300))
        return np.mean([frechet_distance(Gaussian.fit(a), Gaussian.fit(b)) for a, b in pairs])

    assert bias(100) > 0.1 and bias(100) / bias(200) == pytest.approx(2, rel=0.1)


def kernels(a, b, people_a, people_b, bandwidth):
    pairs = (a, a, people_a, people_a), (b, b, people_b, people_b), (a, b, people_a, people_b)
    sums = [kernel_sums(*pair, bandwidth) for pair in pairs]
    return PeopleKernels(*sums, np.bincount(people_a), np.bincount(people_b))


def test_mmd_is_a_loop_over_faces_of_different_people(monkeypatch):
    monkeypatch.setattr('facemae_mm.reproduction.distances._ROWS', 7)
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(15, 4)), rng.normal(size=(17, 4)) + 0.3
    people_a, people_b = np.append(np.arange(6), rng.integers(0, 6, 9)), np.append(np.arange(5), rng.integers(0, 5, 12))
    times_a, times_b = np.array([1, 2, 0, 1, 3, 1]), np.array([2, 1, 1, 0, 1])

    def mean(x, y, people_x, people_y, times_x, times_y, within):
        total = weight = 0.0
        for i, p in zip(x, people_x):
            for j, q in zip(y, people_y):
                if not (within and p == q):
                    w = times_x[p] * times_y[q]
                    total += w * np.exp(-((i - j) ** 2).sum() / (2 * 1.7**2))
                    weight += w
        return total / weight

    for ta, tb in ((times_a, times_b), (np.ones(6), np.ones(5))):
        literal = mean(a, a, people_a, people_a, ta, ta, True) + mean(b, b, people_b, people_b, tb, tb, True)
        literal -= 2 * mean(a, b, people_a, people_b, ta, tb, False)
        assert kernels(a, b, people_a, people_b, 1.7).mmd2(ta, tb) == pytest.approx(literal, abs=1e-12)


def test_the_bandwidth_is_the_median_distance():
    rows = np.random.default_rng(4).normal(size=(11, 3))
    literal = np.median([np.linalg.norm(x - y) for i, x in enumerate(rows) for y in rows[:i]])
    assert median_bandwidth(rows) == pytest.approx(literal, rel=1e-9)
    with pytest.raises(ValueError, match='one embedding'):
        median_bandwidth(np.ones((5, 3)))


# The distances of sets, by person

D, SPREAD = 3, 0.8  # of people; of a person's faces √(1 − 0.8²)


def half(rng, people=40, faces=3, shift=0.0, name='p'):
    """Faces of people: each face alone is N(shift, 1), those of one person resemble each other."""
    centre = SPREAD * rng.normal(size=(people, 1, D)) + (1 - SPREAD**2) ** 0.5 * rng.normal(size=(people, faces, D))
    return HalfSet(centre.reshape(-1, D) + shift, np.repeat([f'{name}{n}' for n in range(people)], faces))


def true_mmd2(bandwidth, shift):
    """Between N(0, 1) and N(shift, 1) in D dimensions."""
    height = (bandwidth**2 / (bandwidth**2 + 2)) ** (D / 2)
    return 2 * height * (1 - np.exp(-D * shift**2 / (2 * (bandwidth**2 + 2))))


def test_intervals_hold_the_truth_and_the_zero_is_zero():
    """MMD² of clustered Gaussians, whose value is known; 95 % intervals by person, in 100 simulations."""
    held, zeros = [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        original = half(rng), half(rng, name='q')
        moved = half(rng, shift=0.4), half(rng, shift=0.4, name='q')
        found = feature_distances(dict(original=original, moved=moved), 'original', 50, seed)
        value, low, high = found['mmd2']['moved']
        held.append(low <= true_mmd2(found['bandwidth'], 0.4) <= high)
        zeros.append(found['mmd2'][ZERO][0])
        assert low <= value <= high
    assert 0.86 <= np.mean(held) <= 1
    assert (
        abs(np.mean(zeros)) < 4 * np.std(zeros) / 100**0.5
    )  # unbiased, though faces of one person resemble each other


def test_a_copy_is_as_far_as_the_originals_are_from_themselves():
    rng = np.random.default_rng(5)
    original = half(rng), half(rng, name='q')
    far = tuple(HalfSet(part.embeddings + 3, part.people) for part in original)
    near = tuple(HalfSet(part.embeddings + 0.2, part.people) for part in original)
    found = feature_distances(dict(original=original, copy=original, near=near, far=far), 'original', 50)
    for kind in ('frechet', 'mmd2'):
        assert found[kind]['copy'] == pytest.approx(found[kind][ZERO], abs=1e-12)
        assert found[kind][ZERO][0] < found[kind]['near'][0] < found[kind]['far'][0]
    assert [(pair['a'], pair['b']) for pair in found['differences']] == [
        ('copy', 'near'),
        ('copy', 'far'),
        ('near', 'far'),
    ]
    for pair in found['differences']:
        for kind in ('frechet', 'mmd2'):
            difference = found[kind][pair['a']][0] - found[kind][pair['b']][0]
            value, low, high = pair[kind]
            assert value == pytest.approx(difference) and low - 1e-9 <= value <= high + 1e-9
    pair = found['differences'][1]['frechet']
    assert pair[2] < 0
    assert found['frechet']['far'][0] - found['frechet'][ZERO][0] == pytest.approx(D * 9, rel=0.2)


def test_a_set_of_few_people_among_many():
    """Resamples that leave it fewer than two are drawn again."""
    rng = np.random.default_rng(2)
    sets = dict(
        original=(half(rng, 60), half(rng, 60, name='q')),
        few=(half(rng, 3, 60, name='x'), half(rng, 3, 60, name='y')),
    )
    found = feature_distances(sets, 'original', resamples=100)
    assert np.isfinite([*found['frechet']['few'], *found['mmd2']['few']]).all()
    with pytest.raises(ValueError, match='few: a half of its people holds fewer than two'):
        feature_distances(sets | dict(few=(half(rng, 1, 180, name='x'), sets['few'][1])), 'original', resamples=10)


def test_one_seed_gives_one_result():
    rng = np.random.default_rng(6)
    sets = dict(original=(half(rng), half(rng, name='q')), other=(half(rng), half(rng, name='q')))
    first, again, other = (feature_distances(sets, 'original', 40, seed) for seed in (1, 1, 2))
    assert first == again and first['frechet']['other'][0] == other['frechet']['other'][0]
    assert first['frechet']['other'][1] != other['frechet']['other'][1]


def test_the_plane_is_that_of_the_largest_spread():
    rng = np.random.default_rng(7)
    axes = np.linalg.qr(rng.normal(size=(9, 9)))[0]
    rows = rng.normal(size=(500, 9)) * [9, 4, *[0.1] * 7] @ axes.T + 5
    projection = Projection.fit(rows)
    assert np.abs(projection.axes @ axes[:, :2]) == pytest.approx(np.eye(2), abs=0.05)
    assert (projection.axes[np.arange(2), np.abs(projection.axes).argmax(1)] > 0).all()
    points = projection(rows)
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-9)
    total = rows.var(0).sum()
    np.testing.assert_allclose(points.var(0) / total, projection.explained, atol=1e-9)
    np.testing.assert_array_equal(Projection.fit(rows[::-1]).axes.round(9), projection.axes.round(9))
    with pytest.raises(ValueError, match='one embedding'):
        Projection.fit(np.ones((5, 3)))


# Sets by name


@pytest.fixture(scope='module')
def faces(tmp_path_factory):
    """Forty people of three images; a grey copy; an opaque copy with links, in another order."""
    folder = tmp_path_factory.mktemp('sets')
    originals = write_faces(folder / 'original', 40, 3)
    shutil.copytree(originals, folder / 'copy')
    opaque, rows = folder / 'opaque', []
    for number in range(40):
        (opaque / f'{39 - number:06d}').mkdir(parents=True)
        for image in range(3):
            name = f'{39 - number:06d}/{2 - image:06d}.png'
            shutil.copy(originals / f'person_{number}' / f'{image}.png', opaque / name)
            rows.append([name, 39 - number, f'person_{number}/{image}', f'person_{number}'])
    with (folder / 'links.csv').open('w', newline='') as file:
        csv.writer(file).writerows([('released_path', 'released_label', 'source_key', 'source_label'), *rows])
    write_faces(folder / 'strange', 40, 3, seed=9)
    return folder


def test_sets_of_the_same_photos_are_drawn_alike(faces):
    original, opaque = NamedFaces(f'a={faces}/original'), NamedFaces(f'b={faces}/opaque:{faces}/links.csv')
    assert (original.by, opaque.by) == ('names', 'links')
    drawn = [named.photos[named.draw(2, seed=3)].tolist() for named in (original, opaque)]
    assert drawn[0] == drawn[1] and len(drawn[0]) == 80
    assert sorted(photo.split('/')[0] for photo in drawn[0][:40]) == sorted(f'person_{n}' for n in range(40))
    assert drawn[0] != original.photos[original.draw(2, seed=4)].tolist()
    for seed in range(3):
        assert len(original.draw(9, seed)) == 120


def test_links_beside_a_set_are_found_without_being_named(faces, tmp_path):
    """Also beside one that has no manifest, as `distort_faces` leaves it."""
    shutil.copytree(faces / 'opaque', tmp_path / 'masked')
    (tmp_path / 'masked.private').mkdir()
    shutil.copy(faces / 'links.csv', tmp_path / 'masked.private')
    found, named = NamedFaces(f'b={tmp_path}/masked'), NamedFaces(f'b={faces}/opaque:{faces}/links.csv')
    assert found.by == 'links' and found.people.tolist() == named.people.tolist()


@pytest.mark.parametrize('text', ['noname', '=x', 'a/b=x', f'{"n" * 25}=x', '$x=y', 'a\n=x'])
def test_names_fit_a_legend(text):
    with pytest.raises(ValueError, match='not NAME=FACES'):
        NamedFaces(text)


# Tool


@pytest.fixture
def feature_map(repository, monkeypatch, capsys, tmp_path):
    """Runs tools/feature_map.py in this process with a random narrow IResNet; gives exit code and output."""
    torch.manual_seed(0)
    torch.save(IResNet(depth=18, base_channels=4, embedding_dim=32).state_dict(), tmp_path / 'phi.pth')
    run = _runner('feature_map', repository, monkeypatch, capsys)
    return lambda *args: run(*args, '--embedder', tmp_path / 'phi.pth')


def test_the_map_of_a_copy_and_of_others(feature_map, faces, tmp_path, monkeypatch):
    accuracy = dict(command='x', sets=dict(lfw=dict(metrics=dict(accuracy=0.9, accuracy_lo=0.8, accuracy_hi=0.95))))
    (tmp_path / 'verify.json').write_text(json.dumps(accuracy))
    (tmp_path / 'test.json').write_text(json.dumps({'lfw/accuracy': 0.7, 'lfw/pairs': 600, 'agedb_30/accuracy': 0.6}))
    args = [f'original={faces}/original', f'opaque={faces}/opaque:{faces}/links.csv', f'strange={faces}/strange']
    args += ['--resamples', '40', '--embeddings', tmp_path / 'kept', '--no-flip']
    args += ['--accuracy', f'original={tmp_path}/verify.json', f'strange={tmp_path}/test.json']
    code, text = feature_map(*args, '--out', tmp_path / 'one')
    assert code == 0, text
    found = json.loads((tmp_path / 'one/feature_map.json').read_text())
    for kind in ('frechet', 'mmd2'):
        assert found[kind]['opaque'] == pytest.approx(found[kind][ZERO], abs=1e-5)
        assert all(len(found[kind][name]) == 3 for name in (ZERO, 'opaque', 'strange'))
    assert found['sets']['opaque']['matched_by'] == 'links' and found['sets']['strange']['matched_by'] == 'names'
    assert found['accuracy']['original'] == dict(lfw=[0.9, 0.8, 0.95])
    assert found['accuracy']['strange'] == dict(agedb_30=[0.6] * 3, lfw=[0.7] * 3)
    count = found['faces_on_either_side']
    assert 20 <= count <= 60 and f'{count} faces on either side' in text and 'are few for 32 dimensions' in text
    line = next(line for line in text.splitlines() if line.startswith('strange'))
    assert f'{found["frechet"]["strange"][0]:.4f} [' in line and f'{found["mmd2"]["strange"][0]:.5f} [' in line
    svg = (tmp_path / 'one/feature_map.svg').read_text()
    assert (tmp_path / 'one/feature_map.png').read_bytes().startswith(b'\x89PNG') and '<svg' in svg

    seen = []
    forward = FaceEmbedder.forward
    monkeypatch.setattr(FaceEmbedder, 'forward', lambda self, images: seen.append(len(images)) or forward(self, images))
    assert feature_map(*args, '--out', tmp_path / 'two')[0] == 0
    assert not seen, 'kept embeddings serve'
    again = json.loads((tmp_path / 'two/feature_map.json').read_text())
    assert found | dict(command='') == again | dict(command='')
    assert (tmp_path / 'two/feature_map.svg').read_text() == svg
    assert (tmp_path / 'two/feature_map.png').read_bytes() == (tmp_path / 'one/feature_map.png').read_bytes()


def test_what_is_refused(feature_map, faces, tmp_path):
    def refusal(*args):
        code, text = feature_map(*args, '--out', tmp_path / 'out')
        assert code == 2 and not (tmp_path / 'out').exists()
        return text

    original, copy = f'original={faces}/original', f'copy={faces}/copy'
    assert 'two to' not in refusal(original) and 'give the originals and' in refusal(original)
    assert "named 'copy'" in refusal(original, copy, copy)
    assert 'does not exist' in refusal(original, f'copy={faces}/nowhere')
    assert 'Name it otherwise' in refusal(original, f'zero={faces}/copy')
    write_faces(tmp_path / 'few', 12, 3)
    text = refusal(original, f'few={tmp_path}/few')
    assert 'few' in text and '20 and 10 are needed' in text
    (tmp_path / 'no.json').write_text('{"lfw/far": 1}')
    assert 'one of original, copy' in refusal(original, copy, '--accuracy', 'other=x.json')
    assert 'No such file' in refusal(original, copy, '--accuracy', f'copy={tmp_path}/nowhere.json')
    assert 'no.json holds no' in refusal(original, copy, '--accuracy', f'copy={tmp_path}/no.json')
    assert 'are not in' in refusal(original, f'opaque={faces}/copy:{faces}/links.csv')
    assert '--resamples 40 or more' in refusal(original, copy, '--resamples', 3)
