"""region_pyramid_pool: values from two papers and their code, a reference, invariants, gradients, invalid input."""

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from sppnet import create_backbone, pyramid_pool, region_pyramid_pool
from sppnet.ops.levels import CellRule, Reduce
from sppnet.ops.regions import OnBad, usable_boxes
from tests.helpers import slow_reference
from tests.helpers.region_boxes import box, random_boxes

REDUCES: tuple[Reduce, ...] = ("max", "avg")
RULES: tuple[CellRule, ...] = ("paper", "released", "roi_pool")
CHANNELS = (1, 3, 16, 17, 48, 64, 83)
FORMATS = (torch.contiguous_format, torch.channels_last)


def covered(size: tuple[int, int], boxes: Tensor, **options: Any) -> list[tuple[int, int, int, int]]:
    """Return the first column, first row, last column and last row of each box, pooled from maps of indices."""
    rows, columns = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    x = torch.stack((-columns, -rows, columns, rows))[None]
    vectors = region_pyramid_pool(x, [boxes], (1,), **options)
    return [(int(-a), int(-b), int(c), int(d)) for a, b, c, d in vectors.tolist()]


def test_box_computed_by_hand() -> None:
    x = torch.randn(1, 3, 25, 30)
    boxes = box(48, 32, 303, 255)
    assert covered((25, 30), boxes, rule="roi_pool") == [(3, 2, 19, 16)]
    crop = x[:, :, 2:17, 3:20]
    assert crop.shape[2:] == (15, 17)
    vectors = region_pyramid_pool(x, [boxes], (7,), rule="roi_pool")
    assert torch.equal(vectors, F.adaptive_max_pool2d(crop, 7).flatten(1))


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ((8, 8, 40, 40), [[22, 23], [32, 33]]),
        ((0, 0, 159, 159), [[55, 59], [95, 99]]),
        ((16, 16, 31, 31), [[11, 12], [21, 22]]),
        ((40, 40, 24, 24), [[33, 33], [33, 33]]),
        ((150, 150, 300, 300), [[99, 0], [0, 0]]),
        ((-32, 0, 15, 15), [[0, 1], [0, 11]]),
    ],
)
def test_roi_pool_computed_by_hand(edges: tuple[float, ...], expected: list[list[int]]) -> None:
    x = torch.arange(100.0).reshape(1, 1, 10, 10)
    vectors = region_pyramid_pool(x, [box(*edges)], (2,), 1 / 16, "roi_pool")
    assert vectors.reshape(2, 2).tolist() == expected


def test_one_level_of_roi_pool_matches_torchvision() -> None:
    x = torch.randn(3, 2, 37, 50)
    boxes = [random_boxes(count, (37, 50), beyond=25.0) for count in (300, 1, 299)]
    boxes[0][::7] = boxes[0][::7][:, [2, 3, 0, 1]]  # inverted
    for level in (7, 6, (3, 5), 1):
        vectors = region_pyramid_pool(x, boxes, (level,), rule="roi_pool")
        expected = torchvision.ops.roi_pool(x, boxes, level, 1 / 16)
        assert torch.equal(vectors, expected.flatten(1))


FAULTY = [57, 114, 121]
"""Sides below 128 cells that torchvision cuts into 7 bins wrongly."""


def test_sides_that_float32_cuts_wrongly() -> None:
    """7 * (side / 7) exceeds the side, so that its ceiling is one cell too many; all other edges are right."""
    faulty = []
    for side in range(1, 128):
        share = np.float32(side) / np.float32(7)
        edges = [(int(np.floor(np.float32(i) * share)), int(np.ceil(np.float32(i + 1) * share))) for i in range(7)]
        if edges != [(bins[0], bins[-1] + 1) for bins in slow_reference.adaptive_bins(side, 7)]:
            faulty.append(side)
    assert faulty == FAULTY


def test_ten_thousand_boxes_of_roi_pool_match_torchvision() -> None:
    """Except windows with a side that torchvision cuts wrongly: 57, 114 or 121 cells."""
    x = torch.randn(2, 1, 75, 64)
    boxes = [random_boxes(count, (75, 64), beyond=20.0) for count in (6000, 4000)]
    vectors = region_pyramid_pool(x, boxes, (7,), rule="roi_pool")
    expected = torchvision.ops.roi_pool(x, boxes, 7, 1 / 16).flatten(1)
    edges = torch.cat(boxes) / 16
    cells = (edges.sign() * (edges.double().abs() + 0.5).floor()).long()
    sides = cells[:, 2:] - cells[:, :2] + 1
    exact = ~torch.isin(sides, torch.tensor(FAULTY)).any(1)
    assert 0 < (~exact).sum() < 300
    assert torch.equal(vectors[exact], expected[exact])
    assert not torch.equal(vectors, expected)


