"""Regions and their measures against literal loops; Figure 4's tool matches photos, draws them for one person alone."""

import csv
import json
import os
import shutil
import stat

import cv2
import numpy as np
import pytest
from conftest import _runner
from tiny import write_faces

from facemae_mm.alignment import ARCFACE_TEMPLATE
from facemae_mm.datasets.face_mask import REGIONS
from facemae_mm.datasets.landmarks import COLUMNS
from facemae_mm.reproduction.alignment_error import alignment_error
from facemae_mm.reproduction.face_regions import ROUNDING, means_by_person, region_box, region_detail

# Regions


def in_ellipses(region, points, size):
    """(size, size) bool: pixels that touch the region's upright ellipses, over a fine grid in each."""
    y, x = np.mgrid[: size * 8, : size * 8] / 8 - 0.5 + 1 / 16
    scale = np.hypot(*(points[1] - points[0]))
    inside = np.zeros(x.shape, bool)
    for corners, along, across in REGIONS[region]:
        cx, cy = points[list(corners)].mean(0)
        inside |= ((x - cx) / (along * scale)) ** 2 + ((y - cy) / (across * scale)) ** 2 <= 1
    return inside.reshape(size, 8, size, 8).any((1, 3))


@pytest.mark.parametrize('region', ['eyes', 'mouth'])
@pytest.mark.parametrize('moved', [(0, 0), (5.3, -7.8), (-20, 11)])
def test_a_box_is_the_smallest_around_its_ellipses(region, moved):
    points = ARCFACE_TEMPLATE + moved
    touched = in_ellipses(region, points, 112)
    rows, columns = np.flatnonzero(touched.any(1)), np.flatnonzero(touched.any(0))
    box = region_box(region, points, 112)
    fine = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(np.subtract(box, fine)).max() <= 1  # an ellipse may touch a pixel between two points of the grid
    assert box[0] <= fine[0] and box[1] <= fine[1] and box[2] >= fine[2] and box[3] >= fine[3]


def test_boxes_of_the_template_and_at_the_edge():
    assert region_box('eyes', None, 112) == region_box('eyes', ARCFACE_TEMPLATE, 112) == (23, 41, 89, 63)
    assert region_box('mouth', np.full((5, 2), np.nan), 112) == (35, 81, 78, 105)
    assert np.subtract(region_box('eyes', None, 224), 2 * np.array((23, 41, 89, 63))).tolist() == [1, 0, 0, 0]
    left, top, right, bottom = region_box('mouth', ARCFACE_TEMPLATE + [60, 40], 112)
    assert (right, bottom) == (112, 112) and left < right and top < bottom
    for points in (ARCFACE_TEMPLATE * 0.01 + 50, ARCFACE_TEMPLATE + 500, ARCFACE_TEMPLATE - 500):
        left, top, right, bottom = region_box('eyes', points, 112)
        assert right - left >= 8 and bottom - top >= 8 and min(left, top) >= 0 and max(right, bottom) <= 112


# Measures

BOX = [(30, 40, 60, 62)]


def noise(seed, sigma=40.0):
    return np.clip(np.random.default_rng(seed).normal(128, sigma, (112, 112, 3)), 0, 255).round().astype(np.uint8)


def luma(image):
    return image.astype(np.float64) @ [0.114, 0.587, 0.299]


def laplacian(image):
    padded = np.pad(image, 1, 'reflect')
    return padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * image


def test_detail_and_match_are_literal():
    a = noise(0)
    b = cv2.GaussianBlur(a, (0, 0), 1.0)
    da, db = (laplacian(luma(image))[40:62, 30:60] for image in (a, b))
    ssim, detail, match = region_detail(a, b, BOX)[0]
    assert detail == pytest.approx(np.log2(((db**2).mean() + ROUNDING) / ((da**2).mean() + ROUNDING)), abs=1e-3)
    assert match == pytest.approx(np.corrcoef(da.ravel(), db.ravel())[0, 1], abs=1e-4)
    assert detail < -3 and 0 < match < 1 and 0 < ssim < 1


