"""CPU pooling kernels in numba. They work on raw addresses; `dispatch.py` checks the tensors first.

A unit of work is one window for a block of 16 or 64 channels. Its bins are kept in scratch, one vector of 16 channels
per bin. A level in which no finer one nests is pooled from the map, the others are derived from a finer level, and all
are written out transposed. A kernel runs the units [begin, end), so that the threads of a call share no memory.

plan: one row per level, sources first: rows, columns, source (row of the plan, or -1 for the map), first
edge, first bin in scratch, first bin in the output.
edges: [begin, end) of the rows and columns of each level, one entry per window, or one entry for all windows.
values, places: maxima or means in scratch, and the cells of the maxima.
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

# A maximum that propagates NaN has a longer dependency chain. The fast path ignores NaN but also sums the values it
# reads; if a sum is NaN, the unit is repeated on the exact path.


@inline
def pool_planes(
    kind, item, x, shape, edges, plan, clipped, mode, images, order, starts, out, cells, scratch, begin, end,
):  # fmt: skip
    """Pool windows of contiguous maps (N, C, H, W), C >= 16: reduce rows first, then transpose the result."""
    maps, channels, height, width = shape
    groups, chunks = (channels + 15) // 16, (width + 15) // 16
    pitch = chunks * 16 * VECTOR  # bytes of a reduced row: one vector of channels per column
    bins, max_rows = 0, 0
    for level in range(len(plan)):
        bins += plan[level, 0] * plan[level, 1]
        if plan[level, 2] < 0:
            max_rows = max(max_rows, plan[level, 0])
    strip = scratch
    strip_cells = strip + max_rows * pitch
    block = strip_cells + max_rows * pitch
    block_cells = block + max_rows * pitch
    values = block_cells + max_rows * pitch
    places = values + (bins + 16) * VECTOR
    spare = places + (bins + 16) * VECTOR
    plane_step = height * width * item
    unit, exact = begin, False
    while unit < end:
        window, group = unit // groups, unit % groups
        first = min(group * 16, channels - 16)  # the last group may overlap the previous one
        entry = min(window, len(edges) - 1)
        base = x + (images[window] * channels + first) * plane_step
        if width < 16 and base + 16 * plane_step + 16 * item > x + maps * channels * plane_step:
            # Reads are 16 columns wide and could pass the end of the maps.
            copy(spare + (bins + 16) * VECTOR, base, 16 * plane_step)
            base = spare + (bins + 16) * VECTOR
        total = floats(ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0:
                derive(plan, level, values, places, mode, exact)
                continue
            for part in range(4):
                for row in range(rows):
                    y0, y1 = edges[entry, edge + row, 0], edges[entry, edge + row, 1]
                    for chunk in range(chunks):
                        left = max(min(chunk * 16, width - 16), 0)  # the last chunk may overlap the previous one
                        to = ((row * chunks + chunk) * 16 + 4 * part) * VECTOR
                        partial = reduce_four(
                            kind, base + 4 * part * plane_step + (y0 * width + left) * item, plane_step, width * item,
                            y1 - y0, y0 * width, width, block + to, block_cells + to, VECTOR, mode, exact,
                        )  # fmt: skip
                        total = add(total, partial)
            for row in range(rows):
                for chunk in range(chunks):
                    offset = (row * chunks + chunk) * 16 * VECTOR
                    to = row * pitch + max(min(chunk * 16, width - 16), 0) * VECTOR
                    transpose(FLOAT, block + offset, VECTOR, strip + to, VECTOR)
                    if mode == PLACES:
                        transpose(FLOAT, block_cells + offset, VECTOR, strip_cells + to, VECTOR)
            for row in range(rows):
                y0, y1 = edges[entry, edge + row, 0], edges[entry, edge + row, 1]
                for column in range(columns):
                    x0, x1 = edges[entry, edge + rows + column, 0], edges[entry, edge + rows + column, 1]
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
                clear_empty_bins(plan, level, edges, entry, values, places, mode)
            to = (order[starts[window]] * bins + start) * channels + first * size
            lay_out(kind, item, size, values + at, out + to * item, spare)
            if mode == PLACES:
                lay_out(FLOAT, 4, size, places + at, cells + to * 4, spare)
        unit += 1


@inline
def pool_cells(
    kind, item, x, image_step, channel_step, cell_step, width, channels, max_groups, edges, plan, clipped, mode, images,
    order, starts, out_kind, out_item, out, cells, stream, scratch, begin, end,
):  # fmt: skip
    """Pool windows of maps whose channels are innermost in memory.

    channels_last maps (C >= 64): a unit is a block of up to `max_groups` groups of 64 channels, for long contiguous
    reads, and the block index varies fastest. If `max_groups` is 0, maps are packed in separate groups, padded to 64
    channels; a unit is one group, and the window index varies fastest.
    """
    groups, windows = (channels + 63) // 64, len(images)
    packed = max_groups == 0
    max_groups = max(max_groups, 1)
    blocks = (groups + max_groups - 1) // max_groups
    bins = 0
    for level in range(len(plan)):
        bins += plan[level, 0] * plan[level, 1]
    part_step = (bins + 16) * VECTOR
    pitch = width * 4 * VECTOR  # bytes of a reduced row: four vectors of channels per column
    values = scratch
    places = values + 4 * max_groups * part_step
    staged = places + 4 * max_groups * part_step
    staged_cells = staged + 4 * part_step
    spare = staged_cells + 4 * part_step
    strip = spare + part_step
    strip_cells = strip + max_groups * pitch
    unit, exact = begin, False
    while unit < end:
        block, window = (unit // windows, unit % windows) if packed else (unit % blocks, unit // blocks)
        count = min(max_groups, groups - block * max_groups)
        entry = min(window, len(edges) - 1)
        pooled_map = x + images[window] * image_step
        total = floats(ZERO)
        for level in range(len(plan)):
            rows, columns, source = plan[level, 0], plan[level, 1], plan[level, 2]
            edge, at = plan[level, 3], plan[level, 4]
            if source >= 0:
                for group in range(count):
                    if mode == PLACES or exact:
                        for part in range(4 * group, 4 * group + 4):
                            derive(plan, level, values + part * part_step, places + part * part_step, mode, exact)
                    else:
                        derive_four(plan, level, values + 4 * group * part_step, part_step)
                continue
            left, right = edges[entry, edge + rows, 0], edges[entry, edge + rows + columns - 1, 1]
            for row in range(rows):
                y0, y1 = edges[entry, edge + row, 0], edges[entry, edge + row, 1]
                for column in range(left, right):
                    for group in range(count):
                        first = _first_channel(block * max_groups + group, channels, packed)
                        to = group * pitch + column * 4 * VECTOR
                        partial = reduce_four(
                            kind, pooled_map + first * channel_step + (y0 * width + column) * cell_step, 16 * item,
                            width * cell_step, y1 - y0, y0 * width, width, strip + to, strip_cells + to, VECTOR, mode,
                            exact,
                        )  # fmt: skip
                        total = add(total, partial)
                for group in range(count):
                    for column in range(columns):
                        x0, x1 = edges[entry, edge + rows + column, 0], edges[entry, edge + rows + column, 1]
                        to = 4 * group * part_step + (at + row * columns + column) * VECTOR
                        if mode == PLACES or exact:
                            for part in range(4):
                                offset = group * pitch + part * VECTOR
                                reduce_strip(
                                    strip + offset, strip_cells + offset, 4 * VECTOR, x0, x1,
                                    values + to + part * part_step, places + to + part * part_step, mode, exact,
                                )  # fmt: skip
                        else:
                            bin_start = strip + group * pitch + x0 * 4 * VECTOR
                            reduce_four(
                                FLOAT, bin_start, VECTOR, 4 * VECTOR, x1 - x0, 0, 0, values + to, places + to,
                                part_step, mode, exact,
                            )  # fmt: skip
                        if mode == AVERAGE:
                            for part in range(4):
                                divide_bin(values + to + part * part_step, (y1 - y0) * (x1 - x0))
        if mode != AVERAGE and not exact and any_nan(total):
            exact = True
            continue
        exact = False
        for group in range(count):
            first = _first_channel(block * max_groups + group, channels, packed)
            length = min(64, channels - first)
            for level in range(len(plan)):
                size, at, start = plan[level, 0] * plan[level, 1], plan[level, 4] * VECTOR, plan[level, 5]
                for part in range(4):
                    offset = (4 * group + part) * part_step
                    part_values, part_places = values + offset, places + offset
                    if clipped:
                        clear_empty_bins(plan, level, edges, entry, part_values, part_places, mode)
                    to = part * 16 * size
                    lay_out(out_kind, out_item, size, part_values + at, staged + to * out_item, spare)
                    if mode == PLACES:
                        lay_out(FLOAT, 4, size, part_places + at, staged_cells + to * 4, spare)
                for index in range(starts[window], starts[window + 1]):
                    to = (order[index] * bins + start) * channels + first * size
                    move(out + to * out_item, staged, length * size * out_item, stream)
                    if mode == PLACES:
                        move(cells + to * 4, staged_cells, length * size * 4, stream)
        unit += 1


@inline
def _first_channel(group, channels, packed):
    """Return the first channel of a group of 64; the last group may overlap the previous one unless maps are packed."""
    return group * 64 if packed else min(group * 64, channels - 64)
