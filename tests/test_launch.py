"""Process groups on CPU, refusals, and the effective batch."""

import signal
import socket
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from mmengine.config import Config
from tiny import SMALL_FACEMAE, small_recipe, write_faces

from facemae_mm import launch, memory
from facemae_mm.launch import init_distributed, print_effective_batch, process_numbers, start

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason='what CPU processes do')


def torchrun(monkeypatch, rank, processes, port):
    names = dict(RANK=rank, WORLD_SIZE=processes, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=processes, MASTER_PORT=port)
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv('MASTER_ADDR', '127.0.0.1')


@pytest.fixture
def port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def test_process_numbers(monkeypatch):
    assert process_numbers('none') == (0, 1, 0, 1)
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(RuntimeError, match='RANK.* not set'):
        process_numbers('pytorch')
    torchrun(monkeypatch, 5, 8, 1)
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert process_numbers('pytorch') == (5, 8, 1, 4)
    for name, value in (('PROCID', 3), ('NTASKS', 6), ('LOCALID', 3)):
        monkeypatch.setenv(f'SLURM_{name}', str(value))
    monkeypatch.delenv('SLURM_NTASKS_PER_NODE', raising=False)
    assert process_numbers('slurm') == (3, 6, 3, 6)


def meet(rank, port, queue):
    with pytest.MonkeyPatch.context() as patch:
        torchrun(patch, rank, 2, port)
        cfg = Config(dict(find_unused_parameters=True, env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=60))))
        init_distributed(cfg, 'pytorch')
        total = torch.tensor(rank + 1)
        dist.all_reduce(total)
        queue.put((dist.get_backend(), int(total), torch.get_num_threads(), dict(cfg.model_wrapper_cfg)))
        dist.destroy_process_group()


def test_processes_without_a_gpu_meet_by_gloo_and_share_the_cores(port, monkeypatch):
    queue = mp.get_context('spawn').SimpleQueue()
    mp.spawn(meet, (port, queue), nprocs=2)
    wrapper = dict(
        type='MMDistributedDataParallel', broadcast_buffers=False, find_unused_parameters=True, device_ids=None
    )
    threads = max(memory._cores() // 2, 1)
    assert [queue.get() for _ in range(2)] == [('gloo', 3, threads, wrapper)] * 2


@pytest.mark.parametrize(('end', 'met'), [('sys.exit(2)', False), ("raise RuntimeError('uncaught')", True)])
def test_the_group_ends_before_python_does(port, end, met):
    """Threads that gloo has left would abort a late exit; an uncaught error may leave an exchange to wait for."""
    script = f"""
import atexit, os, sys
import torch.distributed as dist
from facemae_mm.launch import start_processes
os.environ.update(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_PORT='{port}', CUDA_VISIBLE_DEVICES='-1')
atexit.register(lambda: print('met:', dist.is_initialized()))
start_processes('pytorch')
dist.barrier()
{end}
"""
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, timeout=300)
    assert f'met: {met}' in done.stdout and done.returncode == (1 if met else 2), done.stderr


def test_a_single_process_needs_no_group():
    cfg = Config(dict())
    init_distributed(cfg, 'none')
    assert not dist.is_initialized() and 'model_wrapper_cfg' not in cfg


def test_several_machines_need_a_place_to_meet(monkeypatch):
    torchrun(monkeypatch, 0, 8, 1)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    monkeypatch.delenv('MASTER_ADDR')
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)
    with pytest.raises(RuntimeError, match='Set MASTER_ADDR'):
        init_distributed(Config(dict()), 'pytorch')


def test_more_processes_than_gpus(monkeypatch):
    torchrun(monkeypatch, 0, 8, 1)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    with pytest.raises(RuntimeError, match='8 processes .* 4 GPU'):
        init_distributed(Config(dict()), 'pytorch')


def begin(rank, port, cfg, log):
    """Starts a training on a machine with 100 MiB; the exit code is the process's."""
    memory.available_memory = lambda: 100 * 2**20
    launch.PATIENCE = 0.5
    sys.stderr = open(f'{log}.{rank}', 'w')
    with pytest.MonkeyPatch.context() as patch:
        torchrun(patch, rank, 2, port)
        start(cfg, 'pytorch')


def test_a_training_that_does_not_fit_ends_all_processes_with_code_2(repository, tmp_path, port):
    (tmp_path / 'phi.pth').touch()
    options = dict(train_faces=str(write_faces(tmp_path / 'faces', 1, 1)), phi_weights=str(tmp_path / 'phi.pth'))
    cfg = small_recipe(repository, 'facemae_vitb_webface', **SMALL_FACEMAE | options)
    context = mp.get_context('spawn')
    processes = [context.Process(target=begin, args=(rank, port, cfg, tmp_path / 'log')) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [2, 2]
    said = [(tmp_path / f'log.{rank}').read_text() for rank in range(2)]
    assert said[0].count('GiB of memory') == 1 and 'GiB' not in said[1]


def test_missing_inputs_end_the_run_before_any_group(repository, capsys, monkeypatch):
    torchrun(monkeypatch, 0, 2, 1)
    cfg = small_recipe(repository, 'facemae_vitb_webface', train_faces='nowhere.rec')
    with pytest.raises(SystemExit) as caught:
        start(cfg, 'pytorch')
    assert caught.value.code == 2 and not dist.is_initialized()
    assert capsys.readouterr().err.count('nowhere.rec') == 1


def test_another_process_keeps_silent_until_the_launcher_ends_it():
    code = "from facemae_mm.launch import refuse; print('ready', flush=True); refuse('why', local_rank=1)"
    process = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'ready\n'
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 2 and 'why' not in process.stderr.read()


@pytest.fixture
def log(monkeypatch):
    lines = []
    monkeypatch.setattr(launch, 'print_log', lambda line, **_: lines.append(line))
    return lines


def test_the_papers_effective_batch(repository, log):
    print_effective_batch(small_recipe(repository, 'facemae_vitb_webface'), 8)
    assert log[0] == (
        'Effective batch: 256 × 8 processes × 1 accumulated = 2048; lr 0.0012, with --auto-scale-lr 0.0012 (base 2048).'
    )
    assert 'β = 1 over N = 256 faces' in log[1] and len(log) == 2


def test_a_smaller_batch_with_accumulation(repository, log):
    options = {'train_dataloader.batch_size': 64, 'optim_wrapper.accumulative_counts': 4}
    cfg = small_recipe(repository, 'facemae_vitb_webface', **options)
    cfg.auto_scale_lr.enable = True
    print_effective_batch(cfg, 2)
    assert '64 × 2 processes × 4 accumulated = 512' in log[0] and 'scaled to 7.5e-05 (base 2048)' in log[0]
    assert '(0.0003 would)' in log[0]
    assert "the paper's β = 1 over 256 is 2 over 64" in log[1]
    assert 'within 64 faces' in log[2]
