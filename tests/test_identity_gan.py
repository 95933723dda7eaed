"""SynFace in miniature: the GAN's losses and gradients, whose codes make whom, what is drawn, and domain mixup."""

import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from tiny import cfg_options, write_faces

from facemae_mm.datasets import DomainPairs, mix_domains, open_faces
from facemae_mm.engine.synthesis_loop import RATIOS, draw_parents, image_counts
from facemae_mm.models.gan.identity_gan import hinge_loss, kl_to_standard_normal, mix_codes
from facemae_mm.randomness import keyed_seed

pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder')

#: A GAN so small that the real commands run in seconds.
SMALL = {
    'model.generator.channels': '(8,8)',
    'model.generator.style_dim': 8,
    'model.generator.z_dim': 4,
    'model.generator.code_dim': 16,
    'model.discriminator': dict(size=14, channels='(4,8)'),
    'model.encoder': dict(size=14, channels='(4,8)', outputs=8),
    'model.phi.backbone': dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16),
    'train_dataloader.batch_size': 4,
    'default_hooks.logger.interval': 1,
}


def small_phi(path):
    """Random weights of a narrow IResNet-18, in a file; the network's config."""
    torch.manual_seed(1)
    config = dict(type='IResNet', depth=18, base_channels=4, embedding_dim=16)
    torch.save(MODELS.build(config).state_dict(), path)
    return config


def small_gan(tmp_path, **options):
    init_default_scope('mmpretrain')
    config = small_phi(tmp_path / 'phi.pth')
    torch.manual_seed(2)
    phi = dict(type='FaceEmbedder', backbone=config, checkpoint=str(tmp_path / 'phi.pth'))
    return MODELS.build(
        dict(
            type='IdentityGAN',
            data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
            generator=dict(type='FaceGenerator', z_dim=4, code_dim=16, style_dim=8, channels=(8, 8)),
            discriminator=dict(type='FaceDiscriminator', size=14, channels=(4, 8)),
            encoder=dict(type='FaceDiscriminator', size=14, channels=(4, 8), outputs=8, spectral=False),
            phi=phi,
            **options,
        )
    )


def test_losses_are_their_formulas():
    rng = np.random.default_rng(0)
    real, drawn = rng.normal(0, 2, (2, 5))
    expected = sum(max(0, 1 - r) for r in real) / 5 + sum(max(0, 1 + d) for d in drawn) / 5
    assert hinge_loss(torch.from_numpy(real), torch.from_numpy(drawn)).item() == pytest.approx(expected, rel=1e-12)

    mean, log_variance = rng.normal(size=(2, 5, 3))
    kl = 0.0
    for i in range(5):  # of N(m, v) and N(0, 1) by their densities' integral, in closed form a dimension
        for m, lv in zip(mean[i], log_variance[i], strict=True):
            kl += (m * m + math.exp(lv) - 1) / 2 - lv / 2
    found = kl_to_standard_normal(torch.from_numpy(mean), torch.from_numpy(log_variance))
    assert found.item() == pytest.approx(kl / 5, rel=1e-12)


def test_kl_is_the_mean_of_log_densities():
    mean, log_variance = torch.tensor([[0.7, -0.2]]), torch.tensor([[0.5, -1.0]])
    torch.manual_seed(0)
    x = mean + (0.5 * log_variance).exp() * torch.randn(400_000, 2)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(x)
    p = torch.distributions.Normal(0, 1).log_prob(x)
    found = kl_to_standard_normal(mean, log_variance).item()
    assert found == pytest.approx((q - p).sum(1).mean().item(), abs=0.01)


def test_mixed_codes_lie_between_both_at_unit_length():
    first, second = F.normalize(torch.randn(2, 6, 16, dtype=torch.float64), dim=-1)
    mixed = mix_codes(first, second, 0.25)
    for a, b, m in zip(first, second, mixed, strict=True):
        literal = np.array([0.25 * x + 0.75 * y for x, y in zip(a.tolist(), b.tolist(), strict=True)])
        np.testing.assert_allclose(m, literal / math.sqrt((literal**2).sum()), atol=1e-12)
    torch.testing.assert_close(mix_codes(first, second, 1.0), first)


