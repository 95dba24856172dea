"""Triton kernels of the gradient: `scatter` for maxima, `spread` for means.

Both are deterministic: each value of the result belongs to one program, which adds in the order of the windows.
"""

# Triton has no types and interprets annotations itself; it cannot compile type-checked functions.
# mypy: disable-error-code="untyped-decorator,import-untyped"
# ruff: noqa: N803, N806 (compile-time constants are in capitals)

from typing import no_type_check

import triton
import triton.language as tl

from sppnet.ops.gpu.forward import edges, window


@triton.jit
@no_type_check
def _entries(
    grad,
    cells,
    order,
    step,
    end,
    c,
    channels,
    length,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Load the gradients of one step of `scatter` and their cells, (channels, BLOCK) each."""
    STEPS: tl.constexpr = (BINS + BLOCK - 1) // BLOCK
    b = step % STEPS * BLOCK + tl.arange(0, BLOCK)
    keep = (c < channels)[:, None] & (b < tl.where(step < end, BINS, 0))[None, :]
    k = step // STEPS
    if not WHOLE:
        k = tl.load(order + k, mask=step < end, other=0)
    at = tl.zeros((c.shape[0], BLOCK), tl.int32)
    for level in tl.static_range(len(LEVELS)):
        start = LEVELS[level][2]
        bins = LEVELS[level][0] * LEVELS[level][1]
        of_level = (b >= start) & (b < start + bins)
        at = tl.where(of_level[None, :], start * channels + c[:, None] * bins + (b - start)[None, :], at)
    at += k.to(tl.int64) * length
    return tl.load(grad + at, mask=keep, other=0.0), tl.load(cells + at, mask=keep, other=-1)


@triton.jit(do_not_specialize=["area", "length"])
@no_type_check
def scatter(
    grad,
    cells,
    order,
    firsts,
    total,
    channels,
    area,
    length,
    LEVELS: tl.constexpr,
    BINS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Add the gradients of some channels of one image to the cells of their maxima.

    The program owns these planes of `total` and visits the image's windows in order: additions need not be atomic, and
    their order is fixed. A step processes BLOCK bins of one window. Bins that share a cell are summed first and written
    once, for the first bin, because another warp could read the cell in between. The next step is loaded ahead.
    LEVELS: (rows, columns, index of the first bin) per level.
    """
    STEPS: tl.constexpr = (BINS + BLOCK - 1) // BLOCK
    blocks = tl.cdiv(channels, BLOCK_C)
    image = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    planes = total + image.to(tl.int64) * channels * area + c.to(tl.int64) * (1 if CHANNELS_LAST else area)
    if WHOLE:
        first_step, end = image * STEPS, (image + 1) * STEPS
    else:
        first_step, end = tl.load(firsts + image) * STEPS, tl.load(firsts + image + 1) * STEPS
    e = tl.arange(0, BLOCK)
    earlier = (e[None, :] < e[:, None])[None]
    g, cell = _entries(grad, cells, order, first_step, end, c, channels, length, LEVELS, BINS, BLOCK, WHOLE)
    for index in range(end - first_step):
        next_g, next_cell = _entries(
            grad, cells, order, first_step + index + 1, end, c, channels, length, LEVELS, BINS, BLOCK, WHOLE
        )  # fmt: skip
        same = cell[:, :, None] == cell[:, None, :]
        added = tl.sum(tl.where(same, g[:, None, :].to(total.dtype.element_ty), 0.0), 2)
        first = tl.sum((same & earlier).to(tl.int32), 2) == 0
        keep = first & (cell >= 0)
        at = planes[:, None] + cell.to(tl.int64) * (channels if CHANNELS_LAST else 1)
        tl.store(at, tl.load(at, mask=keep, other=0.0) + added, mask=keep)
        tl.debug_barrier()  # the next step may read cells written by this one
        g, cell = next_g, next_cell


@triton.jit
@no_type_check
def _spread_level(
    total,
    vector,
    c,
    y,
    x,
    left,
    top,
    right,
    bottom,
    channels,
    height,
    width,
    LEVEL: tl.constexpr,
):
    """Add the gradients of one level of one window to each cell. The bins that contain a cell are adjacent."""
    ROWS: tl.constexpr = LEVEL[0]
    COLUMNS: tl.constexpr = LEVEL[1]
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    tall, wide = tl.maximum(bottom - top, 1), tl.maximum(right - left, 1)
    dy, dx = tl.where(inside, y - top, 0), tl.where(inside, x - left, 0)
    for row in range((ROWS + tall - 1) // tall + 1):
        i = dy * ROWS // tall + row
        first_row, last_row = edges(top, bottom, i, ROWS, height)
        for column in range((COLUMNS + wide - 1) // wide + 1):
            j = dx * COLUMNS // wide + column
            first_column, last_column = edges(left, right, j, COLUMNS, width)
            contains = inside & (first_row <= y) & (y < last_row) & (first_column <= x) & (x < last_column)
            cells = tl.maximum((last_row - first_row) * (last_column - first_column), 1)
            at = LEVEL[2] * channels + c[:, None] * (ROWS * COLUMNS) + (i * COLUMNS + j)[None, :]
            g = tl.load(vector + at, mask=(c < channels)[:, None] & contains[None, :], other=0.0).to(total.dtype)
            total += g / cells[None, :].to(total.dtype)
    return total


@triton.jit(do_not_specialize=["height", "width", "length"])
@no_type_check
def spread(
    grad,
    windows,
    order,
    firsts,
    result,
    channels,
    height,
    width,
    length,
    LEVELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Sum the gradients of all means that contain a cell, for some cells and channels of one image.

    LEVELS: (rows, columns, index of the first bin) per level.
    """
    FLOAT: tl.constexpr = tl.float64 if grad.dtype.element_ty == tl.float64 else tl.float32
    blocks = tl.cdiv(channels, BLOCK_C)
    image = tl.program_id(0) // blocks
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    area = height * width
    start = tl.program_id(1) * BLOCK
    cell = start + tl.arange(0, BLOCK)
    y, x = cell // width, cell % width
    first_y, last_y = start // width, (tl.minimum(start + BLOCK, area) - 1) // width
    if WHOLE:
        first, end = image, image + 1
    else:
        first, end = tl.load(firsts + image), tl.load(firsts + image + 1)
    total = tl.zeros((BLOCK_C, BLOCK), FLOAT)
    for r in range(first, end):
        k = image.to(tl.int64) if WHOLE else tl.load(order + r).to(tl.int64)
        _, left, top, right, bottom = window(windows, k, height, width, WHOLE)
        if (top <= last_y) & (bottom > first_y):
            for level in tl.static_range(len(LEVELS)):
                total = _spread_level(
                    total, grad + k * length, c, y, x, left, top, right, bottom, channels, height, width, LEVELS[level]
                )  # fmt: skip
    at = image.to(tl.int64) * channels * area
    if CHANNELS_LAST:
        at += c[:, None] + cell[None, :].to(tl.int64) * channels
    else:
        at += c[:, None].to(tl.int64) * area + cell[None, :]
    keep = (c < channels)[:, None] & (cell < area)[None, :]
    tl.store(result + at, total.to(result.dtype.element_ty), mask=keep)
