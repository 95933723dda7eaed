"""Starting a run: processes on GPUs or CPUs, what to refuse before anything is built, the effective batch."""

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.logging import print_log

from .config import TRAIN_PARTS, check_inputs
from .memory import check_memory, reuse_freed_memory

#: Exit code of a run that was refused before it began.
REFUSED = 2

#: How long another process waits for the first one to say why, seconds.
PATIENCE = 20

#: Where each launcher says rank, number of processes, rank on this machine and processes on this machine.
LAUNCHERS = dict(
    pytorch=('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_NTASKS_PER_NODE'),
    mpi=(
        'OMPI_COMM_WORLD_RANK',
        'OMPI_COMM_WORLD_SIZE',
        'OMPI_COMM_WORLD_LOCAL_RANK',
        'OMPI_COMM_WORLD_LOCAL_SIZE',
    ),
)


def process_numbers(launcher: str) -> tuple[int, int, int, int]:
    """Rank, processes, rank on this machine and processes on this machine, before any process group exists.

    Args:
        launcher: 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        RuntimeError: The launcher did not start this process.
    """
    if launcher == 'none':
        return 0, 1, 0, 1
    names = LAUNCHERS[launcher]
    missing = [name for name in names[:3] if name not in os.environ]
    if missing:
        raise RuntimeError(
            f'--launcher {launcher}: {", ".join(missing)} is not set. Start tools/dist_train.sh (or '
            'tools/slurm_train.sh), or leave --launcher out for a single process.'
        )
    rank, processes, local_rank = (int(os.environ[name]) for name in names[:3])
    return rank, processes, local_rank, int(os.environ.get(names[3], processes))


def start(config: Config, launcher: str, parts: Sequence[str] = TRAIN_PARTS, check_only: bool = False) -> None:
    """Checks a run and starts its process group; ends every process with exit code 2 where the run is refused.

    Refused are missing inputs, before any process group, and a training on CPU that needs more memory than there is,
    before any model. The first process of each machine says why, to stderr.

    Args:
        config: Recipe, options and flags applied; gets what CPU processes need.
        launcher: As for `process_numbers`.
        parts: Keys of the recipe that the run reads.
        check_only: End with exit code 0 once the inputs are found.
    """
    _, _, local_rank, local_processes = process_numbers(launcher)
    try:
        check_inputs(config, parts)
    except FileNotFoundError as error:
        refuse(str(error), local_rank)
    if check_only:
        sys.exit(0)
    init_distributed(config, launcher)
    if torch.cuda.is_available() or 'train_dataloader' not in parts:
        return
    reasons = [_memory_shortage(config, local_processes) if local_rank == 0 else None]
    if dist.is_initialized():
        own, reasons = reasons[0], [None] * dist.get_world_size()
        dist.all_gather_object(reasons, own)
    reason = next((reason for reason in reasons if reason), None)
    if reason:
        refuse(reason, local_rank)


def own_cores() -> int:
    """Processor cores for this process, where those of one machine share them."""
    return max(len(os.sched_getaffinity(0)) // int(os.environ.get('LOCAL_WORLD_SIZE', 1)), 1)


def refuse(message: str, local_rank: int = 0) -> NoReturn:
    """Ends this process with exit code 2; the first one on each machine says why.

    The others wait for a launcher that ends them when the first one has spoken, and not before.
    """
    if local_rank == 0:
        print(message, file=sys.stderr, flush=True)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(REFUSED))
        time.sleep(PATIENCE)
    sys.exit(REFUSED)