def test_step_is_the_sum_of_its_losses(tmp_path):
    gan = small_gan(tmp_path, drawn_faces=3, identity_faces=2)
    faces = torch.rand(4, 3, 112, 112) * 2 - 1
    torch.manual_seed(5)
    losses = gan.loss(faces)

    embedding = gan.phi(faces * 127.5 + 127.5)[0]
    torch.testing.assert_close(gan.code_mean, embedding.mean(0))
    codes = F.normalize(embedding - embedding.mean(0))
    torch.manual_seed(5)
    ratio = torch.rand(4, 1)
    mixed = torch.stack([F.normalize(ratio[i] * codes[i] + (1 - ratio[i]) * codes[i - 1], dim=0) for i in range(3)])
    drawn = gan.generator(torch.randn(3, 4), mixed)
    small = F.avg_pool2d(faces, 8)
    mean, log_variance = gan.encoder(small).chunk(2, 1)
    rebuilt = gan.generator(mean + (0.5 * log_variance).exp() * torch.randn(4, 4), codes)
    phi_drawn = gan.phi(drawn[:2] * 127.5 + 127.5)[0] - embedding.mean(0)
    cosine = F.cosine_similarity(phi_drawn, mixed[:2])
    gan.discriminator.eval()  # no further step of its norms' power iteration
    assert losses['loss_identity'].item() == pytest.approx(2 * (1 - cosine).mean().item(), rel=1e-3)
    assert losses['loss_reconstruction'].item() == pytest.approx(20 * (small - rebuilt).abs().mean().item(), rel=1e-4)
    assert losses['loss_prior'].item() == pytest.approx(
        4e-3 * kl_to_standard_normal(mean, log_variance).item(), rel=1e-4
    )
    assert losses['loss_adversarial'].item() == pytest.approx(-0.3 * gan.discriminator(drawn).mean().item(), rel=0.2)


def test_each_loss_reaches_its_own_networks(tmp_path):
    gan = small_gan(tmp_path)
    networks = dict(generator=gan.generator, discriminator=gan.discriminator, encoder=gan.encoder)

    def reached(name):
        gan.zero_grad()
        gan.loss(torch.rand(4, 3, 112, 112) * 2 - 1)[name].backward()
        return {
            key for key, net in networks.items() if any(p.grad is not None and p.grad.any() for p in net.parameters())
        }

    assert reached('loss_discriminator') == {'discriminator'}
    assert reached('loss_adversarial') == {'generator'}
    assert reached('loss_identity') == {'generator'}
    assert reached('loss_reconstruction') == {'generator', 'encoder'}
    assert reached('loss_prior') == {'encoder'}


def test_gradients_point_where_they_should(tmp_path):
    """A step along each gradient lowers its own loss on the same faces and draws."""
    gan = small_gan(tmp_path).eval()  # spectral norms stay
    faces = torch.rand(8, 3, 112, 112) * 2 - 1
    gan.loss(faces)  # the mean of φ
    mean = gan.code_mean.clone()
    for name in ('loss_discriminator', 'loss_adversarial', 'loss_identity', 'loss_reconstruction'):

        def value(name=name):
            torch.manual_seed(3)
            gan.code_mean.copy_(mean)
            return gan.loss(faces)[name]

        gan.zero_grad()
        before = value()
        before.backward()
        norm = sum(p.grad.square().sum() for p in gan.parameters() if p.grad is not None).sqrt()
        with torch.no_grad():
            for parameter in gan.parameters():
                if parameter.grad is not None:
                    parameter -= 1e-3 * parameter.grad / norm
        assert value().item() < before.item(), name


