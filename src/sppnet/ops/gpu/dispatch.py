"""Dispatch of the pooling operator to the Triton kernels.

Forward and backward are one kernel launch each. Triton is imported when the first map on a GPU is pooled.
"""

import functools
import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sppnet.ops.bins import clipped_edges
from sppnet.ops.levels import Reduce, Rule, count_bins
from sppnet.ops.reference import Grids, is_channels_last, whole_map_windows

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# Lanes of one program: (channel, bin, cell of the bin) triples processed at once.
_LANES = 2048
# Number of programs that fills a large GPU.
_PROGRAMS = 264


def serves(x: Tensor) -> bool:
    """Return whether the kernels support the map's dtype and Triton supports its GPU."""
    return x.is_cuda and x.dtype in _DTYPES and _compiles(x.get_device())


@functools.cache
def _compiles(device: int) -> bool:
    try:
        import triton  # type: ignore[import-untyped]  # noqa: F401
    except ImportError:
        return False
    if not has_c_compiler():
        return False
    return torch.cuda.get_device_capability(device) >= (8, 0)


def has_c_compiler() -> bool:
    """Return whether Triton finds the C compiler that its launchers need; slim containers have none."""
    return "CC" in os.environ or any(map(shutil.which, ("gcc", "clang")))


def forward(
    x: Tensor, windows: Tensor | None, grids: Grids, rule: Rule, reduce: Reduce, save: bool
) -> tuple[Tensor, Tensor]:
    """Pool windows of maps like :func:`sppnet.ops.reference.forward`.

    Levels that are derived from a finer one do not read the map again. Any strides are accepted; maps that are neither
    contiguous nor channels_last are copied.
    """
    if rule != "adaptive":
        # With the other rules, each bin is pooled as a window with a single bin.
        bins = _bins(windows, x.shape, grids, rule, x.device)
        values, cells = forward(x, bins, ((1, 1),), "adaptive", reduce, save)
        return _join(values, grids), _join(cells, grids) if cells.ndim == 2 else cells
    from sppnet.ops.gpu import forward as kernels

    save = save and reduce == "max"
    channels_last = is_channels_last(x)
    x = x if channels_last else x.contiguous()
    count = len(x) if windows is None else len(windows)
    length = x.shape[1] * count_bins(grids)
    values = x.new_empty((count, length))
    cells = torch.empty((count, length) if save else (0,), dtype=torch.int32, device=x.device)
    if count == 0:
        return values, cells
    levels, block_c, warps = _plan(tuple(x.shape), count, tuple(grids), reduce, channels_last)
    with torch.cuda.device_of(x):
        kernels.pool[(count * -(-x.shape[1] // block_c),)](
            x,
            None if windows is None else windows.contiguous(),
            values,
            cells,
            *x.shape[1:],
            length,
            levels,
            BLOCK_C=block_c,
            MAX=reduce == "max",
            SAVE=save,
            WHOLE=windows is None,
            CHANNELS_LAST=channels_last,
            num_warps=warps,
            enable_fp_fusion=False,
        )
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
    """Compute the gradient of the maps deterministically, like :func:`sppnet.ops.reference.backward`."""
    if reduce == "avg" and rule != "adaptive":
        windows = _bins(windows, shape, grids, rule, grad.device)
        return backward(_split(grad, grids), cells, windows, shape, channels_last, ((1, 1),), "adaptive", reduce)
    from sppnet.ops.gpu import backward as kernels

    images, channels, height, width = shape
    dtype = torch.promote_types(grad.dtype, torch.float32) if reduce == "max" else grad.dtype
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    total = torch.empty(shape, dtype=dtype, device=grad.device, memory_format=memory_format)
    if reduce == "max" or grad.numel() == 0:
        total.zero_()  # `scatter` accumulates, `spread` writes every cell
    if grad.numel() == 0:
        return total.to(grad.dtype)
    grad = grad.contiguous()
    order, firsts = (None, None) if windows is None else _by_image(windows, images)
    levels, bins = _starts(tuple(grids))
    options = {"WHOLE": windows is None, "CHANNELS_LAST": channels_last, "enable_fp_fusion": False}
    with torch.cuda.device_of(grad):
        if reduce == "max":
            block = min(64, _power(bins))
            # One channel per program until the GPU is full; a step compares block x block pairs of bins, 64 per thread.
            block_c = max(1, min(4, _power(channels), _floor_power(images * channels // (8 * _PROGRAMS))))
            kernels.scatter[(images * -(-channels // block_c),)](
                grad,
                cells.contiguous(),
                order,
                firsts,
                total,
                channels,
                height * width,
                grad.shape[1],
                LEVELS=levels,
                BINS=bins,
                BLOCK_C=block_c,
                BLOCK=block,
                num_warps=max(1, block_c * block * block // 2048),
                **options,
            )
        else:
            block, block_c = min(128, _power(height * width)), min(8, _power(channels))
            kernels.spread[(images * -(-channels // block_c), -(-height * width // block))](
                grad,
                None if windows is None else windows.contiguous(),
                order,
                firsts,
                total,
                *shape[1:],
                grad.shape[1],
                LEVELS=levels,
                BLOCK_C=block_c,
                BLOCK=block,
                num_warps=4,
                **options,
            )
    return total.to(grad.dtype)


def _power(number: int) -> int:
    """Return the smallest power of two >= number."""
    return 1 << (number - 1).bit_length()


def _floor_power(number: int) -> int:
    """Return the largest power of two <= number; 0 for 0."""
    return 1 << number.bit_length() >> 1


@functools.lru_cache(1024)
def _starts(grids: tuple[tuple[int, int], ...]) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """Return (rows, columns, index of the first bin) per level, and the total number of bins."""
    levels, start = [], 0
    for rows, columns in grids:
        levels.append((rows, columns, start))
        start += rows * columns
    return tuple(levels), start


@functools.lru_cache(1024)
def _plan(
    shape: tuple[int, ...], count: int, grids: tuple[tuple[int, int], ...], reduce: Reduce, channels_last: bool
) -> tuple[tuple[Any, ...], int, int]:
    """Return LEVELS, BLOCK_C and the number of warps for :func:`sppnet.ops.gpu.forward.pool`."""
    images, channels, height, width = shape
    roots = _roots(grids, reduce)
    # If there are many windows, their sides are assumed to be half of the map's.
    divisor = 1 if count <= images else 2
    tiles, patches = [], []
    for (rows, columns, _), _ in roots:
        block_j = min(_power(columns), _LANES // 2)
        tiles.append((min(_power(rows), _LANES // 2 // block_j), block_j))
        # A patch has half the sides of a bin.
        bin_h, bin_w = -(-height // (divisor * rows)), -(-width // (divisor * columns))
        patches.append((_floor_power(bin_h // 2) or 1, _floor_power(bin_w // 2) or 1))
    largest = max(block_i * block_j for block_i, block_j in tiles)
    # Adjacent lanes should read adjacent memory: channels if channels_last, else cells of a row.
    lead = 1 if channels_last or divisor == 2 else min(patches[0][1], 32, _LANES // largest)
    block_c, min_block_c = min(32, _power(channels), _LANES // (largest * lead)), 8 if channels_last else 1
    while block_c > min_block_c and count * -(-channels // block_c) < _PROGRAMS:
        block_c //= 2
    levels, lanes = [], 1
    for (level, coarser), (block_i, block_j), (patch_h, patch_w) in zip(roots, tiles, patches, strict=True):
        patch_lanes = _LANES // (block_c * block_i * block_j)
        patch_w = min(patch_w, 32, patch_lanes)
        patch_h = min(patch_h, patch_lanes // patch_w)
        lanes = max(lanes, block_c * block_i * block_j * patch_h * patch_w)
        levels.append((*level, block_i, block_j, patch_h, patch_w, coarser))
    return tuple(levels), block_c, max(1, min(8, lanes // 256))


def _roots(grids: tuple[tuple[int, int], ...], reduce: Reduce) -> list[Any]:
    """Return the levels pooled from the map, finest first, each with the coarser levels that are derived from it.

    If n divides m, bin i of level n is the union of bins i * m / n to (i + 1) * m / n - 1 of level m. Means cannot be
    derived this way because bins overlap.
    """
    roots: list[Any] = []
    for level in sorted(_starts(grids)[0], key=lambda level: -level[0] * level[1]):
        for (rows, columns, _), coarser in roots:
            one_tile = _power(rows) * _power(columns) <= _LANES // 2
            if reduce == "max" and one_tile and rows % level[0] == 0 and columns % level[1] == 0:
                coarser.append(level)
                break
        else:
            roots.append((level, []))
    return [(level, tuple(coarser)) for level, coarser in roots]


def _by_image(windows: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Return the window indices, stably sorted by image, and the offset of each image in them."""
    sorted_images, order = windows[:, 0].sort(stable=True)
    firsts = torch.searchsorted(sorted_images, torch.arange(images + 1, device=windows.device))
    return order.int(), firsts.int()


def _bins(windows: Tensor | None, shape: Sequence[int], grids: Grids, rule: Rule, device: torch.device) -> Tensor:
    """Return every bin as a window (K * bins, 5), sorted by window, level, row and column."""
    windows = whole_map_windows(shape, torch.device("cpu")) if windows is None else windows.cpu()
    edges = clipped_edges(windows[:, 1:], (shape[2], shape[3]), grids, rule)
    parts, start = [], 0
    for rows, columns in grids:
        y = edges[:, start : start + rows, None].expand(-1, -1, columns, -1)
        x = edges[:, None, start + rows : start + rows + columns].expand(-1, rows, -1, -1)
        start += rows + columns
        parts.append(torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=3).flatten(1, 2))
    cells = torch.cat(parts, dim=1)
    images = windows[:, :1, None].expand(-1, cells.shape[1], -1)
    return torch.cat((images, cells), dim=2).flatten(0, 1).to(device)


def _join(bins: Tensor, grids: Grids) -> Tensor:
    """Convert bins (K * bins, C) to vectors (K, C * bins)."""
    sizes = [rows * columns for rows, columns in grids]
    parts = bins.unflatten(0, (-1, sum(sizes))).split(sizes, dim=1)
    return torch.cat([part.transpose(1, 2).flatten(1) for part in parts], dim=1)


def _split(vectors: Tensor, grids: Grids) -> Tensor:
    """Convert vectors (K, C * bins) to bins (K * bins, C), the inverse of `_join`."""
    sizes = [rows * columns for rows, columns in grids]
    channels = vectors.shape[1] // sum(sizes)
    parts = vectors.split([channels * size for size in sizes], dim=1)
    return torch.cat(
        [part.unflatten(1, (channels, size)).transpose(1, 2) for part, size in zip(parts, sizes, strict=True)], dim=1
    ).flatten(0, 1)
