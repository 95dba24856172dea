"""Images processed in parallel, with results in order that do not depend on the number of threads."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from threading import Barrier
from typing import TypeVar

import torch

S = TypeVar("S")
L = TypeVar("L")
T = TypeVar("T")


def map_ordered(
    function: Callable[[S], T], items: Iterable[S], share: Callable[[S], float] = lambda _: 0
) -> Generator[T, None, None]:
    """Yield ``function(item)`` for each item, in order, with several items in process at a time.

    There are as many threads as torch uses in the calling thread. Each of them processes one item at a time and runs
    torch's operators by itself, because the threads of an operator wait for each other, which takes long on a busy
    machine, and because the number of threads of an operator changes the rounding of its results. At most twice as many
    items as threads are read ahead. After an error or Ctrl-C, only running calls are completed.

    Args:
        function: function that any thread can call; its first error is raised in place of the result.
        items: items, read in the calling thread.
        share: share of the available memory that an item takes. Those in process take at most 1 together. An item with
            more is processed in the calling thread while no other one is, with all threads of torch.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    pool = _start_threads(threads)
    pending: deque[tuple[Future[T], float]] = deque()
    try:
        for item in items:
            size = share(item)
            while pending and (len(pending) == 2 * threads or size + sum(taken for _, taken in pending) > 1):
                yield pending.popleft()[0].result()
            if size > 1:
                yield function(item)
            else:
                pending.append((pool.submit(function, item), size))
        while pending:
            yield pending.popleft()[0].result()
    finally:
        pool.shutdown(cancel_futures=True)


def map_images(
    load: Callable[[S], L],
    run: Callable[[L], T],
    items: Iterable[S],
    device: torch.device,
    share: Callable[[S], float] = lambda _: 0,
) -> Generator[T, None, None]:
    """Yield ``run(load(item))`` for each item, in order, see :func:`map_ordered`.

    On a device other than the CPU, only `load` runs in other threads, ahead of `run`.
    """
    if device.type == "cpu":
        yield from map_ordered(lambda item: run(load(item)), items, share)
    else:
        with closing(map_ordered(load, items, share)) as loaded:
            yield from map(run, loaded)


def _start_threads(count: int) -> ThreadPoolExecutor:
    """Start threads in which each operator of torch uses one thread."""
    ready = Barrier(count + 1)

    def limit() -> None:
        torch.get_num_threads()  # the first use in a thread sets its number, and would undo the next line later
        torch.set_num_threads(1)
        ready.wait()

    pool = ThreadPoolExecutor(count, "images", limit)
    for _ in range(count):  # each submission starts a thread, as long as no other one is idle
        pool.submit(int)
    ready.wait()
    torch.set_num_threads(count)  # for new threads of others: torch gives them the number that was set last
    return pool
