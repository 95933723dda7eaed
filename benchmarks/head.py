"""Margin heads: forward and backward of a batch of embeddings, against the peers, and a recogniser's whole step.

dense: `ArcFaceHead` at the classes of CASIA-WebFace against MMPretrain's `ArcFaceClsHead`, float32 products on both
sides. sharded: `PartialFCHead` in one process against a plain reading of PartialFC V2, with the step of torch's SGD on
both sides, which moves unsampled rows too; then ours with torch's fused SGD and with `RowSparseSGD`, which leaves them.
recogniser: see recogniser_step.py.
"""

import argparse
import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from mmpretrain.models.heads import ArcFaceClsHead
from mmpretrain.structures import DataSample
from recogniser_step import compare_accuracy, compare_steps
from side_by_side import peak_mib, print_ratio
from torch import Tensor, nn
from train_step import set_up

from facemae_mm.engine import RowSparseSGD
from facemae_mm.models import ArcFaceHead, PartialFCHead
from facemae_mm.precision import native_bfloat16

CHANNELS = 512


class DistributedCrossEntropy(torch.autograd.Function):
    """Softmax and cross-entropy in place, as PartialFC has it; one process, so nothing is reduced."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor) -> Tensor:
        logits.sub_(logits.max(dim=1, keepdim=True)[0]).exp_()
        logits.div_(logits.sum(dim=1, keepdim=True))
        ctx.save_for_backward(logits, labels)
        return logits.gather(1, labels[:, None]).clamp_min(1e-30).log().mean() * -1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        one_hot = torch.zeros_like(logits).scatter_(1, labels[:, None], 1)
        return logits.sub_(one_hot).div_(len(logits)) * gradient, None


class PlainPartialFC(nn.Module):
    """PartialFC V2 as `arcface_torch` describes it, in one process."""

    def __init__(self, num_classes: int, sample_rate: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.normal(0, 0.01, (num_classes, CHANNELS)))
        self.num_sample = int(sample_rate * num_classes)

    def forward(self, embedding: Tensor, labels: Tensor) -> Tensor:
        """Scalar."""
        with torch.no_grad():
            positive = labels.unique()
            random = torch.rand(len(self.weight))
            random[positive] = 2.0
            rows = torch.topk(random, k=self.num_sample)[1].sort()[0]
            labels = torch.searchsorted(rows, labels)
        logits = F.linear(F.normalize(embedding), F.normalize(self.weight[rows])).clamp(-1, 1)
        with torch.no_grad():
            target = logits.gather(1, labels[:, None]).arccos_().add_(0.5)
            logits.scatter_(1, labels[:, None], target.cos_())
        return DistributedCrossEntropy.apply(logits * 64.0, labels)


def batch(size: int, classes: int) -> tuple[Tensor, list[DataSample]]:
    """Embeddings (N, D) that want a gradient, and labelled samples."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (size,), generator=generator).tolist()
    embedding = torch.randn(size, CHANNELS, generator=generator).requires_grad_()
    return embedding, [DataSample().set_gt_label(label) for label in labels]


def dense_step(kind: str, classes: int, size: int, precision: str = 'float32') -> Callable[[], float]:
    """A function that goes forward and backward once and returns its seconds."""
    torch.manual_seed(0)
    head = ArcFaceHead(classes, CHANNELS, precision=precision) if kind == 'ours' else ArcFaceClsHead(classes, CHANNELS)
    embedding, samples = batch(size, classes)

    def step() -> float:
        head.zero_grad()
        embedding.grad = None
        start = time.perf_counter()
        head.loss((embedding,), samples)['loss'].backward()
        return time.perf_counter() - start

    return step


def sharded_step(kind: str, classes: int, size: int, rate: float, optimizer: str = 'plain') -> Callable[[], float]:
    """The same with the optimiser's step; `step.optimizer_seconds` is the share of that."""
    torch.manual_seed(0)
    sparse = optimizer == 'sparse'
    head = (
        PartialFCHead(classes, CHANNELS, sample_rate=rate, sparse=sparse)
        if kind == 'ours'
        else PlainPartialFC(classes, rate)
    )
    kwargs = dict(lr=0.1, momentum=0.9, weight_decay=5e-4)
    sgd = (
        RowSparseSGD(head.parameters(), **kwargs)
        if sparse
        else torch.optim.SGD(head.parameters(), **kwargs, **(dict(fused=True) if optimizer == 'fused' else {}))
    )
    embedding, samples = batch(size, classes)
    labels = torch.tensor([int(sample.gt_label) for sample in samples])

    def step() -> float:
        sgd.zero_grad()
        embedding.grad = None
        start = time.perf_counter()
        loss = head.loss((embedding,), samples)['loss'] if kind == 'ours' else head(embedding, labels)
        loss.backward()
        middle = time.perf_counter()
        sgd.step()
        end = time.perf_counter()
        step.optimizer_seconds = end - middle
        return end - start

    return step


def memory(function: str, *args: object) -> float:
    """Peak of three rounds in a process of its own, MiB."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import head
step = head.{function}(*{args!r})
step(), step(), step()
"""
    return peak_mib(code)


