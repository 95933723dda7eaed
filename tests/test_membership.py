"""Membership against brute force, hand-made geometry, and simulated people whose truth is known."""

from statistics import NormalDist

import numpy as np
import pytest

from facemae_mm.audit import membership as module
from facemae_mm.audit.membership import cohort_medians, membership, separation
from facemae_mm.evaluation.embedded_faces import EmbeddedFaces
from facemae_mm.evaluation.intervals import resampled_identities
from facemae_mm.randomness import keyed_seed


def brute_auc(score, member):
    """How often a member's photo scores above another's, ties half."""
    wins = [float(a > b) + (a == b) / 2 for a in score[member] for b in score[~member]]
    return sum(wins) / len(wins)


def brute_tpr(score, member, rate):
    """The largest share of members above any threshold that at most `rate` of the others exceed."""
    rates = [np.mean(score[member] > t) for t in [-np.inf, *score] if np.mean(score[~member] > t) <= rate + 1e-12]
    return max(rates)


def random_scores(seed, ties):
    rng = np.random.default_rng(seed)
    identity = np.concatenate([rng.integers(0, 12, 60), 100 + rng.integers(0, 40, 130), [77, 200]])  # two of one photo
    member = identity < 100
    score = rng.normal(size=len(identity)) + member
    return np.round(score * 2) if ties else score, identity, member


@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('seed', range(4))
def test_area_and_rates_equal_brute_force(seed, ties):
    score, identity, member = random_scores(seed, ties)
    found = separation(score, identity, member, resamples=5)
    assert found['auc'][0] == pytest.approx(brute_auc(score, member), abs=1e-12)
    assert found['tpr']['0.01'][0] == pytest.approx(brute_tpr(score, member, 0.01), abs=1e-12)
    assert found['tpr']['0.001'] is None  # of 131 photos
    again = np.random.default_rng(9).permutation(len(score))
    assert separation(score[again], identity[again], member[again], resamples=5) == found


@pytest.mark.parametrize(('others', 'measured'), [(99, False), (100, True)])
def test_a_rate_below_one_false_match_is_not_measured(others, measured):
    score = np.concatenate([np.arange(others), [others - 1.5, others + 5]])
    member = np.arange(len(score)) >= others
    found = separation(score, np.arange(len(score)), member, resamples=50)
    assert (found['tpr']['0.01'] is not None) == measured
    if measured:  # one false match is allowed, so that the second highest of the others is the threshold
        assert found['tpr']['0.01'][0] == 1


@pytest.mark.parametrize('ties', [False, True])
def test_intervals_equal_the_literal_bootstrap(ties):
    """Identities are drawn, and all their photos are taken as often as they were."""
    score, identity, member = random_scores(0, ties)
    found = separation(score, identity, member, resamples=60, seed=3)
    people = [np.unique(identity[kind]) for kind in (member, ~member)]
    draws = (
        resampled_identities(len(names), 60, keyed_seed(kind, 3)) for names, kind in zip(people, ('members', 'others'))
    )
    areas, rates = [], []
    for weights in zip(*draws):
        rows = [
            row
            for names, counts in zip(people, weights)
            for name, count in zip(names, counts)
            for row in np.flatnonzero(identity == name).tolist() * int(count)
        ]
        areas.append(brute_auc(score[rows], member[rows]))
        rates.append(brute_tpr(score[rows], member[rows], 0.01))
    assert found['auc'][1:] == pytest.approx(np.percentile(areas, (2.5, 97.5)).tolist())
    if max(rates) > 0:
        assert found['tpr']['0.01'][1:] == pytest.approx(np.percentile(rates, (2.5, 97.5)).tolist())
    else:  # no member of twelve exceeds anybody in any resample, which is no certainty
        assert ties and found['tpr']['0.01'][1] == 0 and found['tpr']['0.01'][2] > 0.2


