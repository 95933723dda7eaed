"""PartialFC: shards against one dense head, in the Runner, and through checkpoints of any number of processes."""

import math
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from processes import free_port, spawn
from tiny import cfg_options, write_faces
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import facemae_mm  # noqa: F401  registers the components
from facemae_mm.config import load_config
from facemae_mm.engine import AutocastOptimWrapper
from facemae_mm.engine.class_shards import check_sharding
from facemae_mm.launch import init_distributed
from facemae_mm.models.arcface_head import ArcFaceHead
from facemae_mm.models.class_shard import ClassShard
from facemae_mm.models.margins import AdaFaceMargin
from facemae_mm.models.partial_fc_head import PartialFCHead

BATCH, CHANNELS = 12, 6


def samples(labels):
    made = [DataSample() for _ in labels]
    for sample, label in zip(made, labels, strict=True):
        sample.set_gt_label(int(label))
    return made


@pytest.mark.parametrize('classes, processes', [(10, 4), (7, 3), (2, 4), (1, 2), (10572, 8)])
def test_shares_are_those_of_arcface_torch(classes, processes):
    shards = [ClassShard.of(classes, rank, processes) for rank in range(processes)]
    for rank, shard in enumerate(shards):
        assert shard.num_local == classes // processes + int(rank < classes % processes)
        assert shard.class_start == classes // processes * rank + min(rank, classes % processes)
    assert sum(shard.num_local for shard in shards) == classes
    assert torch.cat([shard.cut(torch.arange(classes)) for shard in shards]).tolist() == list(range(classes))


class Net(nn.Module):
    """A linear backbone and a head, as DDP sees them."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(5, CHANNELS).double()
        self.head = head.double()
        self._ddp_params_and_buffers_to_ignore = ['head.weight'] if isinstance(head, PartialFCHead) else []

    def forward(self, x, data_samples):
        return self.head.loss((self.backbone(x),), data_samples)['loss']


def whole_batch(classes):
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, classes, (BATCH,), generator=generator)
    weight = torch.randn(classes, CHANNELS, generator=generator, dtype=torch.float64)
    return torch.randn(BATCH, 5, generator=generator, dtype=torch.float64), samples(labels), weight


def step(head, classes, out=None):
    """Loss and gradients of this process's part of the batch; rank 0 saves them, classes gathered."""
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    net = Net(head)
    x, target, weight = whole_batch(classes)
    head.weight.data.copy_(head.shard.cut(weight))
    mine = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    model = DistributedDataParallel(net) if processes > 1 else net
    loss = model(x[mine], target[mine])
    (2 * loss).backward()
    losses = [None] * processes
    if processes > 1:
        dist.all_gather_object(losses, loss.item())
        assert len(set(losses)) == 1
    gradient = head.shard.gather(head.weight.grad) if processes > 1 else head.weight.grad
    found = dict(loss=loss.item(), backbone=net.backbone.weight.grad, bias=net.backbone.bias.grad, classes=gradient)
    found.update({name: value for name, value in head.margin.state_dict().items()})
    if out and rank == 0:
        torch.save(found, out)
    return found


OPTIONS = {
    'arcface': dict(),
    'adaface': dict(gradient='exact', margin=dict(type='AdaFaceMargin')),
    'filtered cosface': dict(margin=dict(type='CombinedMargin', m2=0.0, m3=0.4), interclass_filtering_threshold=0.3),
}


def sharded_steps(cases, folder):
    for name, classes in cases:
        step(PartialFCHead(classes, CHANNELS, **OPTIONS[name]), classes, folder / f'{name} {classes}.pth')


