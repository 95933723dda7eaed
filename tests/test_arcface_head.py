"""Margin softmax: value and gradient against literal loops; the recogniser around it."""

import math

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from facemae_mm.models import margin_softmax as margin_softmax_module
from facemae_mm.models.arcface_head import ArcFaceHead
from facemae_mm.models.margin_softmax import margin_softmax
from facemae_mm.models.margins import AdaFaceMargin, CombinedMargin
from facemae_mm.models.recogniser import EmbeddingHead, FaceRecognizer

S, M = 64.0, 0.5
MARGINS = {
    'arcface': dict(type='CombinedMargin'),
    'cosface': dict(type='CombinedMargin', m2=0.0, m3=0.4),
    'combined': dict(type='CombinedMargin', m1=0.9, m2=0.3, m3=0.1),
    'adaface': dict(type='AdaFaceMargin'),
}


def samples(labels, dtype=torch.int64):
    made = [DataSample(metainfo=dict(img_key=f'id/{i}')) for i in range(len(labels))]
    for sample, label in zip(made, labels, strict=True):
        sample.gt_label = torch.tensor([label], dtype=dtype)
    return made


def head(classes=5, channels=4, **kwargs):
    torch.manual_seed(0)
    return ArcFaceHead(classes, channels, **kwargs)


def with_margin(cosine, norm, margin, norms):
    """Target cosine and its derivative as the peers' formulas have them, in Python floats."""
    if isinstance(margin, CombinedMargin):
        cosine = min(1.0, max(-1.0, cosine))
        theta = math.acos(cosine)
        value = math.cos(margin.m1 * theta + margin.m2) - margin.m3
        return value, margin.m1 * math.sin(margin.m1 * theta + margin.m2) / (math.sin(theta) or math.inf)
    clipped = [min(100.0, max(0.001, n)) for n in norms]
    mean = sum(clipped) / len(clipped)
    std = math.sqrt(sum((n - mean) ** 2 for n in clipped) / (len(clipped) - 1))
    mean, std = mean * 0.01 + 0.99 * 20, std * 0.01 + 0.99 * 100
    scaler = min(1.0, max(-1.0, (min(100.0, max(0.001, norm)) - mean) / (std + 1e-3) * 0.333))
    theta = math.acos(min(1 - 1e-3, max(-1 + 1e-3, cosine)))
    moved = theta - 0.4 * scaler
    inside = 1e-3 < moved < math.pi - 1e-3 and abs(cosine) < 1 - 1e-3
    moved = min(math.pi - 1e-3, max(1e-3, moved))
    return math.cos(moved) - (0.4 + 0.4 * scaler), inside * math.sin(moved) / math.sin(theta)


def literal(embedding, weight, labels, margin=None, threshold=0.0, exact=False):
    """Loss, and its gradients in embedding and weight, in plain Python floats."""
    margin = margin or CombinedMargin()
    embedding, weight = embedding.tolist(), weight.tolist()
    norms = [math.hypot(*e) for e in embedding]
    lengths = [math.hypot(*w) for w in weight]
    loss = 0.0
    into_embedding = [[0.0] * len(row) for row in embedding]
    into_weight = [[0.0] * len(row) for row in weight]
    for i, (e, y) in enumerate(zip(embedding, labels, strict=True)):
        cosine = [sum(a * b for a, b in zip(e, w)) / norms[i] / lengths[j] for j, w in enumerate(weight)]
        logits, slopes = [], []
        for j, c in enumerate(cosine):
            value, slope = min(1.0, max(-1.0, c)), 1.0
            if j == y:
                value, slope = with_margin(c, norms[i], margin, norms)
                slope = slope if exact else 1.0
            elif threshold and value > threshold:
                value, slope = 0.0, 0.0
            elif isinstance(margin, AdaFaceMargin) and abs(value) > 1 - 1e-3:
                value, slope = math.copysign(1 - 1e-3, value), 0.0
            logits.append(S * value)
            slopes.append(S * slope)
        top = max(logits)
        total = sum(math.exp(z - top) for z in logits)
        loss += (math.log(total) + top - logits[y]) / len(labels)
        for j, w in enumerate(weight):
            p = math.exp(logits[j] - top) / total
            pull = slopes[j] * (p - (j == y)) / len(labels)
            for k in range(len(e)):  # of the cosine in either direction
                into_embedding[i][k] += pull * (w[k] / lengths[j] - cosine[j] * e[k] / norms[i]) / norms[i]
                into_weight[j][k] += pull * (e[k] / norms[i] - cosine[j] * w[k] / lengths[j]) / lengths[j]
    return loss, into_embedding, into_weight


