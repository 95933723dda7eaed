"""InsightFace's ten-fold protocol against a literal twin, and what surrounds it."""

import math

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmpretrain.structures import DataSample

from facemae_mm.evaluation import FaceVerification
from facemae_mm.evaluation.intervals import wilson_interval


def literal_protocol(first, second, same):
    """The protocol as InsightFace's verification.py states it, one number at a time."""

    def distance(a, b):
        a, b = ([float(x) for x in v] for v in (a, b))
        na, nb = (math.sqrt(sum(x * x for x in v)) for v in (a, b))
        return sum((x / na - y / nb) ** 2 for x, y in zip(a, b, strict=True))

    d = [distance(a, b) for a, b in zip(first, second, strict=True)]
    n = len(d)
    folds, start = [], 0
    for i in range(10):  # KFold: the first n % 10 folds are one longer
        stop = start + n // 10 + (i < n % 10)
        folds.append(range(start, stop))
        start = stop
    accuracies, tars, thresholds = [], [], []
    for test in folds:
        train = [i for i in range(n) if i not in test]
        best, best_threshold = -1, None
        for t in np.arange(0, 4, 0.01):
            right = sum((d[i] < t) == same[i] for i in train)
            if right > best:
                best, best_threshold = right, t
        thresholds.append(best_threshold)
        accuracies.append(sum((d[i] < best_threshold) == same[i] for i in test) / len(test))

        grid = np.arange(0, 4, 0.001)
        different = [d[i] for i in train if not same[i]]
        far = [sum(x < t for x in different) / len(different) for t in grid]
        threshold = 0.0
        if max(far) >= 1e-3:
            j = max(j for j in range(len(far)) if far[j] <= 1e-3)
            slope = (grid[j + 1] - grid[j]) / (far[j + 1] - far[j])
            threshold = grid[j] + slope * (1e-3 - far[j])
        mates = [d[i] for i in test if same[i]]
        tars.append(sum(x < threshold for x in mates) / len(mates))
    mean = sum(accuracies) / 10
    couples = [(a, b) for i, a in enumerate(d) if same[i] for j, b in enumerate(d) if not same[j]]
    return dict(
        accuracy=mean,
        accuracy_std=math.sqrt(sum((a - mean) ** 2 for a in accuracies) / 10),
        threshold=sum(thresholds) / 10,
        auc=sum((a < b) + 0.5 * (a == b) for a, b in couples) / len(couples),
        **{'tar@far=1e-3': sum(tars) / 10},
    )


def pairs(count=123, noise=1.0, dimension=6, seed=0):
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(count, dimension)) * 20
    same = np.arange(count) % 2 == 0
    second = np.where(same[:, None], first, generator.normal(size=first.shape) * 20)
    return first, second + generator.normal(size=first.shape) * 20 * noise, same


@pytest.mark.parametrize('noise', [0.2, 1.0, 3.0])
def test_protocol_equals_the_literal_twin(noise):
    first, second, same = pairs(noise=noise)
    metrics = FaceVerification.calculate(first, second, same)
    for name, value in literal_protocol(first, second, same).items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name
    assert metrics['pairs'] == 123


def test_known_geometry():
    """Same pairs at a right angle (distance 2), different ones opposite (distance 4)."""
    first = np.tile([[3.0, 0.0]], (20, 1))
    same = np.arange(20) % 2 == 0
    second = np.where(same[:, None], [[0.0, 0.5]], [[-7.0, 0.0]])
    metrics = FaceVerification.calculate(first, second, same)
    assert metrics['accuracy'] == metrics['auc'] == 1
    assert metrics['threshold'] == pytest.approx(2.01)  # the first t with 2 < t
    assert metrics['tar@far=1e-3'] == 0  # 4 < t never holds, FAR stays 0: threshold 0


def test_auc_counts_ties_half():
    first = np.tile([[1.0, 0.0]], (20, 1))
    same = np.arange(20) % 2 == 0
    assert FaceVerification.calculate(first, first, same)['auc'] == 0.5


def test_scale_and_order_inside_a_pair_do_not_matter():
    first, second, same = pairs()
    metrics = FaceVerification.calculate(first, second, same)
    assert FaceVerification.calculate(second * 4, first, same) == metrics


def test_interval_by_identity_equals_the_literal_bootstrap():
    first, second, same = pairs(40)
    generator = np.random.default_rng(1)
    identities = generator.integers(0, 12, (40, 2)).astype(str)
    identities[same, 1] = identities[same, 0]
    metrics = FaceVerification.calculate(first, second, same, identities)

    fold = np.repeat(np.arange(10), 4)
    d = np.square(
        first / np.linalg.norm(first, axis=1)[:, None] - second / np.linalg.norm(second, axis=1)[:, None]
    ).sum(1)
    grid = np.arange(0, 4, 0.01)
    correct = np.empty(40, bool)
    for i in range(10):
        scores = [((d < t) == same)[fold != i].sum() for t in grid]
        correct[fold == i] = ((d < grid[np.argmax(scores)]) == same)[fold == i]
    names = sorted(set(identities.ravel()))
    draws, rates = np.random.default_rng(0), []
    for _ in range(1000):
        drawn = [names[i] for i in draws.integers(len(names), size=len(names))]
        top = bottom = 0
        for (a, b), right in zip(identities, correct, strict=True):
            weight = drawn.count(a) * (1 if a == b else drawn.count(b))
            top, bottom = top + weight * right, bottom + weight
        rates.append(top / bottom)
    low, high = np.percentile(rates, (2.5, 97.5))
    assert (metrics['accuracy_lo'], metrics['accuracy_hi']) == pytest.approx((low, high))
    assert metrics['interval_by_identity'] == 1
    assert low < metrics['accuracy'] < high


