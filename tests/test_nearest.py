"""The exact search against brute force in float64, also where products are as wrong as they may be."""

import faiss
import numpy as np
import pytest
import torch

from facemae_mm.evaluation import nearest
from facemae_mm.evaluation.nearest import TIE, NearestImages, nearest_images, pair_cosines


def brute_order(query, gallery):
    """All images by descending cosine in float64; those of one tie by index."""
    gallery, query = np.asarray(gallery, np.float64), np.asarray(query, np.float64)
    cosines = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
    order = list(np.argsort(-cosines, kind='stable'))
    found = []
    while order:
        tie = [order.pop(0)]
        while order and cosines[tie[-1]] - cosines[order[0]] < TIE:
            tie.append(order.pop(0))
        found += sorted(tie)
    return found


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(nearest, 'QUERIES', 16)
    monkeypatch.setattr(nearest, 'GALLERY', 100)


def some_sets(images=900, dimension=16, seed=0):
    generator = np.random.default_rng(seed)
    gallery = generator.normal(size=(images, dimension)).astype(np.float32)
    gallery[200:210] = gallery[3]
    return np.concatenate([gallery[:20], generator.normal(size=(20, dimension)).astype(np.float32)]), gallery


@pytest.mark.parametrize('scale', [1e-30, 1.0, 1e30])
def test_exact_where_float32_is_not(scale):
    """1200 images whose cosines differ by less than float32 inner products can tell."""
    generator = np.random.default_rng(0)
    gallery = np.ones((1200, 64)) + generator.normal(size=(1200, 64)) * 1e-3
    gallery[generator.permutation(1200)[:300]] = gallery[5]  # duplicates all over
    queries = np.concatenate([gallery[:5] + 1e-3, generator.normal(size=(5, 64))])
    found = nearest_images(queries, gallery * scale, 9)
    expected = [brute_order(query, gallery)[:9] for query in queries]
    assert found.tolist() == expected
    units = (gallery / np.linalg.norm(gallery, axis=1)[:, None]).astype(np.float32)
    naive = np.argsort(-(queries.astype(np.float32) @ units.T), axis=1, kind='stable')[:, :9]
    assert naive.tolist() != expected  # the test can fail


@pytest.mark.parametrize('k', [1, 4, 70, 900])
@pytest.mark.parametrize('low_precision', [False, True])
def test_equals_brute_force(small_blocks, k, low_precision):
    queries, gallery = some_sets()
    found = NearestImages(gallery, low_precision=low_precision)(queries, k)
    assert found.tolist() == [brute_order(query, gallery)[:k] for query in queries]


def test_part_of_a_gallery_that_lies_in_a_file(small_blocks, tmp_path):
    queries, gallery = some_sets()
    np.save(tmp_path / 'gallery.npy', gallery)
    rows = np.flatnonzero(np.arange(900) % 3 > 0)
    found = NearestImages(np.load(tmp_path / 'gallery.npy', mmap_mode='r')).among(rows)(queries, 5)
    assert found.tolist() == [rows[brute_order(query, gallery[rows])[:5]].tolist() for query in queries]


@pytest.mark.parametrize('low_precision', [False, True])
def test_products_as_wrong_as_they_may_be_are_put_right(monkeypatch, low_precision):
    """Cosines 2e-7 apart, proposed with errors of the size that the bound allows."""
    generator = np.random.default_rng(0)
    cosine = 0.5 - 2e-7 * generator.permutation(900)
    rest = generator.normal(size=(900, 63))
    rest *= np.sqrt(1 - cosine**2)[:, None] / np.linalg.norm(rest, axis=1)[:, None]
    gallery = np.concatenate([cosine[:, None], rest], 1)
    bound = 2 * 2.0**-8 if low_precision else (64 + 3) * 2.0**-24  # of bfloat16, the result's rounding comes on top

    def noisy(a, b, out):
        out[:, :900] = torch.from_numpy(cosine + generator.uniform(-bound, bound, 900))

    monkeypatch.setattr(nearest.torch, 'mm', noisy)
    found = NearestImages(gallery, low_precision=low_precision)(np.eye(1, 64), 4)
    assert found.tolist() == [np.argsort(-cosine)[:4].tolist()]