@pytest.mark.parametrize("height", FAULTY)
def test_torchvision_reads_one_cell_too_many(height: int) -> None:
    """7 * (57 / 7) exceeds 57 in float32, and its ceiling is 58; integer arithmetic is exact."""
    x = torch.arange(float(height + 1)).reshape(1, 1, -1, 1)
    boxes = box(0, 0, 0, height - 1)
    assert region_pyramid_pool(x, [boxes], ((7, 1),), 1.0, "roi_pool")[0, -1] == height - 1
    assert torchvision.ops.roi_pool(x, [boxes], (7, 1), 1.0)[0, 0, -1, 0] == height


@pytest.mark.parametrize(
    ("box", "side", "scaled", "size", "expected"),
    [
        ((1, 1, 500, 375), 480, (1, 1, 640.094, 480), (29, 39), (1, 1, 39, 29)),
        ((101, 51, 300, 250), 480, (129.075, 65.037, 383.944, 319.906), (29, 39), (8, 4, 23, 19)),
        ((101, 51, 300, 250), 688, (184.69, 92.845, 550.246, 458.401), (42, 56), (12, 6, 34, 28)),
        ((10, 20, 29, 39), 1200, (29.853, 61.912, 90.765, 122.824), (74, 99), (2, 4, 5, 7)),
        ((481, 356, 500, 375), 1200, (1539.813, 1139.088, 1600.725, 1200), (74, 99), (96, 71, 99, 74)),
        ((1, 1, 20, 20), 1200, (1, 1, 61.912, 61.912), (74, 99), (1, 1, 3, 3)),
        ((1, 1, 20, 20), 688, (1, 1, 35.901, 35.901), (42, 56), (1, 1, 2, 2)),
        ((50, 100, 349, 399), 480, (63.757, 127.794, 446.703, 510.741), (39, 29), (4, 8, 27, 31)),
        ((201, 101, 300, 200), 688, (368.38, 184.69, 550.246, 366.543), (42, 56), (23, 12, 34, 22)),
    ],
)
def test_released_cells_of_scaled_boxes(
    box: tuple[int, ...],
    side: int,
    scaled: tuple[float, ...],
    size: tuple[int, int],
    expected: tuple[int, ...],
) -> None:
    """Images of 375 x 500 or 500 x 375 pixels, scaled to a shorter side of `side`.

    As in the authors' code, pixels and cells are counted from 1 and boxes include their last pixel.
    """
    x1, y1, x2, y2 = ((pixel - 1) * (side - 1) / 374 + 1 for pixel in box)
    assert (x1, y1, x2, y2) == pytest.approx(scaled, abs=0.02)
    edges = torch.tensor([[x1 - 1, y1 - 1, x2, y2]])
    assert usable_boxes(torch.zeros(1, 1, *size), [edges], rule="released", offset=20.0).all()
    (cells,) = covered(size, edges, rule="released", offset=20.0)
    assert [cell + 1 for cell in cells] == list(expected)


@pytest.mark.parametrize(("rule", "count"), [("roi_pool", 4000), ("paper", 3000), ("released", 3000)])
def test_ten_thousand_random_boxes_match_the_reference(rule: CellRule, count: int) -> None:
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    boxes = [random_boxes(count)]
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 2)], rule, "max", offset=(3.5, 8.0))
    assert torch.equal(region_pyramid_pool(x, boxes, (3, (1, 2)), rule=rule, offset=(3.5, 8.0)), expected)
    boxes = [boxes[0][:500]]
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 2)], rule, "avg")
    torch.testing.assert_close(region_pyramid_pool(x, boxes, (3, (1, 2)), rule=rule, reduce="avg"), expected)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_of_channels_matches_the_reference(
    channels: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(3, channels, 6, 7).to(dtype).contiguous(memory_format=memory_format)
    boxes = [random_boxes(20), torch.empty(0, 4), random_boxes(9)]
    for rule in RULES:
        for reduce in REDUCES:
            vectors = region_pyramid_pool(x, boxes, (3, 2, 1), rule=rule, reduce=reduce)
            expected = slow_reference.regions(x.double(), boxes, [(3, 3), (2, 2), (1, 1)], rule, reduce).to(dtype)
            if reduce == "max":
                assert torch.equal(vectors, expected)
            else:
                torch.testing.assert_close(vectors, expected)


def test_scale_and_offset_per_axis() -> None:
    x = torch.randn(2, 2, 9, 5, dtype=torch.float64)
    boxes = [random_boxes(100, (9, 5), 12.0), random_boxes(60, (9, 5), 12.0)]
    for rule in RULES:
        vectors = region_pyramid_pool(x, boxes, (2, 1), (1 / 8, 1 / 20), rule, offset=(2.5, 11.0), on_bad="clip")
        expected = slow_reference.regions(x, boxes, [(2, 2), (1, 1)], rule, "max", (8, 20), (2.5, 11.0))
        assert torch.equal(vectors, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, (2, 3)), (1,), (7,)])
