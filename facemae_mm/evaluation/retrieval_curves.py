"""Eq. 3 at any number of identities, from one search: how many of the nearest images it takes to find a person."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from tqdm import tqdm

from .embedded_faces import EmbeddedFaces
from .intervals import bootstrap_interval, resampled_identities, wilson_interval
from .nearest import NearestImages

_WEIGHTS = 50_000_000  # numbers, for resamples of identities
_BLOCK = 8192  # queries that are read at once


@dataclass(frozen=True)
class Draws:
    """Nested draws of identities, the same for every curve that is compared.

    Attributes:
        identities: All that can be drawn, (C,) ascending.
        points: Numbers of identities, ascending; the last one is C.
        ranks: Place of each identity in the order of each draw, (draws, C): those below a point are drawn.
    """

    identities: np.ndarray
    points: tuple[int, ...]
    ranks: np.ndarray

    @classmethod
    def nested(cls, identities: np.ndarray, points: Sequence[int] = (), draws: int = 1, seed: int = 0) -> 'Draws':
        """Draws by a seed.

        Args:
            identities: All that can be drawn, (C,).
            points: Numbers of identities; C is added where it is missing.
            draws: How often.
            seed: Of the orders.

        Raises:
            ValueError: A point that is not in 1 … C.
        """
        identities = np.unique(identities)
        count = len(identities)
        wrong = [point for point in points if not 1 <= point <= count]
        if wrong:
            raise ValueError(f'{wrong[0]} identities cannot be drawn of {count}. Give numbers from 1 to {count}.')
        generator = np.random.default_rng(seed)
        ranks = np.stack([generator.permutation(count) for _ in range(draws)]).astype(np.int32)
        return cls(identities, tuple(sorted({*points, count})), ranks)

    def orders(self, point: int) -> np.ndarray:
        """The draws' ranks at a point (draws, C): a single one where all identities are drawn."""
        return self.ranks[:1] if point == len(self.identities) else self.ranks

    def numbers(self, identity: np.ndarray) -> np.ndarray:
        """Number of each identity among those that can be drawn, (N,); −1 where it is none of them."""
        place = np.searchsorted(self.identities, identity)
        place[place == len(self.identities)] = 0
        return np.where(self.identities[place] == identity, place, -1)


def drawn_identities(real: np.ndarray, released: np.ndarray) -> np.ndarray:
    """Identities that can be drawn: two real images or more and a released one; ascending.

    Args:
        real: Whom each real image shows, (N,), names or numbers.
        released: Whom each released image stands for, (M,).
    """
    names, counts = np.unique(real, return_counts=True)
    return np.intersect1d(names[counts > 1], released)


def spread_points(identities: int, points: int = 5) -> list[int]:
    """Numbers of identities for a curve: halves of halves of all, ascending, none below 2 but where there are fewer."""
    return sorted({max(identities >> step, min(2, identities)) for step in range(points)})


