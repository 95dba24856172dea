"""Spatial pyramid pooling of regions: feature maps and boxes in, a vector of fixed length per box out."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.errors import check_choice
from sppnet.ops import library
from sppnet.ops.bins import window_cells
from sppnet.ops.levels import CellRule, Level, Reduce, parse_levels
from sppnet.ops.pyramid import Sizes, check_feature_maps, check_sizes

Boxes = Sequence[Float[Tensor, "_ 4"]] | Float[Tensor, "_ 4"]
OnBad = Literal["raise", "clip", "drop"]
Limits = tuple[tuple[float, float | Tensor], tuple[float, float | Tensor]]


def region_pyramid_pool(
    x: Float[Tensor, "n c h w"],
    boxes: Boxes,
    levels: Sequence[Level] = (6, 3, 2, 1),
    spatial_scale: float | tuple[float, float] = 1 / 16,
    rule: CellRule = "paper",
    *,
    offset: float | tuple[float, float] = 0.0,
    reduce: Reduce = "max",
    sizes: Sizes | None = None,
    box_offsets: Int[Tensor, " _"] | None = None,
    on_bad: OnBad = "raise",
) -> Float[Tensor, "k d"]:
    """Pool each box of each image to a vector of fixed length (SPP-net, section 4.1).

    `rule` turns a box into a window of cells, which is then pooled like a map with the bins of ``adaptive``: a box
    that covers the whole map gives the vector of :func:`sppnet.pyramid_pool`. A bin outside the map gives 0. With
    the rule ``roi_pool`` and one level n the result equals ``torchvision.ops.roi_pool`` with n x n outputs, except
    where torchvision's float32 bin edges are inexact: for n = 7 and a window of 57 cells it reads one cell too many.

    A box is bad if it is not finite, inverted or outside the image. The size of the image is unknown here, so a box
    counts as outside if all of it is more than abs(offset) + 2 strides beyond the centers of the outermost cells;
    backbones leave less uncovered at the image borders. Boxes may extend beyond the image. Under ``roi_pool`` only
    non-finite boxes are bad: every other box has cells.

    Memory, in addition to the result and a copy of the maps, is about 1 KB per box. If the result itself is too
    large, pool slices of the boxes.

    Args:
        x: feature maps (n, c, h, w), contiguous or channels_last, of any floating-point dtype; only n may be 0.
        boxes: xyxy edges in pixels of the network's input, float32 or float64, x1 <= x2 and y1 <= y2: a list with one
            tensor (k_i, 4) per image, k_i >= 0, or all boxes in one tensor (k, 4) with `box_offsets`.
        levels: grids in any order: n for n x n bins or (rows, columns), each >= 1.
        spatial_scale: cells per pixel (1 / stride); one number or (vertical, horizontal).
        rule: rule that turns a box into cells: ``paper``, ``released`` or ``roi_pool``, see
            :func:`sppnet.ops.bins.window_cells`.
        offset: 0-based pixel under the first cell's center, such as `FeatureMap.offset`; one number or (vertical,
            horizontal). Ignored by ``roi_pool``.
        reduce: ``max``, as in the paper, or ``avg``, the mean over the cells of a bin.
        sizes: valid (height, width) of each map in cells, to which ``paper`` and ``released`` clamp windows.
        box_offsets: (n + 1,), int32 or int64: the boxes of image i are boxes[box_offsets[i] : box_offsets[i + 1]].
        on_bad: treatment of bad boxes. ``raise`` raises an error. ``clip`` uses the nearest cells of the map for a box
            outside and the cell in the middle of an inverted box; non-finite boxes still raise. ``drop`` omits their
            rows, see :func:`sppnet.ops.regions.usable_boxes`. Inside a graph (torch.compile, torch.export) values are
            unknown, and ``raise`` acts like ``clip``.

    Returns:
        Vectors (k, c * bins) in the dtype of `x`, one per box in the order of images and boxes: levels in the order
        given, within a level channel, row, column.

    Raises:
        TypeError: `x`, a tensor of boxes, `box_offsets` or a level has the wrong type or dtype.
        ValueError: not one tensor (k_i, 4) per image, a bad box, `box_offsets` that do not split the boxes, or an
            illegal scale, offset, level, size or option.

    Example:
        >>> boxes = [torch.tensor([[0.0, 0.0, 159.0, 95.0], [32.0, 16.0, 80.0, 64.0]])]
        >>> region_pyramid_pool(torch.randn(1, 256, 6, 10), boxes, (4, 2, 1), spatial_scale=1 / 16).shape
        torch.Size([2, 5376])
    """
    check_feature_maps(x)
    grids = parse_levels(levels)
    check_choice("reduce", reduce, get_args(Reduce))
    check_choice("rule", rule, get_args(CellRule))
    check_choice("on_bad", on_bad, get_args(OnBad))
    scale, origin = parse_scale(spatial_scale), parse_offset(offset)
    map_size = (x.shape[2], x.shape[3]) if sizes is None else check_sizes(sizes, x)
    rows, images = _join(boxes, box_offsets, x)
    if on_bad == "drop" or not torch.compiler.is_compiling():
        limits = None if on_bad == "clip" or rule == "roi_pool" else _limits(map_size, images, scale, origin)
        usable = _usable(rows, limits)
        if on_bad == "drop":
            rows, images = rows[usable], images[usable]
        elif not usable.all():
            raise ValueError(_describe(int((~usable).nonzero()[0]), rows, images, isinstance(boxes, Tensor), limits))
    windows = box_windows(rows.to(x.device), images.to(x.device), map_size, scale, origin, rule)
    return library.pool(x, windows, grids, "adaptive", reduce)


def usable_boxes(
    x: Float[Tensor, "n c h w"],
    boxes: Boxes,
    spatial_scale: float | tuple[float, float] = 1 / 16,
    rule: CellRule = "paper",
    *,
    offset: float | tuple[float, float] = 0.0,
    sizes: Sizes | None = None,
    box_offsets: Int[Tensor, " _"] | None = None,
) -> Bool[Tensor, " k"]:
    """Return which boxes are not bad, and therefore have a vector with ``on_bad="drop"``.

    Arguments and errors are those of :func:`region_pyramid_pool`.

    Returns:
        Boolean mask (k,) over the boxes of all images, on the boxes' device.
    """
    check_feature_maps(x)
    check_choice("rule", rule, get_args(CellRule))
    scale, origin = parse_scale(spatial_scale), parse_offset(offset)
    map_size = (x.shape[2], x.shape[3]) if sizes is None else check_sizes(sizes, x)
    rows, images = _join(boxes, box_offsets, x)
    return _usable(rows, None if rule == "roi_pool" else _limits(map_size, images, scale, origin))


def box_windows(
    boxes: Float[Tensor, "k 4"],
    images: Int[Tensor, " k"],
    map_size: tuple[int, int] | Int[Tensor, "n 2"],
    scale: tuple[float, float],
    offset: tuple[float, float],
    rule: CellRule,
) -> Int[Tensor, "k 5"]:
    """Convert boxes to windows: image, then xyxy cells, half-open."""
    limits = map_size[images] if isinstance(map_size, Tensor) else map_size
    cells = window_cells(boxes, limits, (1 / scale[0], 1 / scale[1]), offset, rule)
    return torch.cat((images[:, None], cells), dim=1)


def parse_scale(spatial_scale: float | tuple[float, float]) -> tuple[float, float]:
    """Return cells per pixel as (vertical, horizontal).

    Raises:
        ValueError: neither a finite number above 0 nor a pair of them.
    """
    scale = _pair("spatial_scale", spatial_scale)
    if min(scale) <= 0:
        raise ValueError(f"spatial_scale: expected cells per pixel above 0, got {spatial_scale}; for example 1 / 16")
    return scale


def parse_offset(offset: float | tuple[float, float]) -> tuple[float, float]:
    """Return the pixel under the first cell's center as (vertical, horizontal).

    Raises:
        ValueError: neither a finite number nor a pair of them.
    """
    return _pair("offset", offset)


def _pair(argument: str, value: float | tuple[float, float]) -> tuple[float, float]:
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(number, int | float) and abs(number) < math.inf for number in pair):
        raise ValueError(f"{argument}: expected a finite number or a pair (vertical, horizontal), got {value}")
    return float(pair[0]), float(pair[1])


def _join(boxes: Boxes, box_offsets: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return all boxes (K, 4) and their images (K,), on the boxes' device: CPU boxes are checked without a GPU sync."""
    images = x.shape[0]
    if isinstance(boxes, Tensor) and box_offsets is not None:
        _check_boxes("boxes", boxes)
        starts = _check_offsets(box_offsets, boxes, images).to(boxes.device, torch.long)
        rows = torch.arange(boxes.shape[0], device=boxes.device)
        # Inside a graph offsets are not checked, so clamp them to existing images.
        return boxes, torch.searchsorted(starts[1:], rows, right=True).clamp(max=images - 1)
    if isinstance(boxes, Tensor) or not isinstance(boxes, Sequence) or len(boxes) != images:
        received = type(boxes).__name__ + (f" of length {len(boxes)}" if isinstance(boxes, list | tuple) else "")
        raise ValueError(
            f"boxes: expected a list with one tensor (K, 4) for each of the {images} images, or one tensor with"
            f" box_offsets, got {received}"
        )
    if box_offsets is not None:
        received = type(box_offsets).__name__
        raise ValueError(f"box_offsets: expected None with a list of boxes, got {received}; the list is split already")
    for index, part in enumerate(boxes):
        _check_boxes(f"boxes[{index}]", part)
    if not boxes:  # torch.cat rejects an empty list
        return torch.empty(0, 4, device=x.device), torch.empty(0, dtype=torch.long, device=x.device)
    device = boxes[0].device
    image_indices = [torch.full((part.shape[0],), index, device=device) for index, part in enumerate(boxes)]
    return torch.cat([part.to(device) for part in boxes]), torch.cat(image_indices)