def test_box_of_the_whole_map_matches_pyramid_pool(rule: CellRule, reduce: Reduce, levels: tuple[int, ...]) -> None:
    x = torch.randn(2, 17, 11, 14)
    whole = {"roi_pool": box(0, 0, 13 * 16, 10 * 16)}.get(rule, box(-1, -1, 13 * 16 + 8, 10 * 16 + 8))
    vectors = region_pyramid_pool(x, [whole, whole], levels, rule=rule, reduce=reduce)
    torch.testing.assert_close(vectors, pyramid_pool(x, levels, reduce=reduce), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("rule", ["paper", "released"])
@pytest.mark.parametrize("reduce", REDUCES)
def test_valid_sizes_clamp_windows(rule: CellRule, reduce: Reduce) -> None:
    areas = [(6, 3), (2, 9), (1, 1)]
    x = torch.randn(3, 18, 6, 9)
    for index, (height, width) in enumerate(areas):
        x[index, :, height:] = torch.nan
        x[index, :, :, width:] = torch.nan
    whole = [box(-50, -50, 500, 500)] * 3
    for sizes in (areas, torch.tensor(areas)):
        vectors = region_pyramid_pool(x, whole, (3, 1), rule=rule, reduce=reduce, sizes=sizes)
        expected = pyramid_pool(x, (3, 1), reduce=reduce, sizes=areas)
        torch.testing.assert_close(vectors, expected, rtol=1e-6, atol=1e-6)
    boxes = [random_boxes(50, (6, 9)) for _ in areas]
    vectors = region_pyramid_pool(x, boxes, (3, 1), rule=rule, reduce=reduce, sizes=areas, on_bad="clip")
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 1)], rule, reduce, sizes=areas)
    torch.testing.assert_close(vectors, expected)


def test_negative_map_gives_negative_maxima() -> None:
    for rule in ("paper", "released"):
        vectors = region_pyramid_pool(-torch.rand(1, 16, 6, 7) - 0.1, [random_boxes(200)], rule=rule)
        assert (vectors < 0).all()
    inside = box(5, 5, 60, 70)
    assert (region_pyramid_pool(-torch.rand(1, 16, 6, 7) - 0.1, [inside], rule="roi_pool") < 0).all()


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("channels", [2, 32])
@pytest.mark.parametrize("rule", RULES)
def test_nan_propagates_only_to_bins_that_contain_it(reduce: Reduce, channels: int, rule: CellRule) -> None:
    boxes = [random_boxes(60)]
    x = torch.randn(1, channels, 6, 7)
    x[0, channels - 1, 2, 3] = torch.nan
    vectors = region_pyramid_pool(x, boxes, (3, 1), rule=rule, reduce=reduce)
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 1)], rule, reduce)
    assert 0 < expected.isnan().sum() < expected.numel() / channels
    assert not vectors[:, : 9 * (channels - 1)].isnan().any()
    torch.testing.assert_close(vectors, expected, equal_nan=True)


@pytest.mark.parametrize("channels", [3, 48])
def test_batch_matches_single_images_and_single_boxes(channels: int) -> None:
    x = torch.randn(3, channels, 6, 7)
    boxes = [random_boxes(5), torch.empty(0, 4), random_boxes(11)]
    for rule in RULES:
        batched = region_pyramid_pool(x, boxes, (3, 1), rule=rule)
        by_image = [region_pyramid_pool(x[i : i + 1], [boxes[i]], (3, 1), rule=rule) for i in range(3)]
        assert torch.equal(batched, torch.cat(by_image))
        by_box = [region_pyramid_pool(x[i : i + 1], [b[None]], (3, 1), rule=rule) for i in range(3) for b in boxes[i]]
        assert torch.equal(batched, torch.cat(by_box))


