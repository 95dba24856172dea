"""Spatial pyramid pooling of regions: one feature map in, one vector of fixed length for each box out."""

import itertools
import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.errors import choose
from sppnet.ops import library
from sppnet.ops.bins import CellRule, Level, parse_levels, window_cells
from sppnet.ops.pyramid import Sizes, check_map, check_sizes
from sppnet.ops.reference import Reduce

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
    """Pool a pyramid over each box of each image (SPP-net, section 4.1).

    A box becomes a window of cells by `rule`, and the window is cut like a map of its own: the box that covers the
    whole map gets the vector of :func:`sppnet.pyramid_pool`. With the rule ``roi_pool`` and one level n the result
    equals ``torchvision.ops.roi_pool`` with n x n outputs wherever its bins, cut in float32, are exact; for n = 7 they
    are not at 57 cells, where it reads one too many. A bin outside the map gives 0.

    Boxes are bad that are not finite, that are inverted, or that lie outside the image. The image's size is not known
    here: outside is what lies wholly beyond the outermost cells' centres by more than abs(offset) and two strides,
    which is more than networks leave uncovered at an image's borders. Other boxes may leave the image. The rule
    ``roi_pool`` has a cell for every finite box, in any order and anywhere, and calls no other bad.

    Beside the result and a copy of the maps memory takes about 1 KB a box; who wants less than the result itself
    calls with slices of the boxes.

    Args:
        x: feature maps of n images, contiguous or channels_last, of any floating dtype.
        boxes: xyxy edges in pixels of the network's input, float32 or float64, x1 <= x2 and y1 <= y2: for each image
            a tensor, which may have no rows, or all boxes in one tensor with `box_offsets`.
        levels: n for n x n bins or (rows, columns), each >= 1, in any order.
        spatial_scale: cells per pixel, 1 / stride; one number, or (vertical, horizontal).
        rule: how a box becomes cells: ``paper``, ``released`` or ``roi_pool``, see
            :func:`sppnet.ops.bins.window_cells`.
        offset: the pixel under the first cell's centre, counted from 0; one number, or (vertical, horizontal).
            `FeatureMap.offset` has it. No part in ``roi_pool``.
        reduce: ``max`` (the paper's) or ``avg``, the mean over a bin's own cells.
        sizes: valid (height, width) of each map, in cells; under ``paper`` and ``released`` windows stay inside.
        box_offsets: (n + 1,), int32 or int64: the boxes of image i are boxes[box_offsets[i] : box_offsets[i + 1]].
        on_bad: what becomes of bad boxes. ``raise`` refuses the first. ``clip`` takes the nearest cell of the map
            for one outside and the cell at its middle for an inverted one, and refuses those that are not finite.
            ``drop`` gives them no row; :func:`sppnet.ops.regions.usable_boxes` tells which have one. While a graph is
            made (torch.compile, torch.export) values are not known, and ``raise`` is like ``clip``.

    Returns:
        (k, c * bins) in the dtype of `x`, k the number of all boxes, in the order of the images and of their boxes:
        levels in the order given, inside a level channel, row, column.

    Raises:
        TypeError: `x` or a tensor of boxes is not a floating-point tensor that can hold pixels; `box_offsets` are not
            integers.
        ValueError: not one tensor (k, 4) an image; a bad box; `box_offsets` that do not part the boxes; a scale or an
            offset that is not one number or two, or a scale that is not positive.
    """
    check_map(x)
    grids = parse_levels(levels)
    choose("reduce", reduce, get_args(Reduce))
    choose("rule", rule, get_args(CellRule))
    choose("on_bad", on_bad, get_args(OnBad))
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
    """Which boxes are not bad: those that have a row under ``on_bad="drop"``.

    Arguments and errors are those of :func:`region_pyramid_pool`.

    Returns:
        One truth value a box, all images' boxes in a row, on the boxes' device.
    """
    check_map(x)
    choose("rule", rule, get_args(CellRule))
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


