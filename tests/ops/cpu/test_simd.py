"""Vector operations, compared with NumPy and torch."""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch

from sppnet.ops.cpu import simd

FLOAT, BFLOAT = np.float32(0), np.uint16(0)
VALUES = np.array([0, -0.0, 1, -1, 2.5, 2.5, np.inf, -np.inf, np.nan, np.nan, 3, 1e-40, -7, 7, 0.1, 65504], np.float32)
OTHERS = np.array([-0.0, 0, 2, -2, 2.5, 1.5, np.inf, 5, 1, np.nan, np.nan, 0, -7, 8, 0.1, -65504], np.float32)
CELLS = np.arange(16, dtype=np.int32)
njit: Callable[[Callable[..., Any]], Callable[..., Any]] = numba.njit


@njit
def _binary(operation: Any, a: int, b: int, to: int) -> None:
    zero = np.float32(0)
    x, y = simd.load(zero, a), simd.load(zero, b)
    if operation == 0:
        simd.store(zero, to, simd.add(x, y))
    elif operation == 1:
        simd.store(zero, to, simd.divide(x, y))
    else:
        simd.store(zero, to, simd.larger(x, y))


@njit
def _choose(exact: bool, a: int, i: int, b: int, j: int, to: int, to_cell: int) -> None:
    zero = np.float32(0)
    best, value = simd.load(zero, a), simd.load(zero, b)
    cell, other = simd.load_ints(i), simd.add_ints(simd.load_ints(j), simd.ints(np.int32(0)))
    if exact:
        simd.store(zero, to, simd.better_value(best, cell, value, other))
        simd.store_ints(to_cell, simd.better_cell(best, cell, value, other))
    else:
        simd.store(zero, to, simd.larger(best, value))
        simd.store_ints(to_cell, simd.first_cell(best, cell, value, other))


@njit
def _move(kind: Any, source: int, to_kind: Any, to: int) -> None:
    simd.store(to_kind, to, simd.load(kind, source))


@njit
def _transpose(kind: Any, source: int, to: int, step: int) -> None:
    simd.transpose(kind, source, 64, to, step)


@njit
def _any_nan(source: int) -> Any:
    return simd.any_nan(simd.load(np.float32(0), source))


@njit
def _larger_cell(a: int, i: int, b: int, j: int, to_cell: int) -> None:
    zero = np.float32(0)
    best, value = simd.load(zero, a), simd.load(zero, b)
    simd.store_ints(to_cell, simd.larger_cell(best, simd.load_ints(i), value, simd.load_ints(j)))


@njit
def _scalars(kind: Any, source: int, index: int, total: int) -> Any:
    simd.accumulate(np.float32(0), total, simd.number(kind, source))
    return simd.integer(index)


@njit
def _blocks(source: int, to: int, cleared: int, streamed: int) -> None:
    simd.copy(to, source, 64)
    simd.clear(cleared, 20)
    simd.stream_vector(streamed, source)


def _torch_choice(best: float, cell: int, value: float, other: int) -> tuple[float, int]:
    """Scan in row-major order like torch: a value is taken if it is larger or NaN."""
    scan = sorted([(cell, best), (other, value)])
    kept = scan[0]
    if scan[1][1] > kept[1] or np.isnan(scan[1][1]):
        kept = scan[1]
    return kept[1], kept[0]


@pytest.mark.parametrize(("operation", "function"), [(0, np.add), (1, np.divide)])
def test_arithmetic_matches_numpy(operation: int, function: Any) -> None:
    actual = np.empty(16, np.float32)
    _binary(operation, VALUES.ctypes.data, OTHERS.ctypes.data, actual.ctypes.data)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(actual, function(VALUES, OTHERS))


