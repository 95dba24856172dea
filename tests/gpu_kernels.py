"""GPU kernels against the reference, on a GPU or in Triton's interpreter; run by tests/ops/gpu/test_dispatch.py."""

from collections.abc import Sequence
from typing import get_args

import pytest
import torch
from torch import Tensor

from sppnet.ops import reference
from sppnet.ops.gpu import dispatch as gpu
from sppnet.ops.levels import Reduce, Rule
from sppnet.ops.reference import Grids

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PYRAMID = ((4, 4), (3, 2), (2, 2), (1, 1))
# image, x1, y1, x2, y2: inside, cut by two borders, larger than the map, outside, one cell, a duplicate.
WINDOWS = ((2, 1, 0, 6, 4), (0, -2, -1, 3, 2), (0, -1, -1, 8, 6), (0, 9, 1, 12, 3), (2, 3, 2, 4, 3), (2, 1, 0, 6, 4))


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give small maps several tiles of bins and blocks of channels, and keep the interpreter fast."""
    monkeypatch.setattr(gpu, "_LANES", 16)
    monkeypatch.setattr(gpu, "_PROGRAMS", 1)
    gpu._plan.cache_clear()


def compare(
    x: Tensor, windows: Sequence[Sequence[int]] | None, grids: Grids, rule: Rule = "adaptive", reduce: Reduce = "max"
) -> None:
    """Compare forward with and without cells, and backward, with the reference."""
    cell_windows = None if windows is None else torch.tensor(windows, dtype=torch.long, device=DEVICE).reshape(-1, 5)
    x = x.to(DEVICE)
    expected, cells = reference.forward(x, cell_windows, grids, rule, reduce, True)
    values, gpu_cells = gpu.forward(x, cell_windows, grids, rule, reduce, True)
    assert values.dtype == expected.dtype
    assert gpu_cells.dtype == torch.int32
    assert torch.equal(gpu_cells, cells)
    tolerance = 0.0 if reduce == "max" else None
    torch.testing.assert_close(values, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    if reduce == "max":
        values, no_cells = gpu.forward(x, cell_windows, grids, rule, reduce, False)
        torch.testing.assert_close(values, expected, rtol=0, atol=0, equal_nan=True)
        assert no_cells.shape == (0,)
    # Sums of small integers are exact in any order.
    grad = torch.randint(-8, 9, expected.shape, device=DEVICE).to(x.dtype)
    channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    actual = gpu.backward(grad, cells, cell_windows, x.shape, channels_last, grids, rule, reduce)
    exact = reference.backward(grad.double(), cells, cell_windows, x.shape, channels_last, grids, rule, reduce)
    assert actual.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    torch.testing.assert_close(actual, exact.to(x.dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("reduce", get_args(Reduce))
def test_dtypes_and_ties(dtype: torch.dtype, reduce: Reduce) -> None:
    compare(torch.randint(-2, 2, (3, 2, 5, 7)).to(dtype), WINDOWS[:2], ((2, 2), (1, 1)), reduce=reduce)


@pytest.mark.parametrize("reduce", get_args(Reduce))
@pytest.mark.parametrize("windows", [None, WINDOWS])
def test_nested_and_independent_levels(
    windows: Sequence[Sequence[int]] | None, reduce: Reduce, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "_LANES", 32)  # the finest level fits one tile
    compare(torch.randint(-2, 2, (3, 2, 5, 7)).float(), windows, PYRAMID, reduce=reduce)


@pytest.mark.parametrize("reduce", get_args(Reduce))
@pytest.mark.parametrize("windows", [None, WINDOWS[:3]])
def test_channels_last(reduce: Reduce, windows: Sequence[Sequence[int]] | None) -> None:
    compare(torch.randn(3, 5, 5, 7).to(memory_format=torch.channels_last), windows, ((2, 2), (1, 1)), reduce=reduce)


def test_other_strides() -> None:
    compare(torch.randn(3, 4, 7, 12)[:, ::2, 1:6, ::2], WINDOWS[:2], ((2, 2),))
    compare(torch.randn(3, 2, 1, 1).expand(3, 2, 5, 6), None, ((2, 2),))


@pytest.mark.parametrize("windows", [None, WINDOWS[:3]])
def test_nan_and_infinity(windows: Sequence[Sequence[int]] | None) -> None:
    x = torch.randint(-1, 2, (3, 4, 5, 7)).float()
    x[:, 0] = -torch.inf
    x[:, 1, 1:4, 2:5] = torch.nan
    x[:, 2] = torch.nan
    x[:, 3, 2, 3] = torch.inf
    compare(x, windows, ((2, 4), (1, 2), (1, 1)))


@pytest.mark.parametrize("reduce", get_args(Reduce))
@pytest.mark.parametrize("rule", ["sliding", "caffe"])
def test_other_rules(rule: Rule, reduce: Reduce) -> None:
    x = torch.randint(-4, 5, (2, 2, 4, 7)).float()
    compare(x, None, ((2, 3), (1, 1)), rule, reduce)
    compare(x, [(1, 0, 0, 4, 4), (0, -2, 1, 2, 5)], ((2, 2), (1, 1)), rule, reduce)


@pytest.mark.parametrize("reduce", get_args(Reduce))
def test_maps_smaller_than_the_level(reduce: Reduce) -> None:
    compare(torch.randn(2, 3, 1, 2), None, ((3, 5), (1, 1)), reduce=reduce)
    compare(torch.randn(2, 3, 4, 4), [(0, 1, 1, 2, 2), (1, 2, 0, 4, 1)], ((3, 5), (1, 1)), reduce=reduce)


def test_level_of_many_tiles() -> None:
    compare(torch.randn(1, 2, 3, 40), None, ((2, 40), (12, 2), (1, 1)))


@pytest.mark.parametrize("reduce", get_args(Reduce))
@pytest.mark.parametrize("rule", get_args(Rule))
def test_no_windows_or_no_images(rule: Rule, reduce: Reduce) -> None:
    compare(torch.randn(2, 3, 4, 4), [], ((2, 2),), rule, reduce)
    compare(torch.empty(0, 3, 4, 4), [], ((2, 2),), rule, reduce)
    compare(torch.empty(0, 3, 4, 4), None, ((2, 2),), rule, reduce)


@pytest.mark.parametrize("reduce", get_args(Reduce))
def test_expanded_gradient(reduce: Reduce) -> None:
    x = torch.randn(2, 3, 4, 5, device=DEVICE)
    values, cells = reference.forward(x, None, ((2, 2),), "adaptive", reduce, True)
    grad = torch.ones((), device=DEVICE).expand(values.shape)
    actual, expected = (
        module.backward(grad, cells, None, x.shape, False, ((2, 2),), "adaptive", reduce) for module in (gpu, reference)
    )
    torch.testing.assert_close(actual, expected)
