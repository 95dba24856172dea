"""The memory that a server holds, beside what it uses."""

from threading import Event

from sppnet.tile_memory import release_memory, resident_bytes

_TICK = 0.25  # seconds
# Over the least that was held since memory was last given back. More often costs time: a twentieth of a second each,
# in which no thread gets memory.
_GROWTH, _GROWTH_AT_REST = 1.5, 1.1


def bound_memory(stop: Event) -> None:
    """Give freed memory back to the system whenever too much of it is held, until told to stop.

    Photographs of all sizes leave it in pieces, of which the next ones use only some: so it would grow for minutes,
    and stay held when no more come.
    """
    least = before = 0
    while not stop.wait(_TICK):
        held = resident_bytes()
        at_rest = held == before
        if held > (_GROWTH_AT_REST if at_rest else _GROWTH) * least:
            release_memory()
            least = held = resident_bytes()
        least, before = min(least, held), held
