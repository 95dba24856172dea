"""Progress of long work, reported to a callback that the caller installs; without one, nothing is reported."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")
ProgressCallback = Callable[[str, int, int], None]

_callback: ContextVar[ProgressCallback | None] = ContextVar("progress callback", default=None)


@contextmanager
def on_progress(callback: ProgressCallback | None) -> Iterator[None]:
    """Call `callback` with the progress of everything that runs inside the block.

    Args:
        callback: function of (description, number of items done, total number of items), called before the first item
            and after each one; None to report nothing.
    """
    token = _callback.set(callback)
    try:
        yield
    finally:
        _callback.reset(token)


def track(items: Iterable[T], description: str, total: int, done: int = 0) -> Iterator[T]:
    """Yield the items, and report after each one that it has been processed.

    Args:
        items: items to process.
        description: what is done, for people.
        total: number of items, including those already `done`.
        done: number of items processed by an earlier run.
    """
    callback = _callback.get()
    if callback is not None:
        callback(description, done, total)
    for count, item in enumerate(items, start=done + 1):
        yield item
        if callback is not None:
            callback(description, count, total)
