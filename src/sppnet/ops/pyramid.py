"""Spatial pyramid pooling of whole feature maps: any (H, W) in, a vector of fixed length out."""

import operator
from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.errors import check_choice
from sppnet.ops import library
from sppnet.ops.levels import Level, Reduce, Rule, parse_levels

Sizes = Int[Tensor, "n 2"] | Sequence[tuple[int, int]]
_REDUCES, _RULES = get_args(Reduce), get_args(Rule)


def pyramid_pool(
    x: Float[Tensor, "n c h w"],
    levels: Sequence[Level],
    *,
    reduce: Reduce = "max",
    rule: Rule = "adaptive",
    sizes: Sizes | None = None,
) -> Float[Tensor, "n d"]:
    """Pool feature maps of any size to vectors of fixed length (SPP-net, section 2.2).

    Each level divides the map into a grid of bins and pools every bin; the levels are concatenated. With the rule
    ``adaptive`` each level equals torch's adaptive pooling. A bin that contains NaN gives NaN. The gradient of a
    maximum goes to the first of equal cells, as in torch.

    Args:
        x: feature maps (n, c, h, w), contiguous or channels_last, of any floating-point dtype; only n may be 0.
        levels: grids in any order: n for n x n bins or (rows, columns), each >= 1.
        reduce: ``max``, as in the paper, or ``avg``, the mean over the cells of a bin.
        rule: rule that cuts a side into bins: ``adaptive``, ``sliding`` or ``caffe``, see
            :func:`sppnet.ops.bins.bin_edges`.
        sizes: valid (height, width) of each map of a padded batch, 1..h and 1..w, as pairs or an integer tensor
            (n, 2). Each map is pooled over this top-left area; cells outside are never read. Default: whole maps.

    Returns:
        Vectors (n, c * bins) in the dtype of `x`: levels in the order given, within a level channel, row, column.

    Raises:
        TypeError: `x` is not a dense floating-point tensor, or a level is neither an integer nor a pair.
        ValueError: `x` has the wrong rank or an empty side, no levels or a level below 1, an unknown `reduce` or
            `rule`, a side that `rule` cannot cut, or `sizes` that do not fit `x`.

    Example:
        >>> pyramid_pool(torch.randn(2, 256, 10, 13), (4, 2, 1)).shape
        torch.Size([2, 5376])
    """
    check_feature_maps(x)
    grids = parse_levels(levels)
    check_choice("reduce", reduce, _REDUCES)
    check_choice("rule", rule, _RULES)
    windows = None if sizes is None else _area_windows(check_sizes(sizes, x))
    return library.pool(x, windows, grids, rule, reduce)


def _area_windows(areas: Int[Tensor, "n 2"]) -> Int[Tensor, "n 5"]:
    """Return the top-left area of each map as a window: image, then xyxy cells."""
    images = torch.arange(areas.shape[0], device=areas.device)
    zero = torch.zeros_like(images)
    return torch.stack((images, zero, zero, areas[:, 1], areas[:, 0]), dim=1)


def check_feature_maps(x: Tensor) -> None:
    """Check that `x` is a batch of feature maps.

    Raises:
        TypeError: not a dense floating-point tensor.
        ValueError: wrong rank, no channel or no cell.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        received = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a floating-point tensor (N, C, H, W), got {received}")
    if x.layout is not torch.strided:
        raise TypeError(f"x: expected a dense tensor, got layout {x.layout}; .to_dense() converts")
    if x.ndim != 4:
        hint = "; x[None] adds the batch dimension" if x.ndim == 3 else ""
        raise ValueError(f"x: expected 4 dimensions (N, C, H, W), got shape {tuple(x.shape)}{hint}")
    if 0 in x.shape[1:]:
        raise ValueError(f"x: expected at least 1 channel and 1 x 1 cells, got shape {tuple(x.shape)}")


def check_sizes(sizes: Sizes, x: Tensor) -> Int[Tensor, "n 2"]:
    """Return the valid (height, width) of each map as int64 on the device of `x`.

    Raises:
        ValueError: not one pair of integers per map, or a pair below 1 or beyond the map.
    """
    if torch.compiler.is_compiling() and isinstance(sizes, Tensor):  # in a graph the values are unknown
        return sizes.to(x.device, torch.long)
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    try:
        areas = [(operator.index(height), operator.index(width)) for height, width in rows]
    except (TypeError, ValueError):
        areas = None
    if areas is None or len(areas) != len(x):
        raise ValueError(f"sizes: expected one (height, width) of integers for each of the {len(x)} maps, got {rows!r}")
    for index, (height, width) in enumerate(areas):
        if not (1 <= height <= x.shape[2] and 1 <= width <= x.shape[3]):
            raise ValueError(
                f"sizes[{index}]: expected a height of 1..{x.shape[2]} and a width of 1..{x.shape[3]},"
                f" got ({height}, {width})"
            )
    return torch.tensor(areas, dtype=torch.long, device=x.device).reshape(-1, 2)
