"""Near duplicates against brute force, known geometry, and copies of real faces."""

import cv2
import numpy as np
import pytest

from facemae_mm.audit import near_duplicates as module
from facemae_mm.audit.near_duplicates import COPY, near_duplicates, pixel_copies, pixel_descriptors
from facemae_mm.datasets.face_source import open_faces
from facemae_mm.evaluation.embedded_faces import EmbeddedFaces
from facemae_mm.evaluation.nearest import nearest_images

RELEASED, SAME, OTHER = (
    'released face → nearest photo',
    'photo → nearest photo of the same person',
    'photo → nearest photo of another person',
)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def random_sets(people=50, photos=4, released=80, noise=0.5, seed=0):
    """Photos, and released faces of which each is a photo and noise; people of odd numbers have one photo more."""
    rng = np.random.default_rng(seed)
    identity = np.concatenate([np.repeat(np.arange(people), photos), np.arange(1, people, 2), [people]])
    real = rng.normal(size=(people + 1, 24))[identity] + rng.normal(size=(len(identity), 24))
    source = rng.permutation(len(identity))[:released]
    faces = real[source] + noise * rng.normal(size=(released, 24)) * rng.uniform(0, 4, (released, 1))
    return (
        EmbeddedFaces(real.astype(np.float32), identity, np.arange(len(identity))),
        EmbeddedFaces(faces.astype(np.float32), identity[source], source),
    )


def nearest_of(real, released):
    return nearest_images(released.embeddings, real.embeddings, 1)[:, 0]


def brute(real, released):
    """Everything that is counted, one image at a time."""
    photos, faces = unit(real.embeddings.astype(float)), unit(released.embeddings.astype(float))
    same, other = [], []
    for i, identity in enumerate(real.identity):
        cosine = photos @ photos[i]
        kin = (real.identity == identity) & (np.arange(len(photos)) != i)
        same += [cosine[kin].max()] if kin.any() else []
        other.append(cosine[real.identity != identity].max())
    to_photos = faces @ photos.T
    threshold = min(t for t in other if np.mean(np.array(other) < t) >= 0.99)
    best = to_photos.max(1)
    right = real.identity[to_photos.argmax(1)] == released.identity
    return dict(
        source_nearest=np.mean(to_photos.argmax(1) == released.source),
        threshold=threshold,
        above_threshold=np.mean(best > threshold),
        above_threshold_same_person=np.mean((best > threshold) & right),
    ), {RELEASED: best, SAME: np.array(same), OTHER: np.array(other)}


@pytest.mark.parametrize('block', [2**23, 300 * 226, 1])
def test_counts_equal_brute_force(monkeypatch, block):
    monkeypatch.setattr(module, '_BLOCK', block)
    real, released = random_sets()
    near, pairs = near_duplicates(real, released, released.identity, nearest_of(real, released), resamples=200)
    expected, series = brute(real, released)
    assert 0.1 < expected['source_nearest'] < 1 and 0.1 < expected['above_threshold'] < 1  # the test can fail
    assert near['threshold'] == pytest.approx(expected.pop('threshold'), abs=1e-6)
    for name, value in expected.items():
        rate, low, high = near[name]
        assert rate == pytest.approx(value, abs=1e-12) and low < rate < high
    edges = np.array(near['histogram']['edges'])
    assert edges[-1] == 1 and (np.diff(edges) > 0).all()
    for name, values in series.items():
        counts = np.array(near['histogram']['series'][name])
        assert counts.sum() == len(values)
        assert np.abs(counts.cumsum() - [(values <= edge + 1e-6).sum() for edge in edges[1:]]).max() <= 1
    assert near['pixel_copies'] is None
    for (face, photo), case in zip(pairs, near['worst'], strict=True):
        assert photo == nearest_of(real, released)[face] and case['by'] == 'embedding'
        assert case['similarity'] == pytest.approx(series[RELEASED][face], abs=1e-6)
        assert case['is_source'] == (photo == released.source[face])
        assert case['same_person'] == (real.identity[photo] == released.identity[face])


def test_the_threshold_comes_from_a_sample_of_many_photos(monkeypatch):
    real, released = random_sets(people=400)
    nearest = nearest_of(real, released)
    whole, _ = near_duplicates(real, released, released.identity, nearest, resamples=5)
    monkeypatch.setattr(module, 'PHOTOS', 500)
    part, _ = near_duplicates(real, released, released.identity, nearest, resamples=5)
    assert sum(part['histogram']['series'][OTHER]) == 500
    assert part['threshold'] == pytest.approx(whole['threshold'], abs=0.05) and part['threshold'] != whole['threshold']
    assert part['above_threshold'][0] == pytest.approx(whole['above_threshold'][0], abs=0.15)


