"""Spatial pyramid pooling of regions: one feature map in, one vector of fixed length for each box out."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.bins import CellRule, Level, choose, parse_levels, window_cells
from sppnet.ops import library
from sppnet.ops.plain import Reduce
from sppnet.ops.pyramid import Sizes, check_map, check_sizes


def region_pyramid_pool(
    x: Float[Tensor, "n c h w"],
    boxes: Sequence[Float[Tensor, "_ 4"]],
    levels: Sequence[Level] = (6, 3, 2, 1),
    spatial_scale: float | tuple[float, float] = 1 / 16,
    rule: CellRule = "paper",
    *,
    offset: float | tuple[float, float] = 0.0,
    reduce: Reduce = "max",
    sizes: Sizes | None = None,
) -> Float[Tensor, "k d"]:
    """Pool a pyramid over each box of each image (SPP-net, section 4.1).

    A box becomes a window of cells by `rule`, and the window is cut like a map of its own: the box that covers the
    whole map gets the vector of :func:`sppnet.pyramid_pool`. With the rule ``roi_pool`` and one level n the result
    equals ``torchvision.ops.roi_pool`` with n x n outputs wherever its bins, cut in float32, are exact; for n = 7 they
    are not at 57 cells, where it reads one too many. A bin outside the map gives 0.

    Args:
        x: feature maps of n images, contiguous or channels_last, of any floating dtype.
        boxes: for each image its boxes: xyxy edges in pixels of the network's input, float32 or float64,
            x1 <= x2 and y1 <= y2 (``roi_pool`` takes any order). A list may be empty, a box may leave the image.
        levels: n for n x n bins or (rows, columns), each >= 1, in any order.
        spatial_scale: cells per pixel, 1 / stride; one number, or (vertical, horizontal).
        rule: how a box becomes cells: ``paper``, ``released`` or ``roi_pool``, see
            :func:`sppnet.bins.window_cells`.
        offset: the pixel under the first cell's centre, counted from 0; one number, or (vertical, horizontal).
            `FeatureMap.offset` has it. No part in ``roi_pool``.
        reduce: ``max`` (the paper's) or ``avg``, the mean over a bin's own cells.
        sizes: valid (height, width) of each map, in cells; under ``paper`` and ``released`` windows stay inside.

    Returns:
        (k, c * bins) in the dtype of `x`, k the number of all boxes, in the order of the images and of their boxes:
        levels in the order given, inside a level channel, row, column.

    Raises:
        TypeError: `x` or a tensor of boxes is not a floating-point tensor that can hold pixels.
        ValueError: not one tensor (k, 4) an image; coordinates that are not finite or out of order; a scale or an
            offset that is not one number or two, or a scale that is not positive.
    """
    check_map(x)
    grids = parse_levels(levels)
    choose("reduce", reduce, get_args(Reduce))
    choose("rule", rule, get_args(CellRule))
    scale, origin = parse_scale(spatial_scale), parse_offset(offset)
    _check_boxes(boxes, len(x), rule)
    # Of no boxes at all, cat needs a tensor too.
    rows = [part.to(x.device) for part in boxes] or [torch.empty(0, 4, device=x.device)]
    images = [torch.full((part.shape[0],), index, device=x.device) for index, part in enumerate(rows)]
    windows = box_windows(
        torch.cat(rows),
        torch.cat(images),
        (x.shape[2], x.shape[3]) if sizes is None else check_sizes(sizes, x),
        scale,
        origin,
        rule,
    )
    return library.pool(x, windows, grids, "adaptive", reduce)


def box_windows(
    boxes: Float[Tensor, "k 4"],
    images: Int[Tensor, " k"],
    map_size: tuple[int, int] | Int[Tensor, "n 2"],
    scale: tuple[float, float],
    offset: tuple[float, float],
    rule: CellRule,
) -> Int[Tensor, "k 5"]:
    """Boxes of images as windows of cells: image, then xyxy cells, half-open."""
    limits = map_size[images] if isinstance(map_size, Tensor) else map_size
    cells = window_cells(boxes, limits, (1 / scale[0], 1 / scale[1]), offset, rule)
    return torch.cat((images[:, None], cells), dim=1)


def parse_scale(spatial_scale: float | tuple[float, float]) -> tuple[float, float]:
    """Cells per pixel as (vertical, horizontal).

    Raises:
        ValueError: not one finite number above 0, or a pair of them.
    """
    scale = _pair("spatial_scale", spatial_scale)
    if min(scale) <= 0:
        raise ValueError(f"spatial_scale: expected cells per pixel above 0, such as 1 / 16; got {spatial_scale}")
    return scale


def parse_offset(offset: float | tuple[float, float]) -> tuple[float, float]:
    """The pixel under the first cell's centre as (vertical, horizontal).

    Raises:
        ValueError: not one finite number, or a pair of them.
    """
    return _pair("offset", offset)


def _pair(argument: str, value: float | tuple[float, float]) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(number, int | float) and abs(number) < math.inf for number in pair):
        raise ValueError(f"{argument}: expected a finite number, or a pair (vertical, horizontal); got {value}")
    return float(pair[0]), float(pair[1])


def _check_boxes(boxes: Sequence[Tensor], images: int, rule: CellRule) -> None:
    if isinstance(boxes, Tensor) or not isinstance(boxes, Sequence) or len(boxes) != images:
        found = f"{len(boxes)} of them" if isinstance(boxes, list | tuple) else f"a {type(boxes).__name__}"
        raise ValueError(f"boxes: expected a list with one tensor (K, 4) for each of the {images} images; got {found}")
    for index, part in enumerate(boxes):
        if not isinstance(part, Tensor) or part.dtype not in (torch.float32, torch.float64):
            found = f"a tensor of {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
            raise TypeError(
                f"boxes[{index}]: expected a float32 tensor (K, 4), xyxy in pixels; got {found}; fewer bits do not"
                " hold pixels, and .float() converts"
            )
        if part.ndim != 2 or part.shape[1] != 4:
            raise ValueError(f"boxes[{index}]: expected shape (K, 4), xyxy in pixels; got {tuple(part.shape)}")
        if torch.compiler.is_compiling():  # values are not known while a graph is made
            continue
        wrong = ~part.isfinite().all(dim=1)
        if rule != "roi_pool":
            wrong |= (part[:, 2:] < part[:, :2]).any(dim=1)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"boxes[{index}][{row}]: expected finite xyxy with x1 <= x2 and y1 <= y2; got {part[row].tolist()};"
                " torchvision.ops.box_convert turns xywh into xyxy"
            )
