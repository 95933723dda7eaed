"""Whether a training fits a machine without a GPU, before its model is built."""

import ctypes
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from mmengine.config import Config

from .on_shapes import ModelOnShapes

#: What a process takes of its own beside model and activations: 600 MiB at rest, the rest passing buffers (measured).
PROCESS_BYTES = 1000 * 2**20

#: What each worker of its loader takes (measured).
WORKER_BYTES = 64 * 2**20

#: Tensors of a parameter's size that an optimiser keeps; 2 where it is not named here.
MOMENTS = dict(SGD=1, RMSprop=1, Lion=1)

#: Share of the memory that a training may fill.
SHARE = 0.95

#: Of glibc's mallopt: memory at the top that is kept, and how many requests are mapped on their own.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4

#: How much more memory `reuse_freed_memory` may take: gaps between what is kept (measured: 1.4 times).
REUSE = 1.6


def reuse_freed_memory() -> None:
    """Makes this process keep what it frees for its next request, where the C library is glibc.

    By default glibc maps each activation above 32 MiB anew and returns it when it is freed: in every step the kernel
    zeroes the same pages again, a fifth of a step of IResNet-18. The price is memory lost in gaps.
    """
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


@dataclass
class MemoryEstimate:
    """Peak memory of a training on CPU.

    Attributes:
        batch_size: Samples of a process.
        processes: On this machine.
        fixed: Bytes of a process whatever its batch, gradients apart: itself, its loader's workers, weights, moments,
            and what the forward pass keeps for backward besides the samples' share.
        gradients: Bytes of the gradients of one process.
        per_sample: Bytes that the forward pass keeps for backward for each sample.
    """

    batch_size: int
    processes: int
    fixed: int
    gradients: int
    per_sample: int

    @property
    def total(self) -> int:
        """Bytes of all processes: gradients grow while what was kept shrinks, so the larger of the two counts."""
        activations = self.batch_size * self.per_sample
        return self.processes * (self.fixed + max(self.gradients, activations))

    def largest_batch(self, available: int) -> int:
        """Samples of a process that fit into `available` bytes, a multiple of 8 above 8; 0 where none does."""
        room = available // self.processes - self.fixed
        if room < self.gradients:
            return 0
        largest = min(self.batch_size, room // self.per_sample)
        return largest - largest % 8 if largest > 8 else largest


def estimate_memory(config: Config, processes: int = 1) -> MemoryEstimate:
    """Estimates the peak memory of a training on CPU from shapes alone; no weights are made or read.

    The model of the recipe is built of fake tensors and runs forward with two samples and with three; what autograd
    keeps, each storage once, differs by the share of one sample.

    Args:
        config: Recipe, options applied.
        processes: On this machine.

    Raises:
        Exception: Whatever a model raises that cannot run on shapes.
    """
    shapes = ModelOnShapes(config)
    two, three = (_kept_for_backward(shapes, samples) for samples in (2, 3))
    per_sample = max(three - two, 1)

    weights = sum(p.numel() * p.element_size() for p in shapes.model.parameters())
    trained = sum(p.numel() * p.element_size() for p in shapes.model.parameters() if p.requires_grad)
    moments = MOMENTS.get(config.optim_wrapper.optimizer.type, 2)
    buckets = 1 if processes > 1 else 0  # DDP reduces gradients in buffers of its own
    loader = config.train_dataloader
    return MemoryEstimate(
        batch_size=loader.batch_size,
        processes=processes,
        fixed=PROCESS_BYTES
        + loader.get('num_workers', 0) * WORKER_BYTES
        + weights
        + trained * (moments + buckets)
        + max(two - 2 * per_sample, 0),
        gradients=trained,
        per_sample=per_sample,
    )


def check_memory(config: Config, processes: int = 1) -> bool:
    """Compares the estimate with this machine's memory.

    Args:
        config: Recipe, options applied.
        processes: On this machine, all of them started.

    Returns:
        Whether there is room for `reuse_freed_memory` too.

    Raises:
        MemoryError: The training does not fit; with the figures and a `--cfg-options` line that fits.
    """
    estimate = estimate_memory(config, processes)
    held = processes * min(_own_bytes(), PROCESS_BYTES)  # in use already, and part of the estimate
    available = int(SHARE * (available_memory() + held))
    if estimate.total <= available:
        return REUSE * estimate.total <= available
    message = (
        f'{processes} processes with a batch of {estimate.batch_size} each need about {_gib(estimate.total)} '
        f'of memory; this machine has {_gib(available)} for them. '
    )
    options = []
    workers = config.train_dataloader.get('num_workers', 0)
    useful = min(workers, _cores() // processes)
    if useful < workers:
        options.append(f'train_dataloader.num_workers={useful}')
        estimate = replace(estimate, fixed=estimate.fixed - (workers - useful) * WORKER_BYTES)
    fits = estimate.largest_batch(available)
    if fits < 2:  # relation matching needs two faces
        most = max(available // replace(estimate, batch_size=2, processes=1).total, 0)
        remedy = f'start {most} at most' if most else 'choose a smaller model'
        raise MemoryError(f'{message}Not even a batch of 2 fits: {remedy}.')
    if fits < estimate.batch_size:
        steps = math.ceil(estimate.batch_size / fits)
        steps *= config.optim_wrapper.get('accumulative_counts', 1)  # the effective batch stays
        options.append(f'train_dataloader.batch_size={fits} optim_wrapper.accumulative_counts={steps}')
    raise MemoryError(f'{message}This fits: --cfg-options {" ".join(options)}')


def available_memory() -> int:
    """Bytes that new processes can take: what the kernel calls available, or less where a control group limits it."""
    meminfo = dict(re.findall(r'^(\w+):\s+(\d+) kB', Path('/proc/meminfo').read_text(), re.MULTILINE))
    return min([int(meminfo['MemAvailable']) * 1024, *_control_group_rooms()])


def _control_group_rooms(own: Path = Path('/proc/self/cgroup'), root: Path = Path('/sys/fs/cgroup')) -> Iterator[int]:
    """Bytes left in each control group that this process is in, versions 1 and 2."""
    for line in own.read_text().splitlines():
        _, controllers, path = line.split(':', 2)
        if controllers == '':
            top, limit_file, used_file = root, 'memory.max', 'memory.current'
        elif controllers == 'memory':
            top, limit_file, used_file = root / 'memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes'
        else:
            continue
        group = top / path.lstrip('/')
        for folder in (group, *group.parents):
            if not folder.is_relative_to(top):
                break
            try:
                limit = int((folder / limit_file).read_text())
                used = int((folder / used_file).read_text())
                statistics = (folder / 'memory.stat').read_text()
            except (OSError, ValueError):  # no such file here, or the limit is 'max'
                continue
            cache = re.search(r'^(?:total_)?inactive_file (\d+)', statistics, re.MULTILINE)
            yield max(limit - used + (int(cache[1]) if cache else 0), 0)


def _own_bytes() -> int:
    """Bytes that this process holds and shares with no other."""
    resident, shared = Path('/proc/self/statm').read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf('SC_PAGE_SIZE')


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _gib(size: int) -> str:
    return f'{size / 2**30:.1f} GiB'


def _kept_for_backward(shapes: ModelOnShapes, samples: int) -> int:
    """Bytes that autograd keeps in one forward pass with `samples` samples, parameters of the model apart."""
    own = {p.untyped_storage()._cdata for p in shapes.model.parameters()}
    kept = {}  # holds the storages, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    with shapes.running(samples) as (images, data_samples):
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = shapes.model(images, data_samples, mode='loss')
    del loss
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)
