"""InsightFace's ten-fold protocol against a literal twin, and what surrounds it."""

import importlib.util
import math
import os
import socket
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.evaluator import Evaluator
from mmengine.registry import DATA_SAMPLERS
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import facemae_mm  # noqa: F401  registers the components
from facemae_mm.evaluation import FaceVerification
from facemae_mm.evaluation.intervals import wilson_interval
from facemae_mm.evaluation.roc import roc_curve, save_roc


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


def tied_pairs(count=120, seed=0):
    """Pairs at 16 distances, all of them thresholds of the grids or nearly: ties between and within both kinds."""
    generator = np.random.default_rng(seed)
    same = generator.random(count) < 0.5
    distance = np.round(np.where(same, generator.normal(1.2, 0.5, count), generator.normal(2, 0.4, count)), 1)
    angle = 2 * np.arcsin(np.sqrt(distance.clip(0, 4)) / 2)  # of unit vectors at that squared distance
    return np.tile([5.0, 0.0], (count, 1)), np.stack([np.cos(angle), np.sin(angle)], 1), same


@pytest.mark.parametrize('seed', range(2))
def test_ties_as_the_literal_twin_has_them(seed):
    first, second, same = tied_pairs(seed=seed)
    metrics = FaceVerification.calculate(first, second, same)
    for name, value in literal_protocol(first, second, same).items():
        assert metrics[name] == pytest.approx(value, abs=1e-9), name


def twin_tar(d, same, far):
    """TAR at a FAR as verification.py states it, threshold by threshold; folds of equal size."""
    folds = np.arange(len(d)).reshape(10, -1)
    grid, tars = np.arange(0, 4, 0.001), []
    for test in folds:
        train = np.setdiff1d(folds, test)
        different = np.sort(d[train][~same[train]])
        rates = np.array([np.sum(different < t) / len(different) for t in grid])
        threshold = 0.0
        if rates.max() >= far:
            last = np.flatnonzero(rates <= far)[-1]
            share = (far - rates[last]) / (rates[last + 1] - rates[last])
            threshold = grid[last] + share * (grid[last + 1] - grid[last])
        tars.append(np.mean(d[test][same[test]] < threshold))
    return np.mean(tars)


def test_lower_fars_where_there_are_pairs_enough():
    """12,000 different pairs measure 1e-4, and not 1e-5."""
    generator = np.random.default_rng(0)
    same = np.tile(np.arange(31) == 0, 400)
    d = np.where(same, generator.normal(0.8, 0.2, len(same)), generator.normal(1.6, 0.2, len(same))).clip(0, 3.9)
    angle = 2 * np.arcsin(np.sqrt(d) / 2)
    first, second = np.tile([1.0, 0.0], (len(d), 1)), np.stack([np.cos(angle), np.sin(angle)], 1)
    metrics = FaceVerification.calculate(first, second, same)
    d = np.square(first - second).sum(1)
    for far, name in ((1e-3, 'tar@far=1e-3'), (1e-4, 'tar@far=1e-4')):
        assert metrics[name] == pytest.approx(twin_tar(d, same, far), abs=1e-12)
    assert 0 < metrics['tar@far=1e-4'] < metrics['tar@far=1e-3'] < 1
    assert metrics['far_resolution'] == 1 / 10800
    assert 'tar@far=1e-5' not in metrics and 'tar@far=1e-6' not in metrics


def test_a_far_that_cannot_be_measured_is_not_there():
    """Of 123 pairs 61 differ: only InsightFace's 1e-3 is given, and far_resolution says what it is worth."""
    metrics = FaceVerification.calculate(*pairs())
    assert [name for name in metrics if name.startswith('tar')] == ['tar@far=1e-3']
    assert metrics['far_resolution'] == pytest.approx(1 / (61 - 7))  # folds have 6 or 7 of them


def test_the_peers_own_code():
    """FACEMAE_ARCFACE_TORCH is arcface_torch's folder, of which eval/verification.py is run."""
    folder = os.environ.get('FACEMAE_ARCFACE_TORCH')
    if not folder:
        pytest.skip('FACEMAE_ARCFACE_TORCH does not name a checkout')
    pytest.importorskip('sklearn', reason='the peer imports scikit-learn')
    for name in ('mxnet', 'mxnet.ndarray'):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules['mxnet'].ndarray = sys.modules['mxnet.ndarray']
    spec = importlib.util.spec_from_file_location('peer_verification', Path(folder, 'eval', 'verification.py'))
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    interp1d = peer.interpolate.interp1d  # its kind 'slinear' refuses equal FARs in SciPy of today
    peer.interpolate = types.SimpleNamespace(interp1d=lambda x, y, kind: interp1d(x, y))
    for first, second, same in (pairs(400, 0.2), pairs(407, 1.0), pairs(400, 3.0), tied_pairs(403)):
        both = np.stack([first, second], 1).reshape(-1, first.shape[1])
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        _, _, accuracy, tar, _, _ = peer.evaluate(both, same.tolist())
        metrics = FaceVerification.calculate(first, second, same)
        assert metrics['accuracy'] == pytest.approx(accuracy.mean(), abs=1e-12)
        assert metrics['accuracy_std'] == pytest.approx(accuracy.std(), abs=1e-12)
        assert metrics['tar@far=1e-3'] == pytest.approx(tar, abs=1e-12)


# ROC


