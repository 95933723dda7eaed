"""The estimate of a training's memory against what autograd really keeps."""

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from tiny import SMALL_FACEMAE, small_recipe

from facemae_mm import memory
from facemae_mm.memory import MemoryEstimate, check_memory, estimate_memory

SMALL = SMALL_FACEMAE | {'optim_wrapper.type': 'OptimWrapper', 'train_dataloader.batch_size': 4}


def really_kept(model, samples, size):
    """Bytes of the storages, parameters of the model apart, that autograd keeps in one real forward pass."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor

    mask = torch.tensor([0] * 49 + [1] * 147, dtype=torch.uint8)
    data_samples = [DataSample().set_mask(mask).set_gt_label(0) for _ in range(samples)]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(torch.randn(samples, 3, size, size), data_samples, mode='loss')  # noqa: F841  keeps the graph
    return sum(storage.nbytes() for pointer, storage in kept.items() if pointer not in own)


@pytest.mark.filterwarnings('ignore:FaceEmbedder. IResNet has no checkpoint')
@pytest.mark.parametrize('name', ['facemae_vitb_webface', 'mae_vitb_webface', 'arcface_r50_casia'])
def test_activations_are_those_that_a_real_pass_keeps(repository, name):
    options = {'optim_wrapper.type': 'OptimWrapper'}
    if name == 'arcface_r50_casia':
        options |= {'model.backbone.depth': 18, 'model.backbone.base_channels': 8}
    else:
        options |= {k: v for k, v in SMALL_FACEMAE.items() if 'phi' not in k or name.startswith('face')}
    cfg = small_recipe(repository, name, **options)
    estimate = estimate_memory(cfg)
    if 'phi' in cfg.model.head.get('loss', {}):
        cfg.model.head.loss.phi.checkpoint = None
    model = MODELS.build(cfg.model)
    size = 112 if name == 'arcface_r50_casia' else 224
    two, five = really_kept(model, 2, size), really_kept(model, 5, size)
    assert estimate.per_sample == pytest.approx((five - two) / 3, rel=0.01)
    weights = sum(p.numel() * 4 for p in model.parameters())
    trained = sum(p.numel() * 4 for p in model.parameters() if p.requires_grad)
    assert estimate.gradients == trained
    moments = 1 if name == 'arcface_r50_casia' else 2
    constant = estimate.fixed - memory.PROCESS_BYTES - weights - trained * moments
    constant -= cfg.train_dataloader.num_workers * memory.WORKER_BYTES
    assert constant == pytest.approx(two - 2 * estimate.per_sample, rel=0.02, abs=4096)


def test_bfloat16_keeps_less_and_other_settings_count(repository):
    plain = estimate_memory(small_recipe(repository, 'facemae_vitb_webface', **SMALL))
    amp = SMALL | {'optim_wrapper.type': 'AutocastOptimWrapper', 'optim_wrapper.emulate': True}
    assert estimate_memory(small_recipe(repository, 'facemae_vitb_webface', **amp)).per_sample < plain.per_sample
    workers = small_recipe(repository, 'facemae_vitb_webface', **SMALL | {'train_dataloader.num_workers': 3})
    assert estimate_memory(workers).fixed - plain.fixed == 3 * memory.WORKER_BYTES
    eight = estimate_memory(small_recipe(repository, 'facemae_vitb_webface', **SMALL), 8)
    assert eight.fixed - plain.fixed == plain.gradients  # DDP's buckets
    assert eight.total > 7 * plain.total


def test_the_papers_model_is_estimated_without_its_weights(repository):
    """ViT-B and its decoder have 111.9 M parameters; φ adds none to the gradients, and its file is not there."""
    cfg = small_recipe(repository, 'facemae_vitb_webface', **{'train_dataloader.num_workers': 0})
    estimate = estimate_memory(cfg, 8)
    assert 111.0e6 < estimate.gradients / 4 < 112.2e6
    assert 100 * 2**30 < estimate.total < 1000 * 2**30


def test_the_batch_that_fits_fits():
    estimate = MemoryEstimate(batch_size=256, processes=8, fixed=1000, gradients=300, per_sample=10)
    assert estimate.total == 8 * (1000 + 2560)
    assert estimate.largest_batch(estimate.total) == 256
    for available in (8 * 1305, 8 * 1444, 8 * 2000):
        fits = estimate.largest_batch(available)
        assert 1 <= fits < 256 and (fits <= 8 or fits % 8 == 0)
        assert MemoryEstimate(fits, 8, 1000, 300, 10).total <= available
    assert estimate.largest_batch(8 * 1299) == 0  # the gradients alone do not fit


def test_a_refusal_names_figures_and_a_line_that_fits(repository, monkeypatch):
    options = SMALL | {'train_dataloader.batch_size': 256, 'train_dataloader.num_workers': 4}
    cfg = small_recipe(repository, 'facemae_vitb_webface', **options)
    check_memory(cfg)
    estimate = estimate_memory(cfg)
    monkeypatch.setattr(memory, '_own_bytes', lambda: 0)
    monkeypatch.setattr(memory, '_cores', lambda: 2)
    monkeypatch.setattr(memory, 'available_memory', lambda: int(estimate.total * 0.7))
    with pytest.raises(MemoryError, match=f'need about {estimate.total / 2**30:.1f} GiB') as caught:
        check_memory(cfg)
    line = str(caught.value).split('--cfg-options ')[1].split()
    fitting = dict(option.split('=') for option in line)
    assert fitting.pop('train_dataloader.num_workers') == '2'
    batch = int(fitting['train_dataloader.batch_size'])
    assert 8 <= batch < 256 and int(fitting['optim_wrapper.accumulative_counts']) == -(-256 // batch)
    more = {key: int(value) for key, value in fitting.items()} | {'train_dataloader.num_workers': 2}
    check_memory(small_recipe(repository, 'facemae_vitb_webface', **options | more))

    monkeypatch.setattr(memory, 'available_memory', lambda: memory.PROCESS_BYTES // 2)
    with pytest.raises(MemoryError, match='Not even a batch of 2 fits: choose a smaller model'):
        check_memory(cfg)


def test_memory_limits_of_control_groups(tmp_path):
    """Version 2, the limit on an outer group; and version 1."""
    job = tmp_path / 'slurm' / 'job_1'
    job.mkdir(parents=True)
    (tmp_path / 'own').write_text('0::/slurm/job_1\n')
    (job / 'memory.max').write_text('max\n')
    (job.parent / 'memory.max').write_text('8000\n')
    (job.parent / 'memory.current').write_text('5000\n')
    (job.parent / 'memory.stat').write_text('anon 4000\ninactive_file 600\n')
    assert list(memory._control_group_rooms(tmp_path / 'own', tmp_path)) == [3600]

    old = tmp_path / 'memory' / 'docker'
    old.mkdir(parents=True)
    (tmp_path / 'own').write_text('5:cpu,cpuacct:/docker\n4:memory:/docker\n')
    (old / 'memory.limit_in_bytes').write_text('900\n')
    (old / 'memory.usage_in_bytes').write_text('1000\n')
    (old / 'memory.stat').write_text('total_inactive_file 50\n')
    assert list(memory._control_group_rooms(tmp_path / 'own', tmp_path)) == [0]


def test_this_machine_has_memory():
    assert 2**28 < memory.available_memory() < 2**45
    held = torch.ones(2**26)  # 256 MiB
    before = memory._own_bytes()
    assert before > 2**28
    del held
    assert memory._own_bytes() < before - 2**27


def test_two_hundred_million_sharded_classes_are_refused(repository):
    estimate = estimate_memory(small_recipe(repository, 'pfc_r100_webface42m'))
    classes = 2059906 * 512 * 4
    assert estimate.gradients == pytest.approx(classes + 65e6 * 4, rel=0.02)  # in one process, and those of R100
    with pytest.raises(MemoryError, match='Not even a batch of 2 fits'):
        check_memory(small_recipe(repository, 'pfc_r100_webface42m', num_classes=200_000_000))
