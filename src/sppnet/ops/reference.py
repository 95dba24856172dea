"""The operator in plain torch, for any device and floating-point dtype: simple, and slow for many windows.

It defines the results of the kernels, and is used where no kernel is available.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.ops.bins import clipped_edges
from sppnet.ops.levels import Reduce, Rule, count_bins

Grids = Sequence[tuple[int, int]]
_CHUNK = 1 << 20
"""Number of gradient elements per step; the temporary memory is several times their size."""


def forward(
    x: Tensor, windows: Tensor | None, grids: Grids, rule: Rule, reduce: Reduce, save: bool
) -> tuple[Tensor, Tensor]:
    """Pool windows of maps.

    Args:
        x: (N, C, H, W).
        windows: (K, 5) int64: image, then xyxy cells, half-open; None for whole maps. A bin outside the map
            gives 0.
        grids: (rows, columns) of each level.
        rule: rule that cuts a window into bins.
        reduce: ``max`` (the first maximum in row-major order, or the last NaN) or ``avg``.
        save: whether to return the cells of the maxima.

    Returns:
        Values (K, C * bins), and int32 cells of the same shape: y * W + x of each maximum, -1 for an empty bin. The
        cells have shape (0,) without `save` and for ``avg``.
    """
    save = save and reduce == "max"
    if windows is None:
        values, cells = _pool(x, (0, 0, x.shape[3], x.shape[2]), grids, rule, reduce)
        return values, cells if save else cells.new_empty(0)
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, (_, *window) in enumerate(windows.tolist()):
        groups.setdefault(tuple(window), []).append(index)
    values = x.new_empty((len(windows), x.shape[1] * count_bins(grids)))
    cells = torch.empty(values.shape if save else (0,), dtype=torch.int32, device=x.device)
    for window, members in groups.items():
        group = torch.tensor(members, device=x.device)
        images, inverse = windows[group, 0], slice(None)
        if len(members) > len(x):  # copy each map at most once
            images, inverse = images.unique(return_inverse=True)
        group_values, group_cells = _pool(x[images], window, grids, rule, reduce)
        values[group] = group_values[inverse]
        if save:
            cells[group] = group_cells[inverse]
    return values, cells


def backward(
    grad: Tensor,
    cells: Tensor,
    windows: Tensor | None,
    shape: Sequence[int],
    channels_last: bool,
    grids: Grids,
    rule: Rule,
    reduce: Reduce,
) -> Tensor:
    """Return the gradient of the maps (N, C, H, W), given the gradient of the vectors."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    total = torch.zeros(shape, dtype=torch.promote_types(grad.dtype, torch.float32), device=grad.device)
    windows = whole_map_windows(shape, grad.device) if windows is None else windows
    step = max(1, _CHUNK // max(1, grad.shape[1]))
    for start in range(0, len(grad), step):
        part = slice(start, start + step)
        if reduce == "max":
            kept = torch.where(cells[part] >= 0, grad[part], 0).to(total.dtype)
            total.view(-1).index_put_((_flat(cells[part], windows[part], shape, grids),), kept, accumulate=True)
        else:
            _spread(total, grad[part], windows[part], grids, rule)
    return total.to(grad.dtype, memory_format=memory_format)


def _spread(total: Tensor, grad: Tensor, windows: Tensor, grids: Grids, rule: Rule) -> None:
    """Add the gradient of means to the gradient `total` of the maps."""
    edges = clipped_edges(windows[:, 1:], (total.shape[2], total.shape[3]), grids, rule)
    for image, window, vector in zip(windows[:, 0].tolist(), edges.tolist(), grad, strict=True):
        start = 0
        for rows, columns in _levels(window, grids):
            size = total.shape[1] * len(rows) * len(columns)
            level = vector[start : start + size].view(total.shape[1], len(rows), len(columns))
            start += size
            for i, (top, bottom) in enumerate(rows):
                for j, (left, right) in enumerate(columns):
                    area = max((bottom - top) * (right - left), 1)
                    total[image, :, top:bottom, left:right] += level[:, i, j, None, None].to(total.dtype) / area


def gather_cells(x: Tensor, cells: Tensor, windows: Tensor | None, grids: Grids) -> Tensor:
    """Gather the maps' values at the cells saved by `forward`, 0 for empty bins: the transpose of `backward`."""
    return torch.where(cells >= 0, x.reshape(-1)[_flat(cells, windows, x.shape, grids)], 0)


def _flat(cells: Tensor, windows: Tensor | None, shape: Sequence[int], grids: Grids) -> Tensor:
    """Return the index of each cell in the flattened maps."""
    channels = torch.arange(shape[1], device=cells.device)
    channel_of_column = torch.cat([channels.repeat_interleave(rows * columns) for rows, columns in grids])
    images = torch.arange(shape[0], device=cells.device) if windows is None else windows[:, 0]
    return (images[:, None] * shape[1] + channel_of_column) * (shape[2] * shape[3]) + cells.clamp(min=0)


def _pool(maps: Tensor, window: tuple[int, ...], grids: Grids, rule: Rule, reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Pool one window of several maps: values, and the cells of maxima."""
    left, top, right, bottom = window
    height, width = maps.shape[2:]
    inside = left >= 0 and top >= 0 and right <= width and bottom <= height
    values, cells = [], []
    if rule == "adaptive" and inside:
        crop = maps[:, :, top:bottom, left:right]
        for grid in grids:
            value, cell = _adaptive(crop, grid, reduce)
            values.append(value.flatten(1))
            cells.append(_on_map(cell, left, top, right - left, width).flatten(1))
    else:
        edges = clipped_edges(torch.tensor([window], device="cpu"), (height, width), grids, rule)[0].tolist()
        for rows, columns in _levels(edges, grids):
            bins = [_bin(maps, [y1, y2], [x1, x2], reduce) for y1, y2 in rows for x1, x2 in columns]
            values.append(torch.stack([value for value, _ in bins], dim=2).flatten(1))
            cells.append(torch.stack([cell for _, cell in bins], dim=2).flatten(1))
    return torch.cat(values, dim=1), torch.cat(cells, dim=1).int()


def _bin(maps: Tensor, rows: list[int], columns: list[int], reduce: Reduce) -> tuple[Tensor, Tensor]:
    """Pool one bin of several maps: values (N, C) and the cells of maxima."""
    (top, bottom), (left, right) = rows, columns
    if top >= bottom or left >= right:
        return maps.new_zeros(maps.shape[:2]), maps.new_full(maps.shape[:2], -1, dtype=torch.long)
    value, cell = _adaptive(maps[:, :, top:bottom, left:right], (1, 1), reduce)
    return value[:, :, 0, 0], _on_map(cell, left, top, right - left, maps.shape[3])[:, :, 0, 0]


def _on_map(cell: Tensor, left: int, top: int, crop_width: int, width: int) -> Tensor:
    """Convert cells of a crop to cells of its map."""
    row = cell.div(crop_width, rounding_mode="floor")
    return (top + row) * width + left + cell - row * crop_width


def _adaptive(maps: Tensor, grid: tuple[int, int], reduce: Reduce) -> tuple[Tensor, Tensor]:
    if reduce == "max":
        value, cell = F.adaptive_max_pool2d(maps, grid, return_indices=True)
        return value, cell
    value = F.adaptive_avg_pool2d(maps, grid)
    return value, torch.zeros_like(value, dtype=torch.long)


def is_channels_last(x: Tensor) -> bool:
    """Return whether a tensor is channels_last and not also contiguous."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def whole_map_windows(shape: Sequence[int], device: torch.device) -> Tensor:
    """Return windows (N, 5) that cover whole maps of this shape."""
    windows = torch.zeros(shape[0], 5, dtype=torch.long, device=device)
    windows[:, 0] = torch.arange(shape[0], device=device)
    windows[:, 3], windows[:, 4] = shape[3], shape[2]
    return windows


def _levels(edges: list[list[int]], grids: Grids) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Split edges into the rows and columns of each level."""
    levels, start = [], 0
    for rows, columns in grids:
        levels.append((edges[start : start + rows], edges[start + rows : start + rows + columns]))
        start += rows + columns
    return levels
