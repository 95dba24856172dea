"""Dispatch of the pooling operator to the CPU kernels: choice of the kernel, its plan and its tables."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sppnet.ops import reference
from sppnet.ops.bins import bin_edges, clipped_edges
from sppnet.ops.cpu import entries, steps
from sppnet.ops.cpu.jobs import Table, Tables, run
from sppnet.ops.cpu.memory import empty
from sppnet.ops.levels import Reduce, Rule
from sppnet.ops.reference import Grids

_LARGE = 1 << 25
"""Output size in bytes from which stores bypass the caches."""
_SMALL = 1 << 22
"""Size in bytes up to which the cost of a packed copy of the maps is negligible."""


def serves(x: Tensor) -> bool:
    """Return whether the kernels support this tensor: float32 or bfloat16, and not empty."""
    return x.dtype in (torch.float32, torch.bfloat16) and x.numel() > 0


def forward(
    x: Tensor,
    windows: Tensor | None,
    grids: Grids,
    rule: Rule,
    reduce: Reduce,
    save: bool,
    merge: bool = True,
) -> tuple[Tensor, Tensor]:
    """Pool windows of maps like :func:`sppnet.ops.reference.forward`; `merge` pools equal windows only once."""
    maps, channels, height, width = x.shape
    count = maps if windows is None else len(windows)
    bins = sum(rows * columns for rows, columns in grids)
    save = save and reduce == "max"
    pack = windows is not None and _packing_pays(x, windows)
    if channels < 16 and not pack:
        return reference.forward(x, windows, grids, rule, reduce, save)
    out = empty((count, channels * bins), x.dtype)
    cells = empty((count, channels * bins), torch.int32) if save else torch.empty(0, dtype=torch.int32, device="cpu")
    if count == 0:
        return out, cells
    mode = steps.AVERAGE if reduce == "avg" else steps.PLACES if save else steps.MAXIMUM
    if windows is None:
        tables = _whole_tables(maps, height, width, tuple(grids), rule, reduce)
    else:
        tables = _window_tables(windows, height, width, tuple(grids), rule, reduce, merge and count > 2 * maps)
    source: tuple[int, ...]
    outputs = (out.data_ptr(), cells.data_ptr())
    item = x.element_size()
    bfloat16 = x.dtype == torch.bfloat16
    stream = out.numel() * item >= _LARGE
    if pack:
        packed = _packed(x)
        groups, area = packed.shape[1], height * width
        source = (packed.data_ptr(), groups * area * 256, area * 4, 256, width, channels, 0, tables.clipped, mode)
        entry = entries.packed_bfloat16 if bfloat16 else entries.cells_float32
        units, scratch = tables.windows * groups, 17 * (bins + 16) + 8 * width
        run(entry, units, out.numel(), scratch, tables, (*source, *outputs, stream))
    elif channels >= 64 and x.is_contiguous(memory_format=torch.channels_last):
        step, groups = channels * item, -(-channels // 64)
        max_groups = max(1, min(4, tables.windows * groups // (2 * torch.get_num_threads())))
        source = (x.data_ptr(), height * width * step, item, step, width, channels, max_groups, tables.clipped, mode)
        entry = entries.cells_bfloat16 if bfloat16 else entries.cells_float32
        units, scratch = tables.windows * -(-groups // max_groups), 41 * (bins + 16) + 32 * width
        run(entry, units, x.numel(), scratch, tables, (*source, *outputs, stream))
    else:
        x = x.contiguous()
        source = (x.data_ptr(), maps, channels, height, width, tables.clipped, mode)
        entry = entries.planes_bfloat16 if bfloat16 else entries.planes_float32
        strip = max(rows for rows, _ in grids) * -(-width // 16) * 16
        map_copy = height * width * item // 4 + 1 if width < 16 else 0
        scratch = 4 * strip + 3 * (bins + 16) + map_copy
        run(entry, tables.windows * -(-channels // 16), x.numel(), scratch, tables, (*source, *outputs))
    return out, cells


def backward(
    grad: Tensor,
    cells: Tensor,
    windows: Tensor | None,
    shape: list[int],
    channels_last: bool,
    grids: Grids,
    rule: Rule,
    reduce: Reduce,
) -> Tensor:
    """Compute the gradient of the maps like :func:`sppnet.ops.reference.backward`."""
    maps, channels, height, width = shape
    grad = grad.contiguous()
    area = height * width
    bfloat16 = grad.dtype == torch.bfloat16
    nhwc = channels_last and reduce == "max"
    # Where few bins share a cell, bfloat16 gradients are summed in bfloat16, as in torch.
    few_overlaps = windows is None and all(rows <= height and columns <= width for rows, columns in grids)
    dtype = grad.dtype if reduce == "max" and few_overlaps else torch.float32
    total = empty((maps, height, width, channels) if nhwc else (maps, channels, height, width), dtype)
    total = total.zero_().permute(0, 3, 1, 2) if nhwc else total
    tables = _gradient_tables(windows, maps, height, width, tuple(grids), rule)
    work = grad.numel() + total.numel() // 16
    if reduce == "max":
        # Blocks of 64 channels: long reads for many boxes, long writes for channels_last maps.
        block = 64 if nhwc or (windows is not None and maps * channels >= 64 * torch.get_num_threads()) else 16
        item = dtype.itemsize
        channel_step, cell_step = (item, channels * item) if nhwc else (area * item, item)
        entry = entries.scatter_float32
        if bfloat16:
            entry = entries.scatter_bfloat16 if few_overlaps else entries.scatter_wide_bfloat16
        inputs = (grad.data_ptr(), cells.data_ptr(), channels, block)
        arguments = (*inputs, total.data_ptr(), area * channels * item, channel_step, cell_step, 0)
        run(entry, maps * -(-channels // block), work, 0, tables, arguments)
    else:
        entry = entries.spread_bfloat16 if bfloat16 else entries.spread_float32
        arguments = (grad.data_ptr(), channels, width, height, total.data_ptr(), 0, 0, 0, 0)
        run(entry, maps * -(-channels // 16), work, 0, tables, arguments)
    return total.to(grad.dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@lru_cache(maxsize=1024)
def _whole_tables(
    maps: int, height: int, width: int, grids: tuple[tuple[int, int], ...], rule: Rule, reduce: Reduce
) -> Tables:
    """Build the tables of a call without boxes: each map is a window."""
    indices = np.arange(maps + 1)
    edges = _whole_edges(height, width, grids, rule)
    return Tables(indices[:-1], indices[:-1], indices, _plan(grids, rule, reduce), edges, clipped=False)


def _window_tables(
    windows: Tensor,
    height: int,
    width: int,
    grids: tuple[tuple[int, int], ...],
    rule: Rule,
    reduce: Reduce,
    merge: bool,
) -> Tables:
    """Build the tables of a call with boxes: one window per box, or per distinct box with `merge`."""
    rows = windows.numpy()
    order, starts = np.arange(len(rows)), np.arange(len(rows) + 1)
    if merge:
        order = np.lexsort(rows.T)
        rows = rows[order]
        distinct = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
        rows, starts = rows[distinct], np.append(np.flatnonzero(distinct), len(rows))
    cells = np.ascontiguousarray(rows[:, 1:])
    outside = (cells[:, :2] < 0).any() or (cells[:, 2:] > (width, height)).any()
    clipped = bool(outside or (cells[:, 2:] <= cells[:, :2]).any())  # then bins may be empty
    edges = clipped_edges(torch.from_numpy(cells), (height, width), grids, rule).numpy()
    return Tables(np.ascontiguousarray(rows[:, 0]), order, starts, _plan(grids, rule, reduce), edges, clipped)


def _gradient_tables(
    windows: Tensor | None, maps: int, height: int, width: int, grids: tuple[tuple[int, int], ...], rule: Rule
) -> Tables:
    """Build the tables of the gradient: image i has the boxes `order[starts[i] : starts[i + 1]]`."""
    if windows is None:
        return _whole_tables(maps, height, width, grids, rule, "avg")
    images = windows[:, 0].numpy()
    order = np.argsort(images, kind="stable")
    starts = np.searchsorted(images[order], np.arange(maps + 1))
    edges = clipped_edges(windows[:, 1:], (height, width), grids, rule).numpy()
    return Tables(images[order], order, starts, _plan(grids, rule, "avg"), edges, clipped=False)


@lru_cache(maxsize=256)
def _plan(grids: tuple[tuple[int, int], ...], rule: Rule, reduce: Reduce) -> Table:
    """Build the plan of `kernels.py`, fine to coarse; maxima come from the coarsest level whose bins nest in theirs."""
    nested = rule == "adaptive" and reduce == "max"
    bins = [rows * columns for rows, columns in grids]
    edge = np.cumsum([0, *(rows + columns for rows, columns in grids)])
    start = np.cumsum([0, *bins])
    order = sorted(range(len(grids)), key=lambda level: -bins[level])
    plan: list[list[int]] = []
    for level in order:
        rows, columns = grids[level]
        sources = [
            row
            for row, (fine_rows, fine_columns, *_) in enumerate(plan)
            if nested and fine_rows % rows == 0 and fine_columns % columns == 0
        ]
        plan.append([rows, columns, sources[-1] if sources else -1, edge[level], start[level], start[level]])
    return np.array(plan, dtype=np.int64)


@lru_cache(maxsize=256)
def _whole_edges(height: int, width: int, grids: tuple[tuple[int, int], ...], rule: Rule) -> Table:
    edges = [
        edge for rows, columns in grids for edge in (*bin_edges(height, rows, rule), *bin_edges(width, columns, rule))
    ]
    return np.array([edges], dtype=np.int64)


def _packing_pays(x: Tensor, windows: Tensor) -> bool:
    """Return whether a packed copy of the maps pays off: it is small, or the windows cover at least as many values."""
    maps, channels, height, width = x.shape
    packed = maps * -(-channels // 64) * 64 * height * width
    if len(windows) <= 2 * maps and channels >= 16:
        return False
    sides = (windows[:, 3:] - windows[:, 1:3]).clamp(min=0)
    return 4 * packed <= _SMALL or int(sides.prod(1).sum()) * channels >= packed


def _packed(x: Tensor) -> Tensor:
    """Copy maps to (N, groups, H * W, 64) in float32: groups of 64 channels, padded with zeros, channels innermost."""
    maps, channels, height, width = x.shape
    x = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, -channels % 64))
    return x.reshape(maps, -1, 64, height * width).transpose(2, 3).contiguous()
