"""Eq. 3 against a brute-force twin, hand-made geometry and two processes."""

import json
import os

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from facemae_mm.evaluation import RetrievalLeakage
from facemae_mm.evaluation.nearest import TIE, nearest_images
from facemae_mm.evaluation.retrieval_curves import chance_level


def circle(*degrees):
    angle = np.deg2rad(np.array(degrees, float))
    return np.stack([np.cos(angle), np.sin(angle)], 1)


def brute_order(query, gallery):
    """The gallery's order for one query: by cosine, runs closer than TIE by index."""
    query, gallery = query.astype(float), gallery.astype(float)
    cosine = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
    order, run = [], []
    for i in sorted(range(len(gallery)), key=lambda i: -cosine[i]):
        if run and cosine[run[-1]] - cosine[i] >= TIE:
            order, run = order + sorted(run), []
        run.append(i)
    return order + sorted(run)


def brute_leakage(queries, query_ids, gallery, gallery_ids, source, k, leave_out):
    """Eq. 3 and its chance level, one query at a time."""
    drawn = {i for i in query_ids if list(query_ids).count(i) > 1} & set(gallery_ids)
    keep = [j for j, i in enumerate(gallery_ids) if i in drawn]
    hits, chances = [], []
    for q, identity in enumerate(query_ids):
        if identity not in drawn:
            continue
        order = [keep[j] for j in brute_order(queries[q], gallery[keep])]
        if leave_out:
            order = [j for j in order if source[j] != q]
        hits.append(identity in {gallery_ids[j] for j in order[:k]})
        others = sum(gallery_ids[j] != identity for j in order)
        miss = 1.0
        for drawn_images in range(k):
            miss *= (others - drawn_images) / (len(order) - drawn_images)
        chances.append(1 - miss)
    return np.mean(hits), np.mean(chances)


def random_sets(images=60, identities=15, dimension=8, seed=0):
    generator = np.random.default_rng(seed)
    ids = np.sort(generator.integers(0, identities, images))
    real = generator.normal(size=(identities, dimension))[ids] + generator.normal(size=(images, dimension))
    order = generator.permutation(images)
    released = (real + generator.normal(size=real.shape))[order]
    return real.astype(np.float32), ids, released.astype(np.float32), ids[order], order


@pytest.mark.parametrize('seed', range(3))
def test_original_to_reconstructed_equals_brute_force(seed):
    sets = random_sets(seed=seed)
    metrics = RetrievalLeakage.calculate(*sets)
    assert any(metrics[f'top{k}_with'] != metrics[f'top{k}_without'] for k in (1, 2, 3, 4))
    for k in (1, 2, 3, 4):
        for name, suffix in (('with', '_with'), ('without', '')):
            rate, chance = brute_leakage(*sets, k, name == 'without')
            assert metrics[f'top{k}_{name}'] == pytest.approx(rate)
            assert metrics[f'chance_top{k}{suffix}'] == pytest.approx(chance)
            assert metrics[f'top{k}_{name}_lo'] < rate < metrics[f'top{k}_{name}_hi']


def test_original_to_original_leaves_out_the_query_alone():
    real, ids, *_ = random_sets()
    real[7] = real[6]  # an exact duplicate stays in the gallery
    metrics = RetrievalLeakage.calculate(real, ids)
    for k in (1, 2, 3, 4):
        rate, chance = brute_leakage(real, ids, real, ids, np.arange(60), k, True)
        assert metrics[f'top{k}_with'] == metrics[f'top{k}_without'] == pytest.approx(rate)
        assert metrics[f'chance_top{k}_with'] == metrics[f'chance_top{k}'] == pytest.approx(chance)


def test_known_geometry():
    """a lies at 0° and 10°, b at 90° and 100°; a's releases moved beside b, and b's beside a."""
    queries, ids = circle(0, 10, 90, 100), np.array(list('aabb'))
    gallery = circle(91, 11, 9, 99) * 17  # a0 -> 91°, a1 -> 11°, b0 -> 9°, b1 -> 99°
    source = np.arange(4)
    metrics = RetrievalLeakage.calculate(queries, ids, gallery, ids, source, topk=(1, 2))
    # nearest: 0° -> 9° (b); 10° -> a tie of 11° (a) and 9° (b), the lower index a; 90° -> 91° (a);
    # 100° -> 99° (b). Second: 11°, 9°, 99°, 91°.
    assert metrics['top1_with'] == 0.5
    assert metrics['top2_with'] == 1
    # without its own release: 0° -> 9° (b), 11° (a); 10° -> 9° (b), 91° (a); 90° -> 91° (a),
    # 99° (b); 100° -> 91° (a), 11° (a)
    assert metrics['top1_without'] == 0
    assert metrics['top2_without'] == 0.75
    assert metrics['chance_top1_with'] == pytest.approx(1 / 2)
    assert metrics['chance_top1'] == pytest.approx(1 / 3)
    assert metrics['chance_top2'] == pytest.approx(2 / 3)
    assert [metrics[name] for name in ('queries', 'identities', 'gallery')] == [4, 2, 4]


