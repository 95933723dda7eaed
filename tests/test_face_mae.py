"""Eq. 1: the model uses the masks it is given, and returns faces."""

import copy

import pytest
import torch
from mmpretrain.models import MAE
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample

import facemae_mm  # noqa: F401  registers the components
from facemae_mm.models.face_preprocessor import enlarge_patches

CONFIG = dict(
    data_preprocessor=dict(
        type='FacePreprocessor', size=32, patch_size=8, mean=[100.0, 110.0, 120.0], std=[50.0, 60.0, 70.0]
    ),
    backbone=dict(
        type='MAEViT',
        arch=dict(embed_dims=24, num_layers=2, num_heads=2, feedforward_channels=48),
        img_size=32,
        patch_size=8,
    ),
    neck=dict(
        type='MAEPretrainDecoder',
        num_patches=16,
        patch_size=8,
        embed_dim=24,
        decoder_embed_dim=16,
        decoder_depth=1,
        decoder_num_heads=2,
    ),
    head=dict(type='MAEPretrainHead', patch_size=8, loss=dict(type='PixelReconstructionLoss', criterion='L2')),
)


def build(type_='FaceMAE', **options):
    torch.manual_seed(0)
    model = MODELS.build(dict(type=type_, **copy.deepcopy(CONFIG) | options))
    model.init_weights()
    return model.eval()


def samples(n=3, kept=4, seed=0):
    noise = torch.rand(n, 16, generator=torch.Generator().manual_seed(seed))
    masks = (noise.argsort(1).argsort(1) >= kept).to(torch.uint8)
    return [DataSample().set_mask(mask) for mask in masks]


def faces(n=3, seed=1):
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_equals_mmpretrains_mae_under_the_mask_that_it_draws():
    """The peer's own forward, its mask read back and given to ours."""
    ours, peer = build(output_size=32), build('MAE')
    assert isinstance(ours, MAE)
    peer.load_state_dict(ours.state_dict())
    inputs = faces()
    torch.manual_seed(5)
    latent, mask, ids_restore = peer.backbone(inputs)
    expected = peer.neck(latent, ids_restore)
    tokens = ours.reconstruct(inputs, mask.to(torch.uint8))
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-6)
    data_samples = [DataSample().set_mask(row.to(torch.uint8)) for row in mask]
    torch.manual_seed(5)
    torch.testing.assert_close(ours(inputs, data_samples, 'loss')['loss'], peer(inputs, None, 'loss')['loss'])


def test_sees_visible_patches_alone():
    model, inputs, data_samples = build(output_size=32), faces(), samples()
    before = [s.reconstruction for s in model(inputs, copy.deepcopy(data_samples), 'predict')]
    pixels = torch.stack([s.mask for s in data_samples]).reshape(3, 1, 4, 4)
    removed = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3).bool()
    changed = torch.where(removed, torch.full_like(inputs, 1e4), inputs)
    after = [s.reconstruction for s in model(changed, copy.deepcopy(data_samples), 'predict')]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    other = [s.reconstruction for s in model(inputs + 1, copy.deepcopy(data_samples), 'predict')]
    assert not torch.equal(before[0], other[0])


@pytest.fixture(params=[True, False], ids=['rgb', 'bgr'])
def shown(request):
    """Preprocessors that swap the channels of a stored face, BGR, and that do not, as MMPretrain's by default."""
    return CONFIG['data_preprocessor'] | dict(to_rgb=request.param)


def test_predict_undoes_the_normalisation_and_halves_by_2x2_means(shown):
    model, inputs = build(output_size=16, data_preprocessor=shown), faces()
    model.neck.decoder_pred.weight.data *= 20  # so that values span the range, and beyond it
    sample, *_ = model(inputs, samples(), 'predict')
    tokens = model.reconstruct(inputs, torch.stack([s.mask for s in samples()]))
    image = model.head.unpatchify(tokens)[0].double()
    for channel, (mean, std) in enumerate([(100, 50), (110, 60), (120, 70)]):
        value = (image[channel] * std + mean).reshape(16, 2, 16, 2).mean((1, 3)).clamp(0, 255)
        colour = channel if shown['to_rgb'] else 2 - channel
        assert (sample.reconstruction[colour].double() - value).abs().max() <= 0.5 + 1e-3
    assert sample.reconstruction.dtype == torch.uint8 and sample.reconstruction.shape == (3, 16, 16)


def test_pasting_is_off_and_shows_the_visible_pixels_when_on(shown):
    raw = torch.randint(0, 256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    model = build(output_size=32, paste_visible=True, data_preprocessor=shown)
    inputs = model.data_preprocessor(dict(inputs=raw, data_samples=samples(1)))['inputs']
    pasted = model(inputs, samples(1), 'predict')[0].reconstruction
    model.paste_visible = False
    plain = model(inputs, samples(1), 'predict')[0].reconstruction
    visible = samples(1)[0].mask.reshape(4, 4).repeat_interleave(8, 0).repeat_interleave(8, 1) == 0
    assert torch.equal(pasted[:, visible], raw[0].flip(0)[:, visible].to(torch.uint8))  # stored BGR, predicted RGB
    assert torch.equal(pasted[:, ~visible], plain[:, ~visible])
    assert not torch.equal(plain[:, visible], pasted[:, visible])


def test_each_patch_is_enlarged_alone():
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    large = enlarge_patches(images, grid=4, size=16)
    for row in range(4):
        for column in range(4):
            patch = images[:, :, row * 2 : row * 2 + 2, column * 2 : column * 2 + 2]
            alone = torch.nn.functional.interpolate(patch, size=4, mode='bilinear', align_corners=False)
            torch.testing.assert_close(large[:, :, row * 4 : row * 4 + 4, column * 4 : column * 4 + 4], alone)


def test_preprocessor_turns_bgr_and_keeps_visible_patches_clean_of_removed_ones():
    preprocessor = MODELS.build(CONFIG['data_preprocessor'] | dict(to_rgb=True))
    stored = torch.randint(0, 256, (1, 3, 16, 16), generator=torch.Generator().manual_seed(0)).float()
    batch = preprocessor(dict(inputs=stored, data_samples=samples(1)))
    assert batch['inputs'].shape == (1, 3, 32, 32)
    corner = (stored[0, 2, 0, 0] - 100) / 50  # red comes last in BGR
    torch.testing.assert_close(batch['inputs'][0, 0, 0, 0], corner)
    stored[..., 4:] = 0
    again = preprocessor(dict(inputs=stored, data_samples=samples(1)))
    assert torch.equal(again['inputs'][..., :8], batch['inputs'][..., :8])


def test_what_does_not_fit_is_refused():
    model = build()
    with pytest.raises(ValueError, match='Put FaceMask before PackInputs'):
        model(faces(1), [DataSample()], 'loss')
    with pytest.raises(ValueError, match='do not fit a network of 16'):
        model(faces(1), [DataSample().set_mask(torch.ones(196))], 'loss')
    with pytest.raises(ValueError, match='remove \\[11, 12\\] patches'):
        model(faces(2), samples(1) + samples(1, kept=5), 'loss')
    with pytest.raises(ValueError, match='norm_pix must be False'):
        model.head.norm_pix = True
        model(faces(1), samples(1), 'predict')
    with pytest.raises(ValueError, match='size 30 is not divisible by patch_size 8'):
        MODELS.build(CONFIG['data_preprocessor'] | dict(size=30))
    with pytest.raises(ValueError, match='cannot be enlarged to 32'):
        model.data_preprocessor(dict(inputs=torch.zeros(1, 3, 30, 30), data_samples=samples(1)))