def test_accepts_no_boxes_and_no_images() -> None:
    no_boxes = torch.empty(0, 4)
    for rule in RULES:
        assert region_pyramid_pool(torch.zeros(2, 16, 5, 6), [no_boxes, no_boxes], (2, 1), rule=rule).shape == (0, 80)
        assert region_pyramid_pool(torch.zeros(0, 16, 5, 6), [], (2, 1), rule=rule).shape == (0, 80)
    assert region_pyramid_pool(torch.zeros(0, 16, 5, 6), [], (2, 1), sizes=[]).shape == (0, 80)
    x = torch.zeros(1, 16, 5, 6, requires_grad=True)
    region_pyramid_pool(x, [no_boxes]).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("far", [1e7, 1e12, 3e38])
def test_distant_boxes_are_clipped_to_the_map(far: float) -> None:
    for rule in ("paper", "released"):
        assert covered((5, 6), box(-far, -far, far, far), rule=rule) == [(0, 0, 5, 4)]
        assert covered((5, 6), box(far, far, far, far), rule=rule, on_bad="clip") == [(5, 4, 5, 4)]
        assert covered((5, 6), box(-far, -far, -far, -far), rule=rule, on_bad="clip") == [(0, 0, 0, 0)]
    assert covered((5, 6), box(-far, -far, far, far), rule="roi_pool") == [(0, 0, 5, 4)]
    x = torch.ones(1, 1, 5, 6)
    assert region_pyramid_pool(x, [box(far, far, far, far)], (2, 1), rule="roi_pool").tolist() == [[0] * 5]


def test_float64_boxes_keep_their_precision() -> None:
    boxes = torch.tensor([[16.0000001, 0.0, 100.0, 100.0], [16.0, 0.0, 100.0, 100.0]], dtype=torch.float64)
    assert [cells[0] for cells in covered((9, 9), boxes, offset=0.0000001)] == [1 + 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_keeps_dtype_and_precision(dtype: torch.dtype) -> None:
    x = torch.randn(1, 16, 6, 7).to(dtype)
    boxes = [random_boxes(20)]
    for reduce in REDUCES:
        vectors = region_pyramid_pool(x, boxes, (3, 1), reduce=reduce)
        assert vectors.dtype == dtype
        exact = region_pyramid_pool(x.double(), boxes, (3, 1), reduce=reduce)
        torch.testing.assert_close(vectors, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 16])
def test_autocast_changes_neither_dtype_nor_values(dtype: torch.dtype, channels: int) -> None:
    x = torch.randn(1, channels, 6, 7).to(dtype)
    boxes = [random_boxes(50)]
    for rule in RULES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            vectors = region_pyramid_pool(x, boxes, (3, 1), rule=rule)
        assert vectors.dtype == dtype
        assert torch.equal(vectors, region_pyramid_pool(x, boxes, (3, 1), rule=rule))


def gradient(x: Tensor, boxes: Sequence[Tensor], weight: Tensor, **options: Any) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(region_pyramid_pool(x, boxes, (3, 1), **options), x, weight.to(x.dtype))[0]


@pytest.mark.parametrize("channels", [2, 17, 64])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_match_autograd_through_the_reference(
    channels: int, memory_format: torch.memory_format, reduce: Reduce, rule: CellRule
) -> None:
    x = torch.randn(2, channels, 6, 7).contiguous(memory_format=memory_format)
    boxes = [random_boxes(20), random_boxes(7)]
    weight = torch.randn(27, channels * 10)
    result = gradient(x, boxes, weight, rule=rule, reduce=reduce)
    exact = x.double().requires_grad_()
    vectors = slow_reference.regions(exact, boxes, [(3, 3), (1, 1)], rule, reduce)
    (expected,) = torch.autograd.grad(vectors, exact, weight.double())
    torch.testing.assert_close(result, expected.float(), rtol=1e-5, atol=1e-5)
    assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("channels", [3, 48])