def _check_boxes(name: str, part: Tensor) -> None:
    if not isinstance(part, Tensor) or part.dtype not in (torch.float32, torch.float64):
        received = f"a tensor of {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
        raise TypeError(
            f"{name}: expected a float32 or float64 tensor (K, 4), xyxy in pixels, got {received}; .float() converts"
        )
    if part.ndim != 2 or part.shape[1] != 4:
        raise ValueError(f"{name}: expected shape (K, 4), xyxy in pixels, got {tuple(part.shape)}")


def _check_offsets(box_offsets: Tensor, boxes: Tensor, images: int) -> Tensor:
    if not isinstance(box_offsets, Tensor) or box_offsets.dtype not in (torch.int32, torch.int64):
        received = f"a tensor of {box_offsets.dtype}" if isinstance(box_offsets, Tensor) else type(box_offsets).__name__
        raise TypeError(f"box_offsets: expected an int32 or int64 tensor (N + 1,), got {received}")
    if box_offsets.ndim != 1 or box_offsets.shape[0] != images + 1:
        shape = tuple(box_offsets.shape)
        raise ValueError(f"box_offsets: expected shape ({images + 1},) for {images} images, got {shape}")
    if not torch.compiler.is_compiling():
        steps = box_offsets.tolist()
        if steps[0] != 0 or steps[-1] != len(boxes) or any(a > b for a, b in itertools.pairwise(steps)):
            raise ValueError(
                f"box_offsets: expected non-decreasing values from 0 to {len(boxes)} (all boxes), got {steps}; boxes of"
                " image i are boxes[box_offsets[i] : box_offsets[i + 1]]"
            )
    return box_offsets


