"""Triton kernels of the pooling operator, which `sppnet.ops.reference` defines and `dispatch.py` launches.

Only adaptive bins are supported. Maps and gradients are contiguous or channels_last, vectors are contiguous.
"""

# Triton has no types and interprets annotations itself; it cannot compile type-checked functions.
# mypy: disable-error-code="untyped-decorator,import-untyped"
# ruff: noqa: N803, N806, RET505 (compile-time constants are in capitals, and a branch that is not
# taken must not be compiled)

from typing import no_type_check

import triton
import triton.language as tl

# Cell of a bin that has no value yet; it loses every tie.
NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
@no_type_check
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _better(a, a_cell, b, b_cell):
    """Return the maximum and its cell: the first of ties, but NaN beats any number and the last NaN wins."""
    take = (b > a) | ((b == a) & (b_cell < a_cell)) | ((b != b) & ((a == a) | (b_cell > a_cell)))
    return tl.where(take, b, a), tl.where(take, b_cell, a_cell)


@triton.jit
@no_type_check
def _best(value, cell, axis: tl.constexpr, SAVE: tl.constexpr):
    """Return the maximum along an axis and, if SAVE is set, its cell."""
    if SAVE:
        value, cell = tl.reduce((value, cell), axis, _better)
    else:
        value = tl.reduce(value, axis, _larger)
        cell = tl.max(cell, axis)  # only for the shape; unused and removed by the compiler
    return value, cell


@triton.jit
@no_type_check
def window(windows, k, height, width, WHOLE: tl.constexpr):
    """Return image, left, top, right and bottom of a window."""
    if WHOLE:
        zero = width * 0
        return k, zero, zero, width, height
    else:
        row = windows + k * 5
        return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
@no_type_check
def edges(begin, end, bins, level: tl.constexpr, side):
    """Return the edges of adaptive bins of [begin, end), clipped to the map; bins beyond the last are empty."""
    size = end - begin
    first = begin + bins * size // level
    last = begin + ((bins + 1) * size + (level - 1)) // level
    first = tl.minimum(tl.maximum(first, 0), side).to(tl.int32)
    last = tl.minimum(tl.maximum(last, 0), side).to(tl.int32)
    return first, tl.where(bins < level, last, first)


@triton.jit
@no_type_check
def _write(
    values,
    cells,
    at,
    keep,
    value,
    cell,
    filled,
    MAX: tl.constexpr,
    SAVE: tl.constexpr,
):
    if MAX:
        value = tl.where(filled, value, 0.0)
    tl.store(values + at, value.to(values.dtype.element_ty), mask=keep)
    if SAVE:
        tl.store(cells + at, tl.where(filled, cell, -1), mask=keep)


@triton.jit
@no_type_check
def _coarser(
    values,
    cells,
    c,
    channels,
    value,
    cell,
    heights,
    widths,
    i,
    j,
    FINER: tl.constexpr,
    LEVEL: tl.constexpr,
    SAVE: tl.constexpr,
):
    """Derive the maxima of a level whose bins are blocks of bins of a finer level."""
    ROWS: tl.constexpr = LEVEL[0]
    COLUMNS: tl.constexpr = LEVEL[1]
    start = LEVEL[2] * channels + c * (ROWS * COLUMNS)
    for row in range(ROWS):
        of_row = i // (FINER[0] // ROWS) == row
        tall = tl.max(tl.where(of_row, heights, 0), 0) > 0
        in_row = of_row[None, :, None]
        strip, strip_cell = _best(tl.where(in_row, value, -float("inf")), tl.where(in_row, cell, NOWHERE), 1, SAVE)
        for column in range(COLUMNS):
            of_column = j // (FINER[1] // COLUMNS) == column
            filled = tall & (tl.max(tl.where(of_column, widths, 0), 0) > 0)
            in_column = of_column[None, :]
            best, best_cell = _best(
                tl.where(in_column, strip, -float("inf")), tl.where(in_column, strip_cell, NOWHERE), 1, SAVE
            )
            at = start + row * COLUMNS + column
            _write(values, cells, at, c < channels, best, best_cell, filled, True, SAVE)