def test_intervals_cover_the_truth():
    """200 simulated sets of people with photos that are alike, so that photos are no independent trials."""
    between, within, shift = 0.6, 0.8, 2.0  # variances of people and of photos add to 1

    def people(rng, count):
        identity = np.repeat(np.arange(count), rng.integers(1, 6, count))
        return identity, between * rng.normal(size=count)[identity] + within * rng.normal(size=len(identity))

    normal = NormalDist()
    truth = dict(auc=normal.cdf(shift / 2**0.5), tpr=1 - normal.cdf(normal.inv_cdf(0.99) - shift))
    held, narrow = dict(auc=0, tpr=0), 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        (inside, high), (outside, low) = people(rng, 100), people(rng, 200)
        score = np.concatenate([high + shift, low])
        identity, member = np.concatenate([inside, 1000 + outside]), np.arange(len(score)) < len(high)
        found = separation(score, identity, member, resamples=150, seed=seed)
        for name, value in (('auc', found['auc']), ('tpr', found['tpr']['0.01'])):
            held[name] += value[1] <= truth[name] <= value[2]
        alone = separation(score, np.arange(len(score)), member, resamples=60, seed=seed)['auc']
        narrow += alone[1] <= truth['auc'] <= alone[2]
    assert held['auc'] >= 180 and held['tpr'] >= 180
    assert narrow < held['auc']  # photos taken as independent promise too much


