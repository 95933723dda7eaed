"""The order of training, from any place in an epoch and for any number of processes."""

from collections.abc import Iterator, Sized

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmpretrain.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from ..randomness import keyed_seed


@DATA_SAMPLERS.register_module()
class ResumableSampler(Sampler):
    """Samples in an order that (seed, epoch) decide, which all processes take turns in, as with `DefaultSampler`.

    So the order does not depend on the number of processes, and to go on in the middle of an epoch is to count. An
    epoch is whole steps of the optimiser: what is left over at its end is not padded but waits for another shuffle.

    Args:
        dataset: The dataset.
        shuffle: A new order in each epoch; else that of the dataset.
        seed: Of the run; `ResumableTrainLoop` sets it. None draws one that all processes share.

    Attributes:
        step: Samples of this process in a step of the optimiser: batch × accumulated batches, set by the loop.
        consumed: Samples of this epoch that all processes together trained on before, set by the loop.

    Raises:
        ValueError: The dataset has not enough samples for a step.
    """

    def __init__(self, dataset: Sized, shuffle: bool = True, seed: int | None = None) -> None:
        self.rank, self.processes = get_dist_info()
        self.dataset = dataset
        self.shuffle = shuffle
        self.seed = sync_random_seed() if seed is None else seed
        self.epoch = 0
        self.step = 1
        self.consumed = 0

    def set_epoch(self, epoch: int) -> None:
        """For MMEngine's DistSamplerSeedHook."""
        self.epoch = epoch

    def remaining(self, consumed: int) -> int:
        """Samples of this process in the rest of an epoch of which all processes have `consumed`."""
        steps = max(len(self.dataset) - consumed, 0) // (self.step * self.processes)
        return steps * self.step

    def __len__(self) -> int:
        """Samples of this process in a whole epoch, wherever it goes on from: schedules count by it."""
        length = self.remaining(0)
        if not length:
            raise ValueError(
                f'ResumableSampler: {len(self.dataset)} samples are less than the {self.step} × {self.processes} '
                'processes of one step (batch × accumulated batches × processes). Lower the batch size.'
            )
        return length

    def __iter__(self) -> Iterator[int]:
        """Indices of this process from `consumed` on."""
        order = torch.arange(len(self.dataset))
        if self.shuffle:
            generator = torch.Generator().manual_seed(keyed_seed('order', self.seed, self.epoch))
            order = torch.randperm(len(self.dataset), generator=generator)
        own = order[self.consumed + self.rank :: self.processes][: self.remaining(self.consumed)]
        return map(int, own.numpy())