def test_without_identities_wilson_over_pairs():
    first, second, same = pairs(40, noise=0.05)
    metrics = FaceVerification.calculate(first, second, same)
    assert metrics['accuracy'] == 1 and metrics['interval_by_identity'] == 0
    # 40 of 40, Wilson's score interval as scipy 1.17 gives it (binomtest(40, 40).proportion_ci)
    assert metrics['accuracy_lo'] == pytest.approx(0.912378, abs=1e-6)
    assert metrics['accuracy_hi'] == 1


def test_all_correct_is_no_certainty_for_few_identities():
    first, second, same = pairs(40, noise=0.05)
    identities = np.stack([np.arange(40) % 8, (np.arange(40) + ~same) % 8], 1)
    metrics = FaceVerification.calculate(first, second, same, identities)
    assert metrics['accuracy'] == 1
    assert metrics['accuracy_lo'] == wilson_interval(1.0, 8)[0] < 0.7


def as_samples(first, second, same, name='lfw', identities=None):
    made = []
    for i in range(len(same)):
        for side, embedding in enumerate((first[i], second[i])):
            meta = dict(
                set_name=name,
                pair_index=i,
                side=side,
                same=bool(same[i]),
                identity='' if identities is None else str(identities[i][side]),
                img_key=f'{name}/{i}_{side}',
                img_path=f'faces/{name}:{i}_{side}',
            )
            sample = DataSample(metainfo=meta)
            sample.embedding = torch.tensor(embedding, dtype=torch.float32)
            made.append(sample)
    return made


def evaluate(made, size=None, batch=7):
    evaluator = Evaluator(dict(type='mmpretrain.FaceVerification'))
    for start in range(0, len(made), batch):
        evaluator.process(made[start : start + batch])
    return evaluator.evaluate(len(made) if size is None else size)


def test_several_sets_in_any_order_with_repeated_samples():
    lfw, bin_set = pairs(31), pairs(40, seed=5)
    identities = np.stack([np.arange(31), np.arange(31) + ~lfw[2]], 1).astype(str)
    made = as_samples(*lfw, 'lfw', identities) + as_samples(*bin_set, 'cfp_fp')
    size = len(made)
    metrics = evaluate(made)
    for name, data, known in (('lfw', lfw, identities), ('cfp_fp', bin_set, None)):
        single = [np.float32(data[0]), np.float32(data[1]), data[2]]
        expected = FaceVerification.calculate(*single, known)
        assert {k: metrics[f'{name}/{k}'] for k in expected} == expected
    assert len(metrics) == 20
    shuffled = [made[i] for i in np.random.default_rng(0).permutation(size)] + made[:5]
    assert evaluate(shuffled, size) == metrics


def test_metric_can_be_used_again():
    metric = FaceVerification()
    results = []
    for _ in range(2):
        metric.process(None, [s.to_dict() for s in as_samples(*pairs())])
        results.append(metric.evaluate(246))
    assert results[0] == results[1]


def test_clear_errors():
    first, second, same = pairs(20)
    with pytest.raises(ValueError, match=r'9 pairs .* 10 folds'):
        FaceVerification.calculate(first[:9], second[:9], same[:9])
    with pytest.raises(ValueError, match='both kinds'):
        FaceVerification.calculate(first, second, np.ones(20, bool))
    with pytest.raises(ValueError, match='do not make pairs'):
        FaceVerification.calculate(first, second[:-1], same)
    made = as_samples(first, second, same)
    with pytest.raises(ValueError, match=r'lfw: .*9 pairs'):
        evaluate(made[:18])
    with pytest.raises(ValueError, match='1 pairs of lfw have only one image, first pair 6'):
        evaluate(made[:12] + made[13:])
    with pytest.raises(ValueError, match=r'of the 41 images .* only 40'):
        evaluate(made + made[:1])


@pytest.mark.parametrize(
    ('value', 'message'),
    [(0.0, 'is zero'), (float('nan'), 'is not finite'), (float('inf'), 'is not finite')],
)
def test_embedding_without_direction_names_its_image(value, message):
    first, second, same = pairs(20)
    second[3] = value
    with pytest.raises(ValueError, match=rf'faces/lfw:3_1 {message}'):
        evaluate(as_samples(first, second, same))
    with pytest.raises(ValueError, match='number 3 is'):
        FaceVerification.calculate(first, np.float32(second), same)


def test_missing_fields_are_named():
    made = as_samples(*pairs(20))
    for field, remedy in (('embedding', 'head'), ('pair_index', 'meta_keys')):
        broken = made[0].to_dict()
        del broken[field]
        with pytest.raises(ValueError, match=rf'no {field}.*{remedy}'):
            FaceVerification().process(None, [broken])
