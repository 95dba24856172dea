"""Slow reference implementations of the operators: the formulas as loops over exact fractions."""

import functools
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor


@functools.cache
def adaptive_bins(side: int, level: int) -> list[list[int]]:
    """Return the cells of each bin: floor of its begin to ceiling of its end (SPP-net, Appendix A)."""
    bins = []
    for i in range(level):
        begin, end = Fraction(i * side, level), Fraction((i + 1) * side, level)
        bins.append(list(range(math.floor(begin), math.ceil(end))))
    return bins


def sliding_bins(side: int, level: int) -> list[list[int]]:
    """Return every window of ceil(a/n) cells with stride floor(a/n) that fits (SPP-net, section 2.3)."""
    kernel, stride = math.ceil(Fraction(side, level)), math.floor(Fraction(side, level))
    starts = [s for s in range(0, side, stride or side + 1) if s + kernel <= side]
    return [list(range(s, s + kernel)) for s in starts] if stride else []


def caffe_bins(side: int, level: int) -> list[list[int]] | None:
    """Return windows that tile the padded side, without the padding; None for a side that Caffe rejects."""
    kernel = math.ceil(Fraction(side, level))
    pad = (kernel * level - side + 1) // 2
    if pad >= kernel:
        return None
    windows = [range(i * kernel - pad, (i + 1) * kernel - pad) for i in range(level)]
    return [[cell for cell in window if 0 <= cell < side] for window in windows]


def pyramid(
    x: Tensor, levels: Sequence[tuple[int, int]], bins: Callable[[int, int], list[list[int]]], reduce: str
) -> Tensor:
    """Pool whole maps one bin at a time, in the order level, channel, row, column."""
    images = []
    for image in x:
        values = []
        for rows, columns in levels:
            for channel in image:
                for row in bins(image.shape[1], rows):
                    for column in bins(image.shape[2], columns):
                        cells = channel[row][:, column]
                        values.append(cells.max() if reduce == "max" else cells.mean())
        images.append(torch.stack(values))
    return torch.stack(images)


def round_half_away(number: Fraction) -> int:
    """Round to the nearest integer, halves away from zero, like C's round."""
    return math.floor(number + Fraction(1, 2)) if number >= 0 else -math.floor(-number + Fraction(1, 2))


def cells(begin: float, end: float, stride: float, offset: float, side: int, rule: str) -> tuple[int, int]:
    """Return the first and last cell of a window along one axis, from the edges of its pixels."""
    if rule == "roi_pool":
        scale = np.float32(1 / stride)
        first, last = (round_half_away(Fraction(float(np.float32(edge) * scale))) for edge in (begin, end))
        return first, max(first, last)
    step = Fraction(stride)
    pixel, last_pixel = Fraction(begin) - Fraction(offset), Fraction(end) - 1 - Fraction(offset)
    if rule == "paper":  # centers strictly between the two pixels
        first, last = math.floor(pixel / step) + 1, math.ceil(last_pixel / step) - 1
    else:
        margin, half = Fraction(13, 2), Fraction(1, 2)
        first = math.floor((pixel + margin) / step + half)
        last = math.ceil((last_pixel - margin) / step - half)
    if first > last:  # the middle of the two, counted from 1 and truncated
        first = last = math.trunc(Fraction(first + last + 2, 2)) - 1
    return min(max(first, 0), side - 1), min(max(last, 0), side - 1)


def region(
    maps: Tensor, rows: tuple[int, int], columns: tuple[int, int], levels: Sequence[tuple[int, int]], reduce: str
) -> Tensor:
    """Pool one window of one image's maps (C, H, W), given its first and last row and column."""
    parts = []
    for grid_rows, grid_columns in levels:
        grid = []
        for row in adaptive_bins(rows[1] - rows[0] + 1, grid_rows):
            for column in adaptive_bins(columns[1] - columns[0] + 1, grid_columns):
                top, bottom = max(rows[0] + row[0], 0), rows[0] + row[-1] + 1
                left, right = max(columns[0] + column[0], 0), columns[0] + column[-1] + 1
                crop = maps[:, top : max(bottom, 0), left : max(right, 0)]
                if crop.numel() == 0:
                    grid.append(maps.new_zeros(len(maps)))
                else:
                    grid.append(crop.amax((1, 2)) if reduce == "max" else crop.mean((1, 2)))
        parts.append(torch.stack(grid, dim=1).flatten())
    return torch.cat(parts)


def regions(
    x: Tensor,
    boxes: Sequence[Tensor],
    levels: Sequence[tuple[int, int]],
    rule: str,
    reduce: str,
    stride: tuple[float, float] = (16, 16),
    offset: tuple[float, float] = (0, 0),
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Pool regions one image, one box and one bin at a time."""
    vectors = []
    for index, (maps, part) in enumerate(zip(x, boxes, strict=True)):
        height, width = sizes[index] if sizes is not None else maps.shape[1:]
        for x1, y1, x2, y2 in part.tolist():
            rows = cells(y1, y2, stride[0], offset[0], height, rule)
            columns = cells(x1, x2, stride[1], offset[1], width, rule)
            vectors.append(region(maps, rows, columns, levels, reduce))
    return torch.stack(vectors)
