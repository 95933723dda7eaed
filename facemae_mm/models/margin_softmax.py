"""Cross-entropy over class cosines with a margin on the target, block by block of classes."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from .class_shard import rows_of_all

#: Logits that are worked on at once: on a CPU so few that they stay in its cache (2 MiB).
BLOCK = dict(cpu=2**19, cuda=2**26)

#: Largest s. Up to 64 every exp(s·cos) is a normal float32; up to 100 only those that are 10⁻³⁸ of the sum vanish
#: wherever a class but the own one has a cosine above −0.5.
MAX_SCALE = 100.0


def margin_softmax(
    embedding: Tensor,
    weight: Tensor,
    labels: Tensor,
    margin: nn.Module,
    s: float,
    *,
    rows: Tensor | None = None,
    exact: bool = False,
    threshold: float = 0.0,
    precision: torch.dtype = torch.float32,
    sharded: bool = False,
    sparse: bool = False,
) -> Tensor:
    r"""Mean over N of :math:`-\log(e^{s m(c_y)} / (e^{s m(c_y)} + \sum_{j \ne y} e^{s c_j}))`, c being cosines.

    Only exp(s·c) is kept for the gradient. The logits of a row need no maximum taken off, since s·c is bounded, and the
    target stays out of the sum, so 1 − p is exact however close p is to 1. The gradient cannot be differentiated again.

    Args:
        embedding: Of this process, (N, D) float32 or float64; not normalised.
        weight: Of the classes of this process, (C, D); not normalised.
        labels: Row of `weight` that is each embedding's own class, −1 where another process has it, int64, (N,); of all
            processes' embeddings in the order of ranks where classes are sharded, (W·N,).
        margin: m above: cosines and norms (N,) -> (N,); see `CombinedMargin`.
        s: Scale, at most `MAX_SCALE`.
        rows: Classes to take into the sum, sorted, the own ones among them, (S,); None takes all.
        exact: Differentiate the margin; otherwise dL/dc = s·(p − y), as `arcface_torch`.
        threshold: Where positive, other classes with a cosine above it count as cosine 0, without gradient.
        precision: Of the factors of products; all else keeps the embedding's.
        sharded: Sum over the processes of the default group; the loss is the same on all, the gradient of `weight` the
            whole one, and that of `embedding` W times it, of which DDP takes the mean.
        sparse: Give the gradient of `weight` as a sparse tensor of `rows`, not with zeros elsewhere.

    Returns:
        Scalar.
    """
    options = (rows, margin, s, exact, threshold, precision, sharded, sparse)
    return _MarginSoftmax.apply(embedding, weight, labels, *options)


class _MarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, embedding, weight, labels, rows, margin, s, exact, threshold, precision, sharded, sparse):
        embeddings = rows_of_all(embedding) if sharded else embedding
        norm = embeddings.norm(dim=1).clamp_min(1e-12)
        unit = embeddings / norm[:, None]
        if margin.training:
            margin.observe(norm, sharded)

        own = (labels >= 0).nonzero()[:, 0]  # rows whose class is here
        position = labels[own] if rows is None else torch.searchsorted(rows, labels[own])
        position, order = position.sort()
        own = own[order]
        cosine = (unit[own] * F.normalize(weight[labels[own]].to(unit.dtype))).sum(1).clamp(-1, 1)
        with torch.enable_grad():
            cosine.requires_grad_()
            target = s * margin(cosine, norm[own])
            slope = torch.autograd.grad(target.sum(), cosine)[0] if exact and len(own) else torch.full_like(cosine, s)

        shift = max(s - 64.0, 0.0)
        limit = threshold if threshold > 0 else margin.bound
        scaled = (s * unit).to(precision if unit.dtype == torch.float32 else unit.dtype)
        others = torch.zeros(2, len(unit), dtype=torch.float64, device=unit.device)  # Σ exp(s·c − shift); targets
        count = len(weight) if rows is None else len(rows)
        kept = scaled.new_empty(count * len(unit))  # of all blocks at once, so that it is given back at once
        inverses = unit.new_empty(count)
        for start, stop, inside in _blocks(weight, rows, position, len(unit)):
            chosen, block = _rows(weight, rows, start, stop, unit.dtype), _block(kept, start, stop, len(unit))
            inverse = torch.norm(chosen, dim=1, out=inverses[start:stop]).clamp_min_(1e-12).reciprocal_()
            e = torch.mm(scaled, (chosen * inverse[:, None]).to(scaled.dtype).T, out=block).to(unit.dtype)  # (N, K)
            over = None
            if limit < 1:
                over = e > s * limit
                over[own[inside], position[inside] - start] = False
                e.masked_fill_(over, 0.0 if threshold > 0 else s * limit)
            (e.sub_(shift) if shift else e).exp_()
            e[own[inside], position[inside] - start] = 0
            others[0] += e.sum(1)
            if over is not None:
                e.masked_fill_(over, 0)
            e.mul_(inverse)  # so that products with the raw weights are the gradient
            if e is not block:
                block.copy_(e)
        others[1, own] = target.detach().double()
        if sharded:
            dist.all_reduce(others)
        log_others = others[0].log() + shift
        total = torch.logaddexp(log_others, others[1])

        ctx.factor = (s / len(unit) * (shift - total).exp()).to(unit.dtype)  # dL/dc of the others is factor · block
        miss = (log_others - total).exp()[own].to(unit.dtype)  # 1 − p of the own class
        ctx.pull = -miss * slope.detach() / len(unit)
        ctx.save_for_backward(weight, unit, norm, labels, rows, own, position, inverses, kept)
        ctx.sharded, ctx.sparse = sharded, sparse
        return (total - others[1]).mean().to(unit.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        weight, unit, norm, labels, rows, own, position, inverses, kept = ctx.saved_tensors
        factor, pull = ctx.factor[:, None] * grad, ctx.pull[:, None] * grad
        pushed, pulled = unit * factor, unit[own] * pull * inverses[position][:, None]
        wanted_embedding, wanted_weight = ctx.needs_input_grad[:2]

        into_unit = torch.zeros_like(unit) if wanted_embedding else None
        into_weight = None
        if wanted_weight and rows is not None and not ctx.sparse:
            into_weight = torch.zeros_like(weight)
        elif wanted_weight:
            into_weight = weight.new_empty(len(weight) if rows is None else len(rows), weight.shape[1])
        spread = wanted_weight and rows is not None and not ctx.sparse  # over the rows of a dense gradient
        for start, stop, inside in _blocks(weight, rows, position, len(unit)):
            chosen, e = _rows(weight, rows, start, stop, unit.dtype), _block(kept, start, stop, len(unit))
            if wanted_embedding:
                _add_product(into_unit, e, chosen)
            if wanted_weight:
                part = rows[start:stop] if spread else slice(start, stop)
                in_place = not spread and e.dtype == unit.dtype == weight.dtype
                g = torch.mm(e.T, pushed.to(e.dtype), out=into_weight[part] if in_place else None).to(unit.dtype)
                g.index_add_(0, position[inside] - start, pulled[inside])
                along = (g * chosen).sum(1) * inverses[start:stop].square()
                g.addcmul_(chosen, along[:, None], value=-1)  # of the directions; a length has none
                if not in_place:
                    into_weight[part] = g
        if wanted_weight and ctx.sparse and rows is not None:
            into_weight = torch.sparse_coo_tensor(
                rows[None], into_weight, weight.shape, is_coalesced=True, check_invariants=False
            )
        if wanted_embedding:
            into_unit *= factor
            into_unit.index_add_(0, own, F.normalize(weight[labels[own]].to(unit.dtype)) * pull)
            if ctx.sharded:
                dist.all_reduce(into_unit)
                into_unit *= dist.get_world_size()
                batch = len(unit) // dist.get_world_size()
                mine = slice(dist.get_rank() * batch, (dist.get_rank() + 1) * batch)
                into_unit, unit, norm = into_unit[mine], unit[mine], norm[mine]
            into_unit = (into_unit - unit * (unit * into_unit).sum(1, keepdim=True)) / norm[:, None]
        return into_unit, into_weight, *[None] * 9


def _blocks(weight: Tensor, rows: Tensor | None, position: Tensor, batch: int) -> list[tuple[int, int, slice]]:
    """Bounds of each block of classes, and which of the sorted `position`s lie in it."""
    size = max(BLOCK.get(weight.device.type, BLOCK['cuda']) // batch, 256)
    count = len(weight) if rows is None else len(rows)
    starts = range(0, count, size)
    edges = torch.searchsorted(position, torch.tensor([*starts, count], device=position.device)).tolist()
    return [(a, min(a + size, count), slice(*edges[i : i + 2])) for i, a in enumerate(starts)]


def _rows(weight: Tensor, rows: Tensor | None, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    """Class weights of a block, (K, D)."""
    return (weight[start:stop] if rows is None else weight[rows[start:stop]]).to(dtype)


def _block(kept: Tensor, start: int, stop: int, batch: int) -> Tensor:
    """What is kept of a block, (N, K), in what is kept of all."""
    return kept[start * batch : stop * batch].view(batch, stop - start)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """Adds a @ b."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b.to(a.dtype))