@pytest.mark.parametrize('order', ['near_first', 'near_last'])
def test_a_gallery_that_is_not_mixed(small_blocks, order):
    """What is near comes all at once, so that a guess from the first block is far off."""
    queries, gallery = some_sets()
    towards = gallery @ queries[25]
    gallery = gallery[np.argsort(-towards if order == 'near_first' else towards)]
    found = nearest_images(queries, gallery, 30)
    assert found.tolist() == [brute_order(query, gallery)[:30] for query in queries]


@pytest.mark.parametrize('queries', [1, 3])
def test_few_queries_whose_near_images_come_first(small_blocks, queries):
    """As of a gallery that is sorted by person: the first block promises more than all others hold."""
    generator = np.random.default_rng(0)
    gallery = generator.normal(size=(900, 64))
    gallery[:30] = generator.normal(size=64) + 0.3 * generator.normal(size=(30, 64))
    asked = gallery[:queries] + 0.1 * generator.normal(size=(queries, 64))
    found = nearest_images(asked, gallery, 40)
    assert found.tolist() == [brute_order(query, gallery)[:40] for query in asked]


def test_more_candidates_than_there_is_room_for(small_blocks, monkeypatch):
    monkeypatch.setattr(nearest, '_CANDIDATES', 150)
    queries, gallery = some_sets()
    gallery[400:800] = gallery[0]
    found = nearest_images(queries, gallery, 12)
    assert found.tolist() == [brute_order(query, gallery)[:12] for query in queries]


def test_a_long_tie_at_the_last_place(small_blocks):
    """A chain of cosines less than TIE apart that reaches far below the k-th: its lowest index wins."""
    angle = np.concatenate([np.arccos(0.9 - 9e-8 * np.arange(300)), np.linspace(1.6, 3, 500)])
    gallery = np.stack([np.cos(angle), np.sin(angle)], 1)[np.random.default_rng(1).permutation(800)]
    found = nearest_images(np.array([[1.0, 0.0]]), gallery, 4)
    assert found.tolist() == [brute_order(np.array([1.0, 0.0]), gallery)[:4]]


def test_deep_lists_put_the_own_person_in_the_right_place(small_blocks):
    """Behind the first places only the order against the person's own images is promised."""
    generator = np.random.default_rng(0)
    people = generator.integers(0, 30, 900)
    gallery = generator.normal(size=(900, 64)) * 1e-5 + 1  # everything within rounding
    queries, own = gallery[:40] + generator.normal(size=(40, 64)) * 1e-5, people[:40]
    found = NearestImages(gallery, labels=people)(queries, 80, own)
    for query, person, row in zip(queries, own, found, strict=True):
        order = brute_order(query, gallery)
        assert row[: nearest.EXACT].tolist() == order[: nearest.EXACT]
        expected = [place for place, image in enumerate(order[:80]) if people[image] == person]
        assert [place for place, image in enumerate(row) if people[image] == person] == expected


class FaissOnCpu:
    """Stands for faiss with GPU support: the same call, computed on the processor."""

    METRIC_INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT

    def __init__(self):
        self.calls = 0

    def knn_gpu(self, resources, queries, images, width, metric):
        self.calls += 1
        found = faiss.knn(queries.float().numpy(), images.float().numpy(), width, metric=metric)
        return map(torch.from_numpy, found)


def test_candidates_that_faiss_finds(small_blocks):
    queries, gallery = some_sets()
    gallery[500:550] = gallery[2]  # more equal ones than faiss returns
    search = NearestImages(gallery)
    stand_in = FaissOnCpu()
    search._faiss = stand_in, None
    assert search(queries, 4).tolist() == [brute_order(query, gallery)[:4] for query in queries]
    assert stand_in.calls


def test_pair_cosines():
    queries, gallery = some_sets()
    i, j = np.array([0, 5, 5]), np.array([0, 9, 700])
    literal = [
        np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(queries[i].astype(np.float64), gallery[j].astype(np.float64), strict=True)
    ]
    assert pair_cosines(queries, i, gallery, j) == pytest.approx(literal, abs=1e-15)
