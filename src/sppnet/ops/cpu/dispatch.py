"""The operator on the CPU: which kernel serves a tensor, its plan and its threads."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sppnet.ops.bins import Rule, bin_edges, clipped_edges
from sppnet.ops.cpu import entries, steps
from sppnet.ops.cpu.jobs import Table, Tables, run
from sppnet.ops.cpu.memory import empty
from sppnet.ops.reference import Grids, Reduce

_LARGE = 1 << 25
"""Bytes from which an output is written past the caches."""


def serves(x: Tensor) -> bool:
    """Whether the kernels know this kind of number."""
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
    """What :func:`sppnet.ops.reference.forward` does; with `merge` equal windows are pooled once."""
    maps, channels, height, width = x.shape
    count = maps if windows is None else len(windows)
    bins = sum(rows * columns for rows, columns in grids)
    save = save and reduce == "max"
    out = empty((count, channels * bins), x.dtype)
    cells = empty((count, channels * bins), torch.int32) if save else torch.empty(0, dtype=torch.int32, device="cpu")
    if count == 0:
        return out, cells
    mode = steps.AVERAGE if reduce == "avg" else steps.PLACES if save else steps.MAXIMUM
    many = windows is not None and count > 2 * maps
    if windows is None:
        tables = _whole_tables(maps, height, width, tuple(grids), rule, reduce)
    else:
        tables = _window_tables(windows, height, width, tuple(grids), rule, reduce, merge and many)
    source: tuple[int, ...]
    ends = (out.data_ptr(), cells.data_ptr())
    item = x.element_size()
    half = x.dtype == torch.bfloat16
    stream = out.numel() * item >= _LARGE
    if many or channels < 16:
        packed = _packed(x)
        groups, area = packed.shape[1], height * width
        source = (packed.data_ptr(), groups * area * 256, area * 4, 256, width, channels, 0, tables.clipped, mode)
        entry = entries.packed_bfloat16 if half else entries.cells_float32
        run(entry, tables.windows * groups, out.numel(), 17 * (bins + 16) + 8 * width, tables, (*source, *ends, stream))
    elif channels >= 64 and x.is_contiguous(memory_format=torch.channels_last):
        step, groups = channels * item, -(-channels // 64)
        most = max(1, min(4, tables.windows * groups // (2 * torch.get_num_threads())))
        source = (x.data_ptr(), height * width * step, item, step, width, channels, most, tables.clipped, mode)
        entry = entries.cells_bfloat16 if half else entries.cells_float32
        units, scratch = tables.windows * -(-groups // most), 41 * (bins + 16) + 32 * width
        run(entry, units, x.numel(), scratch, tables, (*source, *ends, stream))
    else:
        x = x.contiguous()
        source = (x.data_ptr(), maps, channels, height, width, tables.clipped, mode)
        entry = entries.planes_bfloat16 if half else entries.planes_float32
        strip = max(rows for rows, _ in grids) * -(-width // 16) * 16
        last = height * width * item // 4 + 1 if width < 16 else 0
        scratch = 4 * strip + 3 * (bins + 16) + last
        run(entry, tables.windows * -(-channels // 16), x.numel(), scratch, tables, (*source, *ends))
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
    """What :func:`sppnet.ops.reference.backward` does."""
    maps, channels, height, width = shape
    grad = grad.contiguous()
    area = height * width
    half = grad.dtype == torch.bfloat16
    neighbours = channels_last and reduce == "max"
    # Where few bins share a cell bfloat16 is summed as it is, as torch does.
    few = windows is None and all(rows <= height and columns <= width for rows, columns in grids)
    dtype = grad.dtype if reduce == "max" and few else torch.float32
    total = empty((maps, height, width, channels) if neighbours else (maps, channels, height, width), dtype)
    total = total.zero_().permute(0, 3, 1, 2) if neighbours else total
    tables = _gradient_tables(windows, maps, height, width, tuple(grids), rule)
    work = grad.numel() + total.numel() // 16
    if reduce == "max":
        # Gradients of many boxes are read in long runs, cells of channels_last maps written in them.
        share = 64 if neighbours or (windows is not None and maps * channels >= 64 * torch.get_num_threads()) else 16
        item = dtype.itemsize
        steps = (item, channels * item) if neighbours else (area * item, item)
        entry = entries.scatter_float32
        if half:
            entry = entries.scatter_bfloat16 if few else entries.scatter_wide_bfloat16
        ends = (total.data_ptr(), area * channels * item, *steps, 0)
        run(
            entry,
            maps * -(-channels // share),
            work,
            0,
            tables,
            (grad.data_ptr(), cells.data_ptr(), channels, share, *ends),
        )
    else:
        entry = entries.spread_bfloat16 if half else entries.spread_float32
        arguments = (grad.data_ptr(), channels, width, height, total.data_ptr(), 0, 0, 0, 0)
        run(entry, maps * -(-channels // 16), work, 0, tables, arguments)
    return total.to(grad.dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@lru_cache(maxsize=1024)
def _whole_tables(
    maps: int, height: int, width: int, grids: tuple[tuple[int, int], ...], rule: Rule, reduce: Reduce
) -> Tables:
    """Each map is a window."""
    every = np.arange(maps + 1)
    edges = _whole_edges(height, width, grids, rule)
    return Tables(every[:-1], every[:-1], every, _plan(grids, rule, reduce), edges, clipped=False)


def _window_tables(
    windows: Tensor,
    height: int,
    width: int,
    grids: tuple[tuple[int, int], ...],
    rule: Rule,
    reduce: Reduce,
    merge: bool,
) -> Tables:
    """Each box is a window, or with `merge` those that have equal cells are one."""
    rows = windows.numpy()
    order, starts = np.arange(len(rows)), np.arange(len(rows) + 1)
    if merge:
        order = np.lexsort(rows.T)
        rows = rows[order]
        new = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
        rows, starts = rows[new], np.append(np.flatnonzero(new), len(rows))
    cells = np.ascontiguousarray(rows[:, 1:])
    outside = (cells[:, :2] < 0).any() or (cells[:, 2:] > (width, height)).any()
    clipped = bool(outside or (cells[:, 2:] <= cells[:, :2]).any())  # either way there may be empty bins
    edges = clipped_edges(torch.from_numpy(cells), (height, width), grids, rule).numpy()
    return Tables(np.ascontiguousarray(rows[:, 0]), order, starts, _plan(grids, rule, reduce), edges, clipped)


def _gradient_tables(
    windows: Tensor | None, maps: int, height: int, width: int, grids: tuple[tuple[int, int], ...], rule: Rule
) -> Tables:
    """Boxes by image: in `order` those of image i are [starts[i], starts[i + 1])."""
    if windows is None:
        return _whole_tables(maps, height, width, grids, rule, "avg")
    images = windows[:, 0].numpy()
    order = np.argsort(images, kind="stable")
    starts = np.searchsorted(images[order], np.arange(maps + 1))
    edges = clipped_edges(windows[:, 1:], (height, width), grids, rule).numpy()
    return Tables(images[order], order, starts, _plan(grids, rule, "avg"), edges, clipped=False)


@lru_cache(maxsize=256)
def _plan(grids: tuple[tuple[int, int], ...], rule: Rule, reduce: Reduce) -> Table:
    """The kernels' plan: finer levels first, each maximum from the coarsest of those before it that it nests in."""
    nested = rule == "adaptive" and reduce == "max"
    bins = [rows * columns for rows, columns in grids]
    edge = np.cumsum([0, *(rows + columns for rows, columns in grids)])
    start = np.cumsum([0, *bins])
    order = sorted(range(len(grids)), key=lambda level: -bins[level])
    plan: list[list[int]] = []
    for place, level in enumerate(order):
        rows, columns = grids[level]
        sources = [
            place
            for place, (fine_rows, fine_columns, *_) in enumerate(plan)
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


def _packed(x: Tensor) -> Tensor:
    """(N, groups of 64 channels, cells, 64) in float32: the 64 channels of a cell, and cells, are neighbours."""
    maps, channels, height, width = x.shape
    x = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, -channels % 64))
    return x.reshape(maps, -1, 64, height * width).transpose(2, 3).contiguous()