@pytest.mark.parametrize("reduce", REDUCES)
def test_channels_last_gives_the_same_result(channels: int, reduce: Reduce) -> None:
    x = torch.randn(2, channels, 6, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    boxes = [random_boxes(20), random_boxes(7)]
    vectors, expected = (region_pyramid_pool(t, boxes, (3, 1), reduce=reduce) for t in (last, x))
    torch.testing.assert_close(vectors, expected, rtol=1e-6, atol=1e-6)
    assert vectors.is_contiguous()
    weight = torch.randn_like(vectors)
    last_gradient = gradient(last, boxes, weight, reduce=reduce)
    assert last_gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last_gradient, gradient(x, boxes, weight, reduce=reduce), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_first_of_equal_cells_gets_the_gradient(channels: int, memory_format: torch.memory_format) -> None:
    x = torch.zeros(1, channels, 6, 6).contiguous(memory_format=memory_format).requires_grad_()
    region_pyramid_pool(x, [box(16, 16, 64, 64)], (2,), rule="roi_pool").sum().backward()  # cells 1..4
    assert x.grad is not None
    assert int(x.grad.count_nonzero()) == int(x.grad.sum()) == 4 * channels
    assert (x.grad[0, :, 1:5:2, 1:5:2] == 1).all()


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rule", RULES)
def test_first_and_second_derivatives(reduce: Reduce, rule: CellRule) -> None:
    x = torch.randperm(40, dtype=torch.float64).reshape(2, 1, 4, 5).requires_grad_()
    boxes = [random_boxes(4, (4, 5)), box(3, 8, 60, 50)]

    def pool(t: Tensor) -> Tensor:
        return region_pyramid_pool(t, boxes, (2, 1), rule=rule, reduce=reduce)

    assert torch.autograd.gradcheck(pool, x)
    assert torch.autograd.gradgradcheck(pool, x)


@pytest.mark.parametrize("channels", [3, 32])
@pytest.mark.parametrize("reduce", REDUCES)
def test_bfloat16_gradient_is_close_to_float32(channels: int, reduce: Reduce) -> None:
    x = torch.randn(1, channels, 6, 7).bfloat16()
    boxes = [random_boxes(40)]  # enough for sums in bfloat16 to drift
    weight = torch.rand(40, channels * 10).bfloat16()
    half, exact = gradient(x, boxes, weight, reduce=reduce), gradient(x.float(), boxes, weight, reduce=reduce)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=2**-7, atol=1e-6)


FINITE = "expected finite xyxy with x1 <= x2 and y1 <= y2, got "


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        (
            box(0, 0, 9, 9),
            ValueError,
            r"a list with one tensor \(K, 4\) for each of the 2 images, or .* with box_offsets, got Tensor$",
        ),
        (7, ValueError, "for each of the 2 images, .*, got int$"),
        ([box(0, 0, 9, 9)], ValueError, "for each of the 2 images, .*, got list of length 1"),
        ([box(0, 0, 9, 9), torch.zeros(4)], ValueError, r"boxes\[1\]: expected shape \(K, 4\), .*, got \(4,\)"),
        ([torch.zeros(3, 5), box(0, 0, 9, 9)], ValueError, r"boxes\[0\]: expected shape .*, got \(3, 5\)"),
        ([box(0, 0, 9, 9), box(0, 0, 9, 9).bfloat16()], TypeError, r"boxes\[1\]: .* got a tensor of torch.bfloat16"),
        ([box(0, 0, 9, 9).half(), box(0, 0, 9, 9)], TypeError, r"torch.float16; .float\(\) converts"),
        ([box(0, 0, 9, 9), box(0, 0, 9, 9).long()], TypeError, "got a tensor of torch.int64"),
        ([box(0, 0, 9, 9), [[0, 0, 9, 9]]], TypeError, r"boxes\[1\]: .* got list"),
    ],
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_boxes(boxes: Any, error: type[Exception], message: str, rule: CellRule) -> None:
    with pytest.raises(error, match=message):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), boxes, (1,), rule=rule)


@pytest.mark.parametrize("edges", [(9.0, 0, 8, 9), (0, 9.0, 9, 8)])
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_rejects_inverted_boxes(edges: tuple[float, ...], rule: CellRule) -> None:
    boxes = [box(0, 0, 9, 9), torch.cat((box(0, 0, 9, 9), box(*edges)))]
    with pytest.raises(ValueError, match=r"boxes\[1\]\[1\]: " + FINITE + r".*box_convert converts xywh to xyxy"):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), boxes, (1,), rule=rule)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rule", RULES)
def test_rejects_non_finite_boxes(number: float, rule: CellRule) -> None:
    for index in range(4):
        edges = [-5.0, -5.0, 9.0, 9.0]
        edges[index] = number
        with pytest.raises(ValueError, match=r"boxes\[0\]\[0\]: " + FINITE):
            region_pyramid_pool(torch.zeros(1, 1, 4, 6), [box(*edges)], (1,), rule=rule)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counts", [(5, 0, 11), (0, 3, 0), (0, 0, 0), (7, 1, 1)])
