"""IJB-B and IJB-C in miniature, in the format of their official lists, against a literal twin of InsightFace's."""

import csv
import json
import math
import os
import re
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.runner import Runner
from mmpretrain.structures import DataSample

from facemae_mm.alignment import ARCFACE_TEMPLATE
from facemae_mm.datasets import IJBFaces, IJBProtocol
from facemae_mm.evaluation import IJBMetric
from facemae_mm.evaluation.embed_faces import embed_faces
from facemae_mm.evaluation.ijb_set import IJBSet
from facemae_mm.evaluation.intervals import wilson_interval
from facemae_mm.evaluation.templates import pool_templates, search_gallery, tar_at_far
from facemae_mm.models.embedders import IResNet
from facemae_mm.open_embedder import open_embedder


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


ROWS = ('name_5pts_score.txt', 'face_tid_mid.txt', 'template_pair_label.txt')


def write_ijb(folder, faces, name='ijbc', search=True):
    """A set of faces as IJB has them: a gallery template and two probe templates of each subject, videos among them.

    Args:
        folder: To write.
        faces: By subject, seven or more of (encoded image, five points, detector score).
        name: 'ijbc' or 'ijbb'.
        search: Write the lists of 1:N too.
    """
    (folder / 'loose_crop').mkdir(parents=True)
    (folder / 'meta').mkdir()
    lists = {row: [] for row in ROWS}
    members, number = {}, 0  # subject → its three templates
    for subject, images in enumerate(faces):
        ids = members[subject] = [1000 + 10 * subject, 10 * subject + 1, 5003 - 10 * subject]
        for i, (encoded, points, score) in enumerate(images):
            number += 1
            template = ids[min(i // 3, 2)]
            medium = 10 * subject + (0 if i in (1, 3, 5) else i)  # two of each three are frames of the same video
            coordinates = ' '.join(f'{value:.3f}' for value in np.ravel(points))
            lists[ROWS[0]].append(f'{number}.jpg {coordinates} {score:.3f}')
            lists[ROWS[1]].append(f'{number}.jpg {template} {medium}')
            (folder / 'loose_crop' / f'{number}.jpg').write_bytes(encoded)
    for a, (gallery, *_) in members.items():
        for b, (_, *probes) in members.items():
            lists[ROWS[2]] += [f'{gallery} {probe} {int(a == b)}' for probe in probes]
    for row, lines in lists.items():
        (folder / 'meta' / f'{name}_{row}').write_text('\n'.join(lines) + '\n')
    if search:
        odd, even = ('G2', 'G1') if name == 'ijbc' else ('S2', 'S1')
        header = 'TEMPLATE_ID,SUBJECT_ID,FILENAME\n'
        for gallery, rest in ((even, 0), (odd, 1)):
            rows = [f'{ids[0]},{s + 70},img/{i}.jpg\n' for s, ids in members.items() if s % 2 == rest for i in (1, 2)]
            (folder / 'meta' / f'{name}_1N_gallery_{gallery}.csv').write_text(header + ''.join(rows))
        rows = [f'{probe},{s + 70},frames/x.png\n' for s, (_, *probes) in members.items() for probe in probes]
        (folder / 'meta' / f'{name}_1N_probe_mixed.csv').write_text(header + ''.join(rows))
    return folder


def synthetic_faces(subjects, images=8, seed=0):
    """Smooth random pictures with points near a shifted, turned template."""
    rng = np.random.default_rng(seed)
    people = []
    for _ in range(subjects):
        pattern = rng.integers(0, 256, (9, 8, 3)).astype(np.float32)
        own = []
        for _ in range(images):
            picture = cv2.resize(pattern + rng.normal(0, 20, pattern.shape).astype(np.float32), (131, 149))
            encoded = cv2.imencode('.jpg', picture.clip(0, 255).astype(np.uint8))[1].tobytes()
            angle = rng.normal(0, 0.1)
            turn = 1.1 * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
            points = ARCFACE_TEMPLATE @ turn.T + [4, 9] + rng.normal(0, 1, (5, 2))
            own.append((encoded, points, float(rng.choice([0.1, 0.87, 0.999]))))
        people.append(own)
    return people


@pytest.fixture(scope='module')
def ijbc(tmp_path_factory):
    return write_ijb(tmp_path_factory.mktemp('ijb') / 'IJBC', synthetic_faces(24))


def noisy_embeddings(folder, noise, dimension=16, seed=3):
    """Embeddings of a set's images, of which those of one subject are alike."""
    rng = np.random.default_rng(seed)
    protocol = IJBProtocol(folder)
    subjects = np.arange(len(protocol.images)) // 8
    people = rng.normal(size=(subjects.max() + 1, dimension))
    norms = rng.uniform(0.5, 20, len(subjects))[:, None]
    return (norms * (people[subjects] + noise * rng.normal(size=(len(subjects), dimension)))).astype(np.float32)


def literal_evaluation(folder, name, embeddings, norm_score, detector_score):
    """InsightFace's eval_ijbc.py and the 1:N of its ijb_evals.py, from the files, one number at a time."""
    meta = folder / 'meta'
    rows = {row: [line.split(' ') for line in (meta / f'{name}_{row}').read_text().splitlines()] for row in ROWS}
    features = []
    for vector, row in zip(embeddings.tolist(), rows[ROWS[0]], strict=True):
        if not norm_score:
            norm = math.sqrt(sum(v * v for v in vector))
            vector = [v / norm for v in vector]
        score = float(np.float32(row[-1])) if detector_score else 1.0
        features.append([v * score for v in vector])
    by_template = {}
    for feature, (_, template, medium) in zip(features, rows[ROWS[1]], strict=True):
        by_template.setdefault(int(template), {}).setdefault(int(medium), []).append(feature)
    template = {}
    for key, media in by_template.items():
        means = [[sum(column) / len(column) for column in zip(*frames)] for frames in media.values()]
        total = [sum(column) for column in zip(*means)]
        norm = math.sqrt(sum(v * v for v in total))
        template[key] = [v / norm for v in total]

    def cosine(a, b):
        return sum(x * y for x, y in zip(template[a], template[b]))

    pairs = [(cosine(int(a), int(b)), label == '1') for a, b, label in rows[ROWS[2]]]
    numbers = {'pairs': len(pairs), 'genuine_pairs': sum(same for _, same in pairs)}
    for far, tar in literal_tar(pairs, (1e-3, 1e-2, 1e-1)).items():
        numbers[f'tar@far={far:.0e}'.replace('e-0', 'e-')] = tar
    genuine, others = ([s for s, same in pairs if same is kind] for kind in (True, False))
    numbers['auc'] = sum((g > o) + 0.5 * (g == o) for g in genuine for o in others) / len(genuine) / len(others)

    def subjects(file):
        lines = [line.split(',') for line in (meta / file).read_text().splitlines()[1:]]
        return dict((int(line[0]), int(line[1])) for line in lines)

    probes = subjects(f'{name}_1N_probe_mixed.csv')
    letter, hits, trials, tpirs = 'g' if name == 'ijbc' else 's', {}, 0, []
    for which in '12':
        gallery = subjects(f'{name}_1N_gallery_{letter.upper()}{which}.csv')
        mated, strangers = [], []
        for probe, subject in probes.items():
            found = [(cosine(probe, member), enrolled == subject) for member, enrolled in gallery.items()]
            own = [s for s, mate in found if mate]
            other = max(s for s, mate in found if not mate)
            if own:
                mated.append((own[0], other, sum(s >= own[0] for s, mate in found if not mate)))
            else:
                strangers.append(other)
        numbers |= {f'{letter}{which}/mated': len(mated), f'{letter}{which}/nonmated': len(strangers)}
        trials += len(mated)
        for k in (1, 5, 10):
            count = sum(rank < k for _, _, rank in mated)
            hits[k] = hits.get(k, 0) + count
            numbers[f'{letter}{which}/rank{k}'] = count / len(mated)
        threshold = sorted(strangers, reverse=True)[max(int(len(strangers) * 0.1) - 1, 0)]
        tpirs.append(sum(own > other and own > threshold for own, other, _ in mated) / len(mated))
        numbers[f'{letter}{which}/tpir@fpir=1e-1'] = tpirs[-1]
    numbers |= {f'mean/rank{k}': count / trials for k, count in hits.items()}
    return numbers | {'mean/tpir@fpir=1e-1': sum(tpirs) / 2}


def literal_tar(pairs, fars):
    """scikit-learn's roc_curve, drop_intermediate as it is by default, and InsightFace's choice of a point."""
    points = []
    for threshold in sorted({score for score, _ in pairs}, reverse=True):
        accepted = [same for score, same in pairs if score >= threshold]
        points.append((len(accepted) - sum(accepted), sum(accepted)))
    kept = [points[0]]
    for before, here, after in zip(points, points[1:], points[2:]):
        if any(b - 2 * h + a for b, h, a in zip(before, here, after)):
            kept.append(here)
    kept = [(0, 0), *kept, points[-1]][::-1]
    false, true = points[-1]
    result = {}
    for far in fars:
        if false * far >= 1:
            _, number = min((abs(f / false - far), number) for number, (f, _) in enumerate(kept))
            result[far] = kept[number][1] / true
    return result


@pytest.mark.parametrize('name', ['ijbc', 'ijbb'])
@pytest.mark.parametrize('norm_score', [True, False])
@pytest.mark.parametrize('detector_score', [True, False])
def test_metric_is_insightfaces(tmp_path, name, norm_score, detector_score):
    folder = write_ijb(tmp_path / name.upper(), synthetic_faces(24), name)
    embeddings = noisy_embeddings(folder, noise=1.2)
    metric = IJBMetric(folder, norm_score=norm_score, detector_score=detector_score)
    found = metric.calculate(embeddings)
    expected = literal_evaluation(folder, name, embeddings, norm_score, detector_score)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-12), key
    rates = {key for key in found if f'{key}_lo' in found}
    union = 'g1+g2' if name == 'ijbc' else 's1+s2'
    assert rates == {key for key in expected if 'rank' in key or '@' in key} | {f'{union}/rank{k}' for k in (1, 5, 10)}
    for key in rates:
        assert 0 <= found[f'{key}_lo'] <= found[key] <= found[f'{key}_hi'] <= 1, key
    assert 0.02 < found['mean/rank1'] < 0.98 and 0.02 < found['tar@far=1e-2'] < 0.98  # the set discriminates
    assert found[f'{union}/rank1'] <= found['mean/rank1']


@pytest.mark.parametrize('seed', range(20))
def test_tar_at_far_with_ties(seed):
    rng = np.random.default_rng(seed)
    same = rng.random(120) < 0.2
    similarity = np.round(rng.normal(same * 1.0, 0.7), rng.integers(0, 3))
    fars = (1e-4, 0.02, 0.05, 0.1, 0.3, 1.0)
    found = tar_at_far(similarity, same, fars)
    assert {far: tar for far, (tar, _) in found.items()} == literal_tar(list(zip(similarity, same.tolist())), fars)
    assert 1e-4 not in found  # a hundred pairs do not measure it
    for tar, threshold in found.values():
        assert (similarity[same] >= threshold).mean() == tar


def test_tar_at_far_is_read_off_scikit_learns_curve():
    metrics = pytest.importorskip('sklearn.metrics', reason='scikit-learn, the peer, is not installed')
    rng = np.random.default_rng(0)
    same = rng.random(3000) < 0.1
    similarity = np.round(rng.normal(same * 1.0, 0.5), 3)
    far, tar, _ = (column[::-1] for column in metrics.roc_curve(same, similarity))
    for value, (found, _) in tar_at_far(similarity, same, (1e-3, 1e-2, 1e-1)).items():
        assert found == tar[np.abs(far - value).argmin()]


def test_search_counts_ties_against_the_mate():
    gallery = np.eye(4)
    probes = np.array([[0.6, 0.8, 0, 0], [0.6, 0, 0.8, 0], [0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1.0]])
    similarity, rank, nearest = search_gallery(probes, gallery, np.array([0, 2, 1, -1]))
    assert rank.tolist() == [1, 0, 3, 4]
    assert similarity.tolist() == [0.6, 0.8, 0.5, -np.inf]
    assert nearest.tolist() == [0.8, 0.6, 0.5, 1]
    assert search_gallery(gallery[:1], gallery[:1], np.array([0]))[1].tolist() == [0]


def test_pooling_in_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    templates = np.concatenate([np.arange(9), rng.integers(0, 9, 91)])
    media, weights, embeddings = rng.integers(0, 3, 100), rng.random(100), rng.normal(size=(100, 5))
    whole = pool_templates(embeddings, templates, media, weights)
    assert np.linalg.norm(whole, axis=1) == pytest.approx(1)
    monkeypatch.setattr('facemae_mm.evaluation.templates.IMAGES', 7)
    np.testing.assert_allclose(pool_templates(embeddings, templates, media, weights), whole, rtol=1e-12)
    again = rng.permutation(100)  # the order of images has no influence
    shuffled = pool_templates(embeddings[again], templates[again], media[again], weights[again])
    np.testing.assert_allclose(shuffled, whole, rtol=1e-12)
    with pytest.raises(ValueError, match='template of image number|all weigh 0'):
        pool_templates(embeddings, templates, media, np.zeros(100))
    embeddings[37, 2] = np.nan
    with pytest.raises(ValueError, match='image b37 is not finite'):
        pool_templates(embeddings, templates, media, names=[f'b{i}' for i in range(100)])


def test_lists_are_read_as_they_stand(ijbc):
    protocol = IJBProtocol(ijbc)
    lines = [line.split() for line in (ijbc / 'meta' / 'ijbc_name_5pts_score.txt').read_text().splitlines()]
    assert protocol.name == 'ijbc' and protocol.images == [line[0] for line in lines]
    expected = np.array([line[1:] for line in lines], np.float32)
    np.testing.assert_array_equal(protocol.points.reshape(-1, 10), expected[:, :10])
    np.testing.assert_array_equal(protocol.scores, expected[:, 10])
    lines = [line.split() for line in (ijbc / 'meta' / 'ijbc_face_tid_mid.txt').read_text().splitlines()]
    assert protocol.template_ids[protocol.templates].tolist() == [int(line[1]) for line in lines]
    assert protocol.media.tolist() == [int(line[2]) for line in lines]
    first, second, same = protocol.read_pairs()
    lines = [line.split() for line in (ijbc / 'meta' / 'ijbc_template_pair_label.txt').read_text().splitlines()]
    found = zip(protocol.template_ids[first].tolist(), protocol.template_ids[second].tolist(), same.tolist())
    assert list(found) == [(int(a), int(b), label == '1') for a, b, label in lines]
    galleries, (probes, subjects) = protocol.read_search()
    assert {name: len(members) for name, (members, _) in galleries.items()} == dict(G1=12, G2=12)
    assert len(probes) == 48 and set(subjects.tolist()) == set(range(70, 94))


def test_pairs_are_read_in_parts(ijbc, monkeypatch):
    whole = IJBProtocol(ijbc).read_pairs()
    monkeypatch.setattr('facemae_mm.datasets.ijb_protocol.CHUNK', 100)
    for part, expected in zip(IJBProtocol(ijbc).read_pairs(), whole):
        np.testing.assert_array_equal(part, expected)


def replaced(number, text):
    """What exchanges a line, counted from 1; None takes it away."""

    def change(lines):
        return lines[: number - 1] + ([] if text is None else [text]) + lines[number:]

    return change


FACES, TEMPLATES, PAIRS = (f'ijbc_{row}' for row in ROWS)
G1, PROBES = 'ijbc_1N_gallery_G1.csv', 'ijbc_1N_probe_mixed.csv'
POINTS = ' '.join(map(str, range(10)))


@pytest.mark.parametrize(
    ('file', 'change', 'message'),
    [
        (FACES, replaced(3, f'3.jpg {POINTS}'), 'line 3: not an image, ten coordinates and a score'),
        (FACES, replaced(3, f'3.jpg {POINTS} 0.9 1'), 'line 3: not an image, ten'),
        (FACES, replaced(3, '3.jpg 1 2 3 4 nan 6 7 8 9 10 0.9'), r'line 3: image 3\.jpg has a coordinate .* no finite'),
        (FACES, replaced(3, f'3.jpg {POINTS} -0.1'), 'line 3: .* negative score'),
        (FACES, replaced(3, f'3.jpg {POINTS} inf'), r'line 3: image 3\.jpg has .* no finite'),
        (FACES, replaced(3, f'2.jpg {POINTS} 0.9'), r'line 3: image 2\.jpg stands in line 2 already'),
        (FACES, replaced(3, '3.jpg 1 2 1 2 1 2 1 2 1 2 0.9'), r'line 3: the five points of image 3\.jpg coincide'),
        (FACES, replaced(3, ''), 'line 3: it is blank'),
        (FACES, lambda lines: [], 'names no image'),
        (TEMPLATES, replaced(5, '5.jpg 1'), 'line 5: not an image, a template and a medium'),
        (TEMPLATES, replaced(5, '5.jpg one 2'), 'line 5: not an image, a template'),
        (
            TEMPLATES,
            replaced(5, '6.jpg 1 2'),
            r'line 5: image 6\.jpg, but line 5 of ijbc_name_5pts_score.txt has 5\.jpg',
        ),
        (TEMPLATES, replaced(192, None), 'ends behind line 191; ijbc_name_5pts_score.txt has 192'),
        (TEMPLATES, lambda lines: [*lines, '193.jpg 1 2'], 'line 193: image 193.jpg, but'),
        (PAIRS, replaced(7, '1 2'), r"line 7 \('1 2'\): not two templates and a label"),
        (PAIRS, replaced(7, '1000 1.0 1'), 'line 7 .*: not two templates and a label'),
        (PAIRS, replaced(7, '1000 1 2'), 'line 7 .*: the label is neither'),
        (PAIRS, replaced(7, '1000 999 0'), 'line 7 .*: no face of ijbc_face_tid_mid.txt is of it'),
        (PAIRS, replaced(7, '1 1000 0'), 'line 7 .*: another line has the same two templates with label 1'),
        (PAIRS, replaced(7, ''), r"line 7 \(''\)"),
        (PAIRS, lambda lines: lines[:1], '1 pairs, 1 of one person'),
        (PAIRS, lambda lines: [], '0 pairs'),
        (G1, replaced(1, '1000,70'), 'line 1: its first line must name the columns'),
        (G1, replaced(3, '1000,71'), 'line 3: template 1000 is of subject 71 here, of another before'),
        (G1, replaced(3, '999,70'), 'line 3: template 999: no face of'),
        (G1, replaced(3, '1,70'), 'subject 70 has the templates 1 and 1000'),
        (G1, replaced(3, '1000'), 'line 3: not a template and a subject'),
        (PROBES, lambda lines: lines[:1], 'line 1: it holds no template'),
    ],
)
def test_damaged_lists(tmp_path, file, change, message):
    folder = write_ijb(tmp_path / 'IJBC', synthetic_faces(24))
    path = folder / 'meta' / file
    path.write_text(''.join(f'{line}\n' for line in change(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=message) as caught:
        IJBMetric(folder).calculate(noisy_embeddings(folder, 1))
    assert str(path) in str(caught.value)


def test_missing_lists_and_images(tmp_path):
    folder = write_ijb(tmp_path / 'IJBC', synthetic_faces(24))
    with pytest.raises(ValueError, match='no folder of IJB-B or IJB-C'):
        IJBProtocol(tmp_path)
    (folder / 'loose_crop' / '11.jpg').unlink()
    (folder / 'loose_crop' / '20.jpg').unlink()
    with pytest.raises(FileNotFoundError, match=r'lacks 2 of the 192 images .* first 11\.jpg \(line 11\)'):
        IJBFaces(folder)
    embeddings = noisy_embeddings(folder, 1)
    (folder / 'meta' / 'ijbc_1N_gallery_G2.csv').unlink()
    with pytest.raises(FileNotFoundError, match='ijbc_1N_gallery_G2.csv does not exist'):
        IJBMetric(folder).calculate(embeddings)
    for path in folder.glob('meta/*1N*'):
        path.unlink()
    found = IJBMetric(folder).calculate(embeddings)  # 1:1 alone
    assert not any('rank' in key for key in found)
    low, high = wilson_interval(found['tar@far=1e-2'], 48)
    assert (found['tar@far=1e-2_lo'], found['tar@far=1e-2_hi']) == (low, high)
    (folder / 'meta' / 'ijbc_template_pair_label.txt').unlink()
    with pytest.raises(FileNotFoundError, match='ijbc_template_pair_label.txt does not exist'):
        IJBMetric(folder).calculate(embeddings)


def test_a_list_leads_out_of_no_folder(tmp_path):
    folder = write_ijb(tmp_path / 'IJBC', synthetic_faces(24))
    (tmp_path / 'secret.jpg').write_bytes((folder / 'loose_crop' / '1.jpg').read_bytes())
    for row in ROWS[:2]:
        path = folder / 'meta' / f'ijbc_{row}'
        path.write_text(path.read_text().replace('1.jpg', '../../secret.jpg', 1))
    with pytest.raises(FileNotFoundError, match='lacks 1 of'):
        IJBFaces(folder)


@pytest.mark.filterwarnings('ignore:`estimate` is deprecated')
def test_faces_are_aligned_as_insightface_does(ijbc):
    """By scikit-image's similarity to its older template, to whose x it adds 8, as its evaluation does."""
    transform = pytest.importorskip('skimage.transform')
    older = np.array(
        [[30.2946, 51.6963], [65.5318, 51.5014], [48.0252, 71.7366], [33.5493, 92.3655], [62.7299, 92.2041]]
    )
    older[:, 0] += 8
    faces = IJBFaces(ijbc)
    for index in (0, 5, 77, 191):
        similarity = transform.SimilarityTransform()
        similarity.estimate(faces.protocol.points[index], older.astype(np.float32))
        image = cv2.imread(str(ijbc / 'loose_crop' / f'{index + 1}.jpg'))
        expected = cv2.warpAffine(image, similarity.params[:2], (112, 112), borderValue=0)
        assert np.abs(expected.astype(int) - faces.read(index)).max() <= 1
        sample = faces[index]
        assert sample['img_key'] == f'{index + 1}.jpg' and sample['sample_idx'] == index


def test_metric_of_a_runner(ijbc):
    """Batches in any order, some images twice, as samplers of several processes give them."""
    embeddings = noisy_embeddings(ijbc, 1.0)
    metric = IJBMetric(ijbc)
    order = np.random.default_rng(0).permutation(np.concatenate([np.arange(192), np.arange(5)]))
    samples = [DataSample(metainfo=dict(sample_idx=int(i))) for i in order]
    for sample, i in zip(samples, order):
        sample.set_field(torch.from_numpy(embeddings[i]), 'embedding')
    evaluator = Evaluator(metric)
    for start in range(0, len(samples), 16):
        evaluator.process(samples[start : start + 16])
    found = evaluator.evaluate(192)
    assert found == {f'ijbc/{key}': value for key, value in IJBMetric(ijbc).calculate(embeddings).items()}
    evaluator.process(samples[:16])
    with pytest.raises(ValueError, match='images arrived that are not the 192 of'):
        evaluator.evaluate(1)


# The command


@pytest.fixture(scope='module')
def phi(tmp_path_factory):
    """The weights of a small IResNet."""
    torch.manual_seed(0)
    network = IResNet(depth=18, base_channels=4, embedding_dim=16)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    path = tmp_path_factory.mktemp('phi') / 'phi.pth'
    torch.save(network.state_dict(), path)
    return path


def metrics(path, name='ijbc'):
    return json.loads(path.read_text())['sets'][name]['metrics']


def test_command_is_a_literal_run(verify, ijbc, phi, tmp_path):
    out = tmp_path / 'ijb.json'
    code, text = verify(phi, ijbc, '--out', out, '--roc', tmp_path / 'roc', '--batch-size', 32)
    assert code == 0, text
    faces, network = IJBFaces(ijbc), IResNet(depth=18, base_channels=4, embedding_dim=16).eval()
    network.load_state_dict(torch.load(phi, weights_only=True))
    pictures = np.stack([faces.read(i) for i in range(len(faces))])
    passes = []
    for turned in (pictures, pictures[:, :, ::-1]):
        blob = (turned[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32) - 127.5) / 127.5
        with torch.no_grad():
            passes.append(network(torch.from_numpy(blob))[-1].numpy())
    found = metrics(out)
    for key, value in literal_evaluation(ijbc, 'ijbc', sum(passes), True, True).items():
        assert found[key] == pytest.approx(value, abs=2e-3), key  # of 2304 pairs, two may change places in float32
    assert found['xnorm'] == pytest.approx(np.linalg.norm(passes, axis=2).mean(), rel=1e-4)
    cells = dict(zip(*(re.split(r' {2,}', line) for line in text.splitlines()[1:3])))
    assert cells['images'] == '192' and cells['TAR@1e-6'] == '–' and cells['TPIR@1e-2'] == '–'
    assert cells['rank-1'] == f'{100 * found["mean/rank1"]:.2f}'
    assert cells['95 % interval'].endswith('@1e-3')
    points = np.genfromtxt(tmp_path / 'roc' / 'roc_ijbc.csv', delimiter=',', names=True)
    assert points['far'][-1] == points['tar'][-1] == 1
    assert np.all(np.diff(points['threshold']) < 0) and np.trapezoid(points['tar'], points['far']) == pytest.approx(
        found['auc'], abs=1e-12
    )


def test_options_of_pooling_reach_the_metric(verify, ijbc, phi, tmp_path):
    results = {}
    for options in ((), ('--no-norm-score',), ('--no-detector-score',), ('--no-flip',)):
        code, text = verify(phi, ijbc, '--out', tmp_path / 'ijb.json', *options)
        assert code == 0, text
        results[options] = metrics(tmp_path / 'ijb.json')['auc']
    assert len(set(results.values())) == 4


def test_an_interrupted_command_goes_on(verify, phi, tmp_path, monkeypatch):
    folder = write_ijb(tmp_path / 'IJBC', synthetic_faces(24))
    assert verify(phi, folder, '--out', tmp_path / 'whole.json', '--batch-size', 16)[0] == 0
    monkeypatch.setattr('facemae_mm.evaluation.embedding_parts.PART', 40)  # two batches of 16
    read, kept = [], tmp_path / 'embeddings'
    genuine = IJBFaces.read

    def until_100(faces, index):
        read.append(index)
        if len(read) > 100:
            raise KeyboardInterrupt
        return genuine(faces, index)

    monkeypatch.setattr(IJBFaces, 'read', until_100)
    command = (phi, folder, '--batch-size', 16, '--embeddings', kept, '--out', tmp_path / 'parts.json')
    code, text = verify(*command)
    assert code == 2 and 'the same command goes on' in text
    assert len(list(kept.glob('*.npz'))) == 3 and (kept.stat().st_mode & 0o777) == 0o700
    monkeypatch.setattr(IJBFaces, 'read', lambda faces, index: read.append(index) or genuine(faces, index))
    del read[:]
    code, text = verify(*command)
    assert code == 0, text
    assert read == list(range(96, 192))
    assert metrics(tmp_path / 'parts.json') == metrics(tmp_path / 'whole.json')
    del read[:]
    assert verify(*command[:-4], '--embeddings', kept, '--no-flip')[0] == 0  # other embeddings
    assert len(read) == 192 and len(list(kept.glob('*.npz'))) == 12
    damaged = sorted(kept.glob('*.npz'))[0]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    codes = [verify(*command, *flip) for flip in ((), ('--no-flip',))]
    assert sorted(code for code, _ in codes) == [0, 2]
    assert any(f'{damaged} holds no embeddings of this set' in text and 'Delete it' in text for _, text in codes)


def test_without_pairs_there_is_no_roc_and_the_numbers_stay(verify, ijbc, phi, tmp_path):
    shutil.copytree(ijbc, tmp_path / 'IJBC')
    (tmp_path / 'IJBC/meta/ijbc_template_pair_label.txt').unlink()
    code, text = verify(phi, tmp_path / 'IJBC', '--out', tmp_path / 'ijb.json', '--roc', tmp_path / 'roc')
    assert code == 0 and 'No ROC: none of the sets has pairs' in text, text
    assert metrics(tmp_path / 'ijb.json')


def test_two_processes_are_one(repository, verify, ijbc, phi, tmp_path):
    def flags(processes):
        kept = tmp_path / f'embeddings{processes}'
        return [phi, f'ijbc={ijbc}', '--batch-size', 16, '--out', tmp_path / f'{processes}.json', '--embeddings', kept]

    code, text = verify(*flags(1))
    assert code == 0, text
    command = map(str, [sys.executable, repository / 'tools' / 'verify.py', *flags(2), '--processes', 2])
    environment = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='')
    done = subprocess.run(list(command), env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / '1.json') == metrics(tmp_path / '2.json')
    files = [next((tmp_path / f'embeddings{processes}').glob('*.npz')) for processes in (1, 2)]
    assert files[0].name == files[1].name
    one, two = (np.load(file)['embeddings'] for file in files)
    np.testing.assert_array_equal(one, two)


def test_command_refuses_a_damaged_list_before_it_embeds(verify, phi, tmp_path):
    folder = write_ijb(tmp_path / 'IJBC', synthetic_faces(24))
    path = folder / 'meta' / PAIRS
    path.write_text(path.read_text() + '1000 77 0\n')
    code, text = verify(phi, folder, '--embeddings', tmp_path / 'embeddings')
    assert code == 2 and 'line 1153' in text and PAIRS in text and not (tmp_path / 'embeddings').exists()


def test_a_recipe_tests_on_ijb(ijbc, phi, tmp_path):
    """The Runner with dataset and metric by config gives the tool's numbers."""
    runner = Runner(
        model=dict(
            type='FaceRecognizer',
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
            backbone=dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16),
            head=dict(type='EmbeddingHead'),
        ),
        work_dir=str(tmp_path),
        test_dataloader=dict(
            batch_size=32,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
            dataset=dict(
                type='IJBFaces',
                path=str(ijbc),
                pipeline=[dict(type='LoadFace', size=112), dict(type='PackInputs', meta_keys=('sample_idx',))],
            ),
        ),
        test_evaluator=dict(type='IJBMetric', path=str(ijbc)),
        test_cfg=dict(),
        default_scope='mmpretrain',
        experiment_name='ijb',
    )
    runner.model.backbone.load_state_dict(torch.load(phi, weights_only=True))
    found = runner.test()
    tool = IJBSet('ijbc', str(ijbc))
    embedded = embed_faces(tool.faces, open_embedder(phi))
    for key, value in tool.evaluate(*embedded)[0].items():
        if key != 'xnorm':
            assert found[f'ijbc/{key}'] == pytest.approx(value, abs=2e-3), key


@pytest.mark.slow
def test_real_faces_turned_and_scaled(shared, tmp_path):
    """Photographs of LFW turned, scaled and shifted, with their points: a good embedder still knows all people."""
    rng = np.random.default_rng(0)
    with (shared / 'faces' / 'lfw112.landmarks5.csv').open() as file:
        points = {row[0]: np.array(row[1:], float).reshape(5, 2) for row in csv.reader(file) if row[0] != 'path'}
    people = []
    for folder in sorted((shared / 'faces' / 'lfw112').iterdir()):
        images = sorted(folder.iterdir())[:7]
        if len(images) < 7:
            continue
        own = []
        for image in images:
            turn = cv2.getRotationMatrix2D((56, 56), rng.uniform(-40, 40), rng.uniform(1.2, 2)) + [
                [0, 0, 80],
                [0, 0, 60],
            ]
            picture = cv2.warpAffine(cv2.imread(str(image)), turn, (280, 260))
            place = points[f'{folder.name}/{image.name}'] @ turn[:, :2].T + turn[:, 2]
            own.append((cv2.imencode('.jpg', picture, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes(), place, 0.99))
        people.append(own)
        if len(people) == 30:
            break
    tool = IJBSet('lfw', str(write_ijb(tmp_path / 'IJBC', people)))
    pack = shared / 'insightface_pack' / 'models' / 'mini'
    phi = open_embedder(pack, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
    found, _ = tool.evaluate(*embed_faces(tool.faces, phi, workers=2))
    assert found['mean/rank1'] > 0.97 and found['tar@far=1e-3'] > 0.95 and found['mean/tpir@fpir=1e-1'] > 0.95


def test_benchmark_runs(repository):
    command = [sys.executable, str(repository / 'benchmarks' / 'ijb.py'), '--scale', '0.01']
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = dict(line.split() for line in done.stdout.splitlines()[:-1])
    assert (rows['images'], rows['templates'], rows['pairs'], rows['genuine_pairs']) == ('4693', '231', '156584', '195')
    assert all(0 < float(rows[f'{gallery}/rank1']) < 1 for gallery in ('g1', 'g2', 'mean', 'g1+g2'))
    assert re.match(r'ours: \d+ s, peak [\d,]+ MiB', done.stdout.splitlines()[-1])
