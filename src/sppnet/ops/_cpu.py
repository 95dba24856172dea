"""The operator on the CPU: which kernel serves a tensor, its plan and its threads."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sppnet.bins import Rule, bin_edges, clipped_edges
from sppnet.ops import _kernels, _scatter, _steps
from sppnet.ops.plain import Grids, Reduce

Array = npt.NDArray[np.int64]
_KINDS: dict[torch.dtype, Any] = {torch.float32: np.float32(0), torch.bfloat16: np.uint16(0)}
_SERIAL = 1 << 17
"""Numbers below which a second thread costs more than it brings."""
_LARGE = 1 << 25
"""Bytes above which an output is taken from NumPy, which asks for huge pages: four times as fast to fill."""


def serves(x: Tensor) -> bool:
    """Whether the kernels know this kind of number."""
    return x.dtype in _KINDS and x.numel() > 0


def forward(
    x: Tensor,
    windows: Tensor | None,
    grids: Grids,
    rule: Rule,
    reduce: Reduce,
    save: bool,
    merge: bool = True,
) -> tuple[Tensor, Tensor]:
    """What :func:`sppnet.ops.plain.forward` does; with `merge` equal windows are pooled once."""
    maps, channels, height, width = x.shape
    count = maps if windows is None else len(windows)
    bins = sum(rows * columns for rows, columns in grids)
    save = save and reduce == "max"
    out = _empty((count, channels * bins), x.dtype)
    cells = _empty((count, channels * bins), torch.int32) if save else torch.empty(0, dtype=torch.int32)
    if count == 0:
        return out, cells
    mode = _steps.AVERAGE if reduce == "avg" else _steps.PLACES if save else _steps.MAXIMUM
    plan = _plan(tuple(grids), reduce == "max" and rule == "adaptive")
    many = windows is not None and count > 2 * maps
    images, order, starts, edges, clipped = _windows(windows, x.shape, tuple(grids), rule, merge and many)
    source: tuple[Any, ...]
    arguments: tuple[Any, ...]
    output = (edges, plan, clipped, mode, images, order, starts)
    kind, item = _KINDS[x.dtype], x.element_size()
    stream = out.numel() * item >= _LARGE
    if many or channels < 16:
        packed = _packed(x)
        groups, area = packed.shape[1], height * width
        source = (
            _KINDS[torch.float32],
            4,
            packed.data_ptr(),
            groups * area * 256,
            area * 4,
            256,
            width,
            channels,
            True,
        )
        arguments = (*source, *output, kind, item, out.data_ptr(), cells.data_ptr(), stream)
        scratch = 17 * (bins + 16) + 8 * width
        _run(_kernels.pool_cells, len(images) * groups, out.numel(), scratch, arguments)
    elif channels >= 64 and x.is_contiguous(memory_format=torch.channels_last):
        step = channels * item
        source = (kind, item, x.data_ptr(), height * width * step, item, step, width, channels, False)
        arguments = (*source, *output, kind, item, out.data_ptr(), cells.data_ptr(), stream)
        scratch = 41 * (bins + 16) + 32 * width
        _run(_kernels.pool_cells, len(images) * -(-channels // 256), x.numel(), scratch, arguments)
    else:
        x = x.contiguous()
        most = max(rows for rows, _ in grids)
        source = (kind, item, x.data_ptr(), (maps, channels, height, width))
        arguments = (*source, *output, out.data_ptr(), cells.data_ptr())
        last = height * width * item // 4 if width < 16 else 0
        scratch = 2 * most * -(-width // 16) * 16 + 32 + 3 * (bins + 16) + last + 2
        _run(_kernels.pool_planes, len(images) * -(-channels // 16), x.numel(), scratch, arguments)
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
    """What :func:`sppnet.ops.plain.backward` does."""
    maps, channels, height, width = shape
    grad = grad.contiguous()
    area = height * width
    direct = channels_last and reduce == "max"
    total = _empty((maps, height, width, channels) if direct else (maps, channels, height, width), torch.float32)
    total = total.permute(0, 3, 1, 2) if direct else total
    images = np.arange(maps) if windows is None else windows[:, 0].numpy()
    order = np.argsort(images, kind="stable")
    starts = np.searchsorted(images[order], np.arange(maps + 1))
    plan = _plan(tuple(grids), reduce == "max" and rule == "adaptive")
    share = 64 if maps * channels >= 64 * torch.get_num_threads() and len(images) > maps else 16
    units, work = maps * -(-channels // share), grad.numel() + total.numel() // 16
    head = (_KINDS[grad.dtype], grad.element_size(), grad.data_ptr())
    arguments: tuple[Any, ...]
    if reduce == "max":
        steps = (area * channels * 4, 4, channels * 4) if direct else (area * channels * 4, area * 4, 4)
        arguments = (*head, cells.data_ptr(), plan, channels, share, area, order, starts, total.data_ptr(), *steps)
        _run(_scatter.scatter, units, work, 0, arguments)
    else:
        edges = _windows(windows, torch.Size(shape), tuple(grids), rule, merge=False)[3]
        arguments = (*head, edges, plan, channels, width, height, order, starts, total.data_ptr())
        _run(_scatter.spread, maps * -(-channels // 16), work, 0, arguments)
    return total.to(grad.dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return torch.empty(shape, dtype=dtype)
    return torch.from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


@lru_cache(maxsize=256)
def _plan(grids: tuple[tuple[int, int], ...], nested: bool) -> Array:
    """The kernels' plan: finer levels first, each from the coarsest of those before it that it nests in."""
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