def equal_to_the_literal_loop(module, embedding, labels, **expected):
    embedding = embedding.requires_grad_()
    loss = module.loss(embedding, samples(labels))['loss']
    loss.backward()
    value, into_embedding, into_weight = literal(
        embedding.detach(), module.weight.detach(), labels, margin=module.margin, **expected
    )
    assert loss.item() == pytest.approx(value, rel=1e-11)
    for found, wanted in ((embedding.grad, into_embedding), (module.weight.grad, into_weight)):
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=found.dtype), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('block', [2**18, 1], ids=['one block', 'blocks'])
@pytest.mark.parametrize('threshold', [0.0, 0.2])
@pytest.mark.parametrize('gradient', ['straight_through', 'exact'])
@pytest.mark.parametrize('margin', MARGINS.values(), ids=MARGINS)
def test_value_and_gradients_equal_the_literal_loop(monkeypatch, margin, gradient, threshold, block):
    monkeypatch.setitem(margin_softmax_module.BLOCK, 'cpu', block)  # at least 256 classes at once
    classes = 5 if block > 1 else 600
    module = head(classes, gradient=gradient, margin=margin, interclass_filtering_threshold=threshold).double()
    embedding = torch.randn(6, 4, dtype=torch.float64) * torch.tensor([0.1, 1, 5, 20, 60, 200])[:, None]
    labels = [0, 4, 2, 2, 1, classes - 1]
    with torch.no_grad():
        module.weight[0] = -embedding[0] * 0.3 + 0.01 * torch.randn(4)  # past θ + m = π: no fallback
        module.weight[3] = embedding[1] + 0.01 * embedding[1].norm() * torch.randn(4)  # above AdaFace's 0.999
    equal_to_the_literal_loop(module, embedding, labels, threshold=threshold, exact=gradient == 'exact')


@pytest.mark.parametrize('s', [1.0, 30.0, 64.0, 100.0])
def test_any_scale(s):
    module = head(300, 8, s=s).double()
    embedding = torch.randn(7, 8, dtype=torch.float64)
    labels = torch.arange(7)
    cosine = torch.cosine_similarity(embedding[:, None], module.weight[None], dim=2)
    target = (cosine.diagonal().acos() + M).cos()
    logits = s * cosine.scatter(1, labels[:, None], target[:, None])
    loss = module.loss(embedding, samples(labels.tolist()))['loss']
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, labels))
    torch.testing.assert_close(module.float().loss(embedding.float(), samples(labels.tolist()))['loss'], loss.float())


def test_loss_near_zero_keeps_its_digits():
    """1 − p is summed from the others, not taken from p: a loss of 1e-21 does not round to 0."""
    module = head(3, 3, margin=dict(type='CombinedMargin', m2=0.0))
    nn.init.eye_(module.weight)
    embedding = torch.eye(3)[:1].requires_grad_()
    loss = module.loss(embedding, samples([0]))['loss']
    assert 0 <= loss.item() < 1e-6
    (gradient,) = torch.autograd.grad(loss, module.weight)
    assert gradient[0].abs().max() == 0  # along the embedding itself nothing pulls
    torch.testing.assert_close(gradient[1], torch.tensor([S * math.exp(-S), 0, 0]), rtol=1e-5, atol=0)


def test_one_class_has_no_loss():
    embedding = torch.randn(2, 4, requires_grad=True)
    loss = head(1).loss(embedding, samples([0, 0]))['loss']
    loss.backward()
    assert loss.item() == 0 and not embedding.grad.any()


