"""Long work over many items by several processes, with the results in order."""

import ctypes
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')

#: Asks the kernel for a signal when the parent ends.
PR_SET_PDEATHSIG = 1

#: Items that are sent to a process at once.
CHUNK = 16


def in_order(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int,
    start: Callable[[], None] | None = None,
) -> Iterator[Result]:
    """Yields ``function(item)`` for every item, in the order of the items.

    A few chunks of items are ahead of what was yielded, so memory does not grow with their number.

    Args:
        function: Runs in a worker process; must be picklable. Its exceptions are raised here.
        items: What to work on.
        workers: Processes; 0 works in this one.
        start: Called once in each worker before its first item.

    Raises:
        RuntimeError: A worker process ended by itself (killed, out of memory, or crashed).
    """
    if workers == 0:
        if start is not None:
            start()
        yield from map(function, items)
        return
    context = multiprocessing.get_context('fork')  # spawned ones would import torch anew each
    with ProcessPoolExecutor(workers, context, _start, (start,)) as pool:
        ahead: deque = deque()
        try:
            items = iter(items)
            while chunk := tuple(islice(items, CHUNK)):
                ahead.append(pool.submit(_all, function, chunk))
                if len(ahead) > 3 * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                'A worker process ended by itself: it was killed, ran out of memory or crashed. What is finished is '
                'kept: start again to go on, with fewer --workers where memory was short.'
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(start: Callable[[], None] | None) -> None:
    """Leaves Ctrl-C to the parent, and ends this worker when the parent ends, however that may be."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'prctl'):  # Linux
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if start is not None:
        start()


def _all(function: Callable[[Item], Result], items: tuple[Item, ...]) -> list[Result]:
    return [function(item) for item in items]