def init_distributed(config: Config, launcher: str) -> None:
    """Makes the recipe run on what this machine has.

    With CUDA nothing is done: the Runner starts NCCL as ever. Without, the processes meet by gloo and share the cores,
    and the model is wrapped without device ids, which DDP refuses for modules on CPU.

    Args:
        config: Recipe; `model_wrapper_cfg` is set where there is no GPU.
        launcher: As for `process_numbers`.

    Raises:
        RuntimeError: More processes on this machine than GPUs, or several machines without MASTER_ADDR.
    """
    rank, processes, local_rank, local_processes = process_numbers(launcher)
    os.environ['LOCAL_RANK'] = str(local_rank)  # the Runner reads it whatever the launcher
    if launcher == 'none':
        return
    if torch.cuda.is_available():
        if local_processes > torch.cuda.device_count():
            raise RuntimeError(
                f'{local_processes} processes were started on a machine with {torch.cuda.device_count()} GPU(s). '
                'Start one a GPU, or hide the GPUs (CUDA_VISIBLE_DEVICES=-1) to train on CPUs.'
            )
        return
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // local_processes, 1))
    if not dist.is_initialized():
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes))
        if processes > local_processes and 'MASTER_ADDR' not in os.environ:
            raise RuntimeError(
                f'{processes} processes on several machines have no place to meet. Set MASTER_ADDR to the name of the '
                'first machine, and MASTER_PORT to a free port there.'
            )
        os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
        os.environ.setdefault('MASTER_PORT', '29500')
        seconds = config.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
        dist.init_process_group('gloo', timeout=timedelta(seconds=seconds))
        atexit.register(_leave_processes)
    config.model_wrapper_cfg = dict(
        dict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            # False lets DDP sort its buckets anew after the first step of a process; from three processes on, gloo then
            # adds in another order, and a resumed run would differ in its last bits from one that was not stopped.
            find_unused_parameters=config.get('find_unused_parameters', processes > 2),
        ),
        **(config.get('model_wrapper_cfg') or {}),
        device_ids=None,
    )


def _leave_processes() -> None:
    """Ends gloo's threads while Python still runs.

    One that lets go of the last exchange's tensors later aborts the exit (signal 6), which the launcher takes for a
    failure. After an uncaught error an exchange may be under way, for which this would wait.
    """
    if dist.is_initialized() and not hasattr(sys, 'last_value'):
        dist.destroy_process_group()


def start_processes(launcher: str, timeout: int = 1800) -> torch.device:
    """Meets the other processes of a tool that runs without a recipe; the device of this one.

    Args:
        launcher: As for `process_numbers`.
        timeout: How long a process waits for the others, seconds.
    """
    init_distributed(Config(dict(env_cfg=dict(dist_cfg=dict(timeout=timeout)))), launcher)
    if not torch.cuda.is_available():
        return torch.device('cpu')
    if launcher != 'none':
        init_dist(launcher, timeout=timeout)
    return torch.device('cuda', process_numbers(launcher)[2])


def print_effective_batch(config: Config, processes: int) -> None:
    """Logs what one step of the optimiser sees, the learning rate, and over how many faces relations are taken.

    Args:
        config: Recipe, options and flags applied.
        processes: On all machines.
    """
    batch = config.train_dataloader.batch_size
    steps = config.optim_wrapper.get('accumulative_counts', 1)
    rate = config.optim_wrapper.optimizer.lr
    line = (
        f'Effective batch: {batch} × {processes} processes × {steps} accumulated = '
        f'{batch * processes * steps}; lr {rate:.4g}'
    )
    scaling = config.get('auto_scale_lr') or {}
    if base := scaling.get('base_batch_size'):
        scaled = rate * batch * processes / base  # MMEngine's rule, which leaves accumulation out
        verb = 'scaled to' if scaling.get('enable') else 'with --auto-scale-lr'
        line += f', {verb} {scaled:.4g} (base {base})'
        if steps > 1:
            line += f', which does not count accumulation ({scaled * steps:.4g} would)'
    print_log(f'{line}.', logger='current')

    loss = config.model.get('head', {}).get('loss', {})
    beta = loss.get('beta', 1.0)
    if loss.get('type') != 'IRMLoss' or not beta:
        return
    rows = batch * processes if loss.get('gather') else batch
    print_log(
        f"Relation matching: β = {beta:.4g} over N = {rows} faces; the paper's β = 1 over 256 is "
        f'{(256 / rows) ** 0.5:.4g} over {rows}.',
        logger='current',
    )
    if steps > 1:
        print_log(
            f'Relations stay within {rows} faces; accumulating {steps} times does not make them '
            f'relations within {rows * steps}.',
            logger='current',
            level=logging.WARNING,
        )


def _memory_shortage(config: Config, processes: int) -> str | None:
    """Why a training does not fit, or None; one that cannot be estimated is let through, one with room gets faster."""
    try:
        if check_memory(config, processes) and processes == 1:
            reuse_freed_memory()
    except MemoryError as error:
        return str(error)
    except Exception as error:
        print_log(
            f'Memory not estimated, as {config.model.type} does not run on shapes: {error!r}',
            logger='current',
            level=logging.WARNING,
        )
    return None
