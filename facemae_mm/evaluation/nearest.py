"""Exact nearest neighbours by cosine: products in low precision propose, with a proven bound; float64 decides."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F

from ..precision import native_bfloat16
from .unit_rows import row_norms

#: Cosines closer than this count as equal; equal ones are ordered by index.
TIE = 1e-7

#: Queries and gallery images whose cosines are held at once: 32 MiB in float32.
QUERIES, GALLERY = 4096, 2048

#: Places whose order is exact whatever the images show.
EXACT = 8

_GROUP = 32  # cosines of a block of which the largest is looked at first
_CANDIDATES = 2**21  # held at once, 32 MiB
_PAIRS = 2**12  # decided in float64 at once, 32 MiB of 512 dimensions
_FAISS_MOST = 2048  # neighbours that faiss finds on a GPU


class NearestImages:
    """Finds the images of a gallery with the largest cosine to a query, nearest first.

    Exact in float64. In the order of cosines, neighbours closer than `TIE` form a tie, which is ordered by index.

    Products of the unit vectors propose: in bfloat16 where the device multiplies it, else in float32. Such a cosine
    is off by at most (D + 5)·2⁻²⁴ and terms of second order, however it is summed: D roundings of products and sums,
    four of the inputs, and Σ|xᵢyᵢ| ≤ 1; in bfloat16 by 3·2⁻⁸ more, for both inputs and the result. A query keeps what
    can, by twice that bound, be among its k nearest. Of these, whatever lies too close to its neighbours in the order
    is decided in float64. Where a tie might reach below what was kept, the query is searched again with more.

    Args:
        gallery: Embeddings (G, D), finite and not zero, of any norm; read block by block, so that it may be mapped from
            a file that is larger than memory.
        labels: Whom each image of the gallery shows, (G,), where deep lists are wanted only to see how far ahead the
            images of the query's own person are: see `__call__`.
        device: Where to multiply; by default a GPU where there is one, on which faiss finds candidates where it can.
        low_precision: Whether to propose in bfloat16, in place of the device's own choice.
    """

    def __init__(
        self,
        gallery: np.ndarray,
        labels: np.ndarray | None = None,
        device: torch.device | str | None = None,
        low_precision: bool | None = None,
    ) -> None:
        self.gallery = gallery
        self.rows = None
        self.labels = labels
        self.device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
        low = native_bfloat16(self.device) if low_precision is None else low_precision
        self._dtype = torch.bfloat16 if low else torch.float32
        self._error = 1.01 * ((gallery.shape[1] + 5) * 2.0**-24 + (3 * 2.0**-8 if low else 0))
        self._norms = np.concatenate([row_norms(self._block(start)) for start in range(0, len(self), GALLERY)])
        self._faiss = _faiss_on_gpu() if self.device.type == 'cuda' else None

    def among(self, rows: np.ndarray) -> 'NearestImages':
        """The same search among some images of the gallery, (n,) ascending; it still gives indices into the whole."""
        part = copy.copy(self)
        part.rows, part._norms = rows, self._norms[rows]
        return part

    def __len__(self) -> int:
        return len(self.gallery) if self.rows is None else len(self.rows)

    def __call__(self, queries: np.ndarray, k: int, labels: np.ndarray | None = None) -> np.ndarray:
        """The k nearest images of each query.

        Args:
            queries: Embeddings (Q, D), finite and not zero, of any norm; read block by block.
            k: Number of images to find, 1 ≤ k ≤ the gallery's.
            labels: Whom each query shows, (Q,). Behind the first `EXACT` places, other people's images are then in
                exact order against the person's own, but not among each other where they are closer than products tell.

        Returns:
            Indices into the gallery, (Q, k) int64.
        """
        assert 1 <= k <= len(self), f'{k} nearest of {len(self)}'
        nearest = np.empty((len(queries), k), np.int64)
        for start in range(0, len(queries), QUERIES):
            part = slice(start, start + QUERIES)
            own = None if labels is None else labels[part]
            nearest[part] = self._nearest(np.asarray(queries[part]), own, k, 10 * TIE, True)
        return self._index(nearest)

    def _nearest(self, queries: np.ndarray, labels: np.ndarray | None, k: int, slack: float, guess: bool) -> np.ndarray:
        """The k nearest of a block of queries, as places in the gallery (q, k).

        Args:
            queries: (q, D).
            labels: (q,) or None.
            k: How many.
            slack: How far a tie may reach below the k-th best cosine without a second search.
            guess: Expect the gallery to be mixed, and search again where it is not.
        """

        def again(part: slice | np.ndarray, slack: float, guess: bool) -> np.ndarray:
            return self._nearest(queries[part], None if labels is None else labels[part], k, slack, guess)

        found = self._candidates(queries, k, 2 * self._error + slack, guess)
        if found is None:  # too much at once
            half = len(queries) // 2
            return np.concatenate([again(part, slack, guess) for part in (slice(half), slice(half, None))])
        place, cosine = _sorted(found.place, found.score.astype(np.float64))

        # What lies too close to its neighbours in the order, as far as the run of such that holds the k-th place.
        with np.errstate(invalid='ignore'):  # −∞ fills up queries with fewer candidates
            apart = ~(cosine[:, :-1] - cosine[:, 1:] <= 2 * self._error + TIE)
        run = np.zeros(place.shape, np.int32)
        np.cumsum(apart, axis=1, out=run[:, 1:])
        alone = np.ones(place.shape, bool)
        alone[:, 1:] &= apart
        alone[:, :-1] &= apart
        close = ~alone & (run <= run[:, k - 1 : k])
        if labels is not None:  # of the runs behind the first places, those with an image of the person's own
            own = (self.labels[self._index(place)] == labels[:, None]) & np.isfinite(cosine)
            holds = np.zeros(close.shape, bool)
            query, column = np.nonzero(own)
            holds[query, run[query, column]] = True
            close &= np.take_along_axis(holds, run, 1) | (run <= run[:, min(k, EXACT) - 1, None])
        query, column = np.nonzero(close)
        cosine[query, column] = pair_cosines(queries, query, self.gallery, self._index(place[query, column]))
        place, cosine = _sorted(place, cosine)

        lowest = cosine[:, k - 1].copy()  # in the tie of the k-th place
        with np.errstate(invalid='ignore'):
            new = ~(cosine[:, :-1] - cosine[:, 1:] < TIE)
        tied = np.flatnonzero(~new.all(1))
        tie = np.zeros((len(tied), place.shape[1]), np.int64)
        np.cumsum(new[tied], axis=1, out=tie[:, 1:])
        lowest[tied] = np.where(tie == tie[:, k - 1 : k], cosine[tied], np.inf).min(1)
        order = np.argsort(tie * len(self) + place[tied], axis=1)
        place[tied] = np.take_along_axis(place[tied], order, 1)

        nearest = place[:, :k]
        decided = lowest if labels is None else lowest - self._error  # with labels it may be a proposed one
        unproven = np.flatnonzero(decided - TIE < found.floor.astype(np.float64) + self._error)
        if unproven.size:
            short = np.isneginf(lowest[unproven])
            for part, more in ((unproven[short], slack), (unproven[~short], 8 * slack)):
                if part.size:
                    nearest[part] = again(part, more, guess=False)
        return nearest

    def _candidates(self, queries: np.ndarray, k: int, margin: float, guess: bool) -> '_Candidates | None':
        """Whatever may be among the k nearest of each query; None where that is too much at once."""
        unit = self._to_device(queries, row_norms(queries))
        found = _Candidates(len(queries), k, margin)
        products = torch.empty(len(unit) * (min(GALLERY, len(self)) + _GROUP), dtype=self._dtype, device=self.device)
        for number, start in enumerate(range(0, len(self), GALLERY)):
            block = self._block(start)
            seen = (start + len(block)) / len(self)
            rank = _expected(k, seen) if guess else k
            images = self._to_device(block, self._norms[start : start + len(block)])
            query, place, score = self._search_on_gpu(unit, images, found) or self._multiply(
                unit, images, products, found, rank
            )
            found.add(query, place + start, score)
            if number & (number - 1) == 0 or found.count > _CANDIDATES:  # blocks 0, 1, 2, 4, …
                if not found.settle(rank):
                    return None
        return found if found.settle(k) else None

    def _multiply(
        self, unit: torch.Tensor, images: torch.Tensor, products: torch.Tensor, found: '_Candidates', rank: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Query, image and cosine of what reaches the floor in a block, (P,) each.

        Args:
            unit: Unit queries (q, D).
            images: Unit images (g, D).
            products: Room for the cosines.
            found: What was found so far.
            rank: Of the cosine in this block that the floor is taken from where there is none yet.
        """
        group = max(min(_GROUP, len(images) // (2 * found.k)), 1)
        missing = -len(images) % group
        padded = F.pad(images, (0, 0, 0, missing)) if missing else images
        products = products[: len(unit) * len(padded)].view(len(unit), len(padded))
        with _whole_sums(self.device):
            torch.mm(unit, padded.T, out=products)
        products[:, len(images) :] = -torch.inf
        groups = products.view(len(unit), group, -1)  # strided: their maxima are taken eight at a time
        largest = groups.amax(1).float().cpu()
        floor = found.floor
        if np.isneginf(floor).all() and largest.shape[1] >= rank:  # the first block
            floor = largest.topk(rank, dim=1).values[:, -1].numpy() - np.float32(found.margin)
        query, number = np.nonzero(largest.numpy() >= floor[:, None])
        members = _members(groups, query, number)
        pair, member = np.nonzero(members >= floor[query, None])
        return query[pair], member * groups.shape[2] + number[pair], members[pair, member]

    def _search_on_gpu(
        self, unit: torch.Tensor, images: torch.Tensor, found: '_Candidates'
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """As `_multiply`, by faiss; None without it, or where there may be more than it returns."""
        width = found.k + 8
        if self._faiss is None or width > min(len(images), _FAISS_MOST):
            return None
        faiss, resources = self._faiss
        score, place = faiss.knn_gpu(resources, unit, images, width, metric=faiss.METRIC_INNER_PRODUCT)
        score = score.float().cpu().numpy()
        floor = np.maximum(found.floor, score[:, found.k - 1] - np.float32(found.margin))
        if (score[:, -1] >= floor).any():
            return None
        query, column = np.nonzero(score >= floor[:, None])
        return query, place.cpu().numpy()[query, column], score[query, column]

    def _index(self, place: np.ndarray) -> np.ndarray:
        return place if self.rows is None else self.rows[place]

    def _block(self, start: int) -> np.ndarray:
        stop = min(start + GALLERY, len(self))
        return self.gallery[start:stop] if self.rows is None else self.gallery[self.rows[start:stop]]

    def _to_device(self, rows: np.ndarray, norms: np.ndarray) -> torch.Tensor:
        """Unit vectors: in float32 where the rows are, two roundings a number."""
        if rows.dtype == np.float32 and 1e-30 < norms.min() and norms.max() < 1e30:
            inverse = torch.from_numpy((1 / norms).astype(np.float32))
            unit = torch.from_numpy(np.require(rows, requirements='CW')) * inverse[:, None]
        else:
            unit = torch.from_numpy((rows / norms[:, None]).astype(np.float32))
        return unit.to(self.device, self._dtype)


class _Candidates:
    """Images that may be among the k nearest of each of some queries.

    Attributes:
        floor: What the proposed cosine of every image that was left out stays below, (q,) float32.
        count: How many are kept.
        place: Places in the gallery of what is kept (q, w), after `settle`.
        score: Their proposed cosines (q, w) float32; −∞ where a query has fewer.
    """

    def __init__(self, queries: int, k: int, margin: float) -> None:
        self.k, self.margin = k, margin
        self.floor = np.full(queries, -np.inf, np.float32)
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.count = 0

    def add(self, query: np.ndarray, place: np.ndarray, score: np.ndarray) -> None:
        """Keeps candidates, (P,) each."""
        self._kept.append((query, place, score))
        self.count += len(query)

    def settle(self, rank: int) -> bool:
        """Raises the floor to the margin below the best of some rank, drops what is under it, and says if that fits.

        Args:
            rank: At most k.
        """
        query, place, score = map(np.concatenate, zip(*self._kept, strict=True))
        queries = len(self.floor)
        order = np.argsort(query.astype(np.uint16), kind='stable')  # a radix sort
        query, place, score = query[order], place[order], score[order]
        counts = np.bincount(query, minlength=queries)
        width = max(int(counts.max()), self.k)
        if queries * width > _CANDIDATES and queries > 1:
            return False
        column = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.score = np.full((queries, width), -np.inf, np.float32)
        self.place = np.zeros(self.score.shape, np.int64)
        self.score[query, column] = score
        self.place[query, column] = place
        best = torch.from_numpy(self.score).topk(rank, dim=1).values[:, -1].numpy()
        self.floor = np.maximum(self.floor, best - np.float32(self.margin))
        keep = score >= self.floor[query]
        self._kept = [(query[keep], place[keep], score[keep])]
        self.count = int(keep.sum())
        return self.count <= _CANDIDATES or queries == 1


def _members(groups: torch.Tensor, query: np.ndarray, number: np.ndarray) -> np.ndarray:
    """Members of some groups of cosines (q, group, c): (P, group) float32."""
    if groups.device.type == 'cpu' and groups.dtype == torch.float32:
        return groups.numpy()[query, :, number]  # one thread is faster than to wake others for a few
    return groups[torch.from_numpy(query), :, torch.from_numpy(number)].float().cpu().numpy()


def _expected(k: int, seen: float) -> int:
    """Rank, in a part of a mixed gallery, of what is hardly ever among the k best of all.

    Args:
        k: How many are wanted.
        seen: The part's share of the gallery.
    """
    return min(k, math.ceil(k * seen + 3 * math.sqrt(k * seen) + 3))


def _sorted(place: np.ndarray, cosine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both (q, w) in descending order of the cosines."""
    cosine, order = torch.from_numpy(cosine).sort(dim=1, descending=True)
    return np.take_along_axis(place, order.numpy(), 1), cosine.numpy()


def pair_cosines(a: np.ndarray, i: np.ndarray, b: np.ndarray, j: np.ndarray) -> np.ndarray:
    """Cosines of pairs of embeddings, in float64.

    Args:
        a: Embeddings (N, D), not zero; in memory or mapped from a file.
        i: Row of a in each pair, (P,).
        b: Embeddings (M, D), likewise.
        j: Row of b, (P,).

    Returns:
        (P,) float64.
    """
    cosines = np.empty(len(i))
    for start in range(0, len(i), _PAIRS):
        part = slice(start, start + _PAIRS)
        x, y = (torch.from_numpy(rows[index[part]]).double() for rows, index in ((a, i), (b, j)))
        lengths = [torch.linalg.vector_norm(rows, dim=1) for rows in (x, y)]
        cosines[part] = ((x * y).sum(1) / (lengths[0] * lengths[1])).numpy()
    return cosines


def nearest_images(queries: np.ndarray, gallery: np.ndarray, k: int) -> np.ndarray:
    """The k gallery images with the largest cosine to each query, nearest first, as `NearestImages` finds them.

    Args:
        queries: Embeddings (Q, D), finite and not zero, of any norm.
        gallery: Embeddings (G, D), likewise.
        k: Number of images to find, 1 ≤ k ≤ G.

    Returns:
        Indices into the gallery, (Q, k) int64.
    """
    return NearestImages(gallery)(queries, k)


@contextmanager
def _whole_sums(device: torch.device) -> Iterator[None]:
    """Keeps a GPU from adding parts of a product in bfloat16, which the bound does not cover."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False if device.type == 'cuda' else before
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


def _faiss_on_gpu() -> tuple | None:
    """faiss and its resources, where it was built for GPUs."""
    try:
        import faiss
        import faiss.contrib.torch_utils  # lets knn_gpu take tensors
    except ImportError:
        return None
    return (faiss, faiss.StandardGpuResources()) if hasattr(faiss, 'StandardGpuResources') else None
