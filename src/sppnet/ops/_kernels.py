"""CPU kernels in numba: nothing but arithmetic on addresses; `_cpu.py` calls them with tensors that it has checked.

A unit of work is one window for 16 or 64 channels. Its bins lie in scratch, one vector of 16 channels a bin; levels
that nest in no other are pooled from the map, the others from them, and all are written out transposed. Every kernel
does the units [begin, end), so that threads share a call and no memory.

plan: one row a level, a level after the one that it is taken from: rows, columns, source (row of the plan, or -1 for
the map), first edge, first bin in scratch, first bin in the output.
edges: [begin, end) of the rows and columns of each level, one entry a window, or one for all.
"""

from sppnet.ops._simd import add, any_nan, copy, floats, transpose
from sppnet.ops._steps import (
    AVERAGE,
    FLOAT,
    PLACES,
    VECTOR,
    ZERO,
    clear_empty_bins,
    derive,
    derive_four,
    divide_bin,
    lay_out,
    move,
    njit,
    reduce_rectangle,
    reduce_strip,
)

# A maximum that takes account of NaN has a longer chain of instructions from one value to the next. So the quick form,
# which does not, also sums what it sees; where a sum is NaN the unit is done again in the exact form.


@njit
def pool_planes(
    kind, item, x, shape, edges, plan, clipped, mode, images, order, starts, out, cells, scratch, begin, end,
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
        if width < 16 and base + 16 * apart + 16 * item > x + maps * channels * apart:
            copy(rest + (bins + 16) * VECTOR, base, 16 * apart)  # sixteen columns are read, and memory may end here
            base = rest + (bins + 16) * VECTOR
        total = floats(ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0:
                derive(plan, level, values, places, mode, exact)
                continue
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for chunk in range(chunks):
                    left = max(min(chunk * 16, width - 16), 0)  # the last sixteen columns may overlap others
                    for part in range(4):
                        start, to = base + 4 * part * apart + left * item, block + 4 * part * VECTOR
                        seen = reduce_rectangle(
                            kind, start, apart, 0, 1, 0, y0, y1, width * item, 0, width, to, to + 16 * VECTOR, VECTOR,
                            mode, exact,
                        )  # fmt: skip
                        total = add(total, seen)
                    to = row * pitch + left * VECTOR
                    transpose(FLOAT, block, VECTOR, strip + to, VECTOR)
                    if mode == PLACES:
                        transpose(FLOAT, block + 16 * VECTOR, VECTOR, strip_cells + to, VECTOR)
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for column in range(columns):
                    x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                    to = (at + row * columns + column) * VECTOR
                    start = row * pitch + x0 * VECTOR
                    reduce_strip(strip + start, strip_cells + start, x0, x1, values + to, places + to, mode, exact)
                    if mode == AVERAGE:
                        divide_bin(values + to, (y1 - y0) * (x1 - x0))
        if mode != AVERAGE and not exact and any_nan(total):
            exact = True
            continue
        exact = False
        for level in range(len(plan)):
            size, at, start = plan[level, 0] * plan[level, 1], plan[level, 4] * VECTOR, plan[level, 5]
            if clipped:
                clear_empty_bins(plan, level, edges, cut, values, places, mode)
            to = (order[starts[window]] * bins + start) * channels + first * size
            lay_out(kind, item, size, values + at, out + to * item, rest)
            if mode == PLACES:
                lay_out(FLOAT, 4, size, places + at, cells + to * 4, rest)
        unit += 1


@njit
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
        total = floats(ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0 and (mode == PLACES or exact):
                for part in range(4):
                    derive(plan, level, values + part * apart, places + part * apart, mode, exact)
                continue
            if source >= 0:
                derive_four(plan, level, values, apart)
                continue
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for column in range(columns):
                    x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                    to = (at + row * columns + column) * VECTOR
                    seen = reduce_rectangle(
                        kind, base, 16 * item, y0, y1, width * cell_step, x0, x1, cell_step, width, 1, values + to,
                        places + to, apart, mode, exact,
                    )  # fmt: skip
                    total = add(total, seen)
                    if mode == AVERAGE:
                        for part in range(4):
                            divide_bin(values + to + part * apart, (y1 - y0) * (x1 - x0))
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
                    clear_empty_bins(plan, level, edges, cut, bin_values, bin_places, mode)
                at, to = plan[level, 4] * VECTOR, part * 16 * size
                lay_out(out_kind, out_item, size, bin_values + at, block + to * out_item, rest)
                if mode == PLACES:
                    lay_out(FLOAT, 4, size, bin_places + at, block_cells + to * 4, rest)
            for index in range(starts[window], starts[window + 1]):
                to = (order[index] * bins + start) * channels + first * size
                move(out + to * out_item, block, count * size * out_item, stream)
                if mode == PLACES:
                    move(cells + to * 4, block_cells, count * size * 4, stream)
        unit += 1
