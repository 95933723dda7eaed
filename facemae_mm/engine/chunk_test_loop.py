"""A test loop whose outputs are the same, bit by bit, whatever the batch size, the workers and the processes."""

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner, TestLoop
from mmpretrain.registry import LOOPS
from mmpretrain.structures import DataSample
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..launch import own_cores
from ..precision import native_bfloat16
from ..randomness import keyed_generators

#: Faces in a chunk: what a core computes fastest, and what keeps a GPU busy.
CPU_CHUNK, GPU_CHUNK = 16, 128


@LOOPS.register_module()
class ChunkTestLoop(TestLoop):
    """Runs the model on chunks of consecutive faces, each padded to one shape and computed by as many threads.

    The bits of a matrix product depend on its shape and on the threads that share it, so neither may follow from how a
    run is laid out. The loader's `batch_size` says how many faces are in flight, as `batch_size // chunk_size` chunks
    at once; processes take chunks in turn. On a CPU, as many chunks are computed at once as it has cores for.

    Hooks see a chunk at a time, in order. `data_batch` has its `inputs` and `data_samples`, both without padding, its
    number, `chunk`, and `notes`: what kept each of its faces from being read, '' where nothing did. Those faces are in
    neither inputs nor outputs. From `before_test_epoch` on, the test loader is one of this process's chunks.

    Args:
        runner: Of the test; its model has `test_step`.
        dataloader: Its dataset, collate_fn, num_workers and batch_size are taken; the order is `order`.
        evaluator: Of no metrics.
        chunk_size: Faces in a chunk; None takes `CPU_CHUNK` or `GPU_CHUNK`.
        threads: Threads that compute a chunk on a CPU.
        precision: 'float32' or 'bfloat16'; None takes bfloat16 where the device multiplies it itself.

    Attributes:
        order: (N,), items of the dataset in the order of the chunks; a hook may set it before the test.
        todo: Numbers of the chunks that all processes together compute; a hook may set it before the test.

    Raises:
        ValueError: chunk_size or threads below 1, another precision, `fp16`, or metrics.
        ChildProcessError: A worker of the loader ended by itself.
        OSError: A disk or a network failed.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        chunk_size: int | None = None,
        threads: int = 1,
        precision: str | None = None,
        fp16: bool = False,
    ) -> None:
        super().__init__(runner, dataloader, evaluator)
        if fp16:
            raise ValueError("ChunkTestLoop: --amp does not say which precision. Set test_cfg.precision='bfloat16'.")
        self.device = next(runner.model.parameters()).device
        chunk_size = chunk_size if chunk_size is not None else CPU_CHUNK if self.device.type == 'cpu' else GPU_CHUNK
        if min(chunk_size, threads) < 1 or precision not in (None, 'float32', 'bfloat16'):
            raise ValueError(
                f'ChunkTestLoop: {chunk_size=}, {threads=}, {precision=}. Numbers are 1 or more, and precision is '
                "'float32', 'bfloat16' or None."
            )
        self.chunk_size = chunk_size
        self.threads = threads
        self.precision = precision or ('bfloat16' if native_bfloat16(self.device) else 'float32')
        self.order = np.arange(len(self.dataloader.dataset))
        self.todo: Sequence[int] = range(-(-len(self.order) // chunk_size))

    def describe(self) -> dict:
        """What the bits of the outputs depend on, apart from model and data."""
        cpu = self.device.type == 'cpu'
        kind = f'CPU {torch.backends.cpu.get_cpu_capability()}' if cpu else torch.cuda.get_device_name(self.device)
        return dict(device=kind, threads=self.threads, precision=self.precision, chunk_size=self.chunk_size)

    def run(self) -> dict:
        """Tests; nothing is measured, as a run may compute a part of the chunks alone."""
        runner, before = self.runner, torch.get_num_threads()
        if self.evaluator.metrics:
            raise ValueError('ChunkTestLoop: an export measures nothing. Leave out --out, and set test_evaluator = [].')
        runner.call_hook('before_test')
        rank, processes = get_dist_info()
        given, self.dataloader = self.dataloader, self._chunk_loader(self.todo[rank::processes])
        runner.call_hook('before_test_epoch')
        runner.model.eval()
        total = len(self.order)
        done = total - sum(min(total - chunk * self.chunk_size, self.chunk_size) for chunk in self.todo)
        try:
            with tqdm(
                total=total, initial=done, desc='reconstructing', unit='face', mininterval=1, disable=rank > 0
            ) as bar:
                in_flight = max(given.batch_size // self.chunk_size, 1)
                for number, (batch, outputs) in enumerate(self._computed(in_flight)):
                    runner.call_hook('after_test_iter', batch_idx=number, data_batch=batch, outputs=outputs)
                    bar.update(min(len(batch['notes']) * processes, total - bar.n))  # all are as far
        except RuntimeError as error:
            if 'DataLoader worker' not in str(error):
                raise
            raise ChildProcessError(
                'A process that reads faces ended by itself: it was killed, ran out of memory or crashed. What is '
                'finished is kept: the same command goes on, with a smaller test_dataloader.num_workers where memory '
                'was short.'
            ) from error
        finally:
            torch.set_num_threads(before)
            self.dataloader = given
        runner.call_hook('after_test_epoch', metrics={})
        runner.call_hook('after_test')
        return {}

    def _chunk_loader(self, chunks: Sequence[int]) -> DataLoader:
        """Reads whole chunks by the workers of the loader that was given."""
        given = self.dataloader
        return DataLoader(
            _Chunks(given.dataset, self.order, chunks, self.chunk_size, given.collate_fn),
            batch_size=None,
            num_workers=given.num_workers,
            worker_init_fn=given.worker_init_fn,
            pin_memory=given.pin_memory,
        )

    def _computed(self, in_flight: int) -> Iterator[tuple[dict, list[DataSample]]]:
        """Batches of the chunk loader and their outputs, in order, a few ahead of what was taken."""
        at_once = in_flight if self.device.type != 'cpu' else max(min(in_flight, own_cores() // self.threads), 1)
        model = self.runner.model.module if is_model_wrapper(self.runner.model) else self.runner.model

        @torch.no_grad()
        def compute(batch: dict | None) -> list[DataSample]:
            if batch is None:
                return []
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == 'bfloat16'):
                return model.test_step(batch)

        def finished(future: Future, chunk: int, batch: dict | None, notes: list[str]) -> tuple[dict, list[DataSample]]:
            read = notes.count('')
            batch = {key: value[:read] for key, value in (batch or dict(inputs=[], data_samples=[])).items()}
            return batch | dict(chunk=chunk, notes=notes), future.result()[:read]

        def begin() -> None:
            torch.set_num_threads(self.threads)
            if self.device.type == 'cuda':  # a new thread's device is the first one, whatever the process's
                torch.cuda.set_device(self.device)

        torch.set_num_threads(self.threads)
        # no more threads than compute: each keeps freed memory of its own
        pool = ThreadPoolExecutor(at_once, initializer=begin)
        ahead: deque = deque()
        try:
            for chunk, batch, notes in self.dataloader:
                if isinstance(batch, OSError):
                    raise batch
                ahead.append((pool.submit(compute, batch), chunk, batch, notes))
                if len(ahead) > in_flight:
                    yield finished(*ahead.popleft())
            while ahead:
                yield finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


class _Chunks(Dataset):
    """Whole chunks as one batch each, filled up to one size; with what kept faces from being read."""

    def __init__(self, faces: Dataset, order: np.ndarray, chunks: Sequence[int], size: int, collate_fn) -> None:
        self.faces = faces
        self.order = order
        self.chunks = chunks
        self.size = size
        self.collate_fn = collate_fn

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[int, dict | OSError | None, list[str]]:
        """A chunk's number, its batch (None where no face of it can be read), and a note for each face.

        What a disk or a network could not do is no fault of a face. It is given in place of the batch, as an error that
        is raised in a worker loses its words.
        """
        chunk = self.chunks[number]
        start = chunk * self.size
        samples, notes = [], []
        for place, item in enumerate(self.order[start : start + self.size].tolist(), start):
            try:
                with keyed_generators('chunk', place):  # a transform may draw, whichever worker it runs in
                    samples.append(self.faces[item])
                notes.append('')
            except ValueError as error:
                notes.append(str(error) or repr(error))
            except OSError as error:
                return chunk, error, []
        if not samples:
            return chunk, None, notes
        filling = [copy.deepcopy(samples[0]) for _ in range(self.size - len(samples))]
        return chunk, self.collate_fn(samples + filling), notes