@triton.jit
@no_type_check
def _pool_level(
    planes,
    values,
    cells,
    c,
    left,
    top,
    right,
    bottom,
    channels,
    height,
    width,
    LEVEL: tl.constexpr,
    MAX: tl.constexpr,
    SAVE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Pool one level of one window, and the levels derived from it."""
    ROWS: tl.constexpr = LEVEL[0]
    COLUMNS: tl.constexpr = LEVEL[1]
    BLOCK_I: tl.constexpr = LEVEL[3]
    BLOCK_J: tl.constexpr = LEVEL[4]
    PATCH_H: tl.constexpr = LEVEL[5]
    PATCH_W: tl.constexpr = LEVEL[6]
    COARSER: tl.constexpr = LEVEL[7]
    SHAPE: tl.constexpr = (c.shape[0], BLOCK_I, BLOCK_J, PATCH_H * PATCH_W)
    FLOAT: tl.constexpr = tl.float64 if values.dtype.element_ty == tl.float64 else tl.float32
    patch = tl.arange(0, PATCH_H * PATCH_W)[None, None, :]
    valid_channels = (c < channels)[:, None, None]
    for tile in range(tl.cdiv(ROWS, BLOCK_I) * tl.cdiv(COLUMNS, BLOCK_J)):
        i = tile // tl.cdiv(COLUMNS, BLOCK_J) * BLOCK_I + tl.arange(0, BLOCK_I)
        j = tile % tl.cdiv(COLUMNS, BLOCK_J) * BLOCK_J + tl.arange(0, BLOCK_J)
        first_row, last_row = edges(top, bottom, i, ROWS, height)
        first_column, last_column = edges(left, right, j, COLUMNS, width)
        heights, widths = last_row - first_row, last_column - first_column
        # Every (channel, bin) has a patch of lanes that moves over the bin row by row. Each lane reads its cells in
        # row-major order, so keeping the first maximum and the last NaN needs no comparison of cells.
        y = first_row[:, None, None] + patch // PATCH_W
        x = first_column[None, :, None] + patch % PATCH_W
        y_end, x_end = last_row[:, None, None], last_column[None, :, None]
        value = tl.full(SHAPE, -float("inf") if MAX else 0.0, FLOAT)
        place = tl.broadcast_to(tl.where((y < y_end) & (x < x_end), y * width + x, NOWHERE)[None], SHAPE)
        for dy in range(0, tl.max(heights, 0), PATCH_H):
            for dx in range(0, tl.max(widths, 0), PATCH_W):
                inside = (y + dy < y_end) & (x + dx < x_end)
                cell = (y + dy) * width + (x + dx)
                step = cell.to(tl.int64) * channels if CHANNELS_LAST else cell
                loaded = tl.load(
                    planes[:, None, None, None] + step[None],
                    mask=valid_channels[:, :, :, None] & inside[None],
                    other=-float("inf") if MAX else 0.0,
                ).to(FLOAT)
                if SAVE:
                    take = (loaded > value) | (loaded != loaded)
                    value = tl.where(take, loaded, value)
                    place = tl.where(take, cell[None], place)
                elif MAX:
                    value = _larger(value, loaded)
                else:
                    value += loaded
        if MAX:
            value, place = _best(value, place, 3, SAVE)
        else:
            value = tl.sum(value, 3) / tl.maximum(heights[:, None] * widths[None, :], 1)[None].to(FLOAT)
        at = LEVEL[2] * channels + c[:, None, None] * (ROWS * COLUMNS) + (i[:, None] * COLUMNS + j[None, :])[None]
        keep = valid_channels & ((i < ROWS)[:, None] & (j < COLUMNS)[None, :])[None]
        filled = ((heights > 0)[:, None] & (widths > 0)[None, :])[None]
        _write(values, cells, at, keep, value, place, filled, MAX, SAVE)
        for level in tl.static_range(len(COARSER)):
            _coarser(
                values, cells, c, channels, value, place, heights, widths, i, j, LEVEL, COARSER[level], SAVE
            )  # fmt: skip


@triton.jit(do_not_specialize=["height", "width", "length"])
@no_type_check
def pool(
    x,
    windows,
    values,
    cells,
    channels,
    height,
    width,
    length,
    LEVELS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    MAX: tl.constexpr,
    SAVE: tl.constexpr,
    WHOLE: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Pool all levels of one window for some of its channels.

    LEVELS: (rows, columns, index of the first bin, rows and columns of a tile, height and width of a patch, derived
    levels as (rows, columns, index of the first bin)) per level.
    """
    blocks = tl.cdiv(channels, BLOCK_C)
    k = (tl.program_id(0) // blocks).to(tl.int64)
    c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    image, left, top, right, bottom = window(windows, k, height, width, WHOLE)
    area = height.to(tl.int64) * width
    planes = x + image * channels * area + c * (1 if CHANNELS_LAST else area)
    for level in tl.static_range(len(LEVELS)):
        _pool_level(
            planes, values + k * length, cells + k * length, c, left, top, right, bottom, channels, height, width,
            LEVELS[level], MAX, SAVE, CHANNELS_LAST,
        )  # fmt: skip