def test_perfect_separation_is_no_certainty():
    member = np.arange(220) < 20
    found = separation(member.astype(float), np.arange(220) // 2, member)
    assert found['auc'][0] == found['tpr']['0.01'][0] == found['auc'][2] == 1
    assert 0.6 < found['auc'][1] < 0.9  # ten people


def test_chance_is_the_diagonal():
    rng = np.random.default_rng(0)
    found = separation(rng.normal(size=20_000), np.arange(20_000), rng.random(20_000) < 0.5, resamples=200)
    assert found['auc'][1] < 0.5 < found['auc'][2]
    assert found['tpr']['0.01'][1] < 0.01 < found['tpr']['0.01'][2]
    assert found['tpr']['0.001'][0] < 0.002


def test_a_thin_curve_keeps_what_is_read_off():
    rng = np.random.default_rng(0)
    member = rng.random(30_000) < 0.3
    found = separation(rng.normal(size=30_000) + member, np.arange(30_000), member, resamples=2)
    fpr, tpr = np.array(found['curve']['fpr']), np.array(found['curve']['tpr'])
    assert len(fpr) <= 400 and (np.diff(fpr) >= 0).all() and (np.diff(tpr) >= 0).all()
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    for rate in ('0.01', '0.001'):
        assert tpr[fpr <= float(rate)].max() == found['tpr'][rate][0]
    assert np.trapezoid(tpr, fpr) == pytest.approx(found['auc'][0], abs=1e-3)


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_cohort_medians_equal_their_definition(monkeypatch):
    rng = np.random.default_rng(0)
    photos, released = rng.normal(size=(50, 16)).astype(np.float32) * 1e12, rng.normal(size=(40, 16)).astype(np.float32)
    medians = np.median(unit(photos.astype(float)) @ unit(released.astype(float)).T, axis=1)
    for block in (2**22, 40 * 7):
        monkeypatch.setattr(module, '_BLOCK', block)
        assert np.allclose(cohort_medians(photos, released, seed=0), medians, atol=1e-6)
    part = cohort_medians(photos, released, seed=0, cohort=10)
    assert not np.allclose(part, medians) and not np.allclose(part, cohort_medians(photos, released, 1, 10))


def random_release(seed=0, members=60, outsiders=120, photos=4, faces=4, noise=0.9, blur=None):
    """Photos of people of whom some were released, all photos but each person's last; and the best cosines."""
    rng = np.random.default_rng(seed)
    people = members + outsiders
    centre = rng.normal(size=(people, 32))
    identity = np.repeat(np.arange(people), photos)
    real = centre[identity] + noise * rng.normal(size=(len(identity), 32))
    released_identity = np.repeat(np.arange(members), faces)
    source = released_identity * photos + np.tile(np.arange(faces), members) % photos
    released = real[source] + 0.7 * rng.normal(size=(len(source), 32))
    if blur is not None:  # a blurred photo is near to all faces
        common = 6 * unit(rng.normal(size=(1, 32)))
        released += common
        real += common * rng.uniform(0, blur, (len(real), 1))
    sets = [
        EmbeddedFaces(e.astype(np.float32), i, s)
        for e, i, s in ((real, identity, np.arange(len(identity))), (released, released_identity, source))
    ]
    cosines = unit(real) @ unit(released).T
    without = np.where(source == np.arange(len(identity))[:, None], -np.inf, cosines).max(1)
    return *sets, cosines.max(1), without, (identity < members).astype(np.int8)


def test_all_numbers_equal_brute_force():
    photos, released, best, without, member = random_release(faces=3)
    member[8:12] = member[300:304] = -1  # a member and an outsider whom nobody asks about
    found = membership(best, without, [photos], released, member, resamples=20)
    expected = dict(members=59 * 4, non_members=119 * 4, member_identities=59, non_member_identities=119)
    assert found['photos'] == found['photos_without'] == expected
    medians = cohort_medians(photos.embeddings, released.embeddings, 0)
    asked = member >= 0
    for name, raw in (('with', best), ('without', without)):
        for kind, score in (('raw', raw), ('calibrated', raw - medians)):
            assert found[name][kind]['auc'][0] == pytest.approx(brute_auc(score[asked], member[asked] == 1), abs=1e-9)
            rate = brute_tpr(score[asked], member[asked] == 1, 0.01)
            assert found[name][kind]['tpr']['0.01'][0] == pytest.approx(rate, abs=1e-9)
    assert found['with']['raw']['auc'][0] > found['without']['raw']['auc'][0]


def test_who_has_no_face_from_another_photo_is_no_member_without_it():
    """One face a person, made from the first of two photos: without it that photo has nothing to find."""
    photos, released, best, without, member = random_release(photos=2, faces=1)
    found = membership(best, without, [photos], released, member, resamples=5)
    assert found['photos']['members'] == 120 and found['photos_without']['members'] == 60
    photos, released, best, without, member = random_release(photos=1, faces=1)
    found = membership(best, without, [photos], released, member, resamples=5)
    assert found['without'] is None and found['photos']['member_identities'] == 60
    assert membership(best, None, [photos], released, member, resamples=5)['without'] is None


def test_calibration_finds_more_where_photos_differ_in_quality():
    photos, released, best, without, member = random_release(blur=1.0)
    found = membership(best, without, [photos], released, member, resamples=200)
    assert found['with']['calibrated']['auc'][1] > found['with']['raw']['auc'][2]  # beyond both intervals
    for scores in (found['with'], found['without']):
        assert scores['calibrated']['auc'][0] > scores['raw']['auc'][0] + 0.015
        assert scores['calibrated']['tpr']['0.01'][0] > scores['raw']['tpr']['0.01'][0] + 0.05


def test_faces_of_the_person_in_the_cohort_do_not_hide_them():
    """A release of twelve people: every twelfth face of the cohort shows the one that is asked about."""
    photos, released, best, _, member = random_release(members=12, outsiders=120, photos=8, faces=8, noise=0.4)
    found = membership(best, None, [photos], released, member, resamples=20)['with']
    cosines = unit(photos.embeddings) @ unit(released.embeddings).T
    z_norm = (best - cosines.mean(1)) / cosines.std(1)
    moments = separation(z_norm, photos.identity, member == 1, resamples=20)
    assert found['calibrated']['tpr']['0.01'][0] > moments['tpr']['0.01'][0] + 0.1


def test_people_of_another_set_are_not_in_the_release(tmp_path):
    """The sets are read from files, one after the other; labels of the other set are numbered from −2 down."""
    photos, released, best, without, member = random_release()
    np.save(tmp_path / 'real.npy', photos.embeddings)
    rows = slice(0, 240), slice(240, None)
    mapped = np.load(tmp_path / 'real.npy', mmap_mode='r')
    real, other = (EmbeddedFaces(mapped[part], photos.identity[part], photos.source[part]) for part in rows)
    other = EmbeddedFaces(other.embeddings, -2 - (other.identity - 60), np.full(len(other), -1))
    apart = membership(best, without, [real, other], released, member, resamples=20)
    together = membership(best, without, [photos], released, member, resamples=20)
    for name in ('with', 'without'):
        for kind in ('raw', 'calibrated'):
            for value in ('curve', 'tpr'):
                a, b = apart[name][kind][value], together[name][kind][value]
                assert a['fpr'] == b['fpr'] if value == 'curve' else a['0.01'][0] == b['0.01'][0]
    assert apart['photos'] == together['photos']


def test_photos_of_nobody_known_are_people_of_their_own():
    photos, released, best, _, member = random_release()
    unknown = EmbeddedFaces(photos.embeddings, np.where(member == 1, photos.identity, -1), photos.source)
    found = membership(best, None, [unknown], released, member, resamples=5)
    assert found['photos']['non_member_identities'] == found['photos']['non_members'] == 480


def test_one_kind_alone_is_refused():
    photos, released, best, _, member = random_release()
    for kind in (np.ones_like(member), np.zeros_like(member), -np.ones_like(member)):
        with pytest.raises(ValueError, match='Both are needed'):
            membership(best, None, [photos], released, kind)
