"""Runs a test's function in several processes that meet by gloo, without importing everything in each anew."""

import multiprocessing
import os
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

#: The forkserver imports this once; every process is a copy of it.
PRELOAD = ['facemae_mm', 'torch.distributed.fsdp']


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def spawn(function, processes, *args):
    """Calls `function(*args)` in every rank; a failure in one fails the test."""
    multiprocessing.set_forkserver_preload(PRELOAD)
    mp.start_processes(_in_group, (processes, free_port(), function, args), nprocs=processes, start_method='forkserver')


def _in_group(rank, processes, port, function, args):
    torch.set_num_threads(1)
    numbers = dict(RANK=rank, WORLD_SIZE=processes, LOCAL_RANK=rank, LOCAL_WORLD_SIZE=processes)
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    dist.init_process_group('gloo', rank=rank, world_size=processes)
    try:
        function(*args)
    finally:
        dist.destroy_process_group()
