"""CPU gradient kernels in numba; `kernels.py` describes plan and edges."""

import numpy as np

from sppnet.ops.cpu.simd import accumulate, clear, integer, number
from sppnet.ops.cpu.steps import inline


@inline
def scatter(
    kind, item, total_kind, grad, cells, plan, channels, block, order, starts, total, image_step, channel_step,
    cell_step, zeroed, begin, end,
):  # fmt: skip
    """Add each gradient of a maximum to its cell; a unit is a block of channels of one image.

    Planes are cleared first, unless `zeroed`.
    """
    groups = -(-channels // block)
    levels, bins = len(plan), 0
    for level in range(levels):
        bins += plan[level, 0] * plan[level, 1]
    for unit in range(begin, end):
        image, group = divmod(unit, groups)
        first = group * block
        count = min(block, channels - first)
        base = total + image * image_step + first * channel_step
        if not zeroed:
            clear(base, count * channel_step)
        for index in range(starts[image], starts[image + 1]):
            for level in range(levels):
                size = plan[level, 0] * plan[level, 1]
                start = order[index] * bins * channels + plan[level, 5] * channels + first * size
                for channel in range(count):
                    plane = base + channel * channel_step
                    for place in range(start, start + size):
                        cell = integer(cells + place * 4)
                        if cell >= 0:
                            accumulate(total_kind, plane + cell * cell_step, number(kind, grad + place * item))
                    start += size


@inline
def spread(kind, item, grad, edges, plan, channels, width, height, order, starts, total, begin, end):
    """Divide each gradient of a mean among the cells of its bin, in float32; a unit is 16 channels of one image."""
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
            entry = min(box, len(edges) - 1)
            for level in range(levels):
                rows, columns, edge, start = plan[level, 0], plan[level, 1], plan[level, 3], plan[level, 5]
                address = grad + (box * bins * channels + start * channels + first * rows * columns) * item
                for channel in range(count):
                    plane = base + channel * step
                    for row in range(rows):
                        y0, y1 = edges[entry, edge + row, 0], edges[entry, edge + row, 1]
                        for column in range(columns):
                            x0, x1 = edges[entry, edge + rows + column, 0], edges[entry, edge + rows + column, 1]
                            share = number(kind, address) / np.float32(max((y1 - y0) * (x1 - x0), 1))
                            address += item
                            for y in range(y0, y1):
                                for x in range(x0, x1):
                                    accumulate(np.float32(0), plane + (y * width + x) * 4, share)