@pytest.mark.parametrize('processes, numbers', [(1, [11]), (2, [11, 1]), (4, [11, 14, 3])])
def test_processes_have_loss_and_gradients_of_one_dense_head(tmp_path, processes, numbers):
    cases = [(name, classes) for name in OPTIONS for classes in numbers]
    spawn(sharded_steps, processes, cases, tmp_path)
    for name, classes in cases:
        expected = step(ArcFaceHead(classes, CHANNELS, **OPTIONS[name]), classes)
        found = torch.load(tmp_path / f'{name} {classes}.pth')
        assert found.keys() == expected.keys() and expected['classes'].shape == (classes, CHANNELS)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def sampled_step(classes, out):
    head = PartialFCHead(classes, CHANNELS, sample_rate=0.4)
    torch.manual_seed(dist.get_rank())
    chosen = []
    original = head.sample
    head.sample = lambda labels: chosen.append(original(labels)) or chosen[-1]
    found = step(head, classes)
    rows = [None] * dist.get_world_size()
    dist.all_gather_object(rows, (chosen[0] + head.shard.class_start).tolist())
    if dist.get_rank() == 0:
        torch.save(dict(found, rows=rows), out)


def test_sampled_shards_equal_one_head_over_the_sampled_classes(tmp_path):
    classes = 101
    spawn(sampled_step, 3, classes, tmp_path / 'found.pth')
    found = torch.load(tmp_path / 'found.pth')
    x, target, weight = whole_batch(classes)
    labels = [int(sample.gt_label) for sample in target]
    for rank, rows in enumerate(found['rows']):
        shard = ClassShard.of(classes, rank, 3)
        assert len(rows) == int(0.4 * shard.num_local) and rows == sorted(rows)
        assert {y for y in labels if shard.class_start <= y < shard.class_start + shard.num_local} <= set(rows)
    rows = sum(found['rows'], [])
    dense = ArcFaceHead(len(rows), CHANNELS)
    net = Net(dense)
    dense.weight.data.copy_(weight[rows])
    loss = net(x, samples([rows.index(y) for y in labels]))
    (2 * loss).backward()
    assert found['loss'] == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(found['backbone'], net.backbone.weight.grad)
    gradient = torch.zeros_like(weight)
    gradient[rows] = dense.weight.grad
    torch.testing.assert_close(found['classes'], gradient)


def test_sample_keeps_positives_and_draws_every_other_class_alike():
    head = PartialFCHead(40, CHANNELS, sample_rate=0.25)
    torch.manual_seed(0)
    labels = torch.tensor([3, 3, 17, -1])
    draws = torch.zeros(40)
    for _ in range(2000):
        rows = head.sample(labels)
        assert len(rows) == 10 and {3, 17} <= set(rows.tolist()) and (rows.diff() > 0).all()
        draws[rows] += 1
    others = torch.cat([draws[:3], draws[4:17], draws[18:]]) / 2000
    rate = 8 / 38
    assert (others - rate).abs().max() < 4.5 * math.sqrt(rate * (1 - rate) / 2000)
    many = torch.arange(15)
    assert head.sample(many).tolist() == many.tolist()  # more positives than the sample holds: these alone


def test_sparse_gradient_is_the_dense_one_of_the_same_rows():
    weight, gradients = torch.randn(50, CHANNELS), []
    for sparse in (False, True):
        head = PartialFCHead(50, CHANNELS, sample_rate=0.3, sparse=sparse)
        head.weight.data.copy_(weight)
        torch.manual_seed(1)
        head.loss(torch.randn(4, CHANNELS), samples([1, 2, 3, 40]))['loss'].backward()
        gradients.append(head.weight.grad)
    assert gradients[1].is_sparse and gradients[1]._nnz() == 15
    assert torch.equal(gradients[0], gradients[1].to_dense())


