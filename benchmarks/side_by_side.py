"""What the benchmarks share: rounds of ours and the peer in turn, their ratio, and each side's memory."""

import statistics
import subprocess
import sys
from collections.abc import Callable

#: Prints the most memory that a process held, MiB.
PRINT_PEAK = r"""
import re
print(int(re.search(r'VmHWM:\s*(\d+) kB', open('/proc/self/status').read())[1]) / 1024, flush=True)
"""


def print_ratio(name: str, ours: Callable[[], float], peer: Callable[[], float], rounds: int, digits: int = 0) -> str:
    """Runs A B A B … after a warm-up of each, and prints the median of ours / peer.

    Args:
        name: Of the comparison, as its bar names it.
        ours: Runs one round and returns its rate (or time).
        peer: The same for the peer.
        rounds: How many of each, at least 3.
        digits: Of the printed rates or times.

    Returns:
        The line for the last block of output: ``ratio NAME VALUE``.
    """
    ours(), peer()
    pairs = [(ours(), peer()) for _ in range(max(rounds, 3))]
    ratios = sorted(a / b for a, b in pairs)
    a, b = (statistics.median(side) for side in zip(*pairs, strict=True))
    median = statistics.median(ratios)
    print(
        f'{name}: ours {a:,.{digits}f}, peer {b:,.{digits}f}; ratio {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})',
        flush=True,
    )
    return f'ratio {name} {median:.3f}'


def peak_mib(code: str, *args: object) -> float:
    """Peak memory of a fresh Python process that runs `code`, with `args` in sys.argv, MiB.

    What the process itself held at most (VmHWM): ru_maxrss would count what its parent held when it started.
    """
    done = subprocess.run([sys.executable, '-c', code + PRINT_PEAK, *map(str, args)], stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return float(done.stdout.split()[-1])
