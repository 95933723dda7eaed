"""ArcFace: value and gradient against literal loops; the recogniser around it."""

import math

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from facemae_mm.models.recogniser import ArcFaceHead, EmbeddingHead, FaceRecognizer, margin_cosine

S, M = 64.0, 0.5


def samples(labels, dtype=torch.int64):
    made = [DataSample(metainfo=dict(img_key=f'id/{i}')) for i in range(len(labels))]
    for sample, label in zip(made, labels, strict=True):
        sample.gt_label = torch.tensor([label], dtype=dtype)
    return made


def head(classes=5, channels=4, **kwargs):
    torch.manual_seed(0)
    return ArcFaceHead(classes, channels, **kwargs)


def literal(cosine, labels):
    """Logits, loss and dloss/dcos (straight-through) in plain Python floats."""
    logits, loss, gradient = [], 0.0, []
    for row, y in zip(cosine.tolist(), labels, strict=True):
        row = [min(1.0, max(-1.0, c)) for c in row]
        scaled = [S * (math.cos(math.acos(c) + M) if j == y else c) for j, c in enumerate(row)]
        top = max(scaled)
        total = sum(math.exp(z - top) for z in scaled)
        p = [math.exp(z - top) / total for z in scaled]
        loss += (math.log(total) + top - scaled[y]) / len(labels)
        logits.append(scaled)
        gradient.append([S * (p[j] - (j == y)) / len(labels) for j in range(len(row))])
    return logits, loss, gradient


@pytest.mark.parametrize('gradient', ['straight_through', 'exact'])
def test_value_and_gradient_equal_the_literal_loop(gradient):
    module = head(gradient=gradient).double()
    cosine = torch.rand(6, 5, dtype=torch.float64) * 1.8 - 0.9
    cosine[0, 0] = -0.95  # past θ + m = π: no fallback
    cosine.requires_grad_()
    labels = [0, 4, 2, 2, 1, 3]
    logits = module.logits(cosine, torch.tensor(labels))
    loss = nn.functional.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    expected_logits, expected_loss, expected = literal(cosine, labels)
    torch.testing.assert_close(logits, torch.tensor(expected_logits, dtype=torch.float64))
    assert loss.item() == pytest.approx(expected_loss, rel=1e-12)
    expected = torch.tensor(expected, dtype=torch.float64)
    if gradient == 'exact':  # chain rule of cos(θ + m): sin(θ + m) / sin θ on the target
        for i, y in enumerate(labels):
            theta = math.acos(cosine[i, y].item())
            expected[i, y] *= math.sin(theta + M) / math.sin(theta)
    torch.testing.assert_close(cosine.grad, expected, rtol=1e-9, atol=1e-12)


def test_loss_of_the_head_equals_the_literal_loop():
    module = head()
    embedding = torch.randn(3, 4)
    cosine = [[torch.cosine_similarity(e, w, dim=0).item() for w in module.weight.double()] for e in embedding.double()]
    labels = [1, 0, 4]
    loss = module.loss((embedding,), samples(labels))
    _, expected, _ = literal(torch.tensor(cosine, dtype=torch.float64), labels)
    assert set(loss) == {'loss'}
    assert loss['loss'].item() == pytest.approx(expected, rel=1e-5)


def test_exact_gradient_passes_gradcheck():
    module = head(gradient='exact').double()
    embedding = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    target = samples([1, 0, 4])
    assert torch.autograd.gradcheck(lambda e: module.loss(e, target)['loss'], embedding)


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
def test_finite_at_cosine_one(gradient, sign):
    module = head(gradient=gradient)
    nn.init.eye_(module.weight)
    embedding = (sign * torch.eye(5, 4)[:1]).requires_grad_()
    loss = module.loss(embedding, samples([0]))['loss']
    loss.backward()
    cosines = torch.tensor([[sign, 0, 0, 0, 0]])
    assert loss.item() == pytest.approx(literal(cosines, [0])[1], rel=1e-5, abs=1e-6)
    assert embedding.grad.isfinite().all() and module.weight.grad.isfinite().all()
    ends = torch.tensor([1.0, -1.0], requires_grad=True)
    margin_cosine(ends, M).sum().backward()
    torch.testing.assert_close(ends.grad, torch.full((2,), math.cos(M)))


def test_cosines_beyond_one_are_clamped():
    module = head(classes=64, channels=3)
    embedding = module.weight.detach() * 1e3  # rounding leaves some cosines above 1
    assert module.cosine(embedding).abs().max() <= 1


def test_float32_under_autocast():
    module, embedding, target = head(), torch.randn(3, 4), samples([1, 0, 4])
    plain = module.loss(embedding, target)['loss']
    with torch.autocast('cpu', dtype=torch.bfloat16):
        loss = module.loss(embedding, target)['loss']
        cosine = module.cosine(embedding)
        half = module.loss(embedding.bfloat16(), target)['loss']
    assert cosine.dtype == loss.dtype == half.dtype == torch.float32
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


def test_float_labels_and_unknown_gradients_are_refused():
    with pytest.raises(ValueError, match='integers'):
        head().loss(torch.randn(1, 4), samples([0.5], torch.float32))
    with pytest.raises(ValueError, match='gradient'):
        head(gradient='none')


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