def _windows(
    windows: Tensor | None, shape: torch.Size, grids: tuple[tuple[int, int], ...], rule: Rule, merge: bool
) -> tuple[Array, Array, Array, Array, bool]:
    """Image of each window; its boxes, as (order, starts); edges of its bins; whether some lie outside the map."""
    height, width = shape[2:]
    if windows is None:
        every = np.arange(shape[0] + 1)
        return every[:-1], every[:-1], every, _whole_edges(height, width, grids, rule), False
    rows = windows.numpy()
    order, starts = np.arange(len(rows)), np.arange(len(rows) + 1)
    if merge:
        order = np.lexsort(rows.T)
        rows = rows[order]
        new = np.append(True, (rows[1:] != rows[:-1]).any(axis=1))
        rows, starts = rows[new], np.append(np.flatnonzero(new), len(rows))
    cells = np.ascontiguousarray(rows[:, 1:])
    edges = clipped_edges(torch.from_numpy(cells), (height, width), grids, rule).numpy()
    clipped = bool((cells[:, :2] < 0).any() or (cells[:, 2:] > (width, height)).any())
    return np.ascontiguousarray(rows[:, 0]), order, starts, edges, clipped


@lru_cache(maxsize=1024)
def _whole_edges(height: int, width: int, grids: tuple[tuple[int, int], ...], rule: Rule) -> Array:
    edges = [
        edge for rows, columns in grids for edge in (*bin_edges(height, rows, rule), *bin_edges(width, columns, rule))
    ]
    return np.array([edges], dtype=np.int64)


def _packed(x: Tensor) -> Tensor:
    """(N, groups of 64 channels, cells, 64) in float32: the 64 channels of a cell, and cells, are neighbours."""
    maps, channels, height, width = x.shape
    x = torch.nn.functional.pad(x.float(), (0, 0, 0, 0, 0, -channels % 64))
    return x.reshape(maps, -1, 64, height * width).transpose(2, 3).contiguous()


def _run(kernel: Callable[..., Any], units: int, work: int, scratch: int, arguments: tuple[Any, ...]) -> None:
    """Share the units out to threads, each with so many vectors of scratch."""
    threads = min(torch.get_num_threads(), units) if work >= _SERIAL else 1
    borders = [units * part // threads for part in range(threads + 1)]

    def task(begin: int, end: int) -> None:
        memory = np.empty((scratch + 1) * _steps.VECTOR, np.uint8)
        kernel(*arguments, -(-memory.ctypes.data // 64) * 64, begin, end)

    futures = [_pool(threads).submit(task, *pair) for pair in pairwise(borders[1:])]
    task(borders[0], borders[1])
    for future in futures:
        future.result()


_pools: dict[int, ThreadPoolExecutor] = {}


def _pool(threads: int) -> ThreadPoolExecutor:
    if threads not in _pools:
        _pools[threads] = ThreadPoolExecutor(threads - 1, "sppnet")
    return _pools[threads]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork
