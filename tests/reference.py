"""Slow, obvious forms of the operators, written from the formulas with loops and exact fractions."""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor


def adaptive_bins(side: int, level: int) -> list[list[int]]:
    """Cells of each bin: floor of the left border to the ceiling of the right one (SPP-net, Appendix A)."""
    bins = []
    for i in range(level):
        begin, end = Fraction(i * side, level), Fraction((i + 1) * side, level)
        bins.append(list(range(math.floor(begin), math.ceil(end))))
    return bins


def sliding_bins(side: int, level: int) -> list[list[int]]:
    """Every window of ceil(a/n) cells that fits when moved by floor(a/n) (SPP-net, section 2.3)."""
    kernel, stride = math.ceil(Fraction(side, level)), math.floor(Fraction(side, level))
    starts = [s for s in range(0, side, stride or side + 1) if s + kernel <= side]
    return [list(range(s, s + kernel)) for s in starts] if stride else []


def caffe_bins(side: int, level: int) -> list[list[int]] | None:
    """Windows that tile the padded side, padding taken out; None where Caffe refuses the side."""
    kernel = math.ceil(Fraction(side, level))
    pad = (kernel * level - side + 1) // 2
    if pad >= kernel:
        return None
    windows = [range(i * kernel - pad, (i + 1) * kernel - pad) for i in range(level)]
    return [[cell for cell in window if 0 <= cell < side] for window in windows]


def pyramid(
    x: Tensor, levels: Sequence[tuple[int, int]], bins: Callable[[int, int], list[list[int]]], reduce: str
) -> Tensor:
    """Level, channel, row, column: one bin at a time."""
    images = []
    for image in x:
        numbers = []
        for rows, columns in levels:
            for channel in image:
                for row in bins(image.shape[1], rows):
                    for column in bins(image.shape[2], columns):
                        cells = channel[row][:, column]
                        numbers.append(cells.max() if reduce == "max" else cells.mean())
        images.append(torch.stack(numbers))
    return torch.stack(images)
