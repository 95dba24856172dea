"""Kernels of the operator in Triton. What they compute is said in `plain`, how they are launched in `_gpu`.

They know adaptive bins alone. A map or gradient is contiguous or channels_last, vectors are contiguous.
"""

# Triton reads annotations as its own and has no types; a decorator that checks some would stand in its way.
# mypy: disable-error-code="untyped-decorator,import-untyped"
# ruff: noqa: N803, N806, RET505 (what is known when a kernel is compiled has a name in capitals,
# and a branch that is not taken must not be compiled)

from typing import no_type_check

import triton
import triton.language as tl

# The cell of a bin in which nothing has been found: it loses every tie.
NOWHERE = tl.constexpr(2**31 - 1)


@triton.jit
@no_type_check
def _larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def _better(a, a_cell, b, b_cell):
    """The larger value, and of equal ones the first; a NaN before any number, and of NaNs the last."""
    take = (b > a) | ((b == a) & (b_cell < a_cell)) | ((b != b) & ((a == a) | (b_cell > a_cell)))
    return tl.where(take, b, a), tl.where(take, b_cell, a_cell)


@triton.jit
@no_type_check
def _best(value, cell, axis: tl.constexpr, SAVE: tl.constexpr):
    """The maximum along an axis, and its cell where it is asked for."""
    if SAVE:
        value, cell = tl.reduce((value, cell), axis, _better)
    else:
        value = tl.reduce(value, axis, _larger)
        cell = tl.max(cell, axis)  # for the shape: nobody reads it, and the compiler drops it
    return value, cell


@triton.jit
@no_type_check
def window(windows, k, height, width, WHOLE: tl.constexpr):
    """Image and edges of a window: left, top, right, bottom."""
    if WHOLE:
        zero = width * 0
        return k, zero, zero, width, height
    else:
        row = windows + k * 5
        return tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4)


@triton.jit
@no_type_check
def edges(begin, end, bins, level: tl.constexpr, side):
    """Adaptive bins of [begin, end), clipped to a side of the map; one past the level's last has no cell."""
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
    """A level each bin of which is a block of bins of a finer level: the same cells, so the same maximum."""
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
    """One level of one window, cell by cell, and the levels that follow from it."""
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
    known = (c < channels)[:, None, None]
    for tile in range(tl.cdiv(ROWS, BLOCK_I) * tl.cdiv(COLUMNS, BLOCK_J)):
        i = tile // tl.cdiv(COLUMNS, BLOCK_J) * BLOCK_I + tl.arange(0, BLOCK_I)
        j = tile % tl.cdiv(COLUMNS, BLOCK_J) * BLOCK_J + tl.arange(0, BLOCK_J)
        first_row, last_row = edges(top, bottom, i, ROWS, height)
        first_column, last_column = edges(left, right, j, COLUMNS, width)
        heights, widths = last_row - first_row, last_column - first_column
        # Every (channel, bin) has a patch of lanes. The patch is moved over the bin row by row, so that each lane
        # sees its own cells in row-major order and the first maximum and the last NaN need no more than `>`.
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
                found = tl.load(
                    planes[:, None, None, None] + step[None],
                    mask=known[:, :, :, None] & inside[None],
                    other=-float("inf") if MAX else 0.0,
                ).to(FLOAT)
                if SAVE:
                    take = (found > value) | (found != found)
                    value = tl.where(take, found, value)
                    place = tl.where(take, cell[None], place)
                elif MAX:
                    value = _larger(value, found)
                else:
                    value += found
        if MAX:
            value, place = _best(value, place, 3, SAVE)
        else:
            value = tl.sum(value, 3) / tl.maximum(heights[:, None] * widths[None, :], 1)[None].to(FLOAT)
        at = LEVEL[2] * channels + c[:, None, None] * (ROWS * COLUMNS) + (i[:, None] * COLUMNS + j[None, :])[None]
        keep = known & ((i < ROWS)[:, None] & (j < COLUMNS)[None, :])[None]
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
    """One window and some of its channels: all levels.

    LEVELS: (rows, columns, bins before it, rows and columns of a tile, height and width of a patch, levels that follow
    from it as (rows, columns, bins before it)) each.
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
