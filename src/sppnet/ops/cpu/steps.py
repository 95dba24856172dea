"""Building blocks of the CPU kernels, inlined into them.

Addresses and the steps between them are in bytes. The fast path of maxima (not `exact`) requires values without NaN.
"""

import inspect
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from sppnet.ops.cpu.simd import (
    add,
    add_ints,
    better_cell,
    better_value,
    copy,
    divide,
    first_cell,
    floats,
    ints,
    larger,
    larger_cell,
    load,
    load_ints,
    store,
    store_ints,
    stream_vector,
    transpose,
)

MAXIMUM, PLACES, AVERAGE = range(3)
"""Modes: maximum, maximum and its cell, or mean."""

VECTOR = 64  # bytes
FLOAT = np.float32(0)
ZERO = np.float32(0)
_LOWEST = np.float32(-np.inf)
_NO_CELL = np.int32(2**31 - 1)
_EMPTY = np.int32(-1)


def inline(function: Callable[..., Any]) -> Any:
    """Inline the decorated function into the kernels that call it."""
    function = inspect.unwrap(function)  # numba cannot compile the shape checks that tests wrap around functions
    return numba.njit(forceinline=True, error_model="numpy")(function)


@inline
def reduce_four(kind, base, spacing, step, count, cell, cell_step, to, to_places, to_spacing, mode, exact):
    """Reduce `count` vectors at each of four addresses, `spacing` apart; return their sum on the fast path."""
    s = t = floats(ZERO)
    a = b = c = d = floats(_LOWEST)
    if mode == MAXIMUM and not exact:
        for _ in range(count):
            va, vb = load(kind, base), load(kind, base + spacing)
            vc, vd = load(kind, base + 2 * spacing), load(kind, base + 3 * spacing)
            a, b, c, d = larger(a, va), larger(b, vb), larger(c, vc), larger(d, vd)
            s, t = add(s, add(va, vb)), add(t, add(vc, vd))
            base += step
    elif mode == AVERAGE:
        a = b = c = d = floats(ZERO)
        for _ in range(count):
            a, b = add(a, load(kind, base)), add(b, load(kind, base + spacing))
            c, d = add(c, load(kind, base + 2 * spacing)), add(d, load(kind, base + 3 * spacing))
            base += step
    else:
        ia = ib = ic = id_ = ints(np.int32(cell))
        for _ in range(count):
            other = ints(np.int32(cell))
            va, vb = load(kind, base), load(kind, base + spacing)
            vc, vd = load(kind, base + 2 * spacing), load(kind, base + 3 * spacing)
            if exact:
                ia, a = better_cell(a, ia, va, other), better_value(a, ia, va, other)
                ib, b = better_cell(b, ib, vb, other), better_value(b, ib, vb, other)
                ic, c = better_cell(c, ic, vc, other), better_value(c, ic, vc, other)
                id_, d = better_cell(d, id_, vd, other), better_value(d, id_, vd, other)
            else:
                ia, a = larger_cell(a, ia, va, other), larger(a, va)
                ib, b = larger_cell(b, ib, vb, other), larger(b, vb)
                ic, c = larger_cell(c, ic, vc, other), larger(c, vc)
                id_, d = larger_cell(d, id_, vd, other), larger(d, vd)
                s, t = add(s, add(va, vb)), add(t, add(vc, vd))
            base += step
            cell += cell_step
        if mode == PLACES:
            store_ints(to_places, ia)
            store_ints(to_places + to_spacing, ib)
            store_ints(to_places + 2 * to_spacing, ic)
            store_ints(to_places + 3 * to_spacing, id_)
    store(FLOAT, to, a)
    store(FLOAT, to + to_spacing, b)
    store(FLOAT, to + 2 * to_spacing, c)
    store(FLOAT, to + 3 * to_spacing, d)
    return add(s, t)


@inline
def reduce_strip(strip, strip_places, step, x0, x1, to, to_places, mode, exact):
    """Reduce columns [x0, x1) of a strip (one vector of channels per column of a reduced row) to a bin."""
    strip += x0 * step
    strip_places += x0 * step
    if mode == AVERAGE:
        best = floats(ZERO)
        for _ in range(x0, x1):
            best = add(best, load(FLOAT, strip))
            strip += step
    elif mode == MAXIMUM and not exact:
        best = floats(_LOWEST)
        for _ in range(x0, x1):
            best = larger(best, load(FLOAT, strip))
            strip += step
    else:
        best, cell = floats(_LOWEST), ints(_NO_CELL)
        for x in range(x0, x1):
            value, other = load(FLOAT, strip), add_ints(load_ints(strip_places), ints(np.int32(x)))
            best, cell = _better(best, cell, value, other, exact)
            strip += step
            strip_places += step
        if mode == PLACES:
            store_ints(to_places, cell)
    store(FLOAT, to, best)


