"""95 % intervals of rates: by resampling identities, or Wilson's for independent trials."""

from collections.abc import Iterator, Sequence

import numpy as np


def resampled_identities(count: int, resamples: int = 1000, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each of `count` identities was drawn, with replacement, in every resample."""
    generator = np.random.default_rng(seed)
    for _ in range(resamples):
        yield np.bincount(generator.integers(count, size=count), minlength=count)


def bootstrap_interval(rates: Sequence[float], rate: float, count: int) -> tuple[float, float]:
    """Percentile interval of resampled rates.

    Where all of them agree (everything right, everything wrong, or a single identity) resampling
    knows no spread; then the identities count as independent trials in Wilson's interval.

    Args:
        rates: The rate in every resample.
        rate: The rate itself, in [0, 1].
        count: Number of identities.
    """
    low, high = np.percentile(rates, (2.5, 97.5)) if len(rates) else (rate, rate)
    return (float(low), float(high)) if low < high else wilson_interval(rate, count)


def rate_by_identity(hit: np.ndarray, identity: np.ndarray, resamples: int = 1000, seed: int = 0) -> list[float]:
    """Share of images that are hit, and its 95 % interval by identity: [rate, low, high].

    Args:
        hit: (N,) bool, N ≥ 1.
        identity: Whom each image shows, (N,), any numbers.
        resamples: For the interval.
        seed: Of the resamples.
    """
    names, person = np.unique(identity, return_inverse=True)
    hits, images = np.bincount(person, hit), np.bincount(person)
    rates = [(drawn @ hits) / (drawn @ images) for drawn in resampled_identities(len(names), resamples, seed)]
    rate = float(np.mean(hit))
    return [rate, *bootstrap_interval(rates, rate, len(names))]


def wilson_interval(rate: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a rate in [0, 1] seen in a number of independent trials."""
    z = 1.959964  # 97.5 % quantile of the normal distribution
    centre = rate + z * z / (2 * trials)
    half = z * np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low, high = (float((centre + side) / (1 + z * z / trials)) for side in (-half, half))
    return max(min(low, rate), 0.0), min(max(high, rate), 1.0)  # rounding must not leave the rate outside