def test_strangers_stay_below_the_threshold():
    """Released faces that are photos of people who are nobody's: about one of a hundred lies above it."""
    rng = np.random.default_rng(0)
    faces = rng.normal(size=(6000, 16)).astype(np.float32)
    real = EmbeddedFaces(faces[:3000], np.arange(3000), np.arange(3000))
    unknown = np.full(3000, -1)
    released = EmbeddedFaces(faces[3000:], unknown, unknown)
    near, _ = near_duplicates(real, released, np.arange(3000), nearest_of(real, released))
    assert 0.003 < near['above_threshold'][0] < 0.02
    assert near['source_nearest'] is None and near['above_threshold_same_person'] is None
    assert {(case['is_source'], case['same_person']) for case in near['worst']} == {(None, None)}


def test_photos_of_owned_people_may_be_nearest_on_both_sides():
    """Released faces are searched among theirs too, so that without them the threshold would be too low."""
    shares = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        faces = rng.normal(size=(3000, 16)).astype(np.float32)
        real = EmbeddedFaces(faces[:1500], np.arange(1500), np.arange(1500))
        released = EmbeddedFaces(faces[1500:], np.arange(1500), np.full(1500, -1))
        nearest = nearest_of(real, released)
        near, _ = near_duplicates(real, released, np.arange(1500), nearest, owned=np.arange(900), resamples=5)
        assert sum(near['histogram']['series'][RELEASED]) == 600
        shares.append(near['above_threshold'][0])
    assert 0.006 < np.mean(shares) < 0.015


def test_a_photo_that_is_there_twice_is_as_good_as_the_source():
    real, released = random_sets(noise=0)
    twice = np.concatenate([real.embeddings, real.embeddings])
    real = EmbeddedFaces(twice, np.tile(real.identity, 2), np.arange(len(twice)))
    released = EmbeddedFaces(released.embeddings, released.identity, released.source + len(twice) // 2)
    nearest = nearest_of(real, released)
    assert (nearest != released.source).all()  # the first of equals
    near, _ = near_duplicates(real, released, released.identity, nearest, resamples=5)
    assert near['source_nearest'][0] == 1 and near['worst'][0]['is_source'] is True
    assert near['worst'][0]['similarity'] <= 1


@pytest.mark.parametrize('known', [0, 90])
def test_few_photos_of_known_people_give_no_threshold(known):
    real, released = random_sets()
    names = np.where(np.arange(len(real)) < known, real.identity, -1)
    real = EmbeddedFaces(real.embeddings, names, real.source)
    near, _ = near_duplicates(real, released, released.identity, nearest_of(real, released), resamples=5)
    assert near['threshold'] is None and near['above_threshold'] is None
    assert sum(near['histogram']['series'][OTHER]) == known and near['source_nearest'][0] > 0


def test_worst_cases_show_no_person_often():
    """Two faces of one released person, and two beside photos of one real person, fill no page."""
    rng = np.random.default_rng(0)
    photos = rng.normal(size=(200, 32)).astype(np.float32)
    identity = np.arange(200) // 2
    nearest = np.concatenate([[0] * 5, [10] * 5, np.arange(20, 60)])
    spread = np.linspace(0.1, 1, 50)[:, None] * rng.normal(size=(50, 32))
    released = EmbeddedFaces((photos[nearest] + spread).astype(np.float32), identity[nearest], np.full(50, -1))
    people = np.concatenate([np.arange(5), [77] * 5, 100 + np.arange(40)])
    real = EmbeddedFaces(photos, identity, np.arange(200))
    near, pairs = near_duplicates(real, released, people, nearest, resamples=5)
    assert len(pairs) == len(near['worst']) == 24
    similarities = [case['similarity'] for case in near['worst']]
    assert similarities == sorted(similarities, reverse=True)
    for column, numbers in ((0, people), (1, identity)):
        _, counts = np.unique([numbers[pair[column]] for pair in pairs], return_counts=True)
        assert counts.max() == 2
    alone, few = near_duplicates(real, released, np.full(50, 5), nearest, resamples=5)
    assert len(few) == 2 and len(alone['worst']) == 2
    unnamed, many = near_duplicates(real, released, np.full(50, -1), nearest, resamples=5)
    assert len(many) == 24 and unnamed['above_threshold'][1] < unnamed['above_threshold'][2]


def test_copies_by_pixels_come_with_their_own_photo():
    real, released = random_sets(released=30)
    nearest, own = nearest_of(real, released), released.source
    correlation = np.linspace(0.5, 0.98, 30)
    correlation[[4, 7]] = 0.995, 1.0
    photo = np.where(np.arange(30) == 7, own, (own + 1) % len(real))
    near, pairs = near_duplicates(real, released, np.arange(30), nearest, (photo, correlation), resamples=5)
    assert near['pixel_copies'] == dict(count=2, threshold=COPY)
    found = {face: (place, case) for (face, place), case in zip(pairs, near['worst']) if case['by'] == 'pixels'}
    assert {face: (place, case['similarity']) for face, (place, case) in found.items()} == {
        7: (own[7], 1.0),
        4: (photo[4], 0.995),
    }
    assert found[7][1]['is_source'] is True and found[4][1]['is_source'] is False


def write(folder, images):
    folder.mkdir(parents=True)
    for name, image in images.items():
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), image)
    return open_faces(folder)