@dataclass(frozen=True)
class Curve:
    """How far one must look for a person, for each query, at each point and draw.

    Attributes:
        identity: Number of each query's identity in the draws, (Q,).
        places: By point: place of the first image of the query's own person among the drawn ones, 1 … most; most + 1
            where it comes later; 0 where the query's person is not drawn: (draws, Q), uint8 where most + 1 fits it.
        chances: By point: probability that k images drawn without replacement hold one of the person, mean over queries
            and draws, (most,).
        galleries: By point: mean number of images that a query is compared with.
        classes: Number of identities in the draws.
    """

    identity: np.ndarray
    places: list[np.ndarray]
    chances: list[np.ndarray]
    galleries: list[float]
    classes: int

    def rate(self, point: int, k: int) -> float:
        """Share of drawn queries that find their person among the k nearest, mean over draws that hold a query.

        Args:
            point: By its place.
            k: At most `most`.
        """
        return float(np.mean([(row[row > 0] <= k).mean() for row in self.places[point] if row.any()]))

    @cached_property
    def resampled(self) -> list[np.ndarray]:
        """Those rates with identities drawn anew, with replacement, by one seed for all curves.

        By point, for each resample and K = 1 … most: (resamples, most); NaN where it holds nobody who was drawn.
        """
        weights = _weights(self.classes)
        most = len(self.chances[0])
        rates = []
        for places in self.places:
            total, counted = np.zeros((len(weights), most)), np.zeros((len(weights), 1))
            for row in places:
                columns = [row > 0, *((row > 0) & (row <= k) for k in range(1, most + 1))]
                counts = np.stack([np.bincount(self.identity, column, self.classes) for column in columns], 1)
                drawn = np.flatnonzero(counts[:, 0])
                counts = counts[drawn].astype(np.float64)
                parts = np.array_split(weights, -(-len(weights) // 50))
                sums = np.concatenate([part[:, drawn].astype(np.float64) @ counts for part in parts])
                known = sums[:, :1] > 0
                total += np.divide(sums[:, 1:], sums[:, :1], out=np.zeros_like(total), where=known)
                counted += known
            with np.errstate(invalid='ignore'):
                rates.append(total / counted)
        return rates

    def interval(self, point: int, k: int) -> tuple[float, float, float]:
        """Rate and its 95 % interval by identity."""
        rate, resampled = self.rate(point, k), self.resampled[point][:, k - 1]
        return rate, *bootstrap_interval(resampled[~np.isnan(resampled)], rate, self._people(point))

    def _people(self, point: int) -> int:
        """Different identities that some draw holds."""
        return len(np.unique(self.identity[(self.places[point] > 0).any(0)]))


def number_of_resamples(identities: int) -> int:
    """How often identities are drawn anew: 1000 times, down to 200 where they are more than 50,000."""
    return int(np.clip(_WEIGHTS // max(identities, 1), 200, 1000))


@lru_cache(maxsize=1)
def _weights(identities: int) -> np.ndarray:
    """How often each identity is in each resample, (resamples, C) uint8."""
    weights = np.empty((number_of_resamples(identities), identities), np.uint8)
    for row, drawn in zip(weights, resampled_identities(identities, len(weights)), strict=True):
        row[:] = drawn
    return weights


def difference_interval(a: Curve, b: Curve, point: int, k: int) -> tuple[float, float, float]:
    """Rate of a minus that of b, with the 95 % interval of the difference by identity, resampled together.

    Where a rate knows no spread (everything found, or nothing), the interval is Newcombe's of two Wilson intervals.
    """
    rates = a.rate(point, k), b.rate(point, k)
    difference = rates[0] - rates[1]
    resampled = [curve.resampled[point][:, k - 1] for curve in (a, b)]
    known = ~np.isnan(resampled[0] + resampled[1])
    low, high = np.percentile((resampled[0] - resampled[1])[known], (2.5, 97.5)) if known.any() else (0, 0)
    if low < high:
        return difference, float(low), float(high)
    (low_a, high_a), (low_b, high_b) = (
        wilson_interval(rate, curve._people(point)) for rate, curve in zip(rates, (a, b), strict=True)
    )
    below = np.hypot(rates[0] - low_a, high_b - rates[1])
    above = np.hypot(high_a - rates[0], rates[1] - low_b)
    return difference, float(difference - below), float(difference + above)


def retrieval_curves(
    queries: EmbeddedFaces,
    gallery: EmbeddedFaces,
    near: np.ndarray,
    draws: Draws,
    most: int,
    title: str | None = None,
) -> dict[str, Curve]:
    """Eq. 3 at every point of the draws, for all K up to `most`, from one search.

    At a point, a query is compared with the images of drawn identities. They stand in the same order as among all, so
    the list of the nearest of all says how many are ahead of the person's own, as far as it reaches. Queries for which
    it does not reach far enough are searched again among the drawn images alone. Ties are those among all images.

    Args:
        queries: Real photos, or what an attacker made of them. The same object as `gallery` for a set that is retrieved
            from itself: the query itself is then always left out.
        gallery: Released images.
        near: The nearest gallery images of each query among all, (Q, M), as `NearestImages` finds them with labels; the
            larger the depth M, the fewer are searched again.
        draws: Who is drawn.
        most: Largest K.
        title: Of the progress bar of what is searched again; none where it is not given.

    Returns:
        'with': all released images count; 'without', where sources are known: all that were not made from the query's
        source. A set that is retrieved from itself has both; for real photos they are the same.

    Raises:
        ValueError: No query shows anybody who can be drawn.
    """
    alone = queries is gallery
    known = bool((gallery.source >= 0).any() and (queries.source >= 0).any())
    if not np.isin(queries.identity, draws.identities).any():
        raise ValueError('None of the queries shows a person who can be drawn.')
    modes = ['with', 'without'] if known else ['with']
    if alone and known and len(np.unique(gallery.source)) == len(gallery):  # nothing but itself has its source
        modes = ['with']
    asked = np.flatnonzero(draws.numbers(queries.identity) >= 0)
    search = _Search(queries, gallery, near, draws, most, asked, alone)
    curves = {mode: search.curve(mode, title) for mode in modes}
    if alone and known:
        curves.setdefault('without', curves['with'])
    return curves


class _Search:
    """Reads places off the lists of the nearest; searches again where they end too early."""

    def __init__(self, queries, gallery, near, draws, most, asked, alone) -> None:
        self.queries, self.gallery, self.near, self.draws, self.most = queries, gallery, near, draws, most
        self.asked, self.alone = asked, alone
        self.identity = draws.numbers(queries.identity[asked])
        self.held = draws.numbers(gallery.identity)  # (G,)
        self.source = queries.source[asked]
        from_source = np.bincount(gallery.source[(self.held >= 0) & (gallery.source >= 0)], minlength=1)
        known = (self.source >= 0) & (self.source < len(from_source))
        self.same_source = np.where(known, from_source[np.where(known, self.source, 0)], 0)

    @cached_property
    def _whole(self) -> NearestImages:
        """The gallery, of which each draw searches a part."""
        return NearestImages(self.gallery.embeddings, labels=self.held)

    def curve(self, mode: str, title: str | None) -> Curve:
        """Places at every point, of queries against all images, or all but those of their source."""
        draws = self.draws
        orders = [draws.orders(point) for point in draws.points]
        dtype = np.min_scalar_type(self.most + 1)  # a place that does not fit would come around to 'not drawn'
        places = [np.zeros((len(order), len(self.asked)), dtype) for order in orders]
        unknown = [np.zeros(place.shape, bool) for place in places]
        for start in range(0, len(self.asked), _BLOCK):
            part = slice(start, start + _BLOCK)
            near = np.asarray(self.near[self.asked[part]])
            held = self.held[near]
            held[self._excluded(part, near, mode)] = -1
            own = held == self.identity[part, None]
            for d in range(len(draws.ranks)):
                ranks = np.append(draws.ranks[d], np.iinfo(np.int32).max)[held]  # of nobody who can be drawn: the last
                asked = draws.ranks[d][self.identity[part]]
                for p, point in enumerate(draws.points):
                    if d < len(orders[p]):
                        rows = np.flatnonzero(asked < point)
                        place, short = self._read(ranks[rows] < point, own[rows])
                        places[p][d, start + rows] = place
                        unknown[p][d, start + rows] = short
        total = sum(int(rows.sum()) for rows in unknown)
        with tqdm(total=total, desc=title, unit='query', mininterval=1, disable=title is None or not total) as bar:
            for p, point in enumerate(draws.points):
                for d, order in enumerate(orders[p]):
                    rows = np.flatnonzero(unknown[p][d])
                    if rows.size:
                        places[p][d, rows] = self._search_again(rows, order, point, mode)
                        bar.update(len(rows))
        chances, galleries = zip(*(self._chance(order, point, mode) for order, point in zip(orders, draws.points)))
        return Curve(self.identity, places, list(chances), list(galleries), len(draws.identities))

    def _excluded(self, part: slice | np.ndarray, near: np.ndarray, mode: str) -> np.ndarray:
        """Which of the listed images (q, M) some queries, of those that are asked, are not compared with."""
        excluded = np.zeros(near.shape, bool)
        if self.alone:
            excluded |= near == self.asked[part, None]
        if mode == 'without':
            source = self.source[part, None]
            excluded |= (self.gallery.source[near] == source) & (source >= 0)
        return excluded

    def _read(self, drawn: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place of the first own image among the drawn ones (q,), at most `most` + 1; and where the list was short."""
        ahead = np.cumsum(drawn, axis=1, dtype=np.int32)
        own = own & drawn
        found = own.any(1)
        place = np.take_along_axis(ahead, own.argmax(1)[:, None], 1)[:, 0]
        place = np.where(found, np.minimum(place, self.most + 1), self.most + 1)
        return place, ~found & (ahead[:, -1] < self.most) & (drawn.shape[1] < len(self.gallery))

    def _search_again(self, rows: np.ndarray, order: np.ndarray, point: int, mode: str) -> np.ndarray:
        """Places of some queries among the images of drawn identities alone, (q,)."""
        drawn = np.append(order, point)[self.held] < point  # (G,)
        images = np.flatnonzero(drawn)
        if not images.size:
            return np.full(len(rows), self.most + 1)
        excluded = int(self.same_source[rows].max()) if mode == 'without' else 0
        width = min(self.most + max(excluded, int(self.alone)), len(images))
        near = self._whole.among(images)(self.queries.embeddings[self.asked[rows]], width, self.identity[rows])
        kept = ~self._excluded(rows, near, mode)
        return self._read(kept, self.held[near] == self.identity[rows, None])[0]

    def _chance(self, orders: np.ndarray, point: int, mode: str) -> tuple[np.ndarray, float]:
        """Chance for each K, and the images that a query is compared with: means over queries and draws."""
        excluded = np.maximum(self.same_source if mode == 'without' else 0, np.full(len(self.asked), int(self.alone)))
        held = np.bincount(self.held[self.held >= 0], minlength=len(self.draws.identities))
        kinds, of_kind = np.unique(np.stack([self.identity, excluded]), axis=1, return_inverse=True)
        queries = np.bincount(of_kind.reshape(-1), minlength=kinds.shape[1])
        chances, galleries = [], []
        for order in orders:
            drawn = order < point
            kind = drawn[kinds[0]]
            weights = queries[kind]
            if not kind.any():
                continue
            own, left_out = held[kinds[0][kind]] - kinds[1][kind], kinds[1][kind]
            images = held[drawn].sum() - left_out
            galleries.append(np.average(images, weights=weights))
            chances.append([np.average(chance_level(images, own, k), weights=weights) for k in range(1, self.most + 1)])
        if not chances:
            return np.zeros(self.most), 0.0
        return np.mean(chances, axis=0), float(np.mean(galleries))


def chance_level(images: np.ndarray | int, own: np.ndarray, k: int) -> np.ndarray:
    """Probability that k images drawn without replacement hold one of the query's identity.

    Args:
        images: Number of gallery images, one for all queries or (Q,); where they are fewer than k, all are drawn.
        own: How many of them show the query's identity, (Q,).
        k: Number of images drawn.
    """
    miss = np.ones(len(own))
    for drawn in range(k):
        miss = miss * np.maximum(images - own - drawn, 0) / np.maximum(images - drawn, 1)
    return 1 - miss