@pytest.mark.parametrize('margin', ['arcface', 'cosface', 'combined'])  # AdaFace takes norms for constants
def test_exact_gradient_passes_gradcheck(margin):
    module = head(gradient='exact', margin=MARGINS[margin]).double()
    embedding = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([1, 0, 4])
    assert torch.autograd.gradcheck(
        lambda e, w: margin_softmax(e, w, labels, module.margin, S, exact=True), (embedding, module.weight)
    )


def test_straight_through_gradient_is_not_the_exact_one():
    gradients = []
    for gradient in ('straight_through', 'exact'):
        torch.manual_seed(1)
        embedding = torch.randn(3, 4, requires_grad=True)
        head(gradient=gradient).loss(embedding, samples([1, 0, 4]))['loss'].backward()
        gradients.append(embedding.grad)
    assert not torch.allclose(*gradients, rtol=1e-2)


@pytest.mark.parametrize('sign', [1.0, -1.0])
@pytest.mark.parametrize('gradient', ['straight_through', 'exact'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize('margin', MARGINS.values(), ids=MARGINS)
def test_finite_at_cosine_one(margin, gradient, sign, dtype):
    module = head(gradient=gradient, margin=margin)
    module.weight.data = torch.cat([torch.eye(4), torch.ones(1, 4)])
    embedding = (sign * torch.eye(5, 4)[:2]).to(dtype).requires_grad_()
    module.to(dtype)
    loss = module.loss(embedding, samples([0, 1]))['loss']
    loss.backward()
    if dtype == torch.float32:
        expected, *_ = literal(embedding.detach(), module.weight.detach(), [0, 1], margin=module.margin)
        assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert loss.isfinite() and embedding.grad.isfinite().all() and module.weight.grad.isfinite().all()


@pytest.mark.parametrize('m2', [0.5, 0.0])
def test_exact_derivative_at_the_ends_counts_the_sine_as_constant(m2):
    ends = torch.tensor([1.0, -1.0], requires_grad=True)
    CombinedMargin(m2=m2)(ends, None).sum().backward()
    torch.testing.assert_close(ends.grad, torch.full((2,), math.cos(m2)))


def test_adaface_follows_the_norms_of_training_alone():
    margin = AdaFaceMargin()
    norms = torch.tensor([5.0, 500.0, 1e-9, 40.0])
    margin.observe(norms, True)
    clipped = norms.clamp(1e-3, 100)
    torch.testing.assert_close(margin.batch_mean, 0.99 * 20 + 0.01 * clipped.mean())
    torch.testing.assert_close(margin.batch_std, 0.99 * 100 + 0.01 * clipped.std())
    module = head(margin=margin).eval()
    before = margin.batch_mean.clone()
    module.loss(torch.randn(2, 4), samples([0, 1]))
    assert margin.batch_mean == before
    module.train().loss(torch.randn(1, 4), samples([0]))  # one norm has no deviation
    assert margin.batch_mean != before and margin.batch_std.isfinite()
    assert {'margin.batch_mean', 'margin.batch_std'} < set(module.state_dict())


def test_adaface_gives_a_sharp_image_the_larger_margin_at_the_angle():
    """Norms far above the mean get ArcFace's kind of margin reversed, far below CosFace's: Fig. 3 of the paper."""
    margin, cosine = AdaFaceMargin(h=1.0), torch.tensor([0.5, 0.5, 0.5])
    margin.batch_std.fill_(1.0)
    high, middle, low = margin(cosine, torch.tensor([90.0, 20.0, 0.001])).tolist()
    theta = math.acos(0.5)
    assert high == pytest.approx(math.cos(theta - 0.4) - 0.8, abs=1e-6)
    assert middle == pytest.approx(0.5 - 0.4, abs=1e-6)
    assert low == pytest.approx(math.cos(theta + 0.4), abs=1e-6)


def test_bfloat16_products_stay_near():
    module, embedding = head(400, 64), torch.randn(8, 64, requires_grad=True)
    target = samples(range(8))
    results = []
    for precision in ('float32', 'bfloat16'):
        module.precision = precision
        loss = module.loss(embedding, target)['loss']
        results.append((loss, *torch.autograd.grad(loss, (embedding, module.weight))))
    assert all(one.dtype == two.dtype == torch.float32 for one, two in zip(*results))
    assert results[0][0].item() == pytest.approx(results[1][0].item(), rel=1e-2)
    for one, two in list(zip(*results))[1:]:
        assert 0 < (one - two).norm() < 0.1 * one.norm()


def test_float32_under_autocast():
    module, embedding, target = head(), torch.randn(3, 4), samples([1, 0, 4])
    plain = module.loss(embedding, target)['loss']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = module.loss(embedding, target)['loss']
        half = module.loss(embedding.bfloat16(), target)['loss']
    assert loss.dtype == half.dtype == torch.float32
    assert loss.item() == plain.item()


def test_weights_are_small_normal():
    weight = head(classes=200, channels=500).weight
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(weight.mean().item()) < 1e-4


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_any_integer_type(dtype):
    module, embedding = head(), torch.randn(2, 4)
    loss = module.loss(embedding, samples([4, 0], dtype))['loss']
    assert loss.item() == module.loss(embedding, samples([4, 0]))['loss'].item()


@pytest.mark.parametrize('label', [-1, 5])
def test_label_outside_the_range_is_named(label):
    with pytest.raises(ValueError, match=rf"label {label} of image 'id/1'.*\[0, 5\).*num_classes"):
        head().loss(torch.randn(2, 4), samples([0, label]))


def test_float_labels_are_refused():
    with pytest.raises(ValueError, match='integers'):
        head().loss(torch.randn(1, 4), samples([0.5], torch.float32))


@pytest.mark.parametrize(
    'option',
    [dict(gradient='none'), dict(s=0.0), dict(s=128.0), dict(interclass_filtering_threshold=2), dict(precision='fp8')],
)
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        head(**option)


class Columns(nn.Module):
    """Backbone: mean of every column of a 4-pixel-wide image; not symmetric under a flip."""

    def forward(self, x):
        return (x.mean((1, 2)) ** 2,)


def recogniser(**kwargs):
    config = dict(type='FaceRecognizer', head=dict(type='ArcFaceHead', num_classes=5, in_channels=4))
    return MODELS.build(dict(config, backbone=Columns(), **kwargs))


def test_recogniser_in_every_mode():
    model, x = recogniser(), torch.rand(2, 3, 4, 4)
    assert isinstance(model, FaceRecognizer)
    embedding = Columns()(x)[0]
    torch.testing.assert_close(model(x), embedding, rtol=0, atol=0)
    assert model(x, samples([0, 4]), mode='loss')['loss'].requires_grad
    target = samples([0, 4])
    found = model(x, target, mode='predict')
    assert found is target
    for i, sample in enumerate(found):
        torch.testing.assert_close(sample.embedding, embedding[i] + embedding[i].flip(0))
        assert sample.embedding.dtype == torch.float32 and sample.embedding.shape == (4,)
        assert 'pred_score' not in sample and 'pred_label' not in sample


def test_flip_can_be_left_out_and_samples_are_made():
    model, x = recogniser(flip_test=False), torch.rand(2, 3, 4, 4)
    found = model(x, mode='predict')
    assert all(isinstance(sample, DataSample) for sample in found)
    torch.testing.assert_close(torch.stack([s.embedding for s in found]), Columns()(x)[0])


def test_preprocessor_turns_stored_bgr_into_normalised_rgb():
    model = recogniser(data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True))
    image = torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=samples([3])))
    torch.testing.assert_close(data['inputs'][0], (image.flip(0).float() - 127.5) / 127.5)
    found = model.test_step(dict(inputs=[image], data_samples=samples([3])))
    assert found[0].embedding.shape == (4,)


def test_embedding_head_takes_tuples_and_tensors_and_only_predicts():
    module, embedding = EmbeddingHead(), torch.randn(2, 4, dtype=torch.bfloat16)
    for feats in (embedding, (embedding,), [torch.randn(2, 9), embedding]):
        found = module.predict(feats)
        assert [s.embedding.tolist() for s in found] == embedding.tolist()
        assert found[0].embedding.dtype == torch.float32
    with pytest.raises(NotImplementedError, match='ArcFaceHead'):
        module.loss(embedding, samples([0, 1]))
    with pytest.raises(ValueError, match=r'\(N, D\).*\(2, 4, 7, 7\)'):
        module.predict(torch.randn(2, 4, 7, 7))