def test_identical_embeddings_tie_by_index():
    embeddings = np.ones((40, 3), np.float32)
    assert (nearest_images(embeddings[:2], embeddings, 4) == np.arange(4)).all()
    ids = np.repeat(np.arange(20), 2)
    metrics = RetrievalLeakage.calculate(embeddings, ids)
    # queries 0 and 1 find each other; 2 and 3 alone are also answered with 0, 1, 2, 3
    assert metrics['top1_with'] == 2 / 40
    assert metrics['top3_with'] == 4 / 40


def test_left_out_identities():
    """One real image, not released, released without real images: none of these take part."""
    queries, ids = circle(0, 1, 50, 90, 91, 180, 181), np.array(list('aabccdd'))
    gallery, released = circle(0, 50, 92, 180, 1.4), np.array(['a', 'b', 'c', 'x', 'c'])
    metrics = RetrievalLeakage.calculate(queries, ids, gallery, released, topk=(1,))
    assert metrics['identities'] == 2  # a, c
    assert metrics['left_out_identities'] == 3  # b (one image), d (not released), x (no real one)
    assert metrics['queries'] == 4 and metrics['gallery'] == 3
    assert metrics['top1_with'] == 0.75  # a's face at 1° is nearest to c's release at 1.4°
    assert 'top1_without' not in metrics and 'chance_top1' not in metrics


def test_chance_level_equals_drawing():
    generator = np.random.default_rng(0)
    draws = np.argsort(generator.random((20000, 9)), axis=1)[:, :3]
    assert chance_level(9, np.array([2]), 3)[0] == pytest.approx((draws < 2).any(1).mean(), abs=0.02)
    assert chance_level(4, np.array([0, 3]), 2).tolist() == [0, 1]


def test_interval_equals_the_literal_bootstrap():
    sets = random_sets()
    metrics = RetrievalLeakage.calculate(*sets, topk=(1,))
    drawn = sorted(i for i in set(sets[1]) if list(sets[1]).count(i) > 1)
    hits = {}
    for q in range(60):
        order = brute_order(sets[0][q], sets[2][np.isin(sets[3], drawn)])
        ids = sets[3][np.isin(sets[3], drawn)]
        hits.setdefault(sets[1][q], []).append(ids[order[0]] == sets[1][q])
    generator, rates = np.random.default_rng(0), []
    for _ in range(1000):
        drawn_again = [drawn[i] for i in generator.integers(len(drawn), size=len(drawn))]
        rates.append(np.mean([hit for i in drawn_again for hit in hits[i]]))
    expected = np.percentile(rates, (2.5, 97.5))
    found = metrics['top1_with_lo'], metrics['top1_with_hi']
    assert found == pytest.approx(tuple(expected))


def test_no_hit_at_all_is_no_certainty_for_few_identities():
    ids = np.array(list('aabb'))
    metrics = RetrievalLeakage.calculate(circle(0, 1, 90, 91), ids, circle(90, 91, 0, 1), ids, topk=(1,))
    assert metrics['top1_with'] == metrics['top1_with_lo'] == 0
    assert metrics['top1_with_hi'] > 0.5


def as_samples(embeddings, keys, identities, role=None):
    made = []
    for embedding, key, identity in zip(embeddings, keys, identities, strict=True):
        meta = dict(img_key=key, img_path=f'set:{key}', identity=str(identity), role=role)
        made.append(DataSample(metainfo=meta))
        made[-1].embedding = torch.tensor(embedding, dtype=torch.float32)
    return made


def evaluate(made, size=None, **kwargs):
    evaluator = Evaluator(dict(type='mmpretrain.RetrievalLeakage', **kwargs))
    for start in range(0, len(made), 16):
        evaluator.process(made[start : start + 16])
    return evaluator.evaluate(len(made) if size is None else size)


def run_of(real, ids, released, released_ids, source):
    """Samples of both roles; released under keys of their own, in a shuffled order."""
    queries = as_samples(real, [f'{i}/{n:02}' for n, i in enumerate(ids)], ids, 'query')
    names = [f'r{j:02}/0' for j in range(len(released))]
    return queries, as_samples(released, names, [f'r{j}' for j in released_ids], 'gallery')


def write_links(path, queries, gallery, source):
    lines = ['released_path,released_label,source_key,source_label']
    for sample, q in zip(gallery, source, strict=True):
        origin = queries[q]
        lines.append(f'{sample.img_key}.png,0,{origin.img_key},{origin.identity}')
    path.write_text('\n'.join(lines) + '\n')