def test_joined_boxes_with_offsets_match_a_list(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(3, 16, 6, 7, requires_grad=True)
    boxes = [random_boxes(count) for count in counts]
    offsets = torch.tensor([0, *counts]).cumsum(0).to(dtype)
    for rule in RULES:
        joined = region_pyramid_pool(x, torch.cat(boxes), (3, 1), rule=rule, box_offsets=offsets)
        expected = region_pyramid_pool(x, boxes, (3, 1), rule=rule)
        assert torch.equal(joined, expected)
        weight = torch.randn_like(joined)
        gradients = [torch.autograd.grad(vectors, x, weight)[0] for vectors in (joined, expected)]
        assert torch.equal(*gradients)


def test_joined_boxes_without_images() -> None:
    x, boxes, offsets = torch.zeros(0, 16, 5, 6), torch.empty(0, 4), torch.zeros(1, dtype=torch.long)
    assert region_pyramid_pool(x, boxes, (2, 1), box_offsets=offsets).shape == (0, 80)


@pytest.mark.parametrize(
    ("box_offsets", "error", "message"),
    [
        ([0, 1, 2], TypeError, r"box_offsets: expected an int32 or int64 tensor \(N \+ 1,\), got list"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, "an int32 or int64 tensor .*, got a tensor of torch.float32"),
        (torch.tensor([0, 2]), ValueError, r"box_offsets: expected shape \(3,\) for 2 images, got \(2,\)"),
        (torch.tensor([0, 1, 3]), ValueError, r"non-decreasing values from 0 to 2 \(all boxes\), got \[0, 1, 3\]"),
        (torch.tensor([1, 1, 2]), ValueError, r"values from 0 to .*, got \[1, 1, 2\]"),
        (torch.tensor([0, 3, 2]), ValueError, r"got \[0, 3, 2\]; boxes of image i are boxes\[box_offsets\[i\] :"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_box_offsets(box_offsets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), torch.zeros(2, 4), (1,), box_offsets=box_offsets)


@pytest.mark.usefixtures("unchecked")
def test_rejects_a_list_with_box_offsets_and_invalid_joined_boxes() -> None:
    x, offsets = torch.zeros(2, 1, 4, 6), torch.tensor([0, 0, 3])
    with pytest.raises(ValueError, match="box_offsets: expected None with a list of boxes, got Tensor"):
        region_pyramid_pool(x, [torch.zeros(0, 4), torch.zeros(3, 4)], (1,), box_offsets=offsets)
    with pytest.raises(TypeError, match=r"boxes: expected a float32 or float64 tensor \(K, 4\).*torch.float16"):
        region_pyramid_pool(x, torch.zeros(3, 4).half(), (1,), box_offsets=offsets)
    boxes = torch.zeros(3, 4)
    boxes[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"boxes\[1\] of image 1: " + FINITE):
        region_pyramid_pool(x, boxes, (1,), box_offsets=offsets)


OUTSIDE = [(-90, 0, -32.5, 9), (0, -90, 9, -32.5), (128.5, 0, 200, 9), (0, 96.5, 9, 200)]
BORDER = [(-90, 0, -32, 9), (0, -90, 9, -32), (128, 0, 200, 9), (0, 96, 9, 200)]


@pytest.mark.parametrize(("edges", "border"), list(zip(OUTSIDE, BORDER, strict=True)))
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_rejects_boxes_outside_the_image(edges: tuple[float, ...], border: tuple[float, ...], rule: CellRule) -> None:
    """Cell centers are at x = 8, 24, ... 88 and y = 8 ... 56; the limit is 8 pixels and two strides beyond them."""
    x = torch.zeros(2, 1, 4, 6)
    boxes = [box(0, 0, 9, 9), torch.cat((box(*border), box(0, 0, 9, 9), box(*edges)))]
    outside = r"boxes\[1\]\[2\]: expected a box not wholly outside x -32..128, y -32..96 .*, got \["
    with pytest.raises(ValueError, match=outside + r".*on_bad='clip' uses the nearest cells, 'drop' omits bad boxes"):
        region_pyramid_pool(x, boxes, (1,), rule=rule, offset=8.0)
    expected = torch.tensor([True, True, True, False])
    assert torch.equal(usable_boxes(x, boxes, rule=rule, offset=8.0), expected)
    assert usable_boxes(x, boxes, rule="roi_pool", offset=8.0).all()


def test_limits_follow_the_valid_size_of_each_image() -> None:
    x, boxes = torch.zeros(2, 1, 9, 9), [box(150, 0, 160, 9), box(150, 0, 160, 9)]
    for sizes in ([(9, 9), (9, 6)], torch.tensor([[9, 9], [9, 6]])):
        assert usable_boxes(x, boxes, sizes=sizes).tolist() == [True, False]
        with pytest.raises(ValueError, match=r"boxes\[1\]\[0\]: .* outside x -32..112, y -32..160"):
            region_pyramid_pool(x, boxes, (1,), sizes=sizes)
    assert usable_boxes(x, boxes).all()


@pytest.mark.parametrize("name", ["zf5", "overfeat7", "test_resnet", "tf_mobilenetv3_small_minimal_100"])
def test_accepts_every_box_inside_the_image(name: str) -> None:
    """Also the first and the last pixel, where a backbone may leave pixels uncovered."""
    geometry = create_backbone(name, weights=None).geometry
    scale = 1 / geometry.stride[0], 1 / geometry.stride[1]
    for side in range(max(geometry.smallest()), max(geometry.smallest()) + 70):
        x = torch.zeros(1, 1, *geometry.map_size(side, side + 7))
        boxes = [torch.tensor([[0.0, 0, 1, 1], [side + 6.0, side - 1.0, side + 7.0, side]])]
        assert usable_boxes(x, boxes, scale, offset=geometry.offset(side, side + 7)).all()


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_clip_uses_the_nearest_cells(rule: CellRule) -> None:
    """A box outside gets the nearest border cells, an inverted box the cell in its middle."""
    cells = covered(
        (5, 6),
        torch.tensor([[-900.0, 20, -800, 60], [900, 900, 950, 950], [70, 8, 30, 40], [8, 70, 40, 20]]),
        rule=rule,
        on_bad="clip",
    )
    assert cells[0][::2] == (0, 0)
    assert cells[1] == (5, 4, 5, 4)
    assert cells[2][::2] == (3, 3)
    assert cells[3][1::2] == (3, 3)
    legal = random_boxes(50, (5, 6))
    assert covered((5, 6), legal, rule=rule, on_bad="clip") == covered((5, 6), legal, rule=rule)


@pytest.mark.parametrize("on_bad", ["raise", "clip"])
@pytest.mark.parametrize("rule", RULES)
def test_raise_and_clip_reject_non_finite_boxes(on_bad: OnBad, rule: CellRule) -> None:
    boxes = [box(0, 0, 9, 9), torch.cat((box(0, 0, 9, 9), box(0, 0, torch.inf, 9)))]
    with pytest.raises(ValueError, match=r"boxes\[1\]\[1\]: .*on_bad='drop' omits bad boxes"):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), boxes, (1,), rule=rule, on_bad=on_bad)


@pytest.mark.parametrize("rule", RULES)
def test_drop_keeps_only_usable_boxes(rule: CellRule) -> None:
    x = torch.randn(2, 16, 6, 7, requires_grad=True)
    boxes = [random_boxes(20), random_boxes(9)]
    boxes[0][3, 2] = torch.nan
    boxes[0][7] = torch.tensor([50.0, 9, 40, 20])
    boxes[1][0] = torch.tensor([9e3, 9e3, 1e4, 1e4])
    boxes[1][1, 0] = -torch.inf
    usable = usable_boxes(x, boxes, rule=rule)
    bad = {3, 21} if rule == "roi_pool" else {3, 7, 20, 21}
    assert set((~usable).nonzero().flatten().tolist()) == bad
    kept = [part[mask] for part, mask in zip(boxes, usable.split([20, 9]), strict=True)]
    expected = region_pyramid_pool(x, kept, (3, 1), rule=rule)
    vectors = region_pyramid_pool(x, boxes, (3, 1), rule=rule, on_bad="drop")
    assert len(vectors) == 29 - len(bad)
    assert torch.equal(vectors, expected)
    offsets = torch.tensor([0, 20, 29])
    joined = region_pyramid_pool(x, torch.cat(boxes), (3, 1), rule=rule, on_bad="drop", box_offsets=offsets)
    assert torch.equal(joined, expected)
    assert torch.equal(usable_boxes(x, torch.cat(boxes), rule=rule, box_offsets=offsets), usable)
    empty = region_pyramid_pool(x, [boxes[0][3:4], boxes[1][:0]], (3, 1), rule=rule, on_bad="drop")
    assert empty.shape == (0, 160)


@pytest.mark.usefixtures("unchecked")
def test_compiles_one_graph_for_joined_boxes_at_other_sizes() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(
        lambda x, boxes, offsets: region_pyramid_pool(x, boxes, (3, 1), box_offsets=offsets),
        fullgraph=True,
        dynamic=True,
        backend=counter,
    )
    for images, height, width, count in ((5, 8, 7, 9), (2, 9, 12, 3), (6, 7, 20, 30)):
        x, boxes = torch.randn(images, 16, height, width), random_boxes(count)
        offsets = torch.tensor([0, *sorted(torch.randint(count + 1, (images - 1,)).tolist()), count])
        expected = region_pyramid_pool(x, boxes, (3, 1), box_offsets=offsets)
        assert torch.equal(compiled(x, boxes, offsets), expected)
        unchecked = compiled(x, boxes, torch.zeros_like(offsets))  # invalid: all boxes go to the last image
        assert torch.equal(unchecked, region_pyramid_pool(x[-1:], [boxes], (3, 1)))
    torch._dynamo.reset()
    assert counter.frame_count == 1


@pytest.mark.usefixtures("unchecked")
def test_graphs_drop_or_clip_bad_boxes() -> None:
    torch._dynamo.reset()
    x, boxes = torch.randn(1, 16, 6, 7), torch.cat((box(0, 0, 50, 50), box(900, 900, 950, 950), box(9, 9, 9, 90)))
    for on_bad in ("raise", "clip", "drop"):
        compiled = torch.compile(
            lambda x, boxes, on_bad=on_bad: region_pyramid_pool(x, [boxes], (3, 1), on_bad=on_bad),
            backend="aot_eager",
        )
        equivalent: OnBad = "drop" if on_bad == "drop" else "clip"
        assert torch.equal(compiled(x, boxes), region_pyramid_pool(x, [boxes], (3, 1), on_bad=equivalent))
        assert len(compiled(x, boxes * torch.nan)) == (0 if on_bad == "drop" else 3)
    torch._dynamo.reset()


def peak(call: Callable[[], Any]) -> int:
    """Return the largest growth of this process during a call, in bytes, sampled every millisecond."""
    statistics, page = Path("/proc/self/statm"), 4096
    sizes, done = [int(statistics.read_text().split()[1])], threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.append(int(statistics.read_text().split()[1]))
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return (max(sizes) - sizes[0]) * page


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc, which only Linux has")
@pytest.mark.parametrize(
    ("count", "equal", "dtype"),
    [(100_000, False, torch.float32), (100_000, True, torch.bfloat16), (20_000, True, torch.float64)],
)
def test_memory_beyond_the_result_is_small(count: int, equal: bool, dtype: torch.dtype) -> None:
    """At most 1 KB per box and 64 MB; a copy of the map per box would be 77 KB or more."""
    x = torch.randn(1, 64, 20, 30).to(dtype).requires_grad_()
    boxes = random_boxes(count, (20, 30))
    if equal:
        boxes[:] = torch.tensor([16.0, 16, 300, 300])
    region_pyramid_pool(x, [boxes[:100]], (2, 1)).sum().backward()
    result, rest = count * 320 * dtype.itemsize, count * 1024 + (64 << 20)
    with torch.no_grad():
        assert peak(lambda: region_pyramid_pool(x, [boxes], (2, 1))) < result + rest
    # The int32 cells of the maxima are saved for the backward pass, whose gradient is as large as the result.
    assert peak(lambda: region_pyramid_pool(x, [boxes], (2, 1)).sum().backward()) < 2 * result + count * 1280 + rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rule": "roipool"},
            "rule: expected one of paper, released, roi_pool, got 'roipool'; did you mean 'roi_pool'",
        ),
        ({"rule": "adaptive"}, "rule: expected one of paper, released, roi_pool, got 'adaptive'"),
        ({"reduce": "mean"}, "reduce: expected one of max, avg, got 'mean'"),
        ({"levels": (2, 0)}, "smallest level is 1"),
        ({"spatial_scale": 0}, "spatial_scale: expected cells per pixel above 0, got 0; for example 1 / 16"),
        ({"spatial_scale": (1 / 16, -1 / 16)}, r"per pixel above 0, got \(0.0625, -0.0625\)"),
        ({"spatial_scale": torch.nan}, "spatial_scale: expected a finite number or a pair .*, got nan"),
        ({"spatial_scale": (1, 1, 1)}, r"or a pair \(vertical, horizontal\), got \(1, 1, 1\)"),
        ({"offset": torch.inf}, "offset: expected a finite number"),
        ({"on_bad": "skip"}, "on_bad: expected one of raise, clip, drop, got 'skip'"),
        ({"offset": (1.0,)}, r"offset: .* a pair \(vertical, horizontal\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region_pyramid_pool(torch.zeros(1, 1, 4, 4), [box(0, 0, 9, 9)], **options)


@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_maps_and_sizes() -> None:
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions"):
        region_pyramid_pool(torch.zeros(1, 4, 4), [box(0, 0, 9, 9)])
    with pytest.raises(ValueError, match=r"sizes\[0\]: expected a height of 1..4"):
        region_pyramid_pool(torch.zeros(1, 1, 4, 4), [box(0, 0, 9, 9)], sizes=[(5, 4)])