def compare_dense(classes: int, size: int, rounds: int) -> list[str]:
    """Time and memory against `ArcFaceClsHead`, and the three matrix products alone."""
    ours, peer = (dense_step(kind, classes, size) for kind in ('ours', 'peer'))
    lines = [print_ratio('dense_time', ours, peer, rounds, digits=3)]
    a, w, out = torch.randn(size, CHANNELS), torch.randn(classes, CHANNELS), torch.empty(size, classes)

    def products() -> float:
        start = time.perf_counter()
        torch.mm(a, w.T, out=out)
        out @ w, out.T @ a
        return time.perf_counter() - start

    print_ratio('  its three products alone', products, peer, rounds, digits=3)
    if native_bfloat16('cpu'):
        half = dense_step('ours', classes, size, 'bfloat16')
        print_ratio('  with products in bfloat16', half, peer, rounds, digits=3)
    else:
        print('  with products in bfloat16: not run, this processor multiplies none')
    peaks = [memory('dense_step', kind, classes, size) for kind in ('ours', 'peer')]
    nothing = peak_mib(f'import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nimport head')
    net = [peak - nothing for peak in peaks]
    print(
        '  peak memory: ours {:,.0f} MiB, peer {:,.0f} MiB, over the {:,.0f} MiB that a process holds which only '
        'imported both'.format(*net, nothing)
    )
    return [*lines, f'ratio dense_memory {net[0] / net[1]:.3f}']


def compare_sharded(classes: int, size: int, rate: float, rounds: int) -> list[str]:
    """Time and memory of a step against the plain reading, and what unsampled rows cost."""
    ours, peer = (sharded_step(kind, classes, size, rate) for kind in ('ours', 'peer'))
    lines = [print_ratio('sharded_time', ours, peer, rounds, digits=2)]
    print(f'  of which the optimiser: ours {ours.optimizer_seconds:.2f} s, peer {peer.optimizer_seconds:.2f} s')
    del ours, peer
    gc.collect()  # a step refers to itself
    for optimizer in ('fused', 'sparse'):
        step = sharded_step('ours', classes, size, rate, optimizer)
        step(), step()
        seconds = min(step() for _ in range(max(rounds, 3)))
        print(f'  ours with {optimizer} SGD: {seconds:.2f} s, of which the optimiser {step.optimizer_seconds:.2f} s')
        del step
        gc.collect()
    peaks = [memory('sharded_step', kind, classes, size, rate) for kind in ('ours', 'peer')]
    more = [memory('sharded_step', 'ours', classes, size, rate, optimizer) for optimizer in ('fused', 'sparse')]
    print('  peak memory: ours {:,.0f} MiB, peer {:,.0f} MiB'.format(*peaks))
    print('  ours with fused SGD {:,.0f} MiB, with sparse SGD {:,.0f} MiB'.format(*more), flush=True)
    return [*lines, f'ratio sharded_memory {peaks[0] / peaks[1]:.3f}']


def growth(size: int, rate: float) -> None:
    """Seconds of a step with more classes, a larger batch, more processes."""
    print('seconds, forward and backward                  ours    peer   ratio')
    rows = [('dense', classes, size) for classes in (10_000, 100_000)]
    rows += [('dense', 10_000, more) for more in (size // 4, size * 4)]
    rows += [('sharded', classes, size) for classes in (10_000, 100_000, 1_000_000)]
    for name, classes, many in rows:
        seconds = []
        for kind in ('ours', 'peer'):
            step = dense_step(kind, classes, many) if name == 'dense' else sharded_step(kind, classes, many, rate)
            step()
            seconds.append(min(step() for _ in range(3)))
        title = f'{name}, {classes:,} classes, batch {many}'
        print(f'{title:45} {seconds[0]:6.3f}  {seconds[1]:6.3f}  {seconds[0] / seconds[1]:6.2f}', flush=True)
    print('seconds, sharded over processes that share the cores, 100,000 classes, whole batch', size)
    for processes in (1, 2, 4):
        mp.spawn(in_group, (processes, 100_000, size // processes, rate), nprocs=processes)


def in_group(rank: int, processes: int, classes: int, size: int, rate: float) -> None:
    """Runs one process of a sharded step; the first prints the seconds."""
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT='29631')
    set_up()
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // processes, 1))
    dist.init_process_group('gloo', rank=rank, world_size=processes)
    step = sharded_step('ours', classes, size, rate)
    step()
    seconds = min(step() for _ in range(3))
    if rank == 0:
        print(f'  {processes} processes: {seconds:.3f}', flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Runs the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--batch', type=int, default=512, help='embeddings (default: %(default)s)')
    parser.add_argument('--classes', type=int, default=10_572, help='of the dense head (default: %(default)s)')
    parser.add_argument('--sharded-classes', type=int, default=1_000_000, help='(default: %(default)s)')
    parser.add_argument('--sample-rate', type=float, default=0.1, help='of the sharded head (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=5, help='of each side, at least 3 (default: %(default)s)')
    parser.add_argument('--heads-only', action='store_true', help='without the recogniser')
    parser.add_argument('--full', action='store_true', help='also how time grows with classes, batch and processes')
    args = parser.parse_args()
    set_up()
    print(f'{torch.get_num_threads()} threads')
    lines = compare_dense(args.classes, args.batch, args.rounds)
    lines += compare_sharded(args.sharded_classes, args.batch, args.sample_rate, args.rounds)
    if not args.heads_only:
        lines += compare_steps(args.rounds)
        compare_accuracy()
    if args.full:
        growth(args.batch, args.sample_rate)
    print('\n'.join(lines))


if __name__ == '__main__':
    main()
