"""What the benchmarks share: rounds of ours and the peer in turn, their ratio, and each side's memory."""

import multiprocessing
import resource
import statistics
from collections.abc import Callable


def print_ratio(name: str, ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> str:
    """Runs A B A B … after a warm-up of each, and prints the median of ours / peer.

    Args:
        name: Of the comparison, as its bar names it.
        ours: Runs one round and returns its rate (or time).
        peer: The same for the peer.
        rounds: How many of each, at least 3.

    Returns:
        The line for the last block of output: ``ratio NAME VALUE``.
    """
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(max(rounds, 3))]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    median = statistics.median(ratios)
    print(f'{name}: ours {a:,.0f}, peer {b:,.0f}; ratio {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})', flush=True)
    return f'ratio {name} {median:.3f}'


def peak_mib(run: Callable[..., object], *args: object) -> float:
    """Peak memory of a function in a fresh process, MiB."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(_peak, (run, args))


def _peak(run: Callable[..., object], args: tuple) -> float:
    run(*args)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
