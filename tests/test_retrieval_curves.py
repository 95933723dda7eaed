"""Curves over the number of identities, from one search, against brute force; intervals against a simulated truth."""

import numpy as np
import pytest
from test_nearest import brute_order

from facemae_mm.evaluation import nearest, retrieval_curves
from facemae_mm.evaluation.embedded_faces import EmbeddedFaces
from facemae_mm.evaluation.nearest import NearestImages
from facemae_mm.evaluation.retrieval_curves import (
    Curve,
    Draws,
    chance_level,
    difference_interval,
    spread_points,
)

MOST = 4


def two_sets(people=24, seed=0, noise=1.2, dimension=12):
    """Photos and released faces made from some of them; some people are in one set alone, some have one photo."""
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(people, dimension))
    identity = np.repeat(np.arange(people), generator.integers(1, 6, people))
    photos = centres[identity] + noise * generator.normal(size=(len(identity), dimension))
    made = generator.permutation(len(identity))[: int(0.8 * len(identity))]
    made = np.concatenate([made, made[:9]])  # of some photos two
    released = photos[made] + 0.7 * generator.normal(size=(len(made), dimension))
    photos[3], released[5] = photos[2], released[4]  # duplicates
    real = EmbeddedFaces(photos.astype(np.float32), identity, np.arange(len(identity)))
    return real, EmbeddedFaces(released.astype(np.float32), identity[made], made)


def drawn_of(real, released, points=(3, 7), draws=3):
    people, counts = np.unique(real.identity, return_counts=True)
    both = np.intersect1d(people[counts > 1], released.identity)
    return Draws.nested(both, points, draws, seed=5)


def search(queries, gallery, draws, depth):
    own = draws.numbers(queries.identity)
    near = NearestImages(gallery.embeddings, labels=draws.numbers(gallery.identity))(queries.embeddings, depth, own)
    return retrieval_curves.retrieval_curves(queries, gallery, near, draws, MOST)


def literal(queries, gallery, draws, mode):
    """By point: for every draw and drawn query, whether it leaks at K = 1 … MOST, and its chance."""
    alone = queries is gallery
    points = []
    for point in draws.points:
        rows = []
        for order in draws.orders(point):
            people = draws.identities[order < point]
            images = np.flatnonzero(np.isin(gallery.identity, people))
            for q in np.flatnonzero(np.isin(queries.identity, people)):
                compared = [
                    g
                    for g in images
                    if not (alone and g == q) and not (mode == 'without' and gallery.source[g] == queries.source[q])
                ]
                ranked = [compared[i] for i in brute_order(queries.embeddings[q], gallery.embeddings[compared])]
                own = gallery.identity[ranked] == queries.identity[q]
                chance = [chance_level(len(ranked), np.array([own.sum()]), k)[0] for k in range(1, MOST + 1)]
                rows.append([[own[:k].any() for k in range(1, MOST + 1)], chance, len(ranked)])
        points.append((len(draws.orders(point)), rows))
    return points


@pytest.mark.parametrize('depth', [4, 12, 60])
@pytest.mark.parametrize('alone', [False, True])
def test_every_point_equals_brute_force(monkeypatch, depth, alone):
    """With shallow lists most queries are searched again, with deep ones hardly any."""
    monkeypatch.setattr(retrieval_curves, '_BLOCK', 20)
    monkeypatch.setattr(nearest, 'GALLERY', 30)
    for seed in range(2):
        real, released = two_sets(seed=seed)
        draws = drawn_of(real, released)
        queries, gallery = (real, real) if alone else (real, released)
        curves = search(queries, gallery, draws, min(depth, len(gallery)))
        assert set(curves) == {'with', 'without'}
        for mode, curve in curves.items():
            for p, (count, rows) in enumerate(literal(queries, gallery, draws, mode)):
                assert len(curve.places[p]) == count
                hits = np.array([row[0] for row in rows])
                asked = np.concatenate([place[place > 0] for place in curve.places[p]])
                for k in range(1, MOST + 1):
                    assert (asked <= k).tolist() == hits[:, k - 1].tolist()
        if not alone:
            assert any(
                (curves['with'].places[p] != curves['without'].places[p]).any() for p in range(len(draws.points))
            )


