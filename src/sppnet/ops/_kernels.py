"""CPU kernels in numba: nothing but arithmetic on addresses; `_cpu.py` calls them with tensors that it has checked.

A unit of work is one window for 16 or 64 channels. Its bins lie in scratch, one vector of 16 channels a bin; levels
that nest in no other are pooled from the map, the others from them, and all are written out transposed. Every kernel
does the units [begin, end), so that threads share a call and no memory.

plan: one row a level, a level after the one that it is taken from: rows, columns, source (row of the plan, or -1 for
the map), first edge, first bin in scratch, first bin in the output.
edges: [begin, end) of the rows and columns of each level, one entry a window, or one for all.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from sppnet.ops._simd import (
    accumulate,
    add,
    add_ints,
    any_nan,
    better_cell,
    better_value,
    clear,
    copy,
    divide,
    first_cell,
    floats,
    integer,
    ints,
    larger,
    larger_cell,
    load,
    load_ints,
    number,
    store,
    store_ints,
    stream_vector,
    transpose,
)

MAXIMUM, PLACES, AVERAGE = range(3)
"""What a bin keeps: the maximum, the maximum and its cell, or the mean."""

VECTOR = 64  # bytes
_FLOAT = np.float32(0)
_ZERO = np.float32(0)
_LOWEST = np.float32(-np.inf)
_NO_CELL = np.int32(2**31 - 1)
_EMPTY = np.int32(-1)

_njit: Callable[..., Any] = numba.njit(nogil=True, cache=True, error_model="numpy")
_inline: Callable[..., Any] = numba.njit(forceinline=True, error_model="numpy")

# A maximum that takes account of NaN has a longer chain of instructions from one value to the next. So the quick form,
# which does not, also sums what it sees; where a sum is NaN the unit is done again in the exact form.


@_njit
def pool_planes(
    kind, item, x, shape, edges, plan, clipped, mode, images, order, starts, out, cells, scratch, begin, end
):  # fmt: skip
    """Windows of maps (N, C, H, W), C >= 16: rows are reduced first, what they leave is transposed."""
    maps, channels, height, width = shape
    groups, chunks = (channels + 15) // 16, (width + 15) // 16
    pitch = chunks * 16 * VECTOR  # of a reduced row: a vector of channels for each column
    bins, most = 0, 0
    for level in range(len(plan)):
        bins += plan[level, 0] * plan[level, 1]
        if plan[level, 2] < 0:
            most = max(most, plan[level, 0])
    strip = scratch
    strip_cells = strip + most * pitch
    block = strip_cells + most * pitch
    values = block + 2 * 16 * VECTOR
    places = values + (bins + 16) * VECTOR
    rest = places + (bins + 16) * VECTOR
    apart = height * width * item
    unit, exact = begin, False
    while unit < end:
        window, group = unit // groups, unit % groups
        first = min(group * 16, channels - 16)  # the last group begins earlier where 16 does not divide
        cut = min(window, len(edges) - 1)
        base = x + (images[window] * channels + first) * apart
        if width < 16 and images[window] == maps - 1 and group == groups - 1:
            copy(rest + (bins + 16) * VECTOR, base, 16 * apart)  # sixteen columns are read, and memory ends here
            base = rest + (bins + 16) * VECTOR
        total = floats(_ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0:
                _derive(plan, level, values, places, mode, exact)
                continue
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for chunk in range(chunks):
                    left = max(min(chunk * 16, width - 16), 0)  # the last sixteen columns may overlap others
                    for part in range(4):
                        start, to = base + 4 * part * apart + left * item, block + 4 * part * VECTOR
                        seen = _reduce(
                            kind, start, apart, 0, 1, 0, y0, y1, width * item, 0, width, to, to + 16 * VECTOR, VECTOR,
                            mode, exact,
                        )  # fmt: skip
                        total = add(total, seen)
                    to = row * pitch + left * VECTOR
                    transpose(_FLOAT, block, VECTOR, strip + to, VECTOR)
                    if mode == PLACES:
                        transpose(_FLOAT, block + 16 * VECTOR, VECTOR, strip_cells + to, VECTOR)
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for column in range(columns):
                    x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                    to = (at + row * columns + column) * VECTOR
                    start = row * pitch + x0 * VECTOR
                    _reduce_strip(strip + start, strip_cells + start, x0, x1, values + to, places + to, mode, exact)
                    if mode == AVERAGE:
                        _divide(values + to, (y1 - y0) * (x1 - x0))
        if mode != AVERAGE and not exact and any_nan(total):
            exact = True
            continue
        exact = False
        for level in range(len(plan)):
            size, at, start = plan[level, 0] * plan[level, 1], plan[level, 4] * VECTOR, plan[level, 5]
            if clipped:
                _empty_bins(plan, level, edges, cut, values, places, mode)
            to = (order[starts[window]] * bins + start) * channels + first * size
            _lay_out(kind, item, size, values + at, out + to * item, rest)
            if mode == PLACES:
                _lay_out(_FLOAT, 4, size, places + at, cells + to * 4, rest)
        unit += 1


@_njit
def pool_cells(
    kind, item, x, image_step, channel_step, cell_step, width, channels, packed, edges, plan, clipped, mode, images,
    order, starts, out_kind, out_item, out, cells, stream, scratch, begin, end,
):  # fmt: skip
    """Windows of maps whose 64 channels of a cell are neighbours in memory.

    Packed maps have groups of 64 channels, one after the other, and a unit's successor is the next window; in others
    it is the next group, C >= 64.
    """
    groups, windows = (channels + 63) // 64, len(images)
    bins = 0
    for level in range(len(plan)):
        bins += plan[level, 0] * plan[level, 1]
    apart = (bins + 16) * VECTOR
    values = scratch
    places = values + 4 * apart
    block = places + 4 * apart
    block_cells = block + 4 * apart
    rest = block_cells + 4 * apart
    unit, exact = begin, False
    while unit < end:
        if packed:
            group, window = unit // windows, unit % windows
            first = group * 64
        else:
            window, group = unit // groups, unit % groups
            first = min(group * 64, channels - 64)
        cut = min(window, len(edges) - 1)
        base = x + images[window] * image_step + first * channel_step
        total = floats(_ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0 and (mode == PLACES or exact):
                for part in range(4):
                    _derive(plan, level, values + part * apart, places + part * apart, mode, exact)
                continue
            if source >= 0:
                _derive_four(plan, level, values, apart)
                continue
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for column in range(columns):
                    x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                    to = (at + row * columns + column) * VECTOR
                    seen = _reduce(
                        kind, base, 16 * item, y0, y1, width * cell_step, x0, x1, cell_step, width, 1, values + to,
                        places + to, apart, mode, exact,
                    )  # fmt: skip
                    total = add(total, seen)
                    if mode == AVERAGE:
                        for part in range(4):
                            _divide(values + to + part * apart, (y1 - y0) * (x1 - x0))
        if mode != AVERAGE and not exact and any_nan(total):
            exact = True
            continue
        exact = False
        count = min(64, channels - first)
        for level in range(len(plan)):
            size, start = plan[level, 0] * plan[level, 1], plan[level, 5]
            for part in range(4):
                bin_values, bin_places = values + part * apart, places + part * apart
                if clipped:
                    _empty_bins(plan, level, edges, cut, bin_values, bin_places, mode)
                at, to = plan[level, 4] * VECTOR, part * 16 * size
                _lay_out(out_kind, out_item, size, bin_values + at, block + to * out_item, rest)
                if mode == PLACES:
                    _lay_out(_FLOAT, 4, size, bin_places + at, block_cells + to * 4, rest)
            for index in range(starts[window], starts[window + 1]):
                to = (order[index] * bins + start) * channels + first * size
                _move(out + to * out_item, block, count * size * out_item, stream)
                if mode == PLACES:
                    _move(cells + to * 4, block_cells, count * size * 4, stream)
        unit += 1


@_inline
def _reduce(
    kind,
    base,
    apart,
    y0,
    y1,
    row_step,
    x0,
    x1,
    cell_step,
    row_cells,
    column_cells,
    to,
    to_places,
    to_apart,
    mode,
    exact,
):
    """Rows y0..y1-1 and columns x0..x1-1 of four vectors that lie `apart`; returns the sum of what it saw."""
    s = t = floats(_ZERO)
    a = b = c = d = floats(_LOWEST)
    if mode == MAXIMUM and not exact:
        for y in range(y0, y1):
            address = base + y * row_step + x0 * cell_step
            for _ in range(x0, x1):
                va, vb = load(kind, address), load(kind, address + apart)
                vc, vd = load(kind, address + 2 * apart), load(kind, address + 3 * apart)
                a, b, c, d = larger(a, va), larger(b, vb), larger(c, vc), larger(d, vd)
                s, t = add(s, add(va, vb)), add(t, add(vc, vd))
                address += cell_step
    elif mode == AVERAGE:
        a = b = c = d = floats(_ZERO)
        for y in range(y0, y1):
            address = base + y * row_step + x0 * cell_step
            for _ in range(x0, x1):
                a, b = add(a, load(kind, address)), add(b, load(kind, address + apart))
                c, d = add(c, load(kind, address + 2 * apart)), add(d, load(kind, address + 3 * apart))
                address += cell_step
    else:
        ia = ib = ic = id_ = ints(np.int32(y0 * row_cells + x0 * column_cells))
        for y in range(y0, y1):
            address = base + y * row_step + x0 * cell_step
            for x in range(x0, x1):
                cell = ints(np.int32(y * row_cells + x * column_cells))
                va, vb = load(kind, address), load(kind, address + apart)
                vc, vd = load(kind, address + 2 * apart), load(kind, address + 3 * apart)
                if exact:
                    ia, a = better_cell(a, ia, va, cell), better_value(a, ia, va, cell)
                    ib, b = better_cell(b, ib, vb, cell), better_value(b, ib, vb, cell)
                    ic, c = better_cell(c, ic, vc, cell), better_value(c, ic, vc, cell)
                    id_, d = better_cell(d, id_, vd, cell), better_value(d, id_, vd, cell)
                else:
                    ia, a = larger_cell(a, ia, va, cell), larger(a, va)
                    ib, b = larger_cell(b, ib, vb, cell), larger(b, vb)
                    ic, c = larger_cell(c, ic, vc, cell), larger(c, vc)
                    id_, d = larger_cell(d, id_, vd, cell), larger(d, vd)
                    s, t = add(s, add(va, vb)), add(t, add(vc, vd))
                address += cell_step
        if mode == PLACES:
            store_ints(to_places, ia)
            store_ints(to_places + to_apart, ib)
            store_ints(to_places + 2 * to_apart, ic)
            store_ints(to_places + 3 * to_apart, id_)
    store(_FLOAT, to, a)
    store(_FLOAT, to + to_apart, b)
    store(_FLOAT, to + 2 * to_apart, c)
    store(_FLOAT, to + 3 * to_apart, d)
    return add(s, t)


@_inline
def _reduce_strip(strip, strip_cells, x0, x1, to, to_cells, mode, exact):
    """Columns x0..x1-1 of a reduced row, one vector of channels each, to one bin."""
    if mode == AVERAGE:
        best = floats(_ZERO)
        for _ in range(x0, x1):
            best = add(best, load(_FLOAT, strip))
            strip += VECTOR
    elif mode == MAXIMUM and not exact:
        best = floats(_LOWEST)
        for _ in range(x0, x1):
            best = larger(best, load(_FLOAT, strip))
            strip += VECTOR
    else:
        best, cell = floats(_LOWEST), ints(_NO_CELL)
        for x in range(x0, x1):
            value, other = load(_FLOAT, strip), add_ints(load_ints(strip_cells), ints(np.int32(x)))
            best, cell = _better(best, cell, value, other, exact)
            strip += VECTOR
            strip_cells += VECTOR
        if mode == PLACES:
            store_ints(to_cells, cell)
    store(_FLOAT, to, best)


@_inline
def _better(best, cell, value, other, exact):
    if exact:
        return better_value(best, cell, value, other), better_cell(best, cell, value, other)
    return larger(best, value), first_cell(best, cell, value, other)


@_inline
def _divide(value, area):
    store(_FLOAT, value, divide(load(_FLOAT, value), floats(np.float32(max(area, 1)))))


@_inline
def _derive(plan, level, values, places, mode, exact):
    """A level from a finer one whose bins nest in its own."""
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
                    value = load(_FLOAT, values + address)
                    if mode == MAXIMUM and not exact:
                        best = larger(best, value)
                    else:
                        best, cell = _better(best, cell, value, load_ints(places + address), exact)
                    address += VECTOR
            store(_FLOAT, values + to, best)
            if mode == PLACES:
                store_ints(places + to, cell)


@_inline
def _derive_four(plan, level, values, apart):
    """The same of four vectors at once, for maxima without NaN."""
    rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
    wide = plan[source, 1] * VECTOR
    down, across = plan[source, 0] // rows, plan[source, 1] // columns
    to, start = values + plan[level, 4] * VECTOR, values + plan[source, 4] * VECTOR
    for row in range(rows):
        for column in range(columns):
            _reduce(
                _FLOAT, start, apart, row * down, (row + 1) * down, wide, column * across, (column + 1) * across, VECTOR,
                0, 0, to, to, apart, MAXIMUM, False,
            )  # fmt: skip
            to += VECTOR


@_inline
def _empty_bins(plan, level, edges, cut, values, places, mode):
    """Zero and no cell for bins that lie outside the map."""
    rows, columns, edge, at = plan[level, 0], plan[level, 1], plan[level, 3], plan[level, 4] * VECTOR
    for row in range(rows):
        for column in range(columns):
            i, j = edge + row, edge + rows + column
            if edges[cut, i, 0] >= edges[cut, i, 1] or edges[cut, j, 0] >= edges[cut, j, 1]:
                store(_FLOAT, values + at, floats(_ZERO))
                if mode == PLACES:
                    store_ints(places + at, ints(_EMPTY))
            at += VECTOR


@_inline
def _lay_out(kind, item, size, bins, to, rest):
    """`size` bins of 16 channels, bin after bin in scratch, channel after channel in the output."""
    if size >= 16:
        at = 0
        while at < size:
            at = min(at, size - 16)  # the last sixteen bins may have been written in part before
            transpose(kind, bins + at * VECTOR, VECTOR, to + at * item, size * item)
            at += 16
        return
    if size > 1:  # what is too much of a channel is overwritten by the next
        transpose(_FLOAT, bins, VECTOR, rest, size * 4)
        bins = rest
    for _ in range(size):
        store(kind, to, load(_FLOAT, bins))
        bins += VECTOR
        to += 16 * item


@_inline
def _move(to, source, size, stream):
    """Copy; past the caches where the output is larger than they are."""
    if stream and to % VECTOR == 0 and size % VECTOR == 0:
        for at in range(0, size, VECTOR):
            stream_vector(to + at, source + at)
    else:
        copy(to, source, size)


@_njit
def scatter(
    kind,
    item,
    grad,
    cells,
    plan,
    channels,
    share,
    cell_count,
    order,
    starts,
    total,
    image_step,
    channel_step,
    cell_step,
    _scratch,
    begin,
    end,
):
    """Gradients of maxima, each added to its cell; a unit is `share` channels of one image, set to zero first."""
    groups = -(-channels // share)
    levels, bins = len(plan), 0
    for level in range(levels):
        bins += plan[level, 0] * plan[level, 1]
    for unit in range(begin, end):
        image, group = divmod(unit, groups)
        first = group * share
        count = min(share, channels - first)
        base = total + image * image_step + first * channel_step
        _clear_group(base, count, cell_count, channel_step, cell_step)
        for index in range(starts[image], starts[image + 1]):
            for level in range(levels):
                size = plan[level, 0] * plan[level, 1]
                at = order[index] * bins * channels + plan[level, 5] * channels + first * size
                for channel in range(count):
                    plane = base + channel * channel_step
                    for place in range(at, at + size):
                        cell = integer(cells + place * 4)
                        if cell >= 0:
                            accumulate(plane + cell * cell_step, number(kind, grad + place * item))
                    at += size


@_njit
def spread(kind, item, grad, edges, plan, channels, width, height, order, starts, total, _scratch, begin, end):
    """Gradients of means, each shared out to the cells of its bin; planes of float32; units as in `scatter`."""
    groups = (channels + 15) // 16
    levels, bins = len(plan), 0
    for level in range(levels):
        bins += plan[level, 0] * plan[level, 1]
    step = width * height * 4
    for unit in range(begin, end):
        image, group = divmod(unit, groups)
        first = group * 16
        count = min(16, channels - first)
        base = total + (image * channels + first) * step
        clear(base, count * step)
        for index in range(starts[image], starts[image + 1]):
            box = order[index]
            cut = min(box, len(edges) - 1)
            for level in range(levels):
                rows, columns, edge, start = plan[level, 0], plan[level, 1], plan[level, 3], plan[level, 5]
                place = grad + (box * bins * channels + start * channels + first * rows * columns) * item
                for channel in range(count):
                    plane = base + channel * step
                    for row in range(rows):
                        y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                        for column in range(columns):
                            x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                            share = number(kind, place) / np.float32(max((y1 - y0) * (x1 - x0), 1))
                            place += item
                            for y in range(y0, y1):
                                for x in range(x0, x1):
                                    accumulate(plane + (y * width + x) * 4, share)


@_inline
def _clear_group(base, count, cell_count, channel_step, cell_step):
    if cell_step == 4:
        clear(base, count * channel_step)
    else:
        for cell in range(cell_count):
            clear(base + cell * cell_step, count * 4)
