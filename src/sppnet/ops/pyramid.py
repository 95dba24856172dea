"""Spatial pyramid pooling of whole feature maps: any (H, W) in, a vector of fixed length out."""

import operator
from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.bins import Edges, Level, Rule, bin_edges, choose, parse_levels

Reduce = Literal["max", "avg"]
Sizes = Int[Tensor, "n 2"] | Sequence[tuple[int, int]]


def pyramid_pool(
    x: Float[Tensor, "n c h w"],
    levels: Sequence[Level],
    *,
    reduce: Reduce = "max",
    rule: Rule = "adaptive",
    sizes: Sizes | None = None,
) -> Float[Tensor, "n d"]:
    """Pool every level's grid of bins and concatenate (SPP-net, section 2.2).

    Under the rule ``adaptive`` each level equals torch's adaptive pooling. NaN stays NaN in every bin that sees it.

    Args:
        x: feature maps, contiguous or channels_last, of any floating dtype; n may be 0, c, h and w may not.
        levels: n for n x n bins or (rows, columns), each >= 1, in any order.
        reduce: ``max`` (the paper's) or ``avg``, the mean over a bin's own cells.
        rule: how a side is cut into bins, see :func:`sppnet.bins.bin_edges`.
        sizes: valid (height, width) of each map, 1..h and 1..w: each image of a padded batch is pooled over its
            own top-left area, and what lies outside is never read.

    Returns:
        (n, c * bins) in the dtype of `x`: levels in the order given, inside a level channel, row, column.

    Raises:
        TypeError: `x` is not a floating-point tensor, or a level is not an integer or a pair.
        ValueError: wrong rank, an empty side, a level below 1, a side that the rule cannot cut, wrong `sizes`.
    """
    _check_map(x)
    grids = parse_levels(levels)
    choose("reduce", reduce, get_args(Reduce))
    if sizes is None:
        return _pool(x, grids, reduce, rule)
    areas = _check_sizes(sizes, x)
    groups: dict[tuple[int, int], list[int]] = {}
    for index, area in enumerate(areas):
        groups.setdefault(area, []).append(index)
    # An empty batch has no group; pooling it whole gives the (0, c * bins) that it should.
    groups = groups or {(x.shape[2], x.shape[3]): []}
    order = torch.tensor([index for group in groups.values() for index in group], dtype=torch.long, device=x.device)
    pooled = [
        _pool(x[torch.tensor(group, dtype=torch.long, device=x.device), :, :height, :width], grids, reduce, rule)
        for (height, width), group in groups.items()
    ]
    return torch.cat(pooled)[order.argsort()]


def _pool(
    x: Float[Tensor, "n c h w"], grids: tuple[tuple[int, int], ...], reduce: Reduce, rule: Rule
) -> Float[Tensor, "n d"]:
    height, width = x.shape[2], x.shape[3]
    pooled = []
    for rows, columns in grids:
        if rule == "adaptive":
            grid = _adaptive(x, (rows, columns), reduce)
        else:
            grid = _pool_edges(x, bin_edges(height, rows, rule), bin_edges(width, columns, rule), reduce)
        pooled.append(grid.flatten(1))
    return torch.cat(pooled, dim=1)


def _adaptive(x: Float[Tensor, "n c h w"], grid: tuple[int, int], reduce: Reduce) -> Float[Tensor, "n c r q"]:
    return F.adaptive_max_pool2d(x, grid) if reduce == "max" else F.adaptive_avg_pool2d(x, grid)


def _pool_edges(x: Float[Tensor, "n c h w"], rows: Edges, columns: Edges, reduce: Reduce) -> Float[Tensor, "n c r q"]:
    bins = [
        _adaptive(x[:, :, top:bottom, left:right], (1, 1), reduce) for top, bottom in rows for left, right in columns
    ]
    return torch.cat(bins, dim=3).reshape(*x.shape[:2], len(rows), len(columns))


def _check_map(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        found = f"a tensor of {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x: expected a floating-point tensor (N, C, H, W); got {found}")
    if x.ndim != 4:
        hint = "; x[None] adds the batch dimension" if x.ndim == 3 else ""
        raise ValueError(f"x: expected 4 dimensions (N, C, H, W); got {x.ndim}, shape {tuple(x.shape)}{hint}")
    if 0 in x.shape[1:]:
        raise ValueError(
            f"x: expected at least 1 channel and a map of at least 1 x 1 cells; got shape {tuple(x.shape)}"
        )


def _check_sizes(sizes: Sizes, x: Tensor) -> list[tuple[int, int]]:
    rows = sizes.tolist() if isinstance(sizes, Tensor) else sizes
    try:
        areas = [(operator.index(height), operator.index(width)) for height, width in rows]
    except (TypeError, ValueError):
        areas = None
    if areas is None or len(areas) != len(x):
        raise ValueError(f"sizes: expected one (height, width) of integers for each of the {len(x)} maps; got {rows!r}")
    for index, (height, width) in enumerate(areas):
        if not (1 <= height <= x.shape[2] and 1 <= width <= x.shape[3]):
            raise ValueError(
                f"sizes[{index}]: expected a height of 1..{x.shape[2]} and a width of 1..{x.shape[3]};"
                f" got ({height}, {width})"
            )
    return areas