def test_ssim_is_that_of_the_paper():
    """Wang et al.: an 11×11 Gaussian window of σ 1.5, K = (0.01, 0.03), a literal sum at every pixel of the box."""
    a, b = noise(1, 20), noise(2, 30)
    x, y = luma(a), luma(b)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for row in range(40, 62):
        for column in range(30, 60):
            p, q = (image[row - 5 : row + 6, column - 5 : column + 6] for image in (x, y))
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
            covariance = (window * p * q).sum() - mp * mq
            values.append((2 * mp * mq + c1) * (2 * covariance + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    assert region_detail(a, b, BOX)[0][0] == pytest.approx(np.mean(values), abs=1e-4)


def test_equal_flat_and_elsewhere():
    a = noise(3)
    np.testing.assert_allclose(region_detail(a, a.astype(np.float32), BOX), [[1, 0, 1]], atol=1e-12)
    flat = region_detail(a, np.full_like(a, 127.5, dtype=np.float32), BOX)[0]
    assert (
        flat[2] == 0
        and flat[1] == pytest.approx(np.log2(ROUNDING / np.square(laplacian(luma(a))[40:62, 30:60]).mean()), abs=0.01)
        and flat[0] < 0.1
    )
    elsewhere = a.copy()
    elsewhere[:30] = 0  # ten rows above the box, beyond any window
    np.testing.assert_array_equal(region_detail(a, elsewhere, BOX), region_detail(a, a, BOX))
    whole = [(0, 0, 112, 112)]
    assert region_detail(a, elsewhere, whole)[0][0] < 0.8
    rounded = region_detail(np.full_like(a, 100), np.random.default_rng(0).integers(100, 102, a.shape), whole)[0]
    assert rounded[1] < 1.5, 'noise of one grey level is no detail'


def test_means_resample_people_jointly():
    rng = np.random.default_rng(4)
    people = np.repeat([f'p{n}' for n in range(30)], rng.integers(1, 6, 30))
    base = rng.normal(size=30)[np.unique(people, return_inverse=True)[1]]
    values = np.stack([base, base + 0.1 + 0.01 * rng.normal(size=len(base))], 1)
    mean, low, high = means_by_person(values, people)
    np.testing.assert_allclose(mean, values.mean(0))
    assert (low < mean).all() and (mean < high).all()
    difference = means_by_person(values[:, 1] - values[:, 0], people)
    assert difference.shape == (3,) and difference[2] - difference[1] < 0.05 * (high - low)[0]
    assert difference[1] <= 0.1 <= difference[2]
    generator, names = np.random.default_rng(0), np.unique(people)
    first = generator.integers(30, size=30)
    literal = np.concatenate([base[people == names[n]] for n in first]).mean()
    assert means_by_person(base, people, resamples=1)[1] == pytest.approx(literal)


# Tool


# Alignment


def test_alignment_counts_faces_that_are_found_and_how_far_their_points_moved():
    points = np.stack([np.stack([ARCFACE_TEMPLATE] * 3)] * 20)  # the original, and two sets
    points[:, 2] += [0, 3]  # the second one's faces lie three pixels lower
    points[:5, 1] = np.nan  # the first set loses the faces of five photos
    points[7, 0] = np.nan  # and one original is not found
    people = np.arange(20) // 2
    found = alignment_error(points, people, ['lost', 'moved'], seed=0)
    assert (found['photos'], found['aligned'], found['original']['found'][0]) == (20, 14, 0.95)
    eyes = np.linalg.norm(ARCFACE_TEMPLATE[1] - ARCFACE_TEMPLATE[0])
    assert found['sets']['lost']['found'][0] == 0.75 and found['sets']['lost']['landmark_error'] == [0] * 3
    wilson = pytest.approx([1, 0.72247, 1], abs=1e-4)  # of ten people, all found
    assert found['sets']['moved'] == dict(found=wilson, landmark_error=pytest.approx([3 / eyes] * 3, abs=1e-5))
    (pair,) = found['differences']
    assert (pair['a'], pair['b']) == ('lost', 'moved')
    assert pair['found'][0] == -0.25 and pair['found'][1] < -0.25 and pair['landmark_error'][2] < 0
    nobody = alignment_error(np.full_like(points, np.nan), people, ['a', 'b'], seed=0)
    assert nobody['aligned'] == 0 and nobody['sets']['a'] == dict(
        found=pytest.approx([0, 0, 0.27753], abs=1e-4), landmark_error=None
    )


def test_of_one_person_there_is_no_interval(compare, sets, tmp_path):
    mean, low, high = means_by_person(np.arange(6.0).reshape(3, 2), np.array(['a'] * 3))
    assert mean.tolist() == [2, 3] and np.isnan([low, high]).all()
    for name in ('original', 'blurred'):
        shutil.copytree(sets / name / 'person_3', tmp_path / name / 'person_3')
    args = f'blurred={tmp_path}/blurred', '--originals', tmp_path / 'original', '--out', tmp_path / 'out'
    code, text = compare(*args)
    assert code == 0, text
    found = json.loads((tmp_path / 'out/compare_faces.json').read_text())['sets']['blurred']['eyes']['ssim']
    assert 0 < found[0] < 1 and found[1:] == [None, None]
    assert f'{found[0]:.3f}' in text and '[' not in text.splitlines()[1]


def test_the_share_of_faces_found_has_an_interval_where_all_are():
    points = np.random.default_rng(0).normal(size=(10, 2, 5, 2))
    found = alignment_error(points, np.repeat(np.arange(5), 2), ['a'], 0)
    assert found['original']['found'] == [1, pytest.approx(0.5655, abs=1e-3), 1]  # Wilson's of five people
    assert found['sets']['a']['found'] == found['original']['found']


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    """Twelve people of three photos; a blurred copy; an opaque one of two of them, 224 pixels, with links."""
    folder = tmp_path_factory.mktemp('compared')
    rng = np.random.default_rng(0)
    originals, rows = write_faces(folder / 'original', 12, 3), []
    for number in range(12):
        for image in range(3):
            path = originals / f'person_{number}' / f'{image}.png'
            face = cv2.imread(str(path)).astype(float) + rng.normal(0, 8, (112, 112, 3))
            cv2.imwrite(str(path), face.clip(0, 255).astype(np.uint8))
            blurred = cv2.GaussianBlur(face, (0, 0), 2).clip(0, 255).astype(np.uint8)
            large = np.repeat(np.repeat(blurred, 2, 0), 2, 1)
            for name, picture in (
                (f'blurred/person_{number}/{image}.png', blurred),
                (f'opaque/{11 - number:06d}/{image:06d}.png', large),
            ):
                if not (name.startswith('opaque') and image == 1):
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(folder / name), picture)
            if image != 1:
                key = f'{11 - number:06d}/{image:06d}.png'
                rows.append([key, 11 - number, f'person_{number}/{image}', f'person_{number}'])
    with (folder / 'links.csv').open('w', newline='') as file:
        csv.writer(file).writerows([('released_path', 'released_label', 'source_key', 'source_label'), *rows])
    return folder


@pytest.fixture
def compare(repository, monkeypatch, capsys):
    """Runs tools/compare_faces.py in this process; gives exit code and output."""
    return _runner('compare_faces', repository, monkeypatch, capsys)


def test_the_comparison(compare, sets, tmp_path):
    shutil.copytree(sets / 'original', tmp_path / 'original')
    points = [['person_3/0.png', *(ARCFACE_TEMPLATE + 4).ravel()]]
    with (tmp_path / 'original/landmarks5.csv').open('w', newline='') as file:
        csv.writer(file).writerows([COLUMNS, *points])
    args = [f'blurred={sets}/blurred', f'opaque={sets}/opaque:{sets}/links.csv', f'same={sets}/original']
    args += ['--originals', tmp_path / 'original', '--people', 3]
    before = os.umask(0)
    try:
        code, text = compare(*args, '--out', tmp_path / 'one')
    finally:
        os.umask(before)
    assert code == 0, text
    found = json.loads((tmp_path / 'one/compare_faces.json').read_text())
    assert (found['photos'], found['photos_in_common'], found['people']) == (24, 24, 12)
    assert found['photos_with_landmarks'] == 1 and 'landmarks for 1, by the template for 23' in text
    assert found['matched_by'] == dict(blurred='names', opaque='links', same='names')
    for region in ('eyes', 'mouth', 'face'):
        assert found['sets']['same'][region] == dict(ssim=[1] * 3, detail=[1] * 3, match=[1] * 3)
        one, other = found['sets']['blurred'][region], found['sets']['opaque'][region]
        assert one == other, 'the same blurred photos, found by their links and brought to their size'
        assert 0 < one['detail'][1] <= one['detail'][0] <= one['detail'][2] < 0.2 and 0.2 < one['ssim'][0] < 1
    pairs = {(pair['a'], pair['b']): pair for pair in found['differences']}
    assert set(pairs) == {('blurred', 'opaque'), ('blurred', 'same'), ('opaque', 'same')}
    assert pairs['blurred', 'opaque']['eyes'] == dict(ssim=[0] * 3, detail=[1] * 3, match=[0] * 3)
    ssim = pairs['blurred', 'same']['mouth']['ssim']
    assert ssim[0] == pytest.approx(found['sets']['blurred']['mouth']['ssim'][0] - 1, abs=2e-5) and ssim[2] < 0
    assert pairs['blurred', 'same']['mouth']['detail'] == found['sets']['blurred']['mouth']['detail']
    picture = tmp_path / 'one/compare_faces.png'
    assert picture.read_bytes().startswith(b'\x89PNG') and stat.S_IMODE(picture.stat().st_mode) == 0o600
    assert 'mode 0600' in text and 'not for publication' in text
    assert 'person_' not in (tmp_path / 'one/compare_faces.json').read_text(), 'the numbers name nobody'

    assert compare(*args, '--out', tmp_path / 'two')[0] == 0
    again = json.loads((tmp_path / 'two/compare_faces.json').read_text())
    assert found | dict(command='') == again | dict(command='')
    assert (tmp_path / 'two/compare_faces.png').read_bytes() == picture.read_bytes()
    assert compare(*args, '--out', tmp_path / 'three', '--seed', 1, '--photos', 10)[0] == 0
    assert json.loads((tmp_path / 'three/compare_faces.json').read_text())['photos'] == 10
    assert (tmp_path / 'three/compare_faces.png').read_bytes() != picture.read_bytes()


def test_a_detector_says_how_faces_align(compare, shared, tmp_path):
    """Of real people: their own faces, and faces of which only a grey square is left."""
    pytest.importorskip('dlib')
    people = sorted(path for path in (shared / 'faces/lfw112').iterdir() if path.is_dir())[:12]
    for path in people:
        for name in ('original', 'same', 'grey'):
            shutil.copytree(path, tmp_path / name / path.name)
    for path in (tmp_path / 'grey').glob('*/*'):
        cv2.imwrite(str(path), np.full((112, 112, 3), 127, np.uint8))
    args = [f'same={tmp_path}/same', f'grey={tmp_path}/grey', '--originals', tmp_path / 'original']
    code, text = compare(*args, '--people', 1, '--detector', 'dlib', '--out', tmp_path / 'out')
    assert code == 0 and 'landmark error' in text, text
    found = json.loads((tmp_path / 'out/compare_faces.json').read_text())['alignment']
    assert found['detector'] == 'DlibDetector' and found['original']['found'][0] > 0.9
    assert found['sets']['same']['found'] == found['original']['found'] and found['sets']['grey']['found'][0] == 0


def test_landmarks_decide_where_the_eyes_are(compare, sets, tmp_path):
    """A face that is damaged around its own eyes alone, which lie 20 pixels below the template's."""
    originals, damaged = tmp_path / 'original', tmp_path / 'damaged'
    shutil.copytree(sets / 'original', originals)
    shutil.copytree(sets / 'original', damaged)
    points, rows = ARCFACE_TEMPLATE.copy(), []
    points[:2, 1] += 20
    left, top, right, bottom = region_box('eyes', points, 112)
    for path in damaged.glob('*/*.png'):
        face = cv2.imread(str(path))
        face[bottom - 2 : bottom, left:right] = 0
        cv2.imwrite(str(path), face)
        rows.append([path.relative_to(damaged), *points.ravel()])
    args = [f'damaged={damaged}', '--originals', originals, '--people', 1, '--out', tmp_path / 'out']
    assert compare(*args)[0] == 0
    by_template = json.loads((tmp_path / 'out/compare_faces.json').read_text())['sets']['damaged']['eyes']
    with (originals / 'landmarks5.csv').open('w', newline='') as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    assert compare(*args)[0] == 0
    by_points = json.loads((tmp_path / 'out/compare_faces.json').read_text())['sets']['damaged']['eyes']
    assert by_template == dict(ssim=[1] * 3, detail=[1] * 3, match=[1] * 3)
    assert by_points['ssim'][2] < 0.95 and by_points['detail'][1] > 1.2


def test_what_is_refused(compare, sets, tmp_path):
    def refusal(*args):
        code, text = compare(*args, '--out', tmp_path / 'out')
        assert code == 2 and not (tmp_path / 'out').exists()
        return text

    originals = '--originals', sets / 'original'
    assert 'not NAME=FACES' in refusal(f'{sets}/blurred', *originals)
    assert "named 'original'" in refusal(f'original={sets}/blurred', *originals)
    assert 'No photo is in all sets' in refusal(f'opaque={sets}/opaque', *originals)
    assert 'does not exist' in refusal(f'a={sets}/nowhere', *originals)
    assert 'does not exist' in refusal(f'a={sets}/blurred', '--originals', sets / 'nowhere')
    assert 'are not in' in refusal(f'a={sets}/blurred:{sets}/links.csv', *originals)
    release = tmp_path / 'release'
    shutil.copytree(sets / 'opaque', release)
    manifest = dict(format='facemae-release', version=1, layout='folders', shards=[dict(path='.')])
    (release / 'manifest.json').write_text(json.dumps(manifest))
    text = refusal(f'mine={release}', *originals)
    assert 'numbers its faces anew' in text and f'mine={release}:links.csv' in text
    (tmp_path / 'release.private').mkdir()
    lines = (
        (sets / 'links.csv').read_text().replace(',person_3\n', ',person_4\n').replace(',person_3\r\n', ',person_4\r\n')
    )
    (tmp_path / 'release.private/links.csv').write_text(lines)
    assert "person_3/0 shows 'person_3' in the originals and 'person_4' in mine" in refusal(
        f'mine={release}', *originals
    )
    shutil.copy(sets / 'links.csv', tmp_path / 'release.private/links.csv')
    assert compare(f'mine={release}', *originals, '--out', tmp_path / 'out', '--people', 1)[0] == 0
    (sets / 'blurred/person_0/0.png').write_bytes(b'no image')
    code, text = compare(f'a={sets}/blurred', *originals, '--out', tmp_path / 'damaged')
    assert code == 2 and 'person_0/0' in text and not list((tmp_path / 'damaged').iterdir())