@pytest.mark.parametrize('data', [pairs(300, 1.0), pairs(41, 3.0), tied_pairs()], ids=['plain', 'few', 'ties'])
def test_roc_has_every_point(data):
    first, second, same = data
    curve = FaceVerification.roc(*data)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (first, second)]
    d = np.square(unit[0] - unit[1]).sum(1)
    for t in [-1.0, *d]:
        far, tar = np.mean(d[~same] <= t), np.mean(d[same] <= t)
        steep = np.isclose(curve['far'], far, atol=1e-12)  # the curve may rise there
        low, high = (curve['tar'][steep].min(), curve['tar'][steep].max()) if steep.any() else (2, -1)
        assert low - 1e-9 <= tar <= high + 1e-9 or np.interp(far, curve['far'], curve['tar']) == pytest.approx(tar)
    corners = set(zip(curve['far'], curve['tar']))
    assert corners <= {(np.mean(d[~same] <= t), np.mean(d[same] <= t)) for t in [-1.0, *d]}
    assert len(corners) == len(curve['far']) <= 2 * min(same.sum(), (~same).sum()) + 2
    assert (np.diff(curve['far']) >= 0).all() and (np.diff(curve['tar']) >= 0).all()
    assert (np.diff(curve['threshold']) > 0).all()
    area = np.trapezoid(curve['tar'], curve['far'])
    assert area == pytest.approx(FaceVerification.calculate(*data)['auc'], abs=1e-12)


def test_roc_of_two_pairs():
    curve = roc_curve(np.array([0.5, 1.5]), np.array([True, False]))
    assert {key: value.tolist() for key, value in curve.items()} == dict(
        far=[0, 0, 1], tar=[0, 1, 1], threshold=[-math.inf, 0.5, 1.5]
    )


def test_saved_roc(tmp_path):
    curve = FaceVerification.roc(*pairs())
    paths = save_roc({'lfw': curve}, tmp_path / 'new' / 'roc')
    assert [path.name for path in paths] == ['roc.png', 'roc_lfw.csv']
    table = np.genfromtxt(paths[1], delimiter=',', names=True)
    for key in ('far', 'tar', 'threshold'):
        np.testing.assert_array_equal(table[key], curve[key])
    assert paths[0].read_bytes()[:4] == b'\x89PNG'


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


def evaluate(made, size=None, batch=7, **options):
    evaluator = Evaluator(dict(type='mmpretrain.FaceVerification', **options))
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


def test_xnorm_is_the_mean_norm_of_both_passes():
    torch.manual_seed(0)
    recogniser = MODELS.build(
        dict(
            type='FaceRecognizer',
            backbone=dict(type='IResNet', depth=18, base_channels=2, embedding_dim=8),
            head=dict(type='EmbeddingHead'),
        )
    ).eval()
    made = as_samples(*pairs(12))
    inputs = torch.randn(24, 3, 112, 112)
    with torch.no_grad():
        recogniser.predict(inputs, made)
        plain, flipped = (recogniser.backbone(x)[0] for x in (inputs, inputs.flip(-1)))
    norms = [math.sqrt(sum(float(v) ** 2 for v in row)) for row in (*plain, *flipped)]
    assert evaluate(made)['lfw/xnorm'] == pytest.approx(sum(norms) / 48, rel=1e-6)
    torch.testing.assert_close(made[5].embedding, plain[5] + flipped[5])
    recogniser.flip_test = False
    with torch.no_grad():
        recogniser.predict(inputs, made)
    assert evaluate(made)['lfw/xnorm'] == pytest.approx(sum(norms[:24]) / 24, rel=1e-6)
    assert 'lfw/xnorm' not in evaluate(as_samples(*pairs(12)))  # of a model that tells none


def test_roc_of_every_set_is_written(tmp_path):
    made = as_samples(*pairs(31), 'lfw') + as_samples(*pairs(40, seed=5), 'cfp_fp')
    for _ in range(2):  # written anew at each evaluation
        evaluate(made, roc_dir=tmp_path / 'roc')
    assert sorted(path.name for path in (tmp_path / 'roc').iterdir()) == ['roc.png', 'roc_cfp_fp.csv', 'roc_lfw.csv']
    table = np.genfromtxt(tmp_path / 'roc' / 'roc_lfw.csv', delimiter=',', names=True)
    first, second, same = pairs(31)
    np.testing.assert_array_equal(
        table['tar'], FaceVerification.roc(np.float32(first), np.float32(second), same)['tar']
    )


def sharded(rank, ports, out):
    """One process's share of an evaluation by two processes, then by three; the last batch has repeated samples."""
    made = as_samples(*pairs(31), 'lfw') + as_samples(*pairs(40, seed=5), 'cfp_fp')
    for processes, port in ports.items():
        if rank >= processes:
            continue
        dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=processes)
        sampler = DATA_SAMPLERS.build(dict(type='DefaultSampler', dataset=made, shuffle=False, round_up=True))
        evaluator = Evaluator(dict(type='mmpretrain.FaceVerification'))
        indices = list(sampler)
        for start in range(0, len(indices), 5):
            evaluator.process([made[i] for i in indices[start : start + 5]])
        torch.save(evaluator.evaluate(len(made)), f'{out}.{processes}.{rank}')
        dist.destroy_process_group()


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_two_and_three_processes_give_what_one_gives(tmp_path):
    made = as_samples(*pairs(31), 'lfw') + as_samples(*pairs(40, seed=5), 'cfp_fp')
    mp.spawn(sharded, ({2: free_port(), 3: free_port()}, tmp_path / 'metrics'), nprocs=3)
    alone = evaluate(made)
    found = [torch.load(path, weights_only=False) for path in sorted(tmp_path.iterdir())]
    assert len(found) == 5 and all(metrics == alone for metrics in found)


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