def _join(boxes: Boxes, box_offsets: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """All boxes (K, 4) and the image of each (K,), on the boxes' own device: there their values cost no wait."""
    images = x.shape[0]
    if isinstance(boxes, Tensor) and box_offsets is not None:
        _check_part("boxes", boxes)
        starts = _check_offsets(box_offsets, boxes, images).to(boxes.device, torch.long)
        places = torch.arange(boxes.shape[0], device=boxes.device)
        # Inside a graph offsets may be wrong unseen: no image but those that there are.
        return boxes, torch.searchsorted(starts[1:], places, right=True).clamp(max=images - 1)
    if isinstance(boxes, Tensor) or not isinstance(boxes, Sequence) or len(boxes) != images:
        found = f"{len(boxes)} of them" if isinstance(boxes, list | tuple) else f"a {type(boxes).__name__}"
        raise ValueError(
            f"boxes: expected a list with one tensor (K, 4) for each of the {images} images, or a tensor of all and"
            f" box_offsets; got {found}"
        )
    if box_offsets is not None:
        raise ValueError("box_offsets: expected None with a list of boxes, whose tensors part them already")
    for index, part in enumerate(boxes):
        _check_part(f"boxes[{index}]", part)
    if not boxes:  # cat needs a tensor too
        return torch.empty(0, 4, device=x.device), torch.empty(0, dtype=torch.long, device=x.device)
    device = boxes[0].device
    numbers = [torch.full((part.shape[0],), index, device=device) for index, part in enumerate(boxes)]
    return torch.cat([part.to(device) for part in boxes]), torch.cat(numbers)


def _check_part(name: str, part: Tensor) -> None:
    if not isinstance(part, Tensor) or part.dtype not in (torch.float32, torch.float64):
        found = f"a tensor of {part.dtype}" if isinstance(part, Tensor) else type(part).__name__
        raise TypeError(
            f"{name}: expected a float32 tensor (K, 4), xyxy in pixels; got {found}; fewer bits do not hold pixels, and"
            " .float() converts"
        )
    if part.ndim != 2 or part.shape[1] != 4:
        raise ValueError(f"{name}: expected shape (K, 4), xyxy in pixels; got {tuple(part.shape)}")


def _check_offsets(box_offsets: Tensor, boxes: Tensor, images: int) -> Tensor:
    if not isinstance(box_offsets, Tensor) or box_offsets.dtype not in (torch.int32, torch.int64):
        found = f"a tensor of {box_offsets.dtype}" if isinstance(box_offsets, Tensor) else type(box_offsets).__name__
        raise TypeError(f"box_offsets: expected an int64 tensor (N + 1,); got {found}")
    if box_offsets.ndim != 1 or box_offsets.shape[0] != images + 1:
        found = str(tuple(box_offsets.shape))
        raise ValueError(f"box_offsets: expected shape ({images + 1},), for {images} images; got {found}")
    if not torch.compiler.is_compiling():
        steps = box_offsets.tolist()
        if steps[0] != 0 or steps[-1] != len(boxes) or any(a > b for a, b in itertools.pairwise(steps)):
            raise ValueError(
                f"box_offsets: expected a rise from 0 to the number of boxes, {len(boxes)}; got {steps}; boxes of"
                " image i are boxes[box_offsets[i] : box_offsets[i + 1]]"
            )
    return box_offsets


def _limits(
    map_size: tuple[int, int] | Tensor, images: Tensor, scale: tuple[float, float], offset: tuple[float, float]
) -> Limits:
    """Where a box has to end at the earliest and begin at the latest, horizontally and vertically."""
    sides = map_size.to(images.device)[images].unbind(1) if isinstance(map_size, Tensor) else map_size
    return _reach(sides[1], scale[1], offset[1]), _reach(sides[0], scale[0], offset[0])


def _reach(side: int | Tensor, scale: float, offset: float) -> tuple[float, float | Tensor]:
    margin = abs(offset) + 2 / scale
    return offset - margin, (side - 1) / scale + offset + margin


def _usable(rows: Tensor, limits: Limits | None) -> Tensor:
    """Which boxes are finite, and with limits in order and not outside."""
    usable = rows.abs().amax(dim=1) < math.inf
    if limits is not None:
        x1, y1, x2, y2 = rows.unbind(1)
        for begin, end, (low, high) in ((x1, x2, limits[0]), (y1, y2, limits[1])):
            usable &= (begin <= end) & (end >= low) & (begin <= high)
    return usable


def _describe(row: int, rows: Tensor, images: Tensor, joined: bool, limits: Limits | None) -> str:
    """What is wrong with a box, which is named as the caller counts."""
    image, box = int(images[row]), rows[row].tolist()
    name = f"boxes[{row}] of image {image}" if joined else f"boxes[{image}][{row - int((images < image).sum())}]"
    x1, y1, x2, y2 = box
    if limits is None or not (x1 <= x2 and y1 <= y2 and all(map(math.isfinite, box))):
        expected = "finite xyxy with x1 <= x2 and y1 <= y2"
        hint = "torchvision.ops.box_convert turns xywh into xyxy; on_bad='drop' leaves bad boxes out"
    else:
        (left, right), (top, bottom) = [
            (low, float(high[row]) if isinstance(high, Tensor) else high) for low, high in limits
        ]
        expected = (
            f"a box that is not wholly outside x {left:g}..{right:g}, y {top:g}..{bottom:g}, more than its map shows"
        )
        hint = (
            "spatial_scale and offset may be another map's; on_bad='clip' takes the nearest cells, 'drop' leaves it out"
        )
    return f"{name}: expected {expected}; got {box}; {hint}"