def test_mean_of_codes_is_that_of_all_faces(tmp_path):
    gan = small_gan(tmp_path)
    batches = [torch.rand(n, 3, 112, 112) * 2 - 1 for n in (4, 2, 5)]
    for batch in batches:
        gan.loss(batch)
    embedding = gan.phi(torch.cat(batches) * 127.5 + 127.5)[0]
    assert gan.faces_seen == 11
    torch.testing.assert_close(gan.code_mean, embedding.mean(0), atol=1e-5, rtol=1e-4)


def test_generator_and_phi_must_agree(tmp_path):
    with pytest.raises(ValueError, match='generator.code_dim=16'):
        init_default_scope('mmpretrain')
        config = small_phi(tmp_path / 'phi.pth')
        MODELS.build(
            dict(
                type='IdentityGAN',
                generator=dict(type='FaceGenerator'),
                discriminator=dict(type='FaceDiscriminator'),
                encoder=dict(type='FaceDiscriminator', outputs=64),
                phi=dict(type='FaceEmbedder', backbone=config, checkpoint=str(tmp_path / 'phi.pth')),
            )
        )


def test_parents_are_pairs_that_nobody_shares():
    parents = draw_parents(40, 700, True, 0)
    assert len({frozenset(pair[:2]) for pair in parents}) == 700 and all(a != b for a, b, _ in parents)
    ratios = Counter(ratio for *_, ratio in parents)
    assert set(ratios) == set(RATIOS.tolist()) and len(ratios) == 19  # 0.05 … 0.95
    chi2 = sum((n - 700 / 19) ** 2 / (700 / 19) for n in ratios.values())
    assert chi2 < 42.3  # 18 degrees of freedom, 0.1 %
    assert draw_parents(40, 100, True, 0) == parents[:100]  # an identity does not depend on how many follow
    assert draw_parents(40, 100, True, 1) != parents[:100]
    assert len(draw_parents(5, 10, True, 0)) == 10  # every pair there is
    with pytest.raises(ValueError, match='10 identities at most, not 11'):
        draw_parents(5, 11, True, 0)


def test_without_mixup_each_is_one_person():
    parents = draw_parents(9, 9, False, 3)
    assert sorted(a for a, _, _ in parents) == list(range(9)) and all(a == b and r == 1 for a, b, r in parents)
    with pytest.raises(ValueError, match='9 people make 9'):
        draw_parents(9, 10, False, 3)


def test_counts_are_those_of_a_set(tmp_path):
    for name, images in dict(a=3, b=1, c=2).items():
        (tmp_path / 'like' / name).mkdir(parents=True)
        for image in range(images):
            (tmp_path / 'like' / name / f'{image}.png').write_bytes(b'')  # no image is read
    like = str(tmp_path / 'like')
    assert image_counts(like, 0, 0) == [3, 1, 2]
    assert image_counts(like, 5, 0) == [3, 1, 2, 3, 1]
    assert image_counts(like, 0, 4) == [4, 4, 4]
    assert image_counts(None, 2, 4) == [4, 4]
    for bad in ((None, 2, 0), (None, 0, 0), (like, -1, 0)):
        with pytest.raises(ValueError, match='Give two positive numbers'):
            image_counts(*bad)


