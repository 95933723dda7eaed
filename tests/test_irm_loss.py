"""Eq. 2 against a literal float64 twin, and how IRM lives in a model."""

import itertools

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import BaseModule
from mmpretrain.models import MAEPretrainHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import nn

from facemae_mm.datasets import HashFace
from facemae_mm.models import IRMLoss

MEAN, STD = (120.0, 110.0, 100.0), (60.0, 55.0, 50.0)


@MODELS.register_module()
class TinyPhi(nn.Module):
    """Random features of 16×16 faces in [0, 1]."""

    input_size, embedding_dim, template = 16, 5, None
    channel_order, mean, std = 'rgb', (0.0, 0.0, 0.0), (255.0, 255.0, 255.0)

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(5, 3 * 16 * 16, generator=generator) / 28)

    def forward(self, faces):
        return (torch.tanh((faces - 0.5).flatten(1) @ self.weight.T),)


PHI = dict(type='FaceEmbedder', backbone=dict(type='TinyPhi'))
pytestmark = pytest.mark.filterwarnings('ignore:FaceEmbedder. TinyPhi has no checkpoint')


def tokens(images, p=4):
    head = MAEPretrainHead(loss=dict(type='PixelReconstructionLoss', criterion='L2'), patch_size=p)
    return head.patchify(images)


