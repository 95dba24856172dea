"""Limit on the freed memory that the server's allocator retains."""

import time
from threading import Event

from sppnet.inference.memory import release_memory, resident_bytes

_TICK = 0.25  # seconds
# Memory is released when it exceeds this factor times the minimum since the last release. Releasing it more often costs
# time, because it must be allocated again.
_GROWTH, _GROWTH_AT_REST = 1.5, 1.1
_REST = 30.0  # seconds without a change; a request every few seconds should not have to wait for memory


def bound_memory(stop: Event) -> None:
    """Release freed memory to the operating system whenever too much is retained, until `stop` is set.

    Images of different sizes fragment the heap, which would otherwise grow for minutes and not shrink.
    """
    lowest = before = 0
    changed = time.monotonic()
    while not stop.wait(_TICK):
        held = resident_bytes()
        if held != before:
            changed = time.monotonic()
        at_rest = time.monotonic() - changed > _REST
        if held > (_GROWTH_AT_REST if at_rest else _GROWTH) * lowest:
            release_memory()
            lowest = held = resident_bytes()
        lowest, before = min(lowest, held), held