def run(repository, tool, *words):
    done = subprocess.run(
        [sys.executable, f'tools/{tool}.py', *map(str, words)],
        cwd=repository,
        capture_output=True,
        text=True,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Faces, and a GAN trained on them by the real command: two epochs of three steps."""
    repository, folder = Path(__file__).resolve().parents[1], tmp_path_factory.mktemp('gan')
    init_default_scope('mmpretrain')
    faces = write_faces(folder / 'faces', identities=6, images=2)
    small_phi(folder / 'phi.pth')
    options = {
        **SMALL,
        'train_faces': str(faces),
        'phi_weights': str(folder / 'phi.pth'),
        'phi_cache': str(folder / 'c'),
    }
    run(
        repository,
        'train',
        'configs/mini/gan.py',
        '--work-dir',
        folder / 'w',
        '--cfg-options',
        *cfg_options(options | dict(epochs=2)),
    )
    return folder, options


def state(path):
    return torch.load(path, weights_only=True)['state_dict']


def test_resumed_equals_uninterrupted(repository, trained, tmp_path):
    folder, options = trained
    options = options | dict(epochs=2, phi_cache=str(tmp_path / 'c'))
    words = ['configs/mini/gan.py', '--work-dir', tmp_path / 'w', '--cfg-options']
    every = {'default_hooks.checkpoint.by_epoch': False, 'default_hooks.checkpoint.interval': 2}
    stop = tmp_path / 'stop.py'
    stop.write_text(
        'from mmengine.hooks import Hook\nfrom mmpretrain.registry import HOOKS\n\n\n'
        '@HOOKS.register_module()\nclass StopHook(Hook):\n    priority = "LOWEST"\n\n'
        '    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):\n'
        '        if runner.iter == 2:\n            import os\n            os._exit(9)\n'
    )
    recipe = tmp_path / 'killed.py'
    recipe.write_text(
        f"_base_ = '{repository}/configs/mini/gan.py'\n"
        "custom_imports = dict(imports=['facemae_mm', 'stop'], allow_failed_imports=False)\n"
        "custom_hooks = [*_base_.custom_hooks, dict(type='StopHook')]\n"
    )
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(tmp_path)}
    command = [sys.executable, 'tools/train.py', recipe, *words[1:], *cfg_options(options | every)]
    killed = subprocess.run(list(map(str, command)), cwd=repository, capture_output=True, env=env)
    assert killed.returncode == 9 and (tmp_path / 'w' / 'iter_2.pth').exists()
    words.insert(-1, '--resume')
    run(repository, 'train', *words, *cfg_options(options | every))
    whole, resumed = state(folder / 'w' / 'epoch_2.pth'), state(tmp_path / 'w' / 'iter_6.pth')
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    assert any(key.startswith('generator') for key in whole) and not any('phi' in key for key in whole)


def synthesise(repository, trained, out, **options):
    folder, settings = trained
    settings = {key: value for key, value in settings.items() if not key.startswith(('train_data', 'default'))}
    settings |= dict(synthetic_dir=str(out)) | options
    words = ['configs/mini/synthesise.py', folder / 'w' / 'epoch_2.pth', '--work-dir', out.with_name('log')]
    return run(repository, 'test', *words, '--cfg-options', *cfg_options(settings))


def test_drawn_sets(repository, trained, tmp_path):
    folder, _ = trained
    like = tmp_path / 'like'
    for name, images in dict(a=2, b=18, c=1).items():  # 18: more than are drawn at once
        (like / name).mkdir(parents=True)
        for image in range(images):
            (like / name / f'{image}.png').write_bytes(b'not an image, as nothing here is read')
    synthesise(repository, trained, tmp_path / 'one', like_faces=str(like))
    source = open_faces(tmp_path / 'one')
    assert source.identities == ['00000', '00001', '00002']
    assert Counter(source.labels.tolist()) == {0: 2, 1: 18, 2: 1}
    images = {key: cv2.imread(str(tmp_path / 'one' / f'{key}.png')) for key in source.keys}
    assert all(image.shape == (112, 112, 3) for image in images.values())
    assert len({image.tobytes() for image in images.values()}) == 21  # z varies each face

    settings = json.loads((tmp_path / 'one.private' / 'settings.json').read_text())
    assert settings['counts'] == [2, 18, 1] and settings['people'] == 6 and settings['identity_mixup'] is True
    private = ''.join(path.read_text() for path in (tmp_path / 'one.private').iterdir())
    assert 'person_' not in private  # says nothing of whose codes were mixed

    # Killed half-way, it goes on to the same bytes; complete, it is left alone.
    (tmp_path / 'one').rename(tmp_path / 'one.partial')
    (tmp_path / 'one.partial' / '00001' / '0003.png').write_bytes(b'cut off')
    (tmp_path / 'one.partial' / '00002' / '0000.png').unlink()
    synthesise(repository, trained, tmp_path / 'one', like_faces=str(like))
    assert all(np.array_equal(cv2.imread(str(tmp_path / 'one' / f'{key}.png')), image) for key, image in images.items())
    stamp = (tmp_path / 'one' / '00000' / '0000.png').stat().st_mtime_ns
    synthesise(repository, trained, tmp_path / 'one', like_faces=str(like))
    assert (tmp_path / 'one' / '00000' / '0000.png').stat().st_mtime_ns == stamp


def test_drawn_faces_are_of_the_mixed_codes(repository, trained, tmp_path):
    folder, _ = trained
    synthesise(repository, trained, tmp_path / 'set', identities=3, images=2, seed=4)
    gan = small_gan(tmp_path).eval()
    gan.load_state_dict(state(folder / 'w' / 'epoch_2.pth'))
    people = open_faces(folder / 'faces')
    mean_codes = []
    for label in range(6):
        files = [folder / 'faces' / f'{people.keys[i]}.png' for i in np.flatnonzero(people.labels == label)]
        faces = np.stack([cv2.imread(str(file))[..., ::-1] for file in files]).transpose(0, 3, 1, 2)
        with torch.no_grad():
            embedding = gan.phi(torch.from_numpy(faces.astype(np.float32)))[0] - gan.code_mean
        mean_codes.append(F.normalize(F.normalize(embedding).sum(0), dim=0))
    for number, (a, b, ratio) in enumerate(draw_parents(6, 3, True, 4)):
        code = F.normalize(ratio * mean_codes[a] + (1 - ratio) * mean_codes[b], dim=0)
        z = torch.randn(16, 4, generator=torch.Generator().manual_seed(keyed_seed('z', 4, number)))
        with torch.no_grad():
            small = gan.generator(z[:2], code.expand(2, -1))
        for image in range(2):
            large = cv2.resize(small[image].permute(1, 2, 0).numpy(), (112, 112), interpolation=cv2.INTER_LINEAR)
            written = cv2.imread(str(tmp_path / 'set' / f'{number:05d}' / f'{image:04d}.png'))[..., ::-1]
            np.testing.assert_allclose(written, large * 127.5 + 127.5, atol=0.6)


def pairs_of(tmp_path, real_people=2):
    pipeline = [dict(type='LoadFace', size=112), dict(type='PackInputs', meta_keys=('img_key',))]
    init_default_scope('mmpretrain')
    if not (tmp_path / 'synthetic').exists():
        write_faces(tmp_path / 'synthetic', identities=3, images=4)
        write_faces(tmp_path / 'real', identities=5, images=2, seed=1)
        for number in (0, 1):  # one image is too few
            (tmp_path / 'real' / f'person_{number}' / '1.png').unlink()
    return DomainPairs(
        dict(source=str(tmp_path / 'synthetic'), pipeline=pipeline),
        dict(source=str(tmp_path / 'real'), pipeline=pipeline),
        real_people,
    )


def test_real_people_are_few_labelled_and_evenly_seen(tmp_path):
    pairs = pairs_of(tmp_path)
    chosen = pairs.real.identities
    assert len(chosen) == 2 and set(chosen) < {'person_2', 'person_3', 'person_4'}
    seen = []
    for epoch in (0, 1):
        for dataset in pairs.datasets:
            dataset.set_epoch(epoch, 7)
        items = [pairs[i] for i in range(12)]
        assert [item['synthetic']['data_samples'].gt_label.item() for item in items] == [0] * 4 + [1] * 4 + [2] * 4
        keys = [item['real']['data_samples'].img_key for item in items]
        labels = [item['real']['data_samples'].gt_label.item() for item in items]
        assert labels == [3 + chosen.index(key.partition('/')[0]) for key in keys]
        assert set(Counter(keys).values()) == {3}  # 12 / 4 real faces
        seen.append((keys, [item['draw'] for item in items]))
        assert seen[-1] == ([pairs[i]['real']['data_samples'].img_key for i in range(12)], seen[-1][1])
    assert seen[0][1] != seen[1][1]
    with pytest.raises(ValueError, match='has 3 with 2 images or more. Set real_people to 1 … 3'):
        pairs_of(tmp_path, 4)


def test_blend_of_a_batch(tmp_path):
    pairs = pairs_of(tmp_path)
    ratios = Counter()
    for draw in range(21):
        items = [{**pairs[i], 'draw': draw + 21 * i} for i in (0, 5)]
        batch = mix_domains(items)
        ratio = batch['data_samples'][0].mix_ratio
        ratios[ratio] += 1
        for item, x, sample in zip(items, batch['inputs'], batch['data_samples'], strict=True):
            a, b = (item[kind]['inputs'].numpy().astype(np.float64) for kind in ('synthetic', 'real'))
            np.testing.assert_allclose(x, ratio * a + (1 - ratio) * b, atol=1e-4)
            assert sample.mix_ratio == ratio and sample.real_label.item() >= 3 > sample.gt_label.item()
    assert sorted(ratios) == pytest.approx([i / 20 for i in range(21)])


@pytest.mark.parametrize('ratio', [0.0, 0.35, 1.0])
def test_loss_of_both_labels(ratio):
    init_default_scope('mmpretrain')
    torch.manual_seed(0)
    options = dict(num_classes=7, in_channels=6, s=16.0, margin=dict(type='CombinedMargin', m2=0.3))
    head = MODELS.build(dict(type='DomainMixupHead', **options)).double()
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    first, second = [0, 1, 2, 0], [5, 6, 4, 4]
    samples = []
    for a, b in zip(first, second, strict=True):
        sample = DataSample().set_gt_label(a)
        sample.set_field(torch.tensor([b]), 'real_label', dtype=torch.Tensor)
        sample.set_field(ratio, 'mix_ratio', dtype=float)
        samples.append(sample)
    total = 0.0
    weight = F.normalize(head.weight.detach()).numpy()
    for row, a, b in zip(F.normalize(x.detach()).numpy(), first, second, strict=True):
        for share, label in ((ratio, a), (1 - ratio, b)):
            cosines = [float(row @ w) for w in weight]
            logits = [16 * math.cos(math.acos(c) + 0.3) if j == label else 16 * c for j, c in enumerate(cosines)]
            total += share * (math.log(sum(map(math.exp, logits))) - logits[label]) / 4
    loss = head.loss((x,), samples)['loss']
    assert loss.item() == pytest.approx(total, rel=1e-9)
    loss.backward()
    assert x.grad.abs().sum() > 0


def test_label_outside_is_named():
    init_default_scope('mmpretrain')
    head = MODELS.build(dict(type='DomainMixupHead', num_classes=4, in_channels=6))
    sample = DataSample(metainfo=dict(img_key='a/0')).set_gt_label(1)
    sample.set_field(torch.tensor([4]), 'real_label', dtype=torch.Tensor)
    sample.set_field(0.5, 'mix_ratio', dtype=float)
    with pytest.raises(ValueError, match=r"label 4 of image 'a/0' lies outside \[0, 4\)"):
        head.loss((torch.randn(1, 6),), [sample])


def test_recogniser_trains_on_a_drawn_set_and_few_real_people(repository, trained, tmp_path):
    folder, _ = trained
    synthesise(repository, trained, tmp_path / 'synthetic', identities=3, images=2)
    options = {
        'recognition_faces': str(tmp_path / 'synthetic'),
        'real_faces': str(folder / 'faces'),
        'num_classes': 3,
        'real_people': 2,
        'epochs': 2,
        'train_dataloader.batch_size': 3,
        'model.backbone.base_channels': 4,
        'default_hooks.logger.interval': 1,
    }
    words = ['configs/mini/arcface_domain_mixup.py', '--work-dir', tmp_path / 'w', '--no-validate']
    said = run(repository, 'train', *words, '--cfg-options', *cfg_options(options))
    assert 'Memory not estimated' not in said
    weights = state(tmp_path / 'w' / 'epoch_2.pth')
    assert weights['head.weight'].shape[0] == 5