def images(seed, n=6):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def twin(pred, target, mask, *, beta, im, mse, normalize, squared, scale):
    """Eq. 2 as loops over rows, float64, on images (N, 3, 16, 16); mask (N, 16) of 4×4 patches."""
    weight = TinyPhi().weight.detach().double()

    def phi(x):
        faces = x.double() * torch.tensor(STD).view(3, 1, 1).double() + torch.tensor(MEAN).view(3, 1, 1).double()
        rows = [torch.tanh(weight @ (face / 255 - 0.5).flatten()) for face in faces]
        return [row / row.norm() for row in rows] if normalize else rows

    f_hat, f, n = phi(pred), phi(target), len(pred)
    power = 2 if squared else 1
    im_term = sum(float((a - b).norm()) ** power for a, b in zip(f_hat, f, strict=True)) / n
    rm_term = 0.0
    for i in range(n):
        squares = sum((float(f_hat[i] @ f_hat[j]) - float(f[i] @ f[j])) ** 2 for j in range(n))
        rm_term += squares ** (power / 2) / n
    if scale:
        rm_term /= n ** (power / 2)
    errors = []
    for k, row, column in itertools.product(range(n), range(16), range(16)):
        if mask[k, row // 4 * 4 + column // 4]:
            errors += ((pred[k, :, row, column] - target[k, :, row, column]).double() ** 2).tolist()
    return im * im_term + beta * rm_term + mse * sum(errors) / len(errors)


@pytest.mark.parametrize('normalize', [True, False])
@pytest.mark.parametrize(('squared', 'scale'), [(a, b) for a in (True, False) for b in (True, False)])
@pytest.mark.parametrize(('beta', 'im', 'mse'), [(1, 1, 0), (0.5, 0, 0), (0, 1, 0), (10, 1, 0.3), (0, 0, 1)])
def test_value_equals_the_literal_twin(normalize, squared, scale, beta, im, mse):
    loss = IRMLoss(
        PHI,
        beta,
        im,
        mse,
        mean=MEAN,
        std=STD,
        patch_size=4,
        normalize=normalize,
        squared=squared,
        scale_relations=scale,
    )
    pred, target = images(0), images(1)
    mask = (torch.arange(16) % 4 > 0).float().expand(6, 16)
    expected = twin(pred, target, mask, beta=beta, im=im, mse=mse, normalize=normalize, squared=squared, scale=scale)
    by_tokens = loss(tokens(pred), tokens(target), mask)
    pixel_mask = mask.reshape(6, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    by_images = loss(pred, target, pixel_mask)
    torch.testing.assert_close(by_tokens.item(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(by_images.item(), by_tokens.item(), rtol=1e-6, atol=1e-6)


def test_colours_reach_phi_as_rgb():
    pred, target = images(0), images(1)
    rgb = IRMLoss(PHI, mean=MEAN, std=STD)
    bgr = IRMLoss(PHI, mean=MEAN[::-1], std=STD[::-1], channel_order='bgr')
    torch.testing.assert_close(bgr(pred.flip(1), target.flip(1)), rgb(pred, target))
    assert not torch.allclose(rgb(pred.flip(1), target.flip(1)), rgb(pred, target))


def test_laws():
    loss = IRMLoss(PHI, mean=MEAN, std=STD)
    a, b, order = images(0), images(1), torch.randperm(6)
    assert loss(a, a) < 3e-6  # only the eps under the roots
    torch.testing.assert_close(loss(a, b), loss(b, a))
    torch.testing.assert_close(loss(a[order], b[order]), loss(a, b))


def test_gradient_flows_through_the_reconstruction_alone_and_is_finite_at_zero():
    loss = IRMLoss(PHI, mean=MEAN, std=STD)
    pred, target = images(0).requires_grad_(), images(1).requires_grad_()
    loss(pred, target).backward()
    assert pred.grad.abs().sum() > 0 and target.grad is None
    same = images(1).requires_grad_()
    loss(same, images(1)).backward()
    assert torch.isfinite(same.grad).all()


def test_phi_is_outside_its_owner():
    head = MODELS.build(dict(type='MAEPretrainHead', patch_size=4, loss=dict(type='IRMLoss', phi=PHI, patch_size=4)))
    model = BaseModule(init_cfg=dict(type='Constant', layer='Linear', val=7.0))
    model.head = head
    target = images(1)
    for _ in range(2):  # before φ is built, and after
        model.init_weights()
        model.train()
        head.loss(tokens(images(0)).requires_grad_(), target, torch.ones(6, 16)).backward()
        assert not model.state_dict() and not list(model.parameters())
    (phi,) = head.loss_module.phis
    network = phi.backbone
    assert torch.equal(network.weight, TinyPhi().weight)
    assert network.weight.grad is None and not network.training


def test_autocast_leaves_the_loss_in_float32():
    loss = IRMLoss(PHI, mean=MEAN, std=STD)
    pred, target = images(0).bfloat16(), images(1)
    with torch.autocast('cpu', torch.bfloat16):
        low = loss(pred, target)
    torch.testing.assert_close(low, loss(pred.float(), target))
    assert low.dtype == torch.float32


def test_terms_reach_the_log():
    MessageHub.get_instance('irm')
    IRMLoss(PHI, mean=MEAN, std=STD, beta=0.5)(images(0), images(1))
    scalars = MessageHub.get_current_instance().log_scalars
    assert scalars['train/irm_n'].current() == 6
    assert all(scalars[f'train/irm_{name}'].current() > 0 for name in ('im', 'rm', 'mse'))
    weight = TinyPhi().weight.detach()
    scale, shift = torch.tensor(STD).view(3, 1, 1), torch.tensor(MEAN).view(3, 1, 1)
    f_hat, f = (torch.tanh(((x * scale + shift) / 255 - 0.5).flatten(1) @ weight.T) for x in (images(0), images(1)))
    cosine = torch.tensor([[torch.cosine_similarity(a, b, 0) for b in f] for a in f_hat])
    assert scalars['train/phi_similarity'].current() == pytest.approx(cosine.diagonal().mean().item(), abs=1e-5)
    own = sum(int(row.argmax()) == i for i, row in enumerate(cosine))
    assert scalars['train/leak_top1'].current() == pytest.approx(own / 6)
    assert not any('loss' in name for name in scalars if 'irm' in name)


def test_visible_pixels_count_where_asked_and_need_no_phi():
    pred, target, mask = images(0), images(1), torch.ones(6, 16)
    mask[:, 8:] = 0
    options = dict(phi=None, im_weight=0, beta=0, mse_weight=2.0, patch_size=4)
    whole = IRMLoss(mse_visible=True, **options)(tokens(pred), tokens(target), mask)
    torch.testing.assert_close(whole, 2 * (pred - target).square().mean())
    assert not torch.allclose(whole, IRMLoss(**options)(tokens(pred), tokens(target), mask))
    with pytest.raises(ValueError, match='need a φ'):
        IRMLoss(phi=None, mse_weight=1.0)


def test_what_cannot_be_matched_is_refused():
    loss = IRMLoss(PHI, mean=MEAN, std=STD, patch_size=4)
    with pytest.raises(ValueError, match='two faces or more, not 1'):
        loss(images(0, 1), images(1, 1))
    normalised = MAEPretrainHead(
        loss=dict(type='PixelReconstructionLoss', criterion='L2'), norm_pix=True, patch_size=4
    ).construct_target(images(1))
    with pytest.raises(ValueError, match=r'head\.norm_pix must be False'):
        loss(tokens(images(0)), normalised)
    with pytest.raises(ValueError, match='are not two images'):
        loss(images(0), images(1)[:, :1])
    with pytest.raises(ValueError, match='no square image in patches of 8×8'):
        IRMLoss(PHI, patch_size=8)(tokens(images(0)), tokens(images(1)))
    with pytest.raises(ValueError, match='weights must be'):
        IRMLoss(PHI, beta=-1)


@MODELS.register_module()
class OtherPhi(TinyPhi):
    """Another embedder of another dimension."""

    embedding_dim = 7

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 3 * 16 * 16, generator=torch.Generator().manual_seed(4)) / 28)


@pytest.mark.filterwarnings('ignore:FaceEmbedder. OtherPhi has no checkpoint')
def test_several_phi_are_weighted():
    other = dict(type='FaceEmbedder', backbone=dict(type='OtherPhi'))
    options = dict(mean=MEAN, std=STD, beta=0.7)
    one, two = (IRMLoss(phi, **options)(images(0), images(1)) for phi in (PHI, other))
    both = IRMLoss([PHI, other], phi_coefficients=[2.0, 0.5], **options)(images(0), images(1))
    torch.testing.assert_close(both, 2 * one + 0.5 * two)
    mean = IRMLoss([PHI, other], **options)(images(0), images(1))
    torch.testing.assert_close(mean, (one + two) / 2)
    with pytest.raises(ValueError, match='a weight ≥ 0 for each of 2 φ'):
        IRMLoss([PHI, other], phi_coefficients=[1.0])


def samples(pictures, flips=(), first=0):
    """Data samples as PackInputs makes them behind HashFace."""
    made = []
    for i, picture in enumerate(pictures):
        digest = HashFace()(dict(img=picture.numpy()))['img_digest']
        made.append(DataSample(metainfo=dict(sample_idx=first + i, flip=i in flips, img_digest=digest)))
    return made


class CountedPhi:
    """Counts the faces that go through φ."""

    def __init__(self, loss):
        self.faces = 0
        (phi,) = loss.embedders()
        phi.register_forward_hook(lambda module, inputs, outputs: self.count(len(inputs[0])))

    def count(self, faces):
        self.faces += faces


@pytest.fixture
def stored_phi(tmp_path):
    """A φ that comes from a file, as what is cached must."""
    torch.save(TinyPhi().state_dict(), tmp_path / 'phi.pth')
    return dict(PHI, checkpoint=tmp_path / 'phi.pth')


def test_the_cache_gives_the_same_loss_and_knows_faces_by_their_pixels(stored_phi, tmp_path):
    options = dict(mean=MEAN, std=STD)
    plain, cached = IRMLoss(stored_phi, **options), IRMLoss(stored_phi, cache=str(tmp_path / 'cache'), **options)
    counted, pred, target = CountedPhi(cached), images(0), images(1)
    expected = plain(pred, target)
    for seen in (12, 18, 24):  # the first time originals too, then reconstructions alone
        assert cached(pred, target, None, samples(target)) == expected
        assert counted.faces == seen
    assert cached(pred, target) == expected and counted.faces == 36  # no samples, no cache
    counted.faces = 0
    changed = target.clone()
    changed[2] += 0.5  # another face under an old number, and one that was never seen flipped
    assert cached(pred, changed, None, samples(changed, flips=[4])) == plain(pred, changed)
    assert counted.faces == 12
    assert cached(pred, changed, None, samples(changed, flips=[4])) == plain(pred, changed)
    assert counted.faces == 18
    anew = IRMLoss(stored_phi, cache=str(tmp_path / 'cache'), **options)  # another process, or the run gone on with
    counted = CountedPhi(anew)
    assert anew(pred, changed, None, samples(changed, flips=[4])) == plain(pred, changed) and counted.faces == 6


def test_the_cache_of_other_colours_is_another(stored_phi, tmp_path):
    """A recipe whose mean, std or order of channels was mended must not be served what φ saw before."""
    options = dict(mean=MEAN, std=STD)
    pred, target, values = images(0), images(1), set()
    for changed in ({}, dict(mean=MEAN[::-1]), dict(std=STD[::-1]), dict(channel_order='bgr')):
        cached = IRMLoss(stored_phi, cache=str(tmp_path / 'cache'), **options | changed)
        values.add(float(cached(pred, target, None, samples(target))))
        assert cached(pred, target, None, samples(target)) == IRMLoss(stored_phi, **options | changed)(pred, target)
    assert len(values) == len(list((tmp_path / 'cache').iterdir())) == 4


def test_the_cache_is_the_owners_and_survives_what_breaks(stored_phi, tmp_path):
    loss = IRMLoss(stored_phi, mean=MEAN, std=STD, cache=str(tmp_path / 'cache'))
    pred, target = images(0), images(1)
    expected = loss(pred, target, None, samples(target))
    (file,) = (tmp_path / 'cache').iterdir()
    assert file.stat().st_mode & 0o777 == 0o600 and file.parent.stat().st_mode & 0o777 == 0o700
    data, size = file.read_bytes(), 16 + 4 + 4 * 5
    assert len(data) == 2 * 5 * size + size
    for broken in (
        data[:-3],
        data[: 2 * size + 30] + bytes(8) + data[2 * size + 38 :],
        b'',
        data[:7] + b'x' + data[8:],
    ):
        file.write_bytes(broken)
        assert loss(pred, target, None, samples(target)) == expected
        assert file.read_bytes() == data  # what was lost is there again
    IRMLoss(PHI, mean=MEAN, std=STD, cache=str(tmp_path / 'none'))(pred, target, None, samples(target))
    assert not (tmp_path / 'none').exists()  # a random φ is another one in the next run
    with pytest.raises(ValueError, match=r"lacks. Put dict\(type='HashFace'\) before PackInputs"):
        loss(pred, target, None, [DataSample()] * 6)