def test_descriptors_are_correlations_and_never_nan(tmp_path):
    rng = np.random.default_rng(0)
    picture = cv2.resize(rng.integers(40, 200, (8, 8, 3)).astype(np.uint8), (112, 112), interpolation=cv2.INTER_CUBIC)
    nearly_flat = np.full((112, 112, 3), 90, np.uint8)
    nearly_flat[::7] += 1
    images = {
        'a/0.png': picture,
        'a/1.png': picture // 2 + 30,
        'a/2.png': 255 - picture,
        'b/black.png': np.zeros((112, 112, 3), np.uint8),
        'b/flat.png': nearly_flat,
    }
    found = pixel_descriptors(write(tmp_path / 'set', images), np.arange(5))
    assert found.shape == (5, 256) and found.dtype == np.float32
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    cosines = found @ found.T
    assert cosines[0, 1] > 0.999 and cosines[0, 2] == pytest.approx(-1, abs=1e-4)
    assert cosines[3, 4] == pytest.approx(1, abs=1e-6) and np.abs(cosines[:3, 3:]).max() < 1e-6
    blocks = picture.astype(float).reshape(16, 7, 16, 7, 3).mean((1, 3)) @ [0.114, 0.587, 0.299]
    assert np.corrcoef(blocks.ravel(), found[0])[0, 1] == pytest.approx(1, abs=1e-6)
    source = open_faces(tmp_path / 'set')
    assert (pixel_descriptors(source, np.array([4, 0]), workers=1) == found[[4, 0]]).all()


def test_copies_equal_brute_force(monkeypatch):
    monkeypatch.setattr(module, '_FACES', 7)
    rng = np.random.default_rng(0)
    real, released = (unit(rng.normal(size=(n, 256))).astype(np.float32) for n in (50, 20))
    mirrored = real[30].reshape(16, 16)[:, ::-1].ravel()
    released[3], released[12] = real[30], mirrored
    photo, correlation = pixel_copies(released, real)
    both = released, released.reshape(-1, 16, 16)[:, :, ::-1].reshape(-1, 256)
    expected = np.maximum(*(faces.astype(float) @ real.T for faces in both))
    assert photo.tolist() == expected.argmax(1).tolist() and np.allclose(correlation, expected.max(1), atol=1e-6)
    assert photo[3] == photo[12] == 30 and correlation[[3, 12]].min() > 1 - 1e-6


def brighter(image):
    return cv2.convertScaleAbs(image, alpha=1.05, beta=8)


def through_jpeg(image):
    return cv2.imdecode(cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)


def resized(image):
    return cv2.resize(cv2.resize(image, (64, 64), interpolation=cv2.INTER_AREA), (128, 128))


def mirrored(image):
    return image[:, ::-1]


def test_copies_of_real_faces_are_found_and_other_photos_are_not(shared, tmp_path):
    """Photos of LFW released again in four ways; and as a release, other photos of the same people."""
    folder = shared / 'faces' / 'lfw112'
    people = [person for person in sorted(folder.iterdir()) if len(list(person.iterdir())) > 1][:60]
    files = [sorted(person.iterdir())[:2] for person in people]
    for place, name in enumerate(('real', 'other')):
        (tmp_path / name).mkdir()
        for person, chosen in zip(people, files):
            (tmp_path / name / person.name).mkdir()
            (tmp_path / name / person.name / chosen[place].name).write_bytes(chosen[place].read_bytes())
    real = open_faces(tmp_path / 'real')
    photos = pixel_descriptors(real, np.arange(60))
    for change in (through_jpeg, resized, brighter, mirrored):
        copies = {f'{key}.png': change(cv2.imread(str(chosen[0]))) for key, chosen in zip(real.keys, files)}
        released = pixel_descriptors(write(tmp_path / change.__name__, copies), np.arange(60))
        photo, correlation = pixel_copies(released, photos)
        assert photo.tolist() == list(range(60)) and correlation.min() >= COPY
    other = pixel_descriptors(open_faces(tmp_path / 'other'), np.arange(60))
    _, correlation = pixel_copies(other, photos)
    assert (correlation < COPY).all() and correlation.max() > 0.8  # alike, and no copies
