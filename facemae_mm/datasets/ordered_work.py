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

import cv2

Item = TypeVar('Item')
Result = TypeVar('Result')

#: Asks the kernel for a signal when the parent ends.
PR_SET_PDEATHSIG = 1

#: Items that are sent to a process at once.
CHUNK = 16


#: What a worker process works with; each has its own.
_function: Callable | None = None


def in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """Yields ``function(item)`` for every item, in the order of the items.

    A few chunks of items are ahead of what was yielded, so memory does not grow with their number.

    Args:
        function: Runs in the worker processes, which inherit it as it is when the first result is asked for. Its
            exceptions are raised here.
        items: What to work on.
        workers: Processes; 0 works in this one. OpenCV uses one thread in each.

    Raises:
        RuntimeError: A worker process ended by itself (killed, out of memory, or crashed).
    """
    if workers == 0:
        yield from map(function, items)
        return
    context = multiprocessing.get_context('fork')  # spawned ones would import torch anew each
    with ProcessPoolExecutor(workers, context, _start, (function,)) as pool:
        ahead: deque = deque()
        try:
            items = iter(items)
            while chunk := tuple(islice(items, CHUNK)):
                ahead.append(pool.submit(_all, chunk))
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


def _start(function: Callable) -> None:
    """Leaves Ctrl-C to the parent, and ends this worker when the parent ends, however that may be."""
    global _function
    _function = function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    libc = ctypes.CDLL(None)
    if hasattr(libc, 'prctl'):  # Linux
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    cv2.setNumThreads(0)


def _all(items: tuple[Item, ...]) -> list[Result]:
    return [_function(item) for item in items]
