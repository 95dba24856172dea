"""Pyramid levels, and the names of bin rules, cell rules and reductions."""

import operator
from collections.abc import Sequence
from typing import Any, Literal

Reduce = Literal["max", "avg"]

Rule = Literal["adaptive", "sliding", "caffe"]
CellRule = Literal["paper", "released", "roi_pool"]
Level = int | tuple[int, int]


def parse_levels(levels: Sequence[Level]) -> tuple[tuple[int, int], ...]:
    """Return levels as (rows, columns) pairs, in the order given.

    Args:
        levels: at least one level: an integer n >= 1 for n x n bins, or a pair (rows, columns), both >= 1.

    Raises:
        TypeError: not a sequence, or a level is neither an integer nor a pair of integers.
        ValueError: no levels, or a level below 1.
    """
    if isinstance(levels, str) or not isinstance(levels, Sequence):
        raise TypeError(f"levels: expected a sequence such as (4, 2, 1), got {levels!r}")
    if levels and all(type(level) is int and level > 0 for level in levels):  # fast path of nearly every call
        return tuple((level, level) for level in levels)  # type: ignore[misc]
    parsed = tuple(_parse_level(level, position) for position, level in enumerate(levels))
    if not parsed:
        raise ValueError("levels: expected at least one level, got none; for example (1,)")
    return parsed


def _parse_level(level: Any, position: int) -> tuple[int, int]:
    name = f"levels[{position}]"
    sides = list(level) if isinstance(level, tuple | list) else [level, level]
    if len(sides) != 2 or any(isinstance(side, bool) for side in sides):
        raise TypeError(f"{name}: expected an integer or a pair (rows, columns), got {level!r}")
    try:
        rows, columns = (operator.index(side) for side in sides)
    except TypeError:
        raise TypeError(f"{name}: expected an integer or a pair (rows, columns), got {level!r}") from None
    if min(rows, columns) < 1:
        raise ValueError(f"{name}: expected at least 1 bin per side, got {level!r}; the smallest level is 1")
    return rows, columns


def count_bins(levels: Sequence[Level]) -> int:
    """Return the number of bins of a pyramid: the length of its vector per channel."""
    return sum(rows * columns for rows, columns in parse_levels(levels))
