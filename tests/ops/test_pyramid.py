"""pyramid_pool: a slow reference at every size, literal values, invariants, dtypes, gradients, invalid input."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet import pyramid_pool
from sppnet.ops.levels import Level, Reduce, Rule
from tests.helpers import slow_reference

REDUCES: tuple[Reduce, ...] = ("max", "avg")
BINS: dict[str, Callable[[int, int], list[list[int]]]] = {
    "adaptive": slow_reference.adaptive_bins,
    "sliding": slow_reference.sliding_bins,
    "caffe": lambda side, level: slow_reference.caffe_bins(side, level) or [],
}


def arange_map(side: int) -> Tensor:
    return torch.arange(float(side * side)).reshape(1, 1, side, side)


@pytest.mark.parametrize("reduce", REDUCES)
def test_every_size_up_to_64_matches_the_reference(reduce: Reduce) -> None:
    """All 4,096 sizes; the reference pools rows, then columns, of exact bins."""
    levels = (6, 3, 2, 1)
    bins = {(side, n): slow_reference.adaptive_bins(side, n) for side in range(1, 65) for n in levels}
    full = np.random.default_rng(0).standard_normal((64, 64))
    for height in range(1, 65):
        for width in range(1, 65):
            x = full[:height, :width]
            expected = []
            for n in levels:
                for rows in bins[height, n]:
                    strip = x[rows].max(0) if reduce == "max" else x[rows].mean(0)
                    expected += [strip[c].max() if reduce == "max" else strip[c].mean() for c in bins[width, n]]
            vector = pyramid_pool(torch.from_numpy(x)[None, None], levels, reduce=reduce)[0].numpy()
            np.testing.assert_allclose(vector, expected, rtol=1e-12, atol=1e-14)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3),
    st.sampled_from(REDUCES),
    st.sampled_from(sorted(BINS)),
)
def test_any_levels_match_the_reference(
    height: int, width: int, levels: list[tuple[int, int]], reduce: Reduce, rule: Rule
) -> None:
    x = torch.randn(2, 2, height, width, dtype=torch.float64)
    grids = [(r, c) for r, c in levels if len(BINS[rule](height, r)) == r and len(BINS[rule](width, c)) == c]
    if len(grids) < len(levels):
        with pytest.raises(ValueError, match="expected one that cuts a map side"):
            pyramid_pool(x, levels, reduce=reduce, rule=rule)
    else:
        torch.testing.assert_close(
            pyramid_pool(x, levels, reduce=reduce, rule=rule),
            slow_reference.pyramid(x, levels, BINS[rule], reduce),
        )


@pytest.mark.parametrize(
    ("shape", "levels", "length"),
    [
        ((4, 256, 10, 20), (4, 2, 1), 5376),
        ((4, 256, 10, 20), (6, 3, 2, 1), 12800),
        ((4, 256, 13, 13), (6, 3, 2, 1), 12800),
        ((4, 512, 18, 18), (6, 3, 2, 1), 25600),
        ((4, 256, 13, 13), (3, 2, 1), 3584),
        ((4, 256, 13, 13), (4, 3, 2, 1), 7680),
        ((4, 256, 1, 1), (6, 3, 2, 1), 12800),
    ],
)
def test_output_length(shape: tuple[int, ...], levels: tuple[int, ...], length: int) -> None:
    assert pyramid_pool(torch.randn(shape), levels).shape == (4, length)


def test_four_by_four_computed_by_hand() -> None:
    assert pyramid_pool(arange_map(4), (4, 2, 1))[0].tolist() == [*range(16), 5, 7, 13, 15, 15]


def test_seven_by_seven_computed_by_hand() -> None:
    x = arange_map(7)
    expected = torch.tensor([[8, 10, 12, 13], [22, 24, 26, 27], [36, 38, 40, 41], [43, 45, 47, 48]])
    assert pyramid_pool(x, (4,))[0].tolist() == expected.flatten().tolist()
    assert pyramid_pool(x, (3,))[0].tolist() == [16, 18, 20, 30, 32, 34, 44, 46, 48]
    assert pyramid_pool(x, (2,))[0].tolist() == [24, 27, 45, 48]


def test_order_within_a_level_is_channel_row_column() -> None:
    x = torch.cat((arange_map(7), -arange_map(7)), dim=1)
    assert pyramid_pool(x, (2,))[0].tolist() == [24, 27, 45, 48, 0, -3, -21, -24]


def test_adaptive_differs_from_ceil_mode_max_pooling() -> None:
    x = -arange_map(13)
    assert pyramid_pool(x, (2,))[0].tolist() == [0, -6, -78, -84]
    released = F.max_pool2d(x, 7, 7, ceil_mode=True).flatten().tolist()
    assert released == [0, -7, -91, -98]


def test_gradient_computed_by_hand() -> None:
    x = arange_map(7).requires_grad_()
    pyramid_pool(x, (4, 2, 1)).sum().backward()
    assert x.grad is not None
    assert x.grad.sum() == 21
    assert x.grad[0, 0, 6, 6] == 3
    assert x.grad.count_nonzero() == 16


def test_negative_map_gives_negative_maxima() -> None:
    assert (pyramid_pool(-torch.rand(1, 3, 5, 9) - 0.1, (6, 3, 2, 1)) < 0).all()


def test_level_1_is_global_pooling() -> None:
    x = torch.randn(3, 5, 11, 7)
    torch.testing.assert_close(pyramid_pool(x, (1,)), x.amax((2, 3)))
    torch.testing.assert_close(pyramid_pool(x, (1,), reduce="avg"), x.mean((2, 3)))


def test_maximum_over_any_level_equals_level_1() -> None:
    x = torch.randn(2, 4, 9, 14)
    for level in (2, 3, 6):
        bins = pyramid_pool(x, (level,)).unflatten(1, (4, -1))
        torch.testing.assert_close(bins.amax(2), pyramid_pool(x, (1,)))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(REDUCES))
def test_mirrored_map_gives_mirrored_grids(height: int, width: int, reduce: Reduce) -> None:
    x = torch.randn(2, 3, height, width, dtype=torch.float64)
    for rows, columns in ((4, 4), (6, 3), (1, 5)):
        grid = pyramid_pool(x, ((rows, columns),), reduce=reduce).unflatten(1, (3, rows, columns))
        mirrored = pyramid_pool(x.flip(3), ((rows, columns),), reduce=reduce).unflatten(1, (3, rows, columns))
        torch.testing.assert_close(mirrored, grid.flip(3))


def test_caffe_is_not_mirror_symmetric() -> None:
    x = arange_map(13)
    grid = pyramid_pool(x, (2,), rule="caffe").unflatten(1, (1, 2, 2))
    mirrored = pyramid_pool(x.flip(3), (2,), rule="caffe").unflatten(1, (1, 2, 2))
    assert not torch.equal(mirrored, grid.flip(3))


@pytest.mark.parametrize("side", [12, 13, 18, 19])
def test_sliding_equals_adaptive_for_remainders_0_and_1(side: int) -> None:
    x = torch.randn(2, 3, side, side)
    for reduce in REDUCES:
        sliding, adaptive = (pyramid_pool(x, (6, 3, 2, 1), reduce=reduce, rule=r) for r in ("sliding", "adaptive"))
        torch.testing.assert_close(sliding, adaptive)


def test_levels_keep_their_order() -> None:
    x = torch.randn(2, 3, 8, 9)
    parts = [pyramid_pool(x, (n,)) for n in (1, 4, 2)]
    torch.testing.assert_close(pyramid_pool(x, (1, 4, 2)), torch.cat(parts, 1))


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rule", ["adaptive", "caffe"])
def test_channels_last_gives_the_same_result(reduce: Reduce, rule: Rule) -> None:
    x = torch.randn(2, 16, 13, 9)
    torch.testing.assert_close(
        pyramid_pool(x.to(memory_format=torch.channels_last), (4, 2, 1), reduce=reduce, rule=rule),
        pyramid_pool(x, (4, 2, 1), reduce=reduce, rule=rule),
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_keeps_dtype_and_precision(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 11).to(dtype)
    for reduce in REDUCES:
        tolerance = {"max": 0.0, "avg": 1e-2}[reduce]
        out = pyramid_pool(x, (3, 1), reduce=reduce)
        assert out.dtype == dtype
        exact = pyramid_pool(x.double(), (3, 1), reduce=reduce)
        torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 11).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for reduce in REDUCES:
            assert pyramid_pool(x, (3, 1), reduce=reduce).dtype == dtype


@pytest.mark.parametrize("rule", ["adaptive", "sliding", "caffe"])
@pytest.mark.parametrize("sizes", [None, []])
def test_empty_batch_gives_empty_result(rule: Rule, sizes: list[tuple[int, int]] | None) -> None:
    assert pyramid_pool(torch.empty(0, 8, 12, 12), (3, 1), rule=rule, sizes=sizes).shape == (0, 80)


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rule", ["adaptive", "sliding", "caffe"])
def test_nan_propagates_only_to_bins_that_contain_it(reduce: Reduce, rule: Rule) -> None:
    x = torch.randn(1, 1, 8, 8)
    x[0, 0, 0, 0] = torch.nan
    assert pyramid_pool(x, (2, 1), reduce=reduce, rule=rule).isnan().tolist() == [[True, False, False, False, True]]


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rule", ["adaptive", "sliding", "caffe"])
def test_first_and_second_derivatives(reduce: Reduce, rule: Rule) -> None:
    x = torch.randn(1, 2, 4, 3, dtype=torch.float64, requires_grad=True)

    def pool(t: Tensor) -> Tensor:
        return pyramid_pool(t, (2, 1), reduce=reduce, rule=rule)

    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)


@pytest.mark.parametrize("reduce", REDUCES)
def test_padded_batch_matches_single_images(reduce: Reduce) -> None:
    areas = [(7, 5), (3, 9), (1, 1), (7, 5), (3, 9)]  # unsorted, and in no order that equals its own inverse
    x = torch.randn(5, 4, 8, 9)
    single = torch.cat(
        [pyramid_pool(x[i : i + 1, :, :h, :w], (3, 2, 1), reduce=reduce) for i, (h, w) in enumerate(areas)]
    )
    for index, (height, width) in enumerate(areas):
        x[index, :, height:] = torch.nan
        x[index, :, :, width:] = torch.nan
    torch.testing.assert_close(pyramid_pool(x, (3, 2, 1), reduce=reduce, sizes=areas), single)
    torch.testing.assert_close(pyramid_pool(x, (3, 2, 1), reduce=reduce, sizes=torch.tensor(areas)), single)


def test_gradient_with_valid_sizes() -> None:
    x = torch.randn(3, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: pyramid_pool(t, (2, 1), sizes=[(5, 6), (2, 3), (5, 1)]), x)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(3, 4, 5), ValueError, r"4 dimensions \(N, C, H, W\), got shape \(3, 4, 5\); x\[None\]"),
        (torch.zeros(1, 3, 0, 5), ValueError, r"1 x 1 cells, got shape \(1, 3, 0, 5\)"),
        (torch.zeros(1, 0, 5, 5), ValueError, "at least 1 channel"),
        (
            torch.zeros(1, 3, 4, 5, dtype=torch.long),
            TypeError,
            "a floating-point tensor .* got a tensor of torch.int64",
        ),
        ([[1.0]], TypeError, "got list"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_maps(x: Tensor, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pyramid_pool(x, (2, 1))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([(3, 3)], r"one \(height, width\) of integers for each of the 2 maps, got \[\(3, 3\)\]"),
        ([3, 4], "of integers for each of the 2 maps"),
        ([(3.5, 3), (1, 1)], "of integers for each of the 2 maps"),
        (7, "of integers for each of the 2 maps, got 7"),
        (torch.tensor([[1.0, 2.0], [1.0, 2.0]]), "of integers for each"),
        ([(3, 3), (5, 4)], r"sizes\[1\]: expected a height of 1..4 and a width of 1..6, got \(5, 4\)"),
        ([(0, 3), (4, 4)], r"sizes\[0\]"),
        ([(3, 3, 3), (1, 1, 1)], "for each of the 2 maps"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_sizes(sizes: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyramid_pool(torch.zeros(2, 1, 4, 6), (1,), sizes=sizes)


@pytest.mark.parametrize(
    ("levels", "kind", "message"),
    [
        ((0,), {}, "smallest level is 1"),
        ((2,), {"reduce": "mean"}, "reduce: expected one of max, avg, got 'mean'"),
        ((2,), {"rule": "adaptiv"}, "did you mean 'adaptive'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_options(levels: tuple[Level, ...], kind: dict[str, Reduce], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pyramid_pool(torch.zeros(1, 1, 4, 4), levels, **kind)  # type: ignore[arg-type]