def _limits(
    map_size: tuple[int, int] | Tensor, images: Tensor, scale: tuple[float, float], offset: tuple[float, float]
) -> Limits:
    """Return the smallest legal end and the largest legal begin of a box: horizontal, then vertical."""
    sides = map_size.to(images.device)[images].unbind(1) if isinstance(map_size, Tensor) else map_size
    return _axis_limits(sides[1], scale[1], offset[1]), _axis_limits(sides[0], scale[0], offset[0])


def _axis_limits(side: int | Tensor, scale: float, offset: float) -> tuple[float, float | Tensor]:
    margin = abs(offset) + 2 / scale
    return offset - margin, (side - 1) / scale + offset + margin


def _usable(rows: Tensor, limits: Limits | None) -> Tensor:
    """Return which boxes are finite and, given limits, neither inverted nor outside."""
    usable = rows.abs().amax(dim=1) < math.inf
    if limits is not None:
        x1, y1, x2, y2 = rows.unbind(1)
        for begin, end, (low, high) in ((x1, x2, limits[0]), (y1, y2, limits[1])):
            usable &= (begin <= end) & (end >= low) & (begin <= high)
    return usable


def _describe(row: int, rows: Tensor, images: Tensor, joined: bool, limits: Limits | None) -> str:
    """Return the error message of a bad box, named by its index in the caller's input."""
    image, box = int(images[row]), rows[row].tolist()
    name = f"boxes[{row}] of image {image}" if joined else f"boxes[{image}][{row - int((images < image).sum())}]"
    x1, y1, x2, y2 = box
    if limits is None or not (x1 <= x2 and y1 <= y2 and all(map(math.isfinite, box))):
        expected = "finite xyxy with x1 <= x2 and y1 <= y2"
        hint = "torchvision.ops.box_convert converts xywh to xyxy; on_bad='drop' omits bad boxes"
    else:
        (left, right), (top, bottom) = [
            (low, float(high[row]) if isinstance(high, Tensor) else high) for low, high in limits
        ]
        expected = f"a box not wholly outside x {left:g}..{right:g}, y {top:g}..{bottom:g} (its map and a margin)"
        hint = "check spatial_scale and offset; on_bad='clip' uses the nearest cells, 'drop' omits bad boxes"
    return f"{name}: expected {expected}, got {box}; {hint}"
