"""Runs that are killed and go on: the same weights, the same order, nothing half-written."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from processes import free_port
from tiny import write_faces

from facemae_mm.checkpoints import find_latest_checkpoint
from facemae_mm.config import load_config
from facemae_mm.datasets import FaceRecordDataset, ResumableSampler, resumable_sampler
from facemae_mm.engine import ReconstructionPanelHook, resumable_train_loop
from facemae_mm.randomness import keyed_seed
from facemae_mm.whole_file import whole_file

#: 16 faces in batches of 2, two batches a step: 8 iterations an epoch, 24 in all. Everything that draws or remembers.
RECIPE = """
_base_ = '{repository}/configs/demo_mae.py'
train_faces = '{faces}'
model = dict(
    backbone=dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64), drop_path_rate=0.3),
    neck=dict(embed_dim=32, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2),
)
train_dataloader = dict(batch_size=2, dataset=dict(source=train_faces))
optim_wrapper = dict(accumulative_counts=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=1, convert_to_iter_based=True),
    dict(type='MultiStepLR', milestones=[1, 2], gamma=0.5),
]
custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook', momentum=0.1)]
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2, max_keep_ckpts=1), logger=dict(interval=1))
train_cfg = dict(max_epochs=3)
"""

#: Kills the process that writes the n-th checkpoint: in the middle, complete but unnamed, or before last_checkpoint.
KILLER = """
import os, signal, sys
moment, number = os.environ['KILL_MOMENT'].split()
count, fsync, replace = [0], os.fsync, os.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def killing_fsync(file):
    name = os.readlink(f'/proc/self/fd/{file}')
    if moment == 'written' and '.pth.' in name and count[0] == int(number):
        os.ftruncate(file, os.fstat(file).st_size // 2)
        die()
    fsync(file)

def killing_replace(source, target):
    count[0] += str(target).endswith('.pth')
    name = 'last_checkpoint' if moment == 'noted' else '.pth'
    if moment != 'written' and str(target).endswith(name) and count[0] > int(number):
        die()
    replace(source, target)

os.fsync, os.replace = killing_fsync, killing_replace
"""


@pytest.fixture(scope='module')
def recipe(repository, tmp_path_factory):
    folder = tmp_path_factory.mktemp('recipe')
    faces = write_faces(folder / 'faces')
    (folder / 'tiny.py').write_text(RECIPE.format(repository=repository, faces=faces))
    (folder / 'sitecustomize.py').write_text(KILLER)
    return folder / 'tiny.py'


def run(recipe, work, resume=None, **options):
    """Trains in this process; the Runner."""
    cfg = load_config(recipe, {name.replace('__', '.'): value for name, value in options.items()})
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(work), f'{work} {options} {resume}', 'ERROR'
    cfg.resume, cfg.load_from = bool(resume), None if resume in (None, True) else str(resume)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def command(recipe, work, *flags, processes=1, kill_moment=None, kill_at_line=None, **options):
    """Trains by the real command, in a session of its own; exit code and output."""
    repository = Path(__file__).resolve().parents[1]
    start = (
        [sys.executable, 'tools/train.py', str(recipe)]
        if processes == 1
        else ['bash', 'tools/dist_train.sh', str(recipe), str(processes)]
    )
    changes = ['--cfg-options', *(f'{name.replace("__", ".")}={value}' for name, value in options.items())]
    env = os.environ | dict(PYTHON=sys.executable, PORT=str(free_port()))
    if kill_moment:
        env |= dict(PYTHONPATH=str(recipe.parent), KILL_MOMENT=kill_moment)
    child = subprocess.Popen(
        [*start, '--work-dir', str(work), *flags, *(changes if options else [])],
        cwd=repository,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines = []
    for line in child.stdout:
        lines.append(line)
        if kill_at_line and re.search(kill_at_line, line):
            for process in Path('/proc').glob('[0-9]*/cmdline'):  # torchrun puts each into a session of its own
                if f'\0{work}\0' in process.read_text():
                    os.kill(int(process.parent.name), signal.SIGKILL)
            kill_at_line = None
    return child.wait(timeout=60), ''.join(lines)


def tensors(node, name=''):
    if isinstance(node, torch.Tensor):
        return {name: node}
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    return {key: value for part, inner in items for key, value in tensors(inner, f'{name}.{part}').items()}


def state(work):
    """Everything that goes on with training, of the last checkpoint."""
    saved = torch.load(find_latest_checkpoint(str(work)), weights_only=True)
    parts = {name: saved[name] for name in ('state_dict', 'ema_state_dict', 'optimizer') if name in saved}
    return saved['meta']['iter'], tensors(parts), repr(saved['param_schedulers'])


def assert_same(work, other):
    (iterations, found, rates), (expected_iterations, expected, expected_rates) = state(work), state(other)
    assert iterations == expected_iterations and rates == expected_rates and len(found) > 100
    assert found.keys() == expected.keys()
    assert not [name for name, value in expected.items() if not torch.equal(found[name], value)]


@pytest.fixture(scope='module')
def whole(recipe, tmp_path_factory):
    """A run that nobody stopped."""
    work = tmp_path_factory.mktemp('whole')
    assert run(recipe, work).iter == 24
    return work


def test_two_that_write_one_file_leave_it_whole(tmp_path):
    """Whoever ends last; and one that gives up takes its own draft along."""
    path = tmp_path / 'x[1].json'
    with whole_file(path, 'x') as slow:
        slow.write('slow')
        with whole_file(path, 'x', private=True) as quick:
            quick.write('quick')
            assert len(list(tmp_path.iterdir())) == 2
        assert path.read_text() == 'quick' and path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(KeyError), whole_file(path) as failed:
            failed.write(b'fail')
            raise KeyError
        slow.write(' and late')
    assert path.read_text() == 'slow and late' and list(tmp_path.iterdir()) == [path]


WRITE = """
import os, runpy, signal, sys
from pathlib import Path
whole_file = runpy.run_path(sys.argv[1])['whole_file']
with whole_file(Path(sys.argv[2]), 'x') as file:
    file.write('half')
    file.flush()
    if len(sys.argv) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    print(flush=True)
    sys.stdin.read()
"""


def test_what_killed_writers_left_is_swept_and_that_of_others_is_not(repository, tmp_path):
    write = [sys.executable, '-c', WRITE, repository / 'facemae_mm/whole_file.py']
    for name in ('x', 'x', 'x.y'):
        done = subprocess.run([*write, tmp_path / name], timeout=60)
        assert done.returncode == -signal.SIGKILL
    (other,) = (path.name for path in tmp_path.glob('x.y*'))
    theirs = 'x.partial', f'x.{"0" * 16}.partial', 'x.1-0123456789abcdef.partial'
    (tmp_path / theirs[0]).touch()
    (tmp_path / theirs[1]).touch()
    (tmp_path / theirs[2]).symlink_to(tmp_path / theirs[0])
    assert len(list(tmp_path.iterdir())) == 5  # the second writer swept what the first had left
    command = [*write, tmp_path / 'x', 'wait']
    child = subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()  # its draft is there
    names = {path.name for path in tmp_path.iterdir()} - {other, *theirs}
    assert len(names) == 1 and f'.{child.pid}-' in names.pop()
    with whole_file(tmp_path / 'x', 'x') as file:
        file.write('whole')
    assert (tmp_path / 'x').read_text() == 'whole'
    child.communicate('go on')
    assert child.returncode == 0 and (tmp_path / 'x').read_text() == 'half'
    assert {path.name for path in tmp_path.iterdir()} == {'x', other, *theirs}


def test_a_draft_swept_before_it_is_locked_and_a_disk_without_locks(tmp_path, monkeypatch):
    path, calls = tmp_path / 'x', []

    def sweeps_first(*_):
        calls.append([draft.unlink() for draft in tmp_path.glob('*.partial') if not calls])

    def knows_no_locks(*_):
        raise OSError(errno.ENOLCK, 'No locks available')

    for text, flock in (('first', sweeps_first), ('second', knows_no_locks)):
        monkeypatch.setattr(fcntl, 'flock', flock)
        with whole_file(path, 'x') as file:
            file.write(text)
        assert path.read_text() == text and list(tmp_path.iterdir()) == [path]
    assert [len(swept) for swept in calls] == [1, 0]


def test_one_seed_one_result_whatever_the_workers_and_the_checkpoints(recipe, whole, tmp_path):
    run(recipe, tmp_path / 'again')
    assert_same(tmp_path / 'again', whole)
    workers = dict(train_dataloader__num_workers=2, train_dataloader__persistent_workers=True)
    run(recipe, tmp_path / 'workers', **workers, default_hooks__checkpoint__interval=8)
    assert_same(tmp_path / 'workers', whole)
    run(recipe, tmp_path / 'seed', randomness__seed=1)
    assert not torch.equal(*(state(w)[1]['.state_dict.neck.decoder_pred.weight'] for w in (whole, tmp_path / 'seed')))


def test_killed_while_its_checkpoint_is_written_and_resumed(recipe, whole, tmp_path):
    """The only checkpoint that is kept stays until the next one is complete."""
    code, text = command(recipe, tmp_path, kill_moment='written 5')
    assert code == -signal.SIGKILL, text
    kept, draft = sorted(p.name for p in tmp_path.glob('*.pth*'))
    assert kept == 'iter_10.pth' and re.fullmatch(r'iter_12\.pth\.\d+-[0-9a-f]{16}\.partial', draft)
    code, text = command(recipe, tmp_path, '--resume')
    assert code == 0, text
    assert f'{draft} is what a stopped run left; it is removed.' in text
    first = re.search(r'Epoch\(train\)\s+\[(\d)\]\[(\d)/8\].* eta: (\S+)', text)
    assert first.groups()[:2] == ('2', '3') and first[3] < '0:01:00'  # iteration 11 of 24
    assert sorted(p.name for p in tmp_path.glob('*.pth*')) == ['iter_24.pth']
    assert_same(tmp_path, whole)
    logs = [json.loads(line) for file in sorted(tmp_path.glob('*/vis_data/scalars.json')) for line in open(file)]
    assert [log['step'] for log in logs] == [*range(1, 13), *range(11, 25)]
    assert [log['epoch'] for log in logs[-14:]] == [2] * 6 + [3] * 8


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2, 3])
def test_killed_again_and_again(recipe, tmp_path, processes):
    """In every moment of a checkpoint's writing, and wherever a line of the log catches it."""
    batch_size = 2 if processes == 1 else 1
    options = dict(processes=processes, train_dataloader__batch_size=batch_size, train_cfg__max_epochs=6)
    code, text = command(recipe, tmp_path / 'expected', **options)
    assert code == 0, text
    moments = [
        dict(kill_moment='written 1'),
        dict(kill_moment='named 1'),
        dict(kill_moment='noted 1'),
        dict(kill_at_line=r'\[3\]\[ *2/'),
        dict(kill_at_line=r'\[4\]\[ *1/'),
        dict(kill_at_line=r'\[5\]\[ *2/'),
    ]
    work, reached = tmp_path / 'killed', []
    for moment in moments:
        code, text = command(recipe, work, '--resume', **options, **moment)
        assert code != 0, text
        reached.append(state(work)[0])
    assert reached == sorted(reached) and reached[0] < reached[-1]
    code, text = command(recipe, work, '--resume', **options)
    assert code == 0, text
    assert_same(work, tmp_path / 'expected')
    assert len(list(work.glob('*.pth*'))) <= 2  # one that was complete but not noted may stay


def test_what_came_before_is_not_read_again(recipe, tmp_path, monkeypatch):
    read = []
    info = FaceRecordDataset.get_data_info
    monkeypatch.setattr(FaceRecordDataset, 'get_data_info', lambda self, i: read.append(i) or info(self, i))
    monkeypatch.setattr(ReconstructionPanelHook, 'before_train', lambda *_: None)  # reads faces to show
    options = dict(default_hooks__checkpoint__max_keep_ckpts=-1)
    run(recipe, tmp_path, **options)
    assert len(read) == 48 and [sorted(read[i : i + 16]) for i in (0, 16, 32)] == [list(range(16))] * 3
    assert read[:16] != read[16:32]
    for iteration in (2, 8, 12, 24):  # 8 and 24 are the ends of epochs
        expected, read[:] = read[:], []
        runner = run(recipe, tmp_path, resume=tmp_path / f'iter_{iteration}.pth', **options)
        assert read == expected[-len(read) or 48 :] and len(read) == 48 - 2 * iteration and runner.iter == 24
        read[:] = expected


def test_a_validation_that_a_stop_cut_short_is_done_again(recipe, tmp_path, monkeypatch):
    """By epoch, as the recipes save; the best checkpoint of then is kept until the better one is there."""
    calls = []
    accuracy = {1: 0.5, 2: 0.7, 3: 0.6}

    def validate(loop):
        calls.append(loop.runner.epoch)
        loop.runner.call_hook('after_val_epoch', metrics=dict(acc=accuracy[loop.runner.epoch]))
        return {}

    monkeypatch.setattr('mmengine.runner.ValLoop.run', validate)
    cfg = load_config(recipe, {})
    cfg.default_hooks.checkpoint.update(by_epoch=True, interval=1, save_best='acc')
    cfg.val_cfg, cfg.val_evaluator = {}, []
    cfg.val_dataloader = dict(cfg.train_dataloader, sampler=dict(type='DefaultSampler', shuffle=False))
    cfg.work_dir, cfg.log_level = str(tmp_path), 'ERROR'

    def go(epochs, resume):
        cfg.train_cfg.max_epochs, cfg.resume, cfg.experiment_name = epochs, resume, f'{tmp_path} {epochs} {len(calls)}'
        Runner.from_cfg(cfg).train()
        return sorted(path.name for path in tmp_path.glob('*.pth'))

    assert go(1, False) == ['best_acc_epoch_1.pth', 'epoch_1.pth'] and calls == [1]
    (tmp_path / 'best_acc_epoch_1.pth').unlink()
    assert go(3, True) == ['best_acc_epoch_2.pth', 'epoch_3.pth'] and calls == [1, 1, 2, 3]
    hub = torch.load(tmp_path / 'epoch_3.pth', weights_only=True)['message_hub']['runtime_info']
    assert hub['best_score'] == 0.7 and hub['best_ckpt'].endswith('best_acc_epoch_2.pth')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(default_hooks__checkpoint__interval=3), r"'interval': 3.*2 accumulated.*Choose multiples of 2"),
        (dict(default_hooks__checkpoint__save_begin=1), r"'save_begin': 1.*Choose multiples of 2"),
        (dict(train_dataloader__batch_size=9), r'16 samples are less than the 18 × 1 processes of one step'),
        (dict(train_dataloader__sampler__type='DefaultSampler'), r"DefaultSampler cannot.*type='ResumableSampler'"),
    ],
)
def test_what_could_not_go_on_is_refused_at_start(recipe, tmp_path, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        run(recipe, tmp_path, **options)
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.slow
@pytest.mark.parametrize('processes', [1, 2])
def test_nan_ends_every_process_of_the_command_and_leaves_a_checkpoint_to_go_on_from(recipe, tmp_path, processes):
    """By a learning rate that jumps in iteration 7."""
    jump = recipe.parent / 'jump.py'
    rates = "param_scheduler = [dict(type='MultiStepLR', milestones=[6], gamma=1e40, by_epoch=False)]\n"
    jump.write_text(f"_base_ = '{recipe}'\n{rates}")
    options = dict(default_hooks__checkpoint__interval=6, processes=processes)
    begun = time.monotonic()
    code, text = command(jump, tmp_path, **options)
    assert code == 1 and re.search(r'FloatingPointError: Loss is (nan|inf), at epoch [23], iteration', text), text
    assert time.monotonic() - begun < 120
    assert not [p for p in Path('/proc').glob('[0-9]*/cmdline') if f'\0{tmp_path}\0' in p.read_text()]
    assert [path.name for path in tmp_path.glob('*.pth*')] == ['iter_6.pth']
    iteration, found, _ = state(tmp_path)
    assert iteration == 6 and all(torch.isfinite(value).all() for value in found.values())
    report = json.loads(next(tmp_path.glob('stopped_iter_*_rank_*.json')).read_text())
    assert report['last_checkpoint'].endswith('iter_6.pth') and report['lr'][0] > 1e30
    assert len(report['images']) == 2 and all(key.startswith('person_') for key in report['images'])


def checkpoint(folder, name, age=0):
    path = folder / name
    torch.save(dict(x=torch.zeros(1000)), path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_resume_finds_the_last_complete_checkpoint(tmp_path, caplog):
    record = tmp_path / 'last_checkpoint'
    assert find_latest_checkpoint(str(tmp_path)) is None
    record.write_text(f'{tmp_path}/epoch_3.pth')
    with pytest.raises(FileNotFoundError, match=r'last_checkpoint names .*epoch_3.pth, and no complete.*--resume PATH'):
        find_latest_checkpoint(str(tmp_path))
    two, one = checkpoint(tmp_path, 'epoch_2.pth', 1), checkpoint(tmp_path, 'epoch_1.pth', 2)
    checkpoint(tmp_path, 'best_acc_epoch_2.pth')
    three = checkpoint(tmp_path, 'epoch_3.pth')
    three.write_bytes(three.read_bytes()[:-100])  # as MMEngine's own writing leaves it
    for text in (f'{tmp_path}/epoch_3.pth', '', f'{tmp_path}/epo'):
        record.write_text(text)
        assert find_latest_checkpoint(str(tmp_path)) == str(two)
    record.write_text(str(one))  # what somebody went back to
    assert find_latest_checkpoint(str(tmp_path)) == str(one)
    record.write_text('/moved/elsewhere/epoch_1.pth')
    assert find_latest_checkpoint(str(tmp_path)) == str(one)
    record.unlink()  # killed before the first one was noted
    assert find_latest_checkpoint(str(tmp_path)) == str(two)


def losses(work):
    logs = [json.loads(line) for file in sorted(work.glob('*/vis_data/scalars.json')) for line in open(file)]
    return {log['step']: log['loss'] for log in logs}


def test_another_number_of_processes_goes_on_with_the_same_samples(recipe, tmp_path):
    """One, then two, then one again; every loss that is gathered over processes is that of the run that had one."""
    torch.manual_seed(0)
    phi = dict(type='IResNet', depth=18, base_channels=4)
    torch.save(MODELS.build(phi).state_dict(), tmp_path / 'phi.pth')
    gathered = tmp_path / 'gathered.py'
    loss = dict(_delete_=True, type='IRMLoss', gather=True, beta=1.0, mean=[127.5] * 3, std=[127.5] * 3)
    loss['phi'] = dict(type='FaceEmbedder', backbone=phi, checkpoint=str(tmp_path / 'phi.pth'))
    gathered.write_text(
        f"""
_base_ = '{recipe}'
model = dict(backbone=dict(drop_path_rate=0.0), head=dict(loss={loss}))
optim_wrapper = dict(accumulative_counts=1)
default_hooks = dict(checkpoint=dict(interval=6, max_keep_ckpts=-1))
train_cfg = dict(max_epochs=10)
"""
    )
    alone, two, back = tmp_path / 'alone', tmp_path / 'two', tmp_path / 'back'
    run(gathered, alone, train_dataloader__batch_size=4)
    code, text = command(gathered, two, '--resume', str(alone / 'iter_6.pth'), processes=2)  # 2 × 2, in mid-epoch
    assert code == 0, text
    assert 'accumulated = 2×2×1, trained until now with 4×1×1. The order of samples goes on.' in text
    assert 'number of faces' in text and 'learning rate.' not in text and 'Schedules' not in text
    run(gathered, back, resume=two / 'iter_18.pth', train_dataloader__batch_size=4)
    expected = losses(alone)
    for work, first in ((two, 7), (back, 19)):
        found = losses(work)
        assert sorted(found) == list(range(first, 41)) and len(found) >= 20
        assert max(abs(found[step] - expected[step]) for step in found) < 1e-4, work
    assert max(expected.values()) - min(expected.values()) > 0.01  # it did train


def test_another_batch_goes_on_with_the_rest_of_the_epoch_and_says_what_changes(recipe, tmp_path, monkeypatch):
    read, said = [], []
    info = FaceRecordDataset.get_data_info
    monkeypatch.setattr(FaceRecordDataset, 'get_data_info', lambda self, i: read.append(i) or info(self, i))
    monkeypatch.setattr(ReconstructionPanelHook, 'before_train', lambda *_: None)  # reads faces to show
    monkeypatch.setattr(resumable_train_loop, 'print_log', lambda text, **_: said.append(text))
    run(recipe, tmp_path / 'first', train_cfg__max_epochs=1, default_hooks__checkpoint__max_keep_ckpts=-1)
    expected, read[:] = read[:], []
    changed = dict(train_dataloader__batch_size=3, optim_wrapper__accumulative_counts=1)
    runner = run(recipe, tmp_path / 'second', resume=tmp_path / 'first/iter_4.pth', **changed)
    assert read[:6] == expected[8:14] and len(read) == 6 + 2 * 15  # 2 + 5 + 5 iterations of 3
    assert (runner.iter, runner.max_iters, runner.epoch) == (4 + 2 + 10, 16, 3)
    assert len(said) == 1 and '3×1×1, trained until now with 2×1×2' in said[0]
    assert all(word in said[0] for word in ('learning rate', 'Schedules', 'β'))


@pytest.mark.parametrize('processes', [1, 2, 4])
def test_order_of_samples(monkeypatch, processes):
    """That of one process, dealt out in turn, whole steps only."""
    samplers = []
    for rank in range(processes):
        monkeypatch.setattr(resumable_sampler, 'get_dist_info', lambda rank=rank: (rank, processes))
        samplers.append(ResumableSampler(range(103), seed=3))
    for sampler in samplers:
        sampler.step = 8 // processes
    assert {len(sampler) for sampler in samplers} == {96 // processes}

    def order(epoch, consumed):
        for sampler in samplers:
            sampler.set_epoch(epoch)
            sampler.consumed = consumed
        return [index for turn in zip(*samplers, strict=True) for index in turn]

    generator = torch.Generator().manual_seed(keyed_seed('order', 3, 5))
    expected = torch.randperm(103, generator=generator).tolist()
    assert order(5, 0) == expected[:96] and order(5, 24) == expected[24:96]
    assert order(5, 21) == expected[21 : 21 + 80] and order(5, 96) == [] == order(5, 200)
    assert order(6, 0) != order(5, 0) and {len(sampler) for sampler in samplers} == {96 // processes}
