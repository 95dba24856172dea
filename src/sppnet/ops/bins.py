"""Integer geometry: the bin edges of a pyramid level, and the feature-map cells that an image window covers."""

import operator
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.errors import check_choice
from sppnet.ops.levels import CellRule, Rule

Edges = tuple[tuple[int, int], ...]


def bin_edges(size: int, level: int, rule: Rule = "adaptive") -> Edges:
    """Return the half-open cell ranges [begin, end) of the bins along one side of a map.

    Rules, for a side of a cells and n bins:

    - ``adaptive``: bin i spans [floor(i*a/n), ceil((i+1)*a/n)), as in torch's adaptive pooling (SPP-net,
      Appendix A). It gives n bins at every a >= 1.
    - ``sliding``: windows of ceil(a/n) cells with stride floor(a/n) (SPP-net, section 2.3). A side is rejected if
      that does not give n windows. At some sides no window has the last cells (a=14, n=6).
    - ``caffe``: windows of k = ceil(a/n) cells with stride k and a padding of floor((k*n - a + 1) / 2) cells,
      clipped to the map (Caffe's SPP layer). As in Caffe, a side is rejected if the padding is as large as the window.

    Args:
        size: number of cells along the side (a), >= 1.
        level: number of bins along the side (n), >= 1.
        rule: rule that cuts the side.

    Raises:
        TypeError: `size` or `level` is not an integer.
        ValueError: `size` or `level` below 1, an unknown rule, or a side that the rule cannot cut; the message
            names the nearest sides that it can.
    """
    check_choice("rule", rule, get_args(Rule))
    size, level = operator.index(size), operator.index(level)
    if size < 1:
        raise ValueError(f"size: expected a map side of at least 1 cell, got {size}")
    if level < 1:
        raise ValueError(f"level: expected at least 1 bin per side, got {level}; the smallest level is 1")
    if rule == "adaptive":
        return tuple((i * size // level, -(-(i + 1) * size // level)) for i in range(level))
    fault = _fault(size, level, rule)
    if fault:
        raise ValueError(
            f"rule: expected one that cuts a map side of {size} into {level} bins, got {rule!r} ({fault}); nearest"
            f" sides that it cuts: {_nearest_sides(size, level, rule)}; rule='adaptive' works at every side"
        )
    kernel = -(-size // level)
    if rule == "sliding":
        stride = size // level
        return tuple((i * stride, i * stride + kernel) for i in range(level))
    pad = (kernel * level - size + 1) // 2
    return tuple((max(i * kernel - pad, 0), min((i + 1) * kernel - pad, size)) for i in range(level))


def _fault(size: int, level: int, rule: Rule) -> str:
    """Return why the rule does not give `level` bins on this side, or an empty string if it does."""
    kernel, stride = -(-size // level), size // level
    if rule == "sliding":
        if stride == 0:
            return f"kernel {kernel} and stride 0 give no bins"
        count = (size - kernel) // stride + 1
        return "" if count == level else f"kernel {kernel} and stride {stride} give {count} bins"
    pad = (kernel * level - size + 1) // 2
    return "" if pad < kernel else f"padding {pad} is not smaller than kernel {kernel}"


def _nearest_sides(size: int, level: int, rule: Rule) -> str:
    """Name the nearest legal sides below and above; every multiple of the level is legal, so the searches end."""
    below = next((a for a in range(size - 1, 0, -1) if not _fault(a, level, rule)), None)
    above = next(a for a in range(size + 1, size + level + 1) if not _fault(a, level, rule))
    return f"{above}" if below is None else f"{below} and {above}"


def window_cells(
    windows: Float[Tensor, "k 4"],
    map_size: tuple[int, int] | Int[Tensor, "k 2"],
    stride: tuple[float, float],
    offset: tuple[float, float],
    rule: CellRule = "paper",
) -> Int[Tensor, "k 4"]:
    """Return the feature-map cells that windows of the input image cover.

    - ``paper``: the cells whose centers are strictly between the window's first and last pixel (SPP-net,
      Appendix A).
    - ``released``: the same, with both limits moved outward by half a stride minus 6.5 pixels (1.5 pixels at
      stride 16), as in the authors' code.
    - ``roi_pool``: the cells from one edge to the other, both included; edges are divided by the stride and rounded in
      float32, halves away from zero (Fast R-CNN, section 2.1). The offset is ignored, and cells may be outside the map.

    Under ``paper`` and ``released`` a window between two centers gets the cell in the middle, and every window gets
    at least one cell of the map.

    Args:
        windows: xyxy edges in pixels of the network's input, x1 <= x2 and y1 <= y2.
        map_size: (height, width) of the map in cells, or a tensor (k, 2) with the map size of each window.
        stride: (vertical, horizontal) distance between neighboring cells, in pixels.
        offset: (vertical, horizontal) 0-based index of the pixel under the first cell's center.
        rule: rule that turns edges into cells.

    Returns:
        xyxy cells as int64, half-open: columns x1..x2-1 and rows y1..y2-1 of the map.
    """
    check_choice("rule", rule, get_args(CellRule))
    height, width = map_size.unbind(1) if isinstance(map_size, Tensor) else map_size
    edges = windows.float() if rule == "roi_pool" else windows.double()
    x1, y1, x2, y2 = edges.unbind(1)
    left, right = _axis_cells(x1, x2, width, stride[1], offset[1], rule)
    top, bottom = _axis_cells(y1, y2, height, stride[0], offset[0], rule)
    return torch.stack((left, top, right, bottom), dim=1)


def _axis_cells(
    begin: Tensor, end: Tensor, side: int | Tensor, stride: float, offset: float, rule: CellRule
) -> tuple[Tensor, Tensor]:
    if rule == "roi_pool":
        first, last = _round_half_away(begin * (1 / stride)), _round_half_away(end * (1 / stride))
        # Still far outside any map, and safe to convert to int64.
        first, last = first.clamp(-(2.0**30), 2.0**30), last.clamp(-(2.0**30), 2.0**30)
        return first.long(), torch.maximum(last, first).long() + 1
    first_pixel, last_pixel = begin - offset, end - 1 - offset
    if rule == "paper":
        first = (first_pixel / stride).floor() + 1
        last = (last_pixel / stride).ceil() - 1
    else:
        first = ((first_pixel + 6.5) / stride + 0.5).floor()
        last = ((last_pixel - 6.5) / stride - 0.5).ceil()
    # The released code counts cells from 1 and truncates the middle of a collapsed window.
    middle = ((first + last + 2) / 2).trunc() - 1
    collapsed = first > last
    first, last = torch.where(collapsed, middle, first), torch.where(collapsed, middle, last)
    zero = torch.zeros_like(first)
    return first.clamp(zero, zero + side - 1).long(), last.clamp(zero, zero + side - 1).long() + 1


def _round_half_away(x: Tensor) -> Tensor:
    """Round as C does (torch rounds halves to even); in float64, where adding 0.5 to a float32 is exact."""
    return x.sign() * (x.double().abs() + 0.5).floor()


def clipped_edges(
    windows: Int[Tensor, "k 4"], map_size: tuple[int, int], grids: Sequence[tuple[int, int]], rule: Rule = "adaptive"
) -> Int[Tensor, "k e 2"]:
    """Return the bin edges of every level on the map, for windows of cells.

    Args:
        windows: xyxy cells, half-open.
        map_size: (height, width) that bins are clipped to; a bin outside the map is empty (begin >= end).
        grids: (rows, columns) of each level.
        rule: rule that cuts windows into bins, see :func:`bin_edges`.

    Returns:
        int64 [begin, end) in cells of the map: for each level its rows, top to bottom, then its columns.
    """
    left, top, right, bottom = windows.unbind(1)
    parts = []
    for rows, columns in grids:
        parts.append(_cut(top, bottom, rows, map_size[0], rule))
        parts.append(_cut(left, right, columns, map_size[1], rule))
    return torch.cat(parts, dim=1)


def _cut(begin: Tensor, end: Tensor, level: int, side: int, rule: Rule) -> Tensor:
    sizes = end - begin
    if rule == "adaptive":
        i = torch.arange(level, device=begin.device)
        edges = torch.stack((i * sizes[:, None] // level, -(-(i + 1) * sizes[:, None] // level)), dim=2)
    else:
        edges_of = {size: bin_edges(size, level, rule) for size in set(sizes.tolist())}
        per_window = [edges_of[size] for size in sizes.tolist()]
        edges = torch.tensor(per_window, dtype=torch.long, device=begin.device).reshape(-1, level, 2)
    return (begin[:, None, None] + edges).clamp(0, side)
