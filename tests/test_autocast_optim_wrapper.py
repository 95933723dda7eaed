"""Mixed precision on CPU, and class weights apart from clipping."""

import math

import pytest
import torch
from mmpretrain.registry import OPTIM_WRAPPERS, OPTIMIZERS

from facemae_mm.engine import autocast_optim_wrapper
from facemae_mm.models import ArcFaceHead


def build(model, emulate=True, **options):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    return OPTIM_WRAPPERS.build(dict(type='AutocastOptimWrapper', optimizer=optimizer, emulate=emulate, **options))


def test_forward_is_bfloat16_and_everything_kept_is_float32():
    model = torch.nn.Linear(4, 4)
    wrapper = build(model)
    x = torch.linspace(0, 1, 8).view(2, 4)
    with wrapper.optim_context(model):
        out = model(x)
    assert out.dtype == torch.bfloat16
    before = model.weight.detach().clone()
    with torch.no_grad():
        exact = model(x)
    assert 0 < (out - exact).abs().max() < 2e-2
    wrapper.update_params(out.float().square().mean())
    assert model.weight.dtype == torch.float32 and not torch.equal(model.weight, before)
    assert model(x).dtype == torch.float32  # no autocast outside


def test_one_step_follows_float32():
    """The gradient of the mean square of a line, within bfloat16's 8 bits."""
    torch.manual_seed(0)
    model = torch.nn.Linear(16, 1, bias=False)
    x = torch.randn(32, 16)
    expected = model.weight - 0.5 * 2 * (model(x) * x).mean(0)
    wrapper = build(model)
    with wrapper.optim_context(model):
        loss = model(x).float().square().mean()
    wrapper.update_params(loss)
    assert torch.allclose(model.weight, expected.detach(), atol=2e-2)


def test_gradients_accumulate():
    model = torch.nn.Linear(2, 1)
    wrapper = build(model, accumulative_counts=2)
    before = model.weight.detach().clone()
    for step in range(2):
        with wrapper.optim_context(model):
            loss = model(torch.ones(1, 2)).float().mean()
        wrapper.update_params(loss)
        assert torch.equal(model.weight, before) == (step == 0)


def test_a_device_without_bfloat16_trains_in_float32_and_says_so(monkeypatch):
    said = []
    monkeypatch.setattr(autocast_optim_wrapper, 'print_log', lambda message, **_: said.append(message))
    model = torch.nn.Linear(4, 4)
    for native, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        monkeypatch.setattr(autocast_optim_wrapper, 'native_bfloat16', lambda device, native=native: native)
        wrapper = build(model, emulate=False)
        for _ in range(2):
            with wrapper.optim_context(model):
                assert model(torch.ones(1, 4)).dtype == dtype
    assert said == ['This cpu does not multiply bfloat16: training runs in float32.']


def test_float16_scales_the_loss_and_skips_a_step_that_overflows():
    model = torch.nn.Linear(2, 1, bias=False)
    wrapper = build(model, dtype='float16', loss_scale=dict(init_scale=1024.0))
    before = model.weight.detach().clone()
    x = torch.ones(1, 2)
    with wrapper.optim_context(model):
        out = model(x)
    assert out.dtype == torch.float16
    wrapper.update_params(out.float().sum() * 1e4)  # gradient 1e4 · 1024 is beyond float16
    assert torch.equal(model.weight, before) and wrapper.loss_scaler.get_scale() == 512
    with wrapper.optim_context(model):
        loss = model(x).float().sum()
    wrapper.update_params(loss)
    torch.testing.assert_close(model.weight, before - 0.5)  # unscaled: lr · 1
    state = wrapper.state_dict()
    other = build(torch.nn.Linear(2, 1, bias=False), dtype='float16')
    other.load_state_dict(state)
    assert other.loss_scaler.get_scale() == 512


def test_dynamic_scale_by_its_name():
    assert build(torch.nn.Linear(2, 1), dtype='float16', loss_scale='dynamic').loss_scaler.get_scale() == 2**16


@pytest.mark.parametrize('kind', ['SGD', 'RowSparseSGD'])
def test_a_fused_step_that_overflows_is_skipped(kind):
    model = torch.nn.Linear(2, 1, bias=False)
    optimizer = OPTIMIZERS.build(dict(type=kind, params=model.parameters(), lr=0.5, fused=True))
    wrapper = OPTIM_WRAPPERS.build(
        dict(type='AutocastOptimWrapper', optimizer=optimizer, emulate=True, dtype='float16')
    )
    before = model.weight.detach().clone()
    wrapper.update_params(model.weight.sum() * math.inf)
    assert torch.equal(model.weight, before) and wrapper.loss_scaler.get_scale() == 2**15


@pytest.mark.parametrize(
    'options', [dict(dtype='float8'), dict(loss_scale=dict(init_scale=2.0)), dict(dtype='float16', loss_scale=8.0)]
)
def test_other_types_and_a_scale_without_need_are_refused(options):
    with pytest.raises(ValueError, match='AutocastOptimWrapper'):
        build(torch.nn.Linear(2, 2), **options)


def test_class_weights_are_neither_clipped_nor_in_the_norm():
    backbone, head = torch.nn.Linear(2, 1, bias=False), ArcFaceHead(3, 2)
    wrapper = build(torch.nn.ModuleList([backbone, head]), clip_grad=dict(max_norm=1.0))
    start = backbone.weight.detach().clone(), head.weight.detach().clone()
    loss = (backbone.weight * torch.tensor([[3.0, 4.0]])).sum() + 100 * head.weight.sum()
    wrapper.update_params(loss)
    torch.testing.assert_close(backbone.weight, start[0] - 0.5 * torch.tensor([[0.6, 0.8]]))
    torch.testing.assert_close(head.weight, start[1] - 0.5 * 100)
