"""CPU kernels of the gradients, in numba; plan, edges and units of work as in `_kernels.py`."""

import numpy as np

from sppnet.ops.cpu.simd import accumulate, clear, integer, number
from sppnet.ops.cpu.steps import inline


@inline
def scatter(
    kind, item, total_kind, grad, cells, plan, channels, share, order, starts, total, image_step, channel_step,
    cell_step, zeroed, begin, end,
):  # fmt: skip
    """Gradients of maxima, each added to its cell; a unit is `share` channels of one image.

    Planes are set to zero first, unless all of the map is `zeroed`.
    """
    groups = -(-channels // share)
    levels, bins = len(plan), 0
    for level in range(levels):
        bins += plan[level, 0] * plan[level, 1]
    for unit in range(begin, end):
        image, group = divmod(unit, groups)
        first = group * share
        count = min(share, channels - first)
        base = total + image * image_step + first * channel_step
        if not zeroed:
            clear(base, count * channel_step)
        for index in range(starts[image], starts[image + 1]):
            for level in range(levels):
                size = plan[level, 0] * plan[level, 1]
                at = order[index] * bins * channels + plan[level, 5] * channels + first * size
                for channel in range(count):
                    plane = base + channel * channel_step
                    for place in range(at, at + size):
                        cell = integer(cells + place * 4)
                        if cell >= 0:
                            accumulate(total_kind, plane + cell * cell_step, number(kind, grad + place * item))
                    at += size


@inline
def spread(kind, item, grad, edges, plan, channels, width, height, order, starts, total, begin, end):
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
                                    accumulate(np.float32(0), plane + (y * width + x) * 4, share)