@pytest.mark.parametrize('option', [dict(sample_rate=0.0), dict(sample_rate=1.5), dict(sparse=True)])
def test_options_out_of_range_are_refused(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        PartialFCHead(10, 4, **option)


def first_weights(out):
    head = PartialFCHead(9001, 3)
    torch.manual_seed(5 + dist.get_rank())  # whatever the other ranks' seeds
    head.init_weights()
    gathered = head.shard.gather(head.weight)
    if dist.get_rank() == 0:
        torch.save(gathered, out)


def test_first_weights_do_not_depend_on_the_number_of_processes(tmp_path):
    one = PartialFCHead(9001, 3)
    torch.manual_seed(5)
    one.init_weights()
    assert one.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert len(one.weight.unique(dim=0)) == 9001
    spawn(first_weights, 3, tmp_path / 'gathered.pth')
    assert torch.equal(torch.load(tmp_path / 'gathered.pth'), one.weight.data)


NORMS = torch.tensor([3.0, 8.0, 15.0, 40.0])


def observe_half():
    margin = AdaFaceMargin()
    margin.observe(NORMS.chunk(2)[dist.get_rank()], False)
    alone = AdaFaceMargin()
    alone.observe(NORMS, True)
    torch.testing.assert_close(dict(margin.state_dict()), dict(alone.state_dict()))


def test_adaface_under_a_dense_head_observes_all_processes():
    spawn(observe_half, 2)


@MODELS.register_module()
class FlatNet(nn.Module):
    """A backbone that treats every face alone, so that one process and several train alike."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3 * 14 * 14, 16)

    def forward(self, x):
        return (self.layer(nn.functional.avg_pool2d(x, 8).flatten(1)).tanh(),)


class Record(Hook):
    """Keeps what a process had after each iteration, and spoils a gradient of its classes where asked."""

    def __init__(self, spoil=None):
        self.losses, self.backbones, self.shards, self.norms = [], [], [], []
        self.spoil = spoil

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.losses:
            self.start = head_of(runner).weight.detach().clone()
        if self.spoil == runner.iter:
            handle = head_of(runner).weight.register_hook(lambda gradient: handle.remove() or gradient * math.inf)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        model = getattr(runner.model, 'module', runner.model)
        self.losses.append(outputs['loss'].item())
        self.backbones.append({name: value.clone() for name, value in model.backbone.state_dict().items()})
        self.shards.append(model.head.weight.detach().clone())
        scalars = runner.message_hub.log_scalars
        self.norms.append(scalars['train/grad_norm'].current() if 'train/grad_norm' in scalars else None)


def head_of(runner):
    return getattr(runner.model, 'module', runner.model).head


def trained(repository, faces, work, batch, epochs, load_from=None, resume=False, spoil=None, **options):
    """Trains configs/demo_arcface.py on 7 identities with sharded classes; what this process saw."""
    cfg = load_config(repository / 'configs/demo_arcface.py', dict(recognition_faces=str(faces), num_classes=7))
    options = {name.replace('__', '.'): value for name, value in options.items()}
    cfg.merge_from_dict({'train_dataloader.batch_size': batch, 'train_cfg.max_epochs': epochs, **options})
    for name in ('test_dataloader', 'test_evaluator', 'test_cfg', 'param_scheduler'):
        cfg.pop(name)
    cfg.optim_wrapper.type, cfg.optim_wrapper.clip_grad = 'AutocastOptimWrapper', dict(max_norm=0.01)
    cfg.model.head.type = 'PartialFCHead'
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type='EMAHook', momentum=0.1)]
    cfg.work_dir, cfg.load_from, cfg.resume, cfg.log_level = str(work), load_from, resume, 'ERROR'
    cfg.experiment_name, cfg.default_hooks.checkpoint.max_keep_ckpts = f'{work} {epochs}', -1
    cfg.visualizer.vis_backends = []
    if dist.is_initialized():
        cfg.launcher = 'pytorch'
        init_distributed(cfg, 'pytorch')
        torch.set_num_threads(1)
    runner = Runner.from_cfg(cfg)
    record = Record(spoil)
    runner.register_hook(record)
    runner.train()
    return runner, record


NARROW = dict(model__backbone__base_channels=8, model__backbone__embedding_dim=16, model__head__in_channels=16)


def train_and_compare(repository, faces, work):
    rank = dist.get_rank()
    runner, record = trained(repository, faces, work / 'clipped', 2, 1, **NARROW)
    assert len(record.losses) == 5
    every = [None] * 3
    dist.all_gather_object(every, (record.losses, record.backbones, record.shards, record.norms))
    for losses, backbones, _, norms in every[1:]:
        assert losses == every[0][0] and norms == every[0][3]
        for one, other in zip(backbones, every[0][1], strict=True):
            means = {name for name in one if 'running' in name}  # of each process's own batches, as in arcface_torch
            assert all(torch.equal(one[name], other[name]) for name in one.keys() - means)
    assert min(record.norms) > 0.01  # clipping clips
    assert not torch.equal(record.backbones[0]['conv1.weight'], record.backbones[-1]['conv1.weight'])
    assert [len(shards[0]) for *_, shards, _ in every] == [3, 2, 2]
    rows = torch.cat([shards[-1] for *_, shards, _ in every])
    assert torch.pdist(torch.nn.functional.normalize(rows)).min() > 0.1  # no copies
    moved = (rows - torch.cat([shards[0] for *_, shards, _ in every])).norm(dim=1)
    assert (moved > 0.01).all()  # of length 0.04 at first: the norm of clipping does not hold them back

    start = str(work / 'clipped/epoch_1.pth')
    _, record = trained(repository, faces, work / 'started', 2, 1, start, optim_wrapper__optimizer__lr=0.0, **NARROW)
    saved = torch.load(start, weights_only=True)['state_dict']['head.weight']  # averaged, as EMAHook has it
    assert torch.equal(record.shards[0], ClassShard.of(7, rank, 3).cut(saved))

    options = dict(optim_wrapper__dtype='float16', optim_wrapper__emulate=True)
    options['optim_wrapper__loss_scale'] = dict(init_scale=2.0)
    for fused, ranks in ((False, [1]), (True, [0, 1, 2])):
        options['optim_wrapper__optimizer__fused'] = fused
        spoil = 2 if rank in ranks else None
        runner, record = trained(repository, faces, work / f'spoilt {fused}', 2, 1, spoil=spoil, **options, **NARROW)
        check_skipped(runner, record)


def check_skipped(runner, record):
    same = [
        torch.equal(record.backbones[i]['conv1.weight'], record.backbones[i + 1]['conv1.weight'])
        and torch.equal(record.shards[i], record.shards[i + 1])
        for i in range(4)
    ]
    assert same == [False, True, False, False], (dist.get_rank(), same)
    assert runner.optim_wrapper.loss_scaler.get_scale() == 1.0
    assert all(value.isfinite().all() for value in record.backbones[-1].values())


def test_runner_keeps_backbones_equal_and_shards_apart(repository, tmp_path):
    """Three processes, seven classes, clipping; then float16 with an overflow in one of them."""
    spawn(train_and_compare, 3, repository, write_faces(tmp_path / 'faces', 7, 5), tmp_path)


def train_sparsely(repository, faces, work):
    sparse = dict(optim_wrapper__optimizer__type='RowSparseSGD', model__head__sparse=True, model__head__sample_rate=0.5)
    sparse |= dict(optim_wrapper__accumulative_counts=2, **FLAT)
    _, first = trained(repository, faces, work, 2, 1, **sparse)
    runner, record = trained(repository, faces, work, 2, 2, resume=True, **sparse)
    shard = head_of(runner).shard
    moved = (record.shards[0] != record.shards[-1]).any(1)
    dist.barrier()  # the first process has written it
    state = torch.load(work / 'epoch_2.pth', weights_only=False)
    assert state['optimizer']['state'][2]['momentum_buffer'].shape == (7, 16)
    assert not torch.equal(
        shard.cut(state['optimizer']['state'][2]['momentum_buffer']), torch.zeros(shard.num_local, 16)
    )
    assert moved.any() and all(torch.isfinite(shard).all() for shard in record.shards)
    # a step is two batches: weights stay between them
    assert torch.equal(first.shards[0], first.start) and not torch.equal(first.shards[0], first.shards[1])
    every = [None] * 2
    dist.all_gather_object(every, record.backbones[-1])
    assert all(torch.equal(every[0][name], every[1][name]) for name in every[0])


def test_sparse_rows_with_accumulation_over_two_processes(repository, tmp_path):
    spawn(train_sparsely, 2, repository, write_faces(tmp_path / 'faces', 7, 4), tmp_path / 'work')


FLAT = dict(model__backbone=dict(_delete_=True, type='FlatNet'), model__head__in_channels=16)
FLOAT32 = dict(optim_wrapper__dtype='float16')  # no CPU trains in float16; some do in bfloat16


def go_on(repository, faces, work, batch, epochs):
    runner, record = trained(repository, faces, work, batch, epochs, resume=epochs > 1, **FLAT, **FLOAT32)
    shard = head_of(runner).shard
    assert shard == ClassShard.of(7, dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        torch.save(record.losses, work / f'losses_{epochs}.pth')


def test_checkpoints_go_on_with_any_number_of_processes(repository, tmp_path):
    """Four processes, then two, one and three: the losses are those of one process that never stopped."""
    faces = write_faces(tmp_path / 'faces', 7, 8)
    for epochs, (processes, batch) in enumerate([(4, 3), (2, 6), (1, 12), (3, 4)], 1):
        spawn(go_on, processes, repository, faces, tmp_path / 'stopped', batch, epochs)
    losses = sum((torch.load(tmp_path / f'stopped/losses_{epochs}.pth') for epochs in range(1, 5)), [])
    runner, record = trained(repository, faces, tmp_path / 'alone', 12, 4, **FLAT, **FLOAT32)
    assert len(losses) == len(record.losses) == 16 and losses[-1] < losses[0]
    assert losses == pytest.approx(record.losses, rel=1e-4)
    found = torch.load(tmp_path / 'stopped/epoch_4.pth', weights_only=False)
    wanted = torch.load(tmp_path / 'alone/epoch_4.pth', weights_only=False)
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        torch.testing.assert_close(found[part], wanted[part], rtol=1e-3, atol=1e-5)
    dense = ArcFaceHead(7, 16)
    dense.load_state_dict({'weight': found['state_dict']['head.weight']})  # strictly


def test_what_would_break_shards_is_refused(monkeypatch):
    monkeypatch.setattr(PartialFCHead, 'share', lambda head: ClassShard.of(7, 0, 2))
    head = dict(type='PartialFCHead', num_classes=7, in_channels=16)
    model = MODELS.build(dict(type='FaceRecognizer', backbone=FlatNet(), head=head))
    assert model._ddp_params_and_buffers_to_ignore == ['head.weight']
    assert 'head.weight' not in model.state_dict()
    wrapper = AutocastOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1))
    wrapped = SimpleNamespace(named_modules=model.named_modules, parameters_to_ignore={'head.weight'})
    check_sharding(SimpleNamespace(model=wrapped, optim_wrapper=wrapper))
    with pytest.raises(ValueError, match='averages head.weight.*FaceRecognizer'):
        check_sharding(SimpleNamespace(model=model, optim_wrapper=wrapper))
    plain = OptimWrapper(optimizer=torch.optim.SGD(model.parameters(), 0.1))
    with pytest.raises(TypeError, match='OptimWrapper clips.*AutocastOptimWrapper'):
        check_sharding(SimpleNamespace(model=wrapped, optim_wrapper=plain))


def test_the_command_trains_sharded_classes_in_two_processes(repository, tmp_path):
    """`tools/dist_train.sh`, its estimate of memory included, which one process makes while the other waits."""
    faces = write_faces(tmp_path / 'faces', 5, 4)
    options = {
        'recognition_faces': str(faces),
        'num_classes': 5,
        'model.head.type': 'PartialFCHead',
        'model.head.sample_rate': 0.6,
        'optim_wrapper.type': 'AutocastOptimWrapper',
        'train_dataloader.batch_size': 2,
        'train_cfg.max_epochs': 1,
        'default_hooks.logger.interval': 1,
        'param_scheduler': [],
    }
    command = ['bash', 'tools/dist_train.sh', 'configs/demo_arcface.py', '2', '--work-dir', str(tmp_path / 'work')]
    environment = os.environ | dict(PYTHON=sys.executable, PORT=str(free_port()))
    done = subprocess.run(
        [*command, '--cfg-options', *cfg_options(options)],
        cwd=repository,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0, text[-3000:]
    assert 'Memory not estimated' not in text and len(re.findall(r'\[1\]\[\d/5\].*loss: \d', text)) == 5
    saved = torch.load(tmp_path / 'work/epoch_1.pth', weights_only=True)
    assert saved['state_dict']['head.weight'].shape == (5, 128)
