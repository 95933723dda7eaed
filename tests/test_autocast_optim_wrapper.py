"""bf16 training on CPU."""

import torch
from mmpretrain.registry import OPTIM_WRAPPERS

from facemae_mm.engine import autocast_optim_wrapper


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