def test_larger_without_nan_matches_numpy() -> None:
    a, b = np.nan_to_num(VALUES), np.nan_to_num(OTHERS)
    actual = np.empty(16, np.float32)
    _binary(2, a.ctypes.data, b.ctypes.data, actual.ctypes.data)
    np.testing.assert_array_equal(actual, np.maximum(a, b))


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("later", [True, False])
def test_ties_and_nan_are_resolved_like_torch(exact: bool, later: bool) -> None:
    a, b = (VALUES, OTHERS) if exact else (np.nan_to_num(VALUES), np.nan_to_num(OTHERS))
    i, j = (CELLS, CELLS + 20) if later else (CELLS + 20, CELLS)
    actual, cell = np.empty(16, np.float32), np.empty(16, np.int32)
    _choose(exact, *(array.ctypes.data for array in (a, i, b, j, actual, cell)))
    for lane in range(16):
        value, place = _torch_choice(a[lane], i[lane], b[lane], j[lane])
        np.testing.assert_array_equal((actual[lane], cell[lane]), (value, place))
    if later and not exact:
        _larger_cell(*(array.ctypes.data for array in (a, i, b, j, cell)))
        np.testing.assert_array_equal(cell, np.where(b > a, j, i))


def test_bfloat16_is_rounded_like_torch() -> None:
    values = np.concatenate([VALUES, np.float32(1) + np.arange(16, dtype=np.float32) * np.float32(2**-9)])
    nan = np.array([0x7FFFFFFF, 0x7F800001], np.uint32).view(np.float32)  # rounding would give zero and infinity
    for part in (values[:16], values[16:], np.resize(nan, 16)):
        part = np.ascontiguousarray(part)
        halves, back = np.empty(16, np.uint16), np.empty(16, np.float32)
        _move(FLOAT, part.ctypes.data, BFLOAT, halves.ctypes.data)
        _move(BFLOAT, halves.ctypes.data, FLOAT, back.ctypes.data)
        np.testing.assert_array_equal(back, torch.from_numpy(part).bfloat16().float().numpy())


@pytest.mark.parametrize("step", [16, 21])
def test_transpose_matches_numpy(step: int) -> None:
    source = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    actual = np.zeros((16, step), np.float32)
    _transpose(FLOAT, source.ctypes.data, actual.ctypes.data, 4 * step)
    np.testing.assert_array_equal(actual[:, :16], source.T)
    halves = np.zeros((16, step), np.uint16)
    _transpose(BFLOAT, source.ctypes.data, halves.ctypes.data, 2 * step)
    expected = torch.from_numpy(source.T.copy()).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(halves[:, :16], expected)


@pytest.mark.parametrize("lane", [None, 0, 7, 15])
def test_any_nan_finds_every_lane(lane: int | None) -> None:
    source = np.full(16, np.inf, np.float32)
    if lane is not None:
        source[lane] = np.nan
    assert _any_nan(source.ctypes.data) == (lane is not None)


def test_scalar_loads_and_accumulate() -> None:
    total, index = np.array([1.5], np.float32), np.array([-3], np.int32)
    assert _scalars(FLOAT, np.array([2.0], np.float32).ctypes.data, index.ctypes.data, total.ctypes.data) == -3
    assert total[0] == 3.5
    half = torch.tensor([0.25]).bfloat16().view(torch.uint16).numpy()
    _scalars(BFLOAT, half.ctypes.data, index.ctypes.data, total.ctypes.data)
    assert total[0] == 3.75


def test_copy_clear_and_stream() -> None:
    memory = np.ones(64, np.float32)
    start = -memory.ctypes.data % 64 // 4  # stream_vector needs 64-byte alignment
    copied, cleared = np.zeros(16, np.float32), np.ones(8, np.float32)
    _blocks(CELLS.ctypes.data, copied.ctypes.data, cleared.ctypes.data, memory.ctypes.data + 4 * start)
    np.testing.assert_array_equal(copied.view(np.int32), CELLS)
    np.testing.assert_array_equal(cleared, [0] * 5 + [1] * 3)
    np.testing.assert_array_equal(memory[start : start + 16].view(np.int32), CELLS)
