"""CPU kernels in numba: nothing but arithmetic on addresses; `_cpu.py` calls them with tensors that it has checked.

A unit of work is one window for 16 or 64 channels. Its bins lie in scratch, one vector of 16 channels a bin; levels
that nest in no other are pooled from the map, the others from them, and all are written out transposed. Every kernel
does the units [begin, end), so that threads share a call and no memory.

plan: one row a level, a level after the one that it is taken from: rows, columns, source (row of the plan, or -1 for
the map), first edge, first bin in scratch, first bin in the output.
edges: [begin, end) of the rows and columns of each level, one entry a window, or one for all.
"""

from sppnet.ops.cpu.simd import add, any_nan, copy, floats, transpose
from sppnet.ops.cpu.steps import (
    AVERAGE,
    FLOAT,
    PLACES,
    VECTOR,
    ZERO,
    clear_empty_bins,
    derive,
    derive_four,
    divide_bin,
    inline,
    lay_out,
    move,
    reduce_four,
    reduce_strip,
)

# A maximum that takes account of NaN has a longer chain of instructions from one value to the next. So the quick form,
# which does not, also sums what it sees; where a sum is NaN the unit is done again in the exact form.


@inline
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
    block_cells = block + most * pitch
    values = block_cells + most * pitch
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
            for part in range(4):
                for row in range(rows):
                    y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                    for chunk in range(chunks):
                        left = max(min(chunk * 16, width - 16), 0)  # the last sixteen columns may overlap others
                        to = ((row * chunks + chunk) * 16 + 4 * part) * VECTOR
                        seen = reduce_four(
                            kind, base + 4 * part * apart + (y0 * width + left) * item, apart, width * item, y1 - y0,
                            y0 * width, width, block + to, block_cells + to, VECTOR, mode, exact,
                        )  # fmt: skip
                        total = add(total, seen)
            for row in range(rows):
                for chunk in range(chunks):
                    here = (row * chunks + chunk) * 16 * VECTOR
                    to = row * pitch + max(min(chunk * 16, width - 16), 0) * VECTOR
                    transpose(FLOAT, block + here, VECTOR, strip + to, VECTOR)
                    if mode == PLACES:
                        transpose(FLOAT, block_cells + here, VECTOR, strip_cells + to, VECTOR)
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for column in range(columns):
                    x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                    to = (at + row * columns + column) * VECTOR
                    reduce_strip(
                        strip + row * pitch, strip_cells + row * pitch, VECTOR, x0, x1, values + to, places + to, mode,
                        exact,
                    )  # fmt: skip
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


@inline
def pool_cells(
    kind, item, x, image_step, channel_step, cell_step, width, channels, most, edges, plan, clipped, mode, images,
    order, starts, out_kind, out_item, out, cells, stream, scratch, begin, end,
):  # fmt: skip
    """Windows of maps whose channels of a cell are neighbours in memory.

    A unit is a block of up to `most` groups of 64 channels; more of them are longer runs of memory. Where it is 0 maps
    are packed: their groups lie one after the other, with a margin, and after a unit comes that of the next window. In
    others, whose C is 64 at least, comes the next block.
    """
    groups, windows = (channels + 63) // 64, len(images)
    packed = most == 0
    most = max(most, 1)
    blocks = (groups + most - 1) // most
    bins = 0
    for level in range(len(plan)):
        bins += plan[level, 0] * plan[level, 1]
    apart = (bins + 16) * VECTOR
    pitch = width * 4 * VECTOR  # of the strip: for each column four vectors of channels
    values = scratch
    places = values + 4 * most * apart
    laid = places + 4 * most * apart
    laid_cells = laid + 4 * apart
    rest = laid_cells + 4 * apart
    strip = rest + apart
    strip_cells = strip + most * pitch
    unit, exact = begin, False
    while unit < end:
        block, window = (unit // windows, unit % windows) if packed else (unit % blocks, unit // blocks)
        count = min(most, groups - block * most)
        cut = min(window, len(edges) - 1)
        map_ = x + images[window] * image_step
        total = floats(ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0:
                for group in range(count):
                    if mode == PLACES or exact:
                        for part in range(4 * group, 4 * group + 4):
                            derive(plan, level, values + part * apart, places + part * apart, mode, exact)
                    else:
                        derive_four(plan, level, values + 4 * group * apart, apart)
                continue
            left, right = edges[cut, edge + rows, 0], edges[cut, edge + rows + columns - 1, 1]
            for row in range(rows):
                y0, y1 = edges[cut, edge + row, 0], edges[cut, edge + row, 1]
                for column in range(left, right):
                    for group in range(count):
                        first = _first_channel(block * most + group, channels, packed)
                        to = group * pitch + column * 4 * VECTOR
                        seen = reduce_four(
                            kind, map_ + first * channel_step + (y0 * width + column) * cell_step, 16 * item,
                            width * cell_step, y1 - y0, y0 * width, width, strip + to, strip_cells + to, VECTOR, mode,
                            exact,
                        )  # fmt: skip
                        total = add(total, seen)
                for group in range(count):
                    for column in range(columns):
                        x0, x1 = edges[cut, edge + rows + column, 0], edges[cut, edge + rows + column, 1]
                        to = 4 * group * apart + (at + row * columns + column) * VECTOR
                        if mode == PLACES or exact:
                            for part in range(4):
                                here = group * pitch + part * VECTOR
                                reduce_strip(
                                    strip + here, strip_cells + here, 4 * VECTOR, x0, x1, values + to + part * apart,
                                    places + to + part * apart, mode, exact,
                                )  # fmt: skip
                        else:
                            here = strip + group * pitch + x0 * 4 * VECTOR
                            reduce_four(
                                FLOAT, here, VECTOR, 4 * VECTOR, x1 - x0, 0, 0, values + to, places + to, apart, mode,
                                exact,
                            )  # fmt: skip
                        if mode == AVERAGE:
                            for part in range(4):
                                divide_bin(values + to + part * apart, (y1 - y0) * (x1 - x0))
        if mode != AVERAGE and not exact and any_nan(total):
            exact = True
            continue
        exact = False
        for group in range(count):
            first = _first_channel(block * most + group, channels, packed)
            length = min(64, channels - first)
            for level in range(len(plan)):
                size, at, start = plan[level, 0] * plan[level, 1], plan[level, 4] * VECTOR, plan[level, 5]
                for part in range(4):
                    part_values, part_places = values + (4 * group + part) * apart, places + (4 * group + part) * apart
                    if clipped:
                        clear_empty_bins(plan, level, edges, cut, part_values, part_places, mode)
                    to = part * 16 * size
                    lay_out(out_kind, out_item, size, part_values + at, laid + to * out_item, rest)
                    if mode == PLACES:
                        lay_out(FLOAT, 4, size, part_places + at, laid_cells + to * 4, rest)
                for index in range(starts[window], starts[window + 1]):
                    to = (order[index] * bins + start) * channels + first * size
                    move(out + to * out_item, laid, length * size * out_item, stream)
                    if mode == PLACES:
                        move(cells + to * 4, laid_cells, length * size * 4, stream)
        unit += 1


@inline
def _first_channel(group, channels, packed):
    """Of a group of 64; where 64 does not divide, the last begins earlier, unless maps are packed with a margin."""
    return group * 64 if packed else min(group * 64, channels - 64)