@inline
def _better(best, cell, value, other, exact):
    if exact:
        return better_value(best, cell, value, other), better_cell(best, cell, value, other)
    return larger(best, value), first_cell(best, cell, value, other)


@inline
def divide_bin(value, area):
    """Divide the sum of a bin by its number of cells."""
    store(FLOAT, value, divide(load(FLOAT, value), floats(np.float32(max(area, 1)))))


@inline
def derive(plan, level, values, places, mode, exact):
    """Derive a level from a finer one whose bins nest in its bins."""
    rows, columns, source, at = plan[level, 0], plan[level, 1], plan[level, 2], plan[level, 4]
    fine_columns, fine = plan[source, 1], plan[source, 4]
    down, across = plan[source, 0] // rows, fine_columns // columns
    for row in range(rows):
        for column in range(columns):
            to = (at + row * columns + column) * VECTOR
            start = (fine + row * down * fine_columns + column * across) * VECTOR
            best, cell = floats(_LOWEST), ints(_NO_CELL)
            for i in range(down):
                address = start + i * fine_columns * VECTOR
                for _ in range(across):
                    value = load(FLOAT, values + address)
                    if mode == MAXIMUM and not exact:
                        best = larger(best, value)
                    else:
                        best, cell = _better(best, cell, value, load_ints(places + address), exact)
                    address += VECTOR
            store(FLOAT, values + to, best)
            if mode == PLACES:
                store_ints(places + to, cell)


@inline
def derive_four(plan, level, values, spacing):
    """Derive a level for four vectors of channels at once; fast path only."""
    rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
    fine_pitch = plan[source, 1] * VECTOR
    down, across = plan[source, 0] // rows, plan[source, 1] // columns
    to, fine = values + plan[level, 4] * VECTOR, values + plan[source, 4] * VECTOR
    for row in range(rows):
        for column in range(columns):
            a = b = c = d = floats(_LOWEST)
            for i in range(down):
                address = fine + (row * down + i) * fine_pitch + column * across * VECTOR
                for _ in range(across):
                    a, b = larger(a, load(FLOAT, address)), larger(b, load(FLOAT, address + spacing))
                    c, d = larger(c, load(FLOAT, address + 2 * spacing)), larger(d, load(FLOAT, address + 3 * spacing))
                    address += VECTOR
            store(FLOAT, to, a)
            store(FLOAT, to + spacing, b)
            store(FLOAT, to + 2 * spacing, c)
            store(FLOAT, to + 3 * spacing, d)
            to += VECTOR


@inline
def clear_empty_bins(plan, level, edges, entry, values, places, mode):
    """Set bins outside the map to 0, and their cells to -1."""
    rows, columns, edge, at = plan[level, 0], plan[level, 1], plan[level, 3], plan[level, 4] * VECTOR
    for row in range(rows):
        for column in range(columns):
            i, j = edge + row, edge + rows + column
            if edges[entry, i, 0] >= edges[entry, i, 1] or edges[entry, j, 0] >= edges[entry, j, 1]:
                store(FLOAT, values + at, floats(ZERO))
                if mode == PLACES:
                    store_ints(places + at, ints(_EMPTY))
            at += VECTOR


@inline
def lay_out(kind, item, size, bins, to, spare):
    """Write `size` bins of 16 channels, bin-major in scratch, to the output, channel-major."""
    if size >= 16:
        at = 0
        while at < size:
            at = min(at, size - 16)  # the last sixteen bins may overlap the previous ones
            transpose(kind, bins + at * VECTOR, VECTOR, to + at * item, size * item)
            at += 16
        return
    if size > 1:  # excess lanes of a channel are overwritten by the next channel
        transpose(FLOAT, bins, VECTOR, spare, size * 4)
        bins = spare
    for _ in range(size):
        store(kind, to, load(FLOAT, bins))
        bins += VECTOR
        to += 16 * item


@inline
def move(to, source, size, stream):
    """Copy `size` bytes; `stream` bypasses the caches if alignment allows it."""
    if stream and to % VECTOR == 0 and size % VECTOR == 0:
        for at in range(0, size, VECTOR):
            stream_vector(to + at, source + at)
    else:
        copy(to, source, size)