def test_rates_and_chance_are_means_over_draws():
    real, released = two_sets()
    draws = drawn_of(real, released)
    for mode, curve in search(real, released, draws, 8).items():
        for p, (count, rows) in enumerate(literal(real, released, draws, mode)):
            sizes = [int((place > 0).sum()) for place in curve.places[p]]
            parts = np.split(np.arange(len(rows)), np.cumsum(sizes)[:-1])
            assert len(parts) == count
            for k in range(1, MOST + 1):
                rate = np.mean([np.mean([rows[i][0][k - 1] for i in part]) for part in parts])
                chance = np.mean([np.mean([rows[i][1][k - 1] for i in part]) for part in parts])
                assert curve.rate(p, k) == pytest.approx(rate)
                assert curve.chances[p][k - 1] == pytest.approx(chance)
            assert curve.galleries[p] == pytest.approx(np.mean([np.mean([rows[i][2] for i in part]) for part in parts]))


def test_a_reconstructed_set_that_is_retrieved_from_itself_leaves_out_its_twins():
    real, released = two_sets()
    draws = drawn_of(real, released)
    curves = search(released, released, draws, 20)
    assert curves['with'].rate(-1, 1) > curves['without'].rate(-1, 1)  # two were made of one photo
    real_alone = search(real, real, draws, 20)
    assert real_alone['with'] is real_alone['without']


def test_a_gallery_of_fewer_images_than_k():
    faces = EmbeddedFaces(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), np.arange(4))
    curve = search(faces, faces, Draws.nested(np.arange(2), (1,), 2), 4)['with']
    assert curve.rate(0, 4) == curve.chances[0][3] == 1  # the only other image is the person's own
    assert curve.galleries[0] == 1


@pytest.mark.parametrize(('most', 'dtype'), [(254, np.uint8), (255, np.uint16), (256, np.uint16), (300, np.uint16)])
@pytest.mark.parametrize('depth', [8, 400])
def test_places_of_large_k_do_not_come_around(most, dtype, depth):
    """One released image a person, at falling cosines from the one point where all photos are."""
    people, cosine = np.arange(400), np.linspace(1, -1, 400)
    released = np.stack([cosine, np.sqrt(1 - cosine**2)], 1).astype(np.float32)
    photos = np.repeat(np.float32([[1, 0]]), 400, axis=0)
    real, gallery = EmbeddedFaces(photos, people, people), EmbeddedFaces(released, people, np.full(400, -1))
    draws = Draws.nested(people)
    near = NearestImages(released, labels=people)(photos, depth, people)
    curve = retrieval_curves.retrieval_curves(real, gallery, near, draws, most)['with']
    assert curve.places[0].tolist() == [np.minimum(people + 1, most + 1).tolist()]
    assert curve.places[0].dtype == dtype
    for k in (1, 100, most - 1, most):
        assert curve.rate(0, k) == pytest.approx(k / 400) and curve.chances[0][k - 1] == pytest.approx(k / 400)
        assert np.abs(curve.resampled[0][:, k - 1].mean() - k / 400) < 0.01


def test_draws_are_nested_and_refuse_more_than_there_are():
    draws = Draws.nested(np.arange(100, 140), (5, 20), 4, seed=1)
    assert draws.points == (5, 20, 40) and draws.ranks.shape == (4, 40)
    assert (np.sort(draws.ranks, axis=1) == np.arange(40)).all()
    assert len({tuple(order) for order in draws.ranks}) == 4
    assert draws.numbers(np.array([139, 100, 7, 200])).tolist() == [39, 0, -1, -1]
    with pytest.raises(ValueError, match='41 identities cannot be drawn of 40'):
        Draws.nested(np.arange(40), (41,))
    assert spread_points(545) == [34, 68, 136, 272, 545]
    assert spread_points(3) == [2, 3] and spread_points(1) == [1]