def prefixed(metrics):
    return {f'leakage/{name}': value for name, value in metrics.items()}


def test_metric_follows_links_whatever_the_order(tmp_path):
    sets = random_sets()
    queries, gallery = run_of(*sets)
    write_links(tmp_path / 'links.csv', queries, gallery, sets[4])
    made = queries + gallery
    # identities sort as text here, as numbers there: intervals draw them in another order
    expected = RetrievalLeakage.calculate(sets[0], sets[1].astype(str), sets[2], sets[3].astype(str), sets[4])
    shuffled = [made[i] for i in np.random.default_rng(0).permutation(len(made))]
    for order in (made, shuffled + made[:9]):
        found = evaluate(order, len(made), links=tmp_path / 'links.csv')
        rates = [name for name in expected if not name.endswith(('_lo', '_hi'))]
        assert {name: found[f'leakage/{name}'] for name in rates} == {
            name: pytest.approx(expected[name]) for name in rates
        }
        assert set(found) == set(prefixed(expected))


def test_without_links_equal_keys_are_sources_and_other_keys_are_not_guessed():
    real, ids, released, released_ids, source = random_sets()
    keys = [f'{i:02}/{n:02}' for n, i in enumerate(ids)]
    queries = as_samples(real, keys, ids, 'query')
    equal = as_samples(released, [keys[q] for q in source], released_ids, 'gallery')
    metrics = evaluate(queries + equal)
    expected = RetrievalLeakage.calculate(real, ids, released, released_ids, source)
    for name in ('top2_with', 'top2_without', 'chance_top2'):
        assert metrics[f'leakage/{name}'] == pytest.approx(expected[name])
    other = as_samples(released, [f'x{q}' for q in source], released_ids, 'gallery')
    metrics = evaluate(queries + other)
    assert metrics['leakage/top2_with'] == pytest.approx(expected['top2_with'])
    assert not [name for name in metrics if 'without' in name]


def test_one_set_is_retrieved_from_itself():
    real, ids, *_ = random_sets()
    names = ids.astype(str)
    metrics = evaluate(as_samples(real, [str(n) for n in range(60)], names))
    assert metrics == prefixed(RetrievalLeakage.calculate(real, names))


def test_clear_errors(tmp_path):
    sets = random_sets()
    queries, gallery = run_of(*sets)
    with pytest.raises(ValueError, match='links of a release'):
        evaluate(queries + gallery)  # no identity has the same name
    with pytest.raises(ValueError, match=r"roles \['query'\]"):
        evaluate(queries)
    with pytest.raises(ValueError, match=r'of the 61 images .* only 60'):
        evaluate(queries + queries[:1])
    with pytest.raises(ValueError, match=r'between 1 and the 59 gallery images .* topk is \(60,\)'):
        RetrievalLeakage.calculate(sets[0], sets[1] // 15, topk=(60,))
    with pytest.raises(ValueError, match='another identity'):
        RetrievalLeakage.calculate(*sets[:4], np.arange(60))
    with pytest.raises(FileNotFoundError, match=r'links\.csv'):
        RetrievalLeakage(links=tmp_path / 'links.csv')
    write_links(tmp_path / 'links.csv', queries, gallery[1:], sets[4][1:])
    with pytest.raises(ValueError, match=r'1 of 60 released images .* first r00/0'):
        evaluate(queries + gallery, links=tmp_path / 'links.csv')
    (tmp_path / 'links.csv').write_text('a,b\n1,2\n')
    with pytest.raises(ValueError, match='lacks the columns'):
        evaluate(queries + gallery, links=tmp_path / 'links.csv')


@pytest.mark.parametrize(('value', 'message'), [(0.0, 'is zero'), (np.nan, 'is not finite')])
def test_embedding_without_direction_names_its_image(value, message):
    real, ids, *_ = random_sets()
    real[3] = value
    with pytest.raises(ValueError, match=rf'set:3 {message}'):
        evaluate(as_samples(real, [str(n) for n in range(60)], ids))


def one_of_two(rank, folder):
    """As a distributed test runs: every second sample, the first repeated to fill up."""
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    dist.init_process_group('gloo', f'file://{folder}/store', rank=rank, world_size=2)
    made = as_samples(*distributed_set())
    part = [made[i % len(made)] for i in range(rank, len(made) + 1, 2)]
    metrics = evaluate(part, len(made))
    with open(f'{folder}/{rank}.json', 'w') as file:
        json.dump(metrics, file)
    dist.destroy_process_group()


def distributed_set():
    real, ids, *_ = random_sets(images=61)
    return real, [str(n) for n in range(61)], ids


def test_two_processes_measure_what_one_does(tmp_path):
    torch.multiprocessing.spawn(one_of_two, (str(tmp_path),), nprocs=2)
    single = evaluate(as_samples(*distributed_set()))
    for rank in range(2):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == single
