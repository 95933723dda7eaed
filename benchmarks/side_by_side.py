"""What the benchmarks share: rounds of ours and the peer in turn, their ratio, and each side's memory."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping

#: Prints the most memory that a process held, MiB.
PRINT_PEAK = r"""
import re
print(int(re.search(r'VmHWM:\s*(\d+) kB', open('/proc/self/status').read())[1]) / 1024, flush=True)
"""


def print_ratios(
    ours: Callable[[], float], peers: Mapping[str, Callable[[], float]], rounds: int, digits: int = 0
) -> list[str]:
    """Runs A B C A B C … after a warm-up of each, and prints the median of ours / peer for each peer.

    Args:
        ours: Runs one round and returns its rate (or time).
        peers: The same for each peer, by the name of the comparison, as its bar names it.
        rounds: How many of each, at least 3.
        digits: Of the printed rates or times.

    Returns:
        The lines for the last block of output: ``ratio NAME VALUE``.
    """
    sides = [ours, *peers.values()]
    for side in sides:
        side()
    taken = [[side() for side in sides] for _ in range(max(rounds, 3))]
    lines = []
    for place, name in enumerate(peers, start=1):
        ratios = sorted(values[0] / values[place] for values in taken)
        a, b = (statistics.median(values[side] for values in taken) for side in (0, place))
        median = statistics.median(ratios)
        print(
            f'{name}: ours {a:,.{digits}f}, peer {b:,.{digits}f}; '
            f'ratio {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})',
            flush=True,
        )
        lines.append(f'ratio {name} {median:.3f}')
    return lines


def print_ratio(name: str, ours: Callable[[], float], peer: Callable[[], float], rounds: int, digits: int = 0) -> str:
    """As `print_ratios`, of one peer; returns its line."""
    return print_ratios(ours, {name: peer}, rounds, digits)[0]


def serve(side: Callable[[], float]) -> None:
    """Runs a round for each line of the standard input and writes its value; at the end the peak memory, MiB."""
    for _ in sys.stdin:
        print(side(), flush=True)
    exec(PRINT_PEAK)


class Worker:
    """A side in a process of its own, which ends in `serve`.

    Args:
        command: Of the process, behind the interpreter.
    """

    def __init__(self, *command: object) -> None:
        arguments = [sys.executable, *map(str, command)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self) -> float:
        """One more round."""
        try:
            self.process.stdin.write('go\n')
            self.process.stdin.flush()
        except BrokenPipeError:  # it ended by itself; the next line is empty
            pass
        line = self.process.stdout.readline()
        if not line:
            self.close()
        return float(line)

    def close(self) -> float:
        """Ends it; its peak memory, MiB."""
        rest = self.process.communicate()[0]
        if self.process.returncode:
            raise subprocess.CalledProcessError(self.process.returncode, self.process.args)
        return float(rest.split()[-1])


def peak_mib(code: str, *args: object) -> float:
    """Peak memory of a fresh Python process that runs `code`, with `args` in sys.argv, MiB.

    What the process itself held at most (VmHWM): ru_maxrss would count what its parent held when it started.
    """
    done = subprocess.run([sys.executable, '-c', code + PRINT_PEAK, *map(str, args)], stdout=subprocess.PIPE, text=True)
    done.check_returncode()
    return float(done.stdout.split()[-1])