def literal_resamples(curve, point, k):
    generator = np.random.default_rng(0)
    for _ in range(1000):
        drawn = generator.integers(curve.classes, size=curve.classes)
        rates = []
        for place in curve.places[point]:
            rows = [place[(curve.identity == person) & (place > 0)] for person in drawn]
            rows = np.concatenate(rows)
            if rows.size:
                rates.append((rows <= k).mean())
        if rates:
            yield np.mean(rates)


def test_interval_equals_the_literal_bootstrap():
    real, released = two_sets()
    curve = search(real, released, drawn_of(real, released), 8)['without']
    for point in (0, -1):
        rates = list(literal_resamples(curve, point, 2))
        rate, low, high = curve.interval(point, 2)
        assert rate == curve.rate(point, 2)
        assert (low, high) == pytest.approx(tuple(np.percentile(rates, (2.5, 97.5))))


def fake_curve(generator, people=60, photos=5):
    """Each person leaks at a rate of their own, whose mean is 0.4."""
    identity = np.repeat(np.arange(people), photos)
    rate = generator.beta(1.2, 1.8, people)[identity]
    place = np.where(generator.random(people * photos) < rate, 1, 5).astype(np.uint8)
    return Curve(identity, [place[None]], [np.zeros(4)], [100.0], people)


def test_intervals_cover_a_simulated_truth():
    """95 % intervals of 200 samples; photos of a person leak together, so those of independent photos would not do."""
    generator = np.random.default_rng(0)
    covered, covered_difference, naive = 0, 0, 0
    for _ in range(200):
        a, b = fake_curve(generator), fake_curve(generator)
        rate, low, high = a.interval(0, 1)
        covered += low <= 0.4 <= high
        half = 1.96 * np.sqrt(rate * (1 - rate) / len(a.identity))
        naive += abs(rate - 0.4) <= half
        _, low, high = difference_interval(a, b, 0, 1)
        covered_difference += low <= 0 <= high
    assert covered >= 0.91 * 200
    assert covered_difference >= 0.91 * 200
    assert naive < 0.9 * 200


@pytest.mark.slow
def test_intervals_of_a_search_cover_its_mean_over_populations():
    """The whole way, embeddings to interval: the truth is the mean rate over 400 populations."""
    rates, intervals = [], []
    for seed in range(400):
        real, released = two_sets(people=60, seed=seed, noise=1.4)
        draws = drawn_of(real, released, (12,), 5)
        curve = search(real, released, draws, 12)['without']
        intervals.append([curve.interval(p, 2) for p in (0, -1)])
        rates.append([curve.rate(p, 2) for p in (0, -1)])
    truth = np.mean(rates, axis=0)
    intervals = np.array(intervals)
    covered = ((intervals[:, :, 1] <= truth) & (truth <= intervals[:, :, 2])).mean(0)
    assert (covered >= 0.9).all(), covered


def test_difference_is_resampled_together_and_wide_where_nothing_varies():
    """Of one that finds all and one that finds nothing it is not certain; nor that equal curves differ by nothing."""
    generator = np.random.default_rng(0)
    curve = fake_curve(generator)
    all_found, none_found = (
        Curve(curve.identity, [np.full((1, 300), place, np.uint8)], curve.chances, [1.0], 60) for place in (1, 5)
    )
    difference, low, high = difference_interval(all_found, none_found, 0, 1)
    assert difference == 1 and high == 1 and 0.85 < low < 0.96
    difference, low, high = difference_interval(curve, curve, 0, 1)
    assert difference == 0 and -0.2 < low < 0 < high < 0.2
    difference, low, high = difference_interval(curve, none_found, 0, 1)
    assert (difference, low, high) == pytest.approx(curve.interval(0, 1))
