"""Which classes a process holds, and how all of them come together in one checkpoint and apart again."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from mmengine.dist import get_dist_info
from torch import Tensor, nn

#: Rows sent at once, so that the first process needs little memory beside its own (128 MiB at 512 channels).
ROWS = 65536


@dataclass(frozen=True)
class ClassShard:
    """Rows [class_start, class_start + num_local) of num_classes, as PartialFC shares them out.

    Args:
        num_classes: C, of all processes.
        class_start: First class of this process.
        num_local: Classes of this process.
        whole: Whether there is one process, which holds all.
    """

    num_classes: int
    class_start: int
    num_local: int
    whole: bool

    @classmethod
    def of(cls, num_classes: int, rank: int, world_size: int) -> 'ClassShard':
        """The share of a rank: the first C mod W have one class more than the others."""
        share, more = divmod(num_classes, world_size)
        return cls(num_classes, share * rank + min(rank, more), share + (rank < more), world_size == 1)

    def cut(self, tensor: Tensor) -> Tensor:
        """This process's rows of a tensor of all classes, (C, …) -> (num_local, …)."""
        return tensor[self.class_start : self.class_start + self.num_local]

    def gather(self, tensor: Tensor) -> Tensor | None:
        """All classes' rows on the CPU of the first process, None on the others; all processes call it together.

        Args:
            tensor: Rows of this process, (num_local, …).
        """
        rank, world_size = get_dist_info()
        if rank:
            for part in tensor.detach().split(ROWS) if len(tensor) else ():
                dist.send(part.contiguous(), 0)
            return None
        rows = torch.empty(self.num_classes, *tensor.shape[1:], dtype=tensor.dtype)
        self.cut(rows).copy_(tensor.detach())
        for other in range(1, world_size):
            theirs = ClassShard.of(self.num_classes, other, world_size).cut(rows)
            for part in theirs.split(ROWS) if len(theirs) else ():
                received = torch.empty_like(part, device=tensor.device)
                dist.recv(received, other)
                part.copy_(received)
        return rows


def class_shard(parameter: nn.Parameter) -> ClassShard | None:
    """Which classes a parameter holds the weights of; None where it is no head's class weight."""
    return getattr(parameter, 'class_shard', None)


def rows_of_all(rows: Tensor) -> Tensor:
    """Rows of all processes in the order of ranks, (N, …) -> (W·N, …), without gradient.

    Args:
        rows: As many on each process.
    """
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)
