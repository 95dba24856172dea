"""The memory that a server holds, beside what it uses."""

import time
from threading import Event

from sppnet.inference.memory import release_memory, resident_bytes

_TICK = 0.25  # seconds
# Over the least that was held since memory was last given back. More often costs time: what is given back has to be
# asked for again.
_GROWTH, _GROWTH_AT_REST = 1.5, 1.1
_REST = 30.0  # seconds without a change; where a photograph comes every few seconds, none should wait for memory


def bound_memory(stop: Event) -> None:
    """Give freed memory back to the system whenever too much of it is held, until told to stop.

    Photographs of all sizes leave it in pieces, of which the next ones use only some: so it would grow for minutes,
    and stay held when no more come.
    """
    least = before = 0
    changed = time.monotonic()
    while not stop.wait(_TICK):
        held = resident_bytes()
        if held != before:
            changed = time.monotonic()
        at_rest = time.monotonic() - changed > _REST
        if held > (_GROWTH_AT_REST if at_rest else _GROWTH) * least:
            release_memory()
            least = held = resident_bytes()
        least, before = min(least, held), held
