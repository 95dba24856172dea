"""The region operator: literals of the two papers and their codes, a slow reference, laws, gradients, bad input."""

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

from sppnet import RegionPyramidPool, create_backbone, pyramid_pool, region_pyramid_pool
from sppnet.ops import reference
from sppnet.ops.bins import CellRule
from sppnet.ops.reference import Reduce
from sppnet.ops.regions import OnBad, usable_boxes
from tests.helpers import slow_reference

REDUCES: tuple[Reduce, ...] = ("max", "avg")
RULES: tuple[CellRule, ...] = ("paper", "released", "roi_pool")
CHANNELS = (1, 3, 16, 17, 48, 64, 83)
FORMATS = (torch.contiguous_format, torch.channels_last)


def box(*edges: float) -> Tensor:
    return torch.tensor([edges], dtype=torch.float32)


def random_boxes(count: int, size: tuple[int, int] = (6, 7), stride: float = 16.0, beyond: float = 2.0) -> Tensor:
    """Boxes around maps of this (height, width): inside, outside, across the border, and some without area.

    Of two strides `beyond` the map there is none that the operator refuses.
    """
    height, width = size[0] * stride, size[1] * stride
    span = torch.tensor([width, height]) + (2 * beyond - 1.5) * stride
    first = torch.rand(count, 2) * span - beyond * stride
    extent = torch.rand(count, 2) ** 2 * torch.tensor([width, height]) * 1.5
    extent[::10] = 0
    extent[1::10, 0] = 0
    boxes = torch.cat((first, first + extent), dim=1)
    boxes[::3] = boxes[::3].round()  # on pixels, where centres and halves are met
    boxes[::4] = (boxes[::4] / 8).round() * 8
    return boxes


def covered(size: tuple[int, int], boxes: Tensor, **options: Any) -> list[tuple[int, int, int, int]]:
    """First column, first row, last column, last row of each box, read off maps that hold their own indices."""
    rows, columns = torch.meshgrid(torch.arange(float(size[0])), torch.arange(float(size[1])), indexing="ij")
    x = torch.stack((-columns, -rows, columns, rows))[None]
    found = region_pyramid_pool(x, [boxes], (1,), **options)
    return [(int(-a), int(-b), int(c), int(d)) for a, b, c, d in found.tolist()]


def test_a_box_counted_by_hand() -> None:
    x = torch.randn(1, 3, 25, 30)
    boxes = box(48, 32, 303, 255)
    assert covered((25, 30), boxes, rule="roi_pool") == [(3, 2, 19, 16)]
    crop = x[:, :, 2:17, 3:20]
    assert crop.shape[2:] == (15, 17)
    found = region_pyramid_pool(x, [boxes], (7,), rule="roi_pool")
    assert torch.equal(found, F.adaptive_max_pool2d(crop, 7).flatten(1))


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
def test_roi_pool_counted_by_hand(edges: tuple[float, ...], expected: list[list[int]]) -> None:
    x = torch.arange(100.0).reshape(1, 1, 10, 10)
    found = region_pyramid_pool(x, [box(*edges)], (2,), 1 / 16, "roi_pool")
    assert found.reshape(2, 2).tolist() == expected


def test_one_level_of_roi_pool_equals_torchvision() -> None:
    x = torch.randn(3, 2, 37, 50)
    boxes = [random_boxes(count, (37, 50), beyond=25.0) for count in (300, 1, 299)]
    boxes[0][::7] = boxes[0][::7][:, [2, 3, 0, 1]]  # out of order
    for level in (7, 6, (3, 5), 1):
        found = region_pyramid_pool(x, boxes, (level,), rule="roi_pool")
        expected = torchvision.ops.roi_pool(x, boxes, level, 1 / 16)
        assert torch.equal(found, expected.flatten(1))


FAULTY = [57, 114, 121]
"""Sides in cells below 128 that torchvision cuts into 7 wrongly."""


def test_the_sides_that_float32_cuts_wrongly() -> None:
    """There 7 x (side / 7) is above the side, and its ceiling a cell more; no other edge is wrong."""
    faulty = []
    for side in range(1, 128):
        share = np.float32(side) / np.float32(7)
        edges = [(int(np.floor(np.float32(i) * share)), int(np.ceil(np.float32(i + 1) * share))) for i in range(7)]
        if edges != [(bins[0], bins[-1] + 1) for bins in slow_reference.adaptive_bins(side, 7)]:
            faulty.append(side)
    assert faulty == FAULTY


def test_ten_thousand_boxes_of_roi_pool_equal_torchvision() -> None:
    """All but those whose windows have a side that torchvision cuts wrongly, of 57, 114 or 121 cells."""
    x = torch.randn(2, 1, 75, 64)
    boxes = [random_boxes(count, (75, 64), beyond=20.0) for count in (6000, 4000)]
    found = region_pyramid_pool(x, boxes, (7,), rule="roi_pool")
    expected = torchvision.ops.roi_pool(x, boxes, 7, 1 / 16).flatten(1)
    edges = torch.cat(boxes) / 16
    cells = (edges.sign() * (edges.double().abs() + 0.5).floor()).long()
    sides = cells[:, 2:] - cells[:, :2] + 1
    exact = ~torch.isin(sides, torch.tensor(FAULTY)).any(1)
    assert 0 < (~exact).sum() < 300
    assert torch.equal(found[exact], expected[exact])
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("height", FAULTY)
def test_float32_bins_of_torchvision_read_one_cell_too_many(height: int) -> None:
    """7 * (57 / 7) is above 57 in float32, and its ceiling is 58; integers do not go astray."""
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
    """On images of 375 x 500, or 500 x 375, whose shorter side becomes `side`.

    Boxes and cells as the authors count: pixels and cells from 1, the last one included.
    """
    x1, y1, x2, y2 = ((pixel - 1) * (side - 1) / 374 + 1 for pixel in box)
    assert (x1, y1, x2, y2) == pytest.approx(scaled, abs=0.02)
    edges = torch.tensor([[x1 - 1, y1 - 1, x2, y2]])
    assert usable_boxes(torch.zeros(1, 1, *size), [edges], rule="released", offset=20.0).all()
    found = covered(size, edges, rule="released", offset=20.0)
    assert [cell + 1 for cell in found[0]] == list(expected)


@pytest.mark.parametrize(("rule", "count"), [("roi_pool", 4000), ("paper", 3000), ("released", 3000)])
def test_ten_thousand_random_boxes_equal_the_reference(rule: CellRule, count: int) -> None:
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
def test_every_number_of_channels_equals_the_reference(
    channels: int, memory_format: torch.memory_format, dtype: torch.dtype
) -> None:
    x = torch.randn(3, channels, 6, 7).to(dtype).contiguous(memory_format=memory_format)
    boxes = [random_boxes(20), torch.empty(0, 4), random_boxes(9)]
    for rule in RULES:
        for reduce in REDUCES:
            found = region_pyramid_pool(x, boxes, (3, 2, 1), rule=rule, reduce=reduce)
            expected = slow_reference.regions(x.double(), boxes, [(3, 3), (2, 2), (1, 1)], rule, reduce).to(dtype)
            if reduce == "max":
                assert torch.equal(found, expected)
            else:
                torch.testing.assert_close(found, expected)


def test_a_scale_and_an_offset_for_each_axis() -> None:
    x = torch.randn(2, 2, 9, 5, dtype=torch.float64)
    boxes = [random_boxes(100, (9, 5), 12.0), random_boxes(60, (9, 5), 12.0)]
    for rule in RULES:
        found = region_pyramid_pool(x, boxes, (2, 1), (1 / 8, 1 / 20), rule, offset=(2.5, 11.0), on_bad="clip")
        expected = slow_reference.regions(x, boxes, [(2, 2), (1, 1)], rule, "max", (8, 20), (2.5, 11.0))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("levels", [(6, 3, 2, 1), (4, (2, 3)), (1,), (7,)])
def test_a_region_that_is_the_whole_map_gives_the_maps_own_vector(
    rule: CellRule, reduce: Reduce, levels: tuple[int, ...]
) -> None:
    x = torch.randn(2, 17, 11, 14)
    whole = {"roi_pool": box(0, 0, 13 * 16, 10 * 16)}.get(rule, box(-1, -1, 13 * 16 + 8, 10 * 16 + 8))
    found = region_pyramid_pool(x, [whole, whole], levels, rule=rule, reduce=reduce)
    torch.testing.assert_close(found, pyramid_pool(x, levels, reduce=reduce), rtol=1e-6, atol=1e-6)


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
        found = region_pyramid_pool(x, whole, (3, 1), rule=rule, reduce=reduce, sizes=sizes)
        expected = pyramid_pool(x, (3, 1), reduce=reduce, sizes=areas)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    boxes = [random_boxes(50, (6, 9)) for _ in areas]
    found = region_pyramid_pool(x, boxes, (3, 1), rule=rule, reduce=reduce, sizes=areas, on_bad="clip")
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 1)], rule, reduce, sizes=areas)
    torch.testing.assert_close(found, expected)


def test_a_negative_map_stays_negative() -> None:
    for rule in ("paper", "released"):
        found = region_pyramid_pool(-torch.rand(1, 16, 6, 7) - 0.1, [random_boxes(200)], rule=rule)
        assert (found < 0).all()
    inside = box(5, 5, 60, 70)
    assert (region_pyramid_pool(-torch.rand(1, 16, 6, 7) - 0.1, [inside], rule="roi_pool") < 0).all()


@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("channels", [2, 32])
@pytest.mark.parametrize("rule", RULES)
def test_nan_shows_in_exactly_the_bins_that_see_it(reduce: Reduce, channels: int, rule: CellRule) -> None:
    boxes = [random_boxes(60)]
    x = torch.randn(1, channels, 6, 7)
    x[0, channels - 1, 2, 3] = torch.nan
    found = region_pyramid_pool(x, boxes, (3, 1), rule=rule, reduce=reduce)
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 1)], rule, reduce)
    assert 0 < expected.isnan().sum() < expected.numel() / channels
    assert not found[:, : 9 * (channels - 1)].isnan().any()
    torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("channels", [3, 48])
def test_each_image_and_each_box_alone_gives_the_same(channels: int) -> None:
    x = torch.randn(3, channels, 6, 7)
    boxes = [random_boxes(5), torch.empty(0, 4), random_boxes(11)]
    for rule in RULES:
        together = region_pyramid_pool(x, boxes, (3, 1), rule=rule)
        by_image = [region_pyramid_pool(x[i : i + 1], [boxes[i]], (3, 1), rule=rule) for i in range(3)]
        assert torch.equal(together, torch.cat(by_image))
        by_box = [region_pyramid_pool(x[i : i + 1], [b[None]], (3, 1), rule=rule) for i in range(3) for b in boxes[i]]
        assert torch.equal(together, torch.cat(by_box))


def test_no_boxes_and_no_images_give_no_vectors() -> None:
    none = torch.empty(0, 4)
    for rule in RULES:
        assert region_pyramid_pool(torch.zeros(2, 16, 5, 6), [none, none], (2, 1), rule=rule).shape == (0, 80)
        assert region_pyramid_pool(torch.zeros(0, 16, 5, 6), [], (2, 1), rule=rule).shape == (0, 80)
    assert region_pyramid_pool(torch.zeros(0, 16, 5, 6), [], (2, 1), sizes=[]).shape == (0, 80)
    x = torch.zeros(1, 16, 5, 6, requires_grad=True)
    region_pyramid_pool(x, [none]).sum().backward()
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("far", [1e7, 1e12, 3e38])
def test_boxes_far_beyond_the_map_are_clipped_to_it(far: float) -> None:
    for rule in ("paper", "released"):
        assert covered((5, 6), box(-far, -far, far, far), rule=rule) == [(0, 0, 5, 4)]
        assert covered((5, 6), box(far, far, far, far), rule=rule, on_bad="clip") == [(5, 4, 5, 4)]
        assert covered((5, 6), box(-far, -far, -far, -far), rule=rule, on_bad="clip") == [(0, 0, 0, 0)]
    assert covered((5, 6), box(-far, -far, far, far), rule="roi_pool") == [(0, 0, 5, 4)]
    x = torch.ones(1, 1, 5, 6)
    assert region_pyramid_pool(x, [box(far, far, far, far)], (2, 1), rule="roi_pool").tolist() == [[0] * 5]


def test_float64_boxes_keep_their_places() -> None:
    boxes = torch.tensor([[16.0000001, 0.0, 100.0, 100.0], [16.0, 0.0, 100.0, 100.0]], dtype=torch.float64)
    assert [cells[0] for cells in covered((9, 9), boxes, offset=0.0000001)] == [1 + 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    x = torch.randn(1, 16, 6, 7).to(dtype)
    boxes = [random_boxes(20)]
    for reduce in REDUCES:
        found = region_pyramid_pool(x, boxes, (3, 1), reduce=reduce)
        assert found.dtype == dtype
        exact = region_pyramid_pool(x.double(), boxes, (3, 1), reduce=reduce)
        torch.testing.assert_close(found, exact.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [3, 16])
def test_autocast_keeps_the_dtype_and_the_boxes(dtype: torch.dtype, channels: int) -> None:
    x = torch.randn(1, channels, 6, 7).to(dtype)
    boxes = [random_boxes(50)]
    for rule in RULES:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = region_pyramid_pool(x, boxes, (3, 1), rule=rule)
        assert found.dtype == dtype
        assert torch.equal(found, region_pyramid_pool(x, boxes, (3, 1), rule=rule))


def gradient(x: Tensor, boxes: Sequence[Tensor], weight: Tensor, **options: Any) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(region_pyramid_pool(x, boxes, (3, 1), **options), x, weight.to(x.dtype))[0]


@pytest.mark.parametrize("channels", [2, 17, 64])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("reduce", REDUCES)
@pytest.mark.parametrize("rule", RULES)
def test_gradients_equal_autograd_through_crops(
    channels: int, memory_format: torch.memory_format, reduce: Reduce, rule: CellRule
) -> None:
    x = torch.randn(2, channels, 6, 7).contiguous(memory_format=memory_format)
    boxes = [random_boxes(20), random_boxes(7)]
    weight = torch.randn(27, channels * 10)
    found = gradient(x, boxes, weight, rule=rule, reduce=reduce)
    exact = x.double().requires_grad_()
    vectors = slow_reference.regions(exact, boxes, [(3, 3), (1, 1)], rule, reduce)
    (expected,) = torch.autograd.grad(vectors, exact, weight.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("channels", [3, 48])
@pytest.mark.parametrize("reduce", REDUCES)
def test_channels_last_gives_the_same(channels: int, reduce: Reduce) -> None:
    x = torch.randn(2, channels, 6, 7)
    last = x.contiguous(memory_format=torch.channels_last)
    boxes = [random_boxes(20), random_boxes(7)]
    found, expected = (region_pyramid_pool(t, boxes, (3, 1), reduce=reduce) for t in (last, x))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert found.is_contiguous()
    weight = torch.randn_like(found)
    last_gradient = gradient(last, boxes, weight, reduce=reduce)
    assert last_gradient.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last_gradient, gradient(x, boxes, weight, reduce=reduce), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 16])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_of_equal_cells_the_first_gets_the_gradient(channels: int, memory_format: torch.memory_format) -> None:
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
def test_the_gradient_in_bfloat16_is_close_to_that_in_float32(channels: int, reduce: Reduce) -> None:
    x = torch.randn(1, channels, 6, 7).bfloat16()
    boxes = [random_boxes(40)]  # so many that sums in bfloat16 would drift
    weight = torch.rand(40, channels * 10).bfloat16()
    found, exact = gradient(x, boxes, weight, reduce=reduce), gradient(x.float(), boxes, weight, reduce=reduce)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), exact, rtol=2**-7, atol=1e-6)


FINITE = "expected finite xyxy with x1 <= x2 and y1 <= y2; got "


@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        (
            box(0, 0, 9, 9),
            ValueError,
            r"a list with one tensor \(K, 4\) for each of the 2 images, or .* and box_offsets; got a Tensor",
        ),
        (7, ValueError, "for each of the 2 images, .*; got a int"),
        ([box(0, 0, 9, 9)], ValueError, "for each of the 2 images, .*; got 1 of them"),
        ([box(0, 0, 9, 9), torch.zeros(4)], ValueError, r"boxes\[1\]: expected shape \(K, 4\), .*; got \(4,\)"),
        ([torch.zeros(3, 5), box(0, 0, 9, 9)], ValueError, r"boxes\[0\]: expected shape .*; got \(3, 5\)"),
        ([box(0, 0, 9, 9), box(0, 0, 9, 9).bfloat16()], TypeError, r"boxes\[1\]: .* got a tensor of torch.bfloat16"),
        ([box(0, 0, 9, 9).half(), box(0, 0, 9, 9)], TypeError, "torch.float16; fewer bits .* .float"),
        ([box(0, 0, 9, 9), box(0, 0, 9, 9).long()], TypeError, "got a tensor of torch.int64"),
        ([box(0, 0, 9, 9), [[0, 0, 9, 9]]], TypeError, r"boxes\[1\]: .* got list"),
    ],
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.usefixtures("unchecked")
def test_wrong_boxes_are_named(boxes: Any, error: type[Exception], message: str, rule: CellRule) -> None:
    with pytest.raises(error, match=message):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), boxes, (1,), rule=rule)


@pytest.mark.parametrize("edges", [(9.0, 0, 8, 9), (0, 9.0, 9, 8)])
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_boxes_out_of_order_are_named(edges: tuple[float, ...], rule: CellRule) -> None:
    boxes = [box(0, 0, 9, 9), torch.cat((box(0, 0, 9, 9), box(*edges)))]
    with pytest.raises(ValueError, match=r"boxes\[1\]\[1\]: " + FINITE + r".*box_convert turns xywh into xyxy"):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), boxes, (1,), rule=rule)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("rule", RULES)
def test_boxes_that_are_not_finite_are_named(number: float, rule: CellRule) -> None:
    for place in range(4):
        edges = [-5.0, -5.0, 9.0, 9.0]
        edges[place] = number
        with pytest.raises(ValueError, match=r"boxes\[0\]\[0\]: " + FINITE):
            region_pyramid_pool(torch.zeros(1, 1, 4, 6), [box(*edges)], (1,), rule=rule)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("counts", [(5, 0, 11), (0, 3, 0), (0, 0, 0), (7, 1, 1)])
def test_one_tensor_with_offsets_gives_what_the_list_gives(counts: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(3, 16, 6, 7, requires_grad=True)
    boxes = [random_boxes(count) for count in counts]
    offsets = torch.tensor([0, *counts]).cumsum(0).to(dtype)
    for rule in RULES:
        found = region_pyramid_pool(x, torch.cat(boxes), (3, 1), rule=rule, box_offsets=offsets)
        expected = region_pyramid_pool(x, boxes, (3, 1), rule=rule)
        assert torch.equal(found, expected)
        weight = torch.randn_like(found)
        gradients = [torch.autograd.grad(vectors, x, weight)[0] for vectors in (found, expected)]
        assert torch.equal(*gradients)


def test_one_tensor_of_no_images() -> None:
    found = region_pyramid_pool(
        torch.zeros(0, 16, 5, 6), torch.empty(0, 4), (2, 1), box_offsets=torch.zeros(1, dtype=torch.long)
    )
    assert found.shape == (0, 80)


@pytest.mark.parametrize(
    ("box_offsets", "error", "message"),
    [
        ([0, 1, 2], TypeError, r"box_offsets: expected an int64 tensor \(N \+ 1,\); got list"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, "expected an int64 tensor .*; got a tensor of torch.float32"),
        (torch.tensor([0, 2]), ValueError, r"box_offsets: expected shape \(3,\), for 2 images; got \(2,\)"),
        (torch.tensor([0, 1, 3]), ValueError, r"a rise from 0 to the number of boxes, 2; got \[0, 1, 3\]"),
        (torch.tensor([1, 1, 2]), ValueError, r"a rise from 0 to .*; got \[1, 1, 2\]"),
        (torch.tensor([0, 3, 2]), ValueError, r"got \[0, 3, 2\]; boxes of image i are boxes\[box_offsets\[i\] :"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_offsets_are_named(box_offsets: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), torch.zeros(2, 4), (1,), box_offsets=box_offsets)


@pytest.mark.usefixtures("unchecked")
def test_a_list_takes_no_offsets_and_a_tensor_is_checked_too() -> None:
    x, offsets = torch.zeros(2, 1, 4, 6), torch.tensor([0, 0, 3])
    with pytest.raises(ValueError, match="box_offsets: expected None with a list of boxes"):
        region_pyramid_pool(x, [torch.zeros(0, 4), torch.zeros(3, 4)], (1,), box_offsets=offsets)
    with pytest.raises(TypeError, match=r"boxes: expected a float32 tensor \(K, 4\).*torch.float16"):
        region_pyramid_pool(x, torch.zeros(3, 4).half(), (1,), box_offsets=offsets)
    boxes = torch.zeros(3, 4)
    boxes[1, 2] = torch.nan
    with pytest.raises(ValueError, match=r"boxes\[1\] of image 1: " + FINITE):
        region_pyramid_pool(x, boxes, (1,), box_offsets=offsets)


OUTSIDE = [(-90, 0, -32.5, 9), (0, -90, 9, -32.5), (128.5, 0, 200, 9), (0, 96.5, 9, 200)]
BORDER = [(-90, 0, -32, 9), (0, -90, 9, -32), (128, 0, 200, 9), (0, 96, 9, 200)]


@pytest.mark.parametrize(("edges", "border"), list(zip(OUTSIDE, BORDER, strict=True)))
@pytest.mark.parametrize("rule", ["paper", "released"])
def test_boxes_outside_the_image_are_named(edges: tuple[float, ...], border: tuple[float, ...], rule: CellRule) -> None:
    """The cells' centres are 8, 24, ... 88 across and 8 ... 56 down; 8 and two strides beyond them is the border."""
    x = torch.zeros(2, 1, 4, 6)
    boxes = [box(0, 0, 9, 9), torch.cat((box(*border), box(0, 0, 9, 9), box(*edges)))]
    outside = r"boxes\[1\]\[2\]: expected a box that is not wholly outside x -32..128, y -32..96,.*got \["
    with pytest.raises(ValueError, match=outside + r".*on_bad='clip' takes the nearest cells, 'drop' leaves it out"):
        region_pyramid_pool(x, boxes, (1,), rule=rule, offset=8.0)
    expected = torch.tensor([True, True, True, False])
    assert torch.equal(usable_boxes(x, boxes, rule=rule, offset=8.0), expected)
    assert usable_boxes(x, boxes, rule="roi_pool", offset=8.0).all()


def test_each_image_of_a_padded_batch_has_a_border_of_its_own() -> None:
    x, boxes = torch.zeros(2, 1, 9, 9), [box(150, 0, 160, 9), box(150, 0, 160, 9)]
    for sizes in ([(9, 9), (9, 6)], torch.tensor([[9, 9], [9, 6]])):
        assert usable_boxes(x, boxes, sizes=sizes).tolist() == [True, False]
        with pytest.raises(ValueError, match=r"boxes\[1\]\[0\]: .* outside x -32..112, y -32..160"):
            region_pyramid_pool(x, boxes, (1,), sizes=sizes)
    assert usable_boxes(x, boxes).all()


@pytest.mark.parametrize("name", ["zf5", "overfeat7", "test_resnet", "tf_mobilenetv3_small_minimal_100"])
def test_no_box_on_the_image_is_refused(name: str) -> None:
    """At the first pixel and at the last one, whatever the network leaves over at the borders."""
    geometry = create_backbone(name, weights=None).geometry
    scale = 1 / geometry.stride[0], 1 / geometry.stride[1]
    for side in range(max(geometry.smallest()), max(geometry.smallest()) + 70):
        x = torch.zeros(1, 1, *geometry.map_size(side, side + 7))
        boxes = [torch.tensor([[0.0, 0, 1, 1], [side + 6.0, side - 1.0, side + 7.0, side]])]
        assert usable_boxes(x, boxes, scale, offset=geometry.offset(side, side + 7)).all()


@pytest.mark.parametrize("rule", ["paper", "released"])
def test_clip_takes_the_nearest_cells(rule: CellRule) -> None:
    """One outside gets those of the border, also far along it; an inverted one the cell at its middle."""
    found = covered(
        (5, 6),
        torch.tensor([[-900.0, 20, -800, 60], [900, 900, 950, 950], [70, 8, 30, 40], [8, 70, 40, 20]]),
        rule=rule,
        on_bad="clip",
    )
    assert found[0][::2] == (0, 0)
    assert found[1] == (5, 4, 5, 4)
    assert found[2][::2] == (3, 3)
    assert found[3][1::2] == (3, 3)
    legal = random_boxes(50, (5, 6))
    assert covered((5, 6), legal, rule=rule, on_bad="clip") == covered((5, 6), legal, rule=rule)


@pytest.mark.parametrize("on_bad", ["raise", "clip"])
@pytest.mark.parametrize("rule", RULES)
def test_clip_refuses_what_is_not_finite(on_bad: OnBad, rule: CellRule) -> None:
    boxes = [box(0, 0, 9, 9), torch.cat((box(0, 0, 9, 9), box(0, 0, torch.inf, 9)))]
    with pytest.raises(ValueError, match=r"boxes\[1\]\[1\]: .*on_bad='drop' leaves bad boxes out"):
        region_pyramid_pool(torch.zeros(2, 1, 4, 6), boxes, (1,), rule=rule, on_bad=on_bad)


@pytest.mark.parametrize("rule", RULES)
def test_drop_leaves_out_what_usable_boxes_does_not_name(rule: CellRule) -> None:
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
    found = region_pyramid_pool(x, boxes, (3, 1), rule=rule, on_bad="drop")
    assert len(found) == 29 - len(bad)
    assert torch.equal(found, expected)
    offsets = torch.tensor([0, 20, 29])
    joined = region_pyramid_pool(x, torch.cat(boxes), (3, 1), rule=rule, on_bad="drop", box_offsets=offsets)
    assert torch.equal(joined, expected)
    assert torch.equal(usable_boxes(x, torch.cat(boxes), rule=rule, box_offsets=offsets), usable)
    nothing = region_pyramid_pool(x, [boxes[0][3:4], boxes[1][:0]], (3, 1), rule=rule, on_bad="drop")
    assert nothing.shape == (0, 160)


@pytest.mark.usefixtures("unchecked")
def test_one_graph_takes_one_tensor_of_boxes_at_other_sizes() -> None:
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
        wrong = compiled(x, boxes, torch.zeros_like(offsets))  # and nobody can see it
        assert torch.equal(wrong, region_pyramid_pool(x[-1:], [boxes], (3, 1)))
    torch._dynamo.reset()
    assert counter.frame_count == 1


@pytest.mark.usefixtures("unchecked")
def test_graphs_drop_bad_boxes_and_harm_nothing_with_those_that_they_cannot_see() -> None:
    torch._dynamo.reset()
    x, boxes = torch.randn(1, 16, 6, 7), torch.cat((box(0, 0, 50, 50), box(900, 900, 950, 950), box(9, 9, 9, 90)))
    for on_bad in ("raise", "clip", "drop"):
        compiled = torch.compile(
            lambda x, boxes, on_bad=on_bad: region_pyramid_pool(x, [boxes], (3, 1), on_bad=on_bad),
            backend="aot_eager",
        )
        same: OnBad = "drop" if on_bad == "drop" else "clip"
        assert torch.equal(compiled(x, boxes), region_pyramid_pool(x, [boxes], (3, 1), on_bad=same))
        assert len(compiled(x, boxes * torch.nan)) == (0 if on_bad == "drop" else 3)
    torch._dynamo.reset()


@pytest.mark.parametrize("reduce", REDUCES)
def test_gradients_in_chunks_and_of_equal_boxes_are_the_same(reduce: Reduce, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain torch, which serves float64: more equal windows than maps, and rows of gradients by twos."""
    monkeypatch.setattr(reference, "_CHUNK", 2 * 30)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    boxes = [random_boxes(3).repeat(4, 1), random_boxes(1).repeat(5, 1)]
    boxes[0][5] = boxes[1][0]
    exact = x.clone().requires_grad_()
    vectors = slow_reference.regions(exact, boxes, [(3, 3), (1, 1)], "paper", reduce)
    weight = torch.randn_like(vectors)
    torch.testing.assert_close(region_pyramid_pool(x, boxes, (3, 1), reduce=reduce), vectors)
    torch.testing.assert_close(
        gradient(x, boxes, weight, reduce=reduce), torch.autograd.grad(vectors, exact, weight)[0]
    )


def peak(call: Callable[[], Any]) -> int:
    """Bytes by which this process grows at most while something runs."""
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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="a process can read its size on Linux")
@pytest.mark.parametrize(
    ("count", "equal", "dtype"),
    [(100_000, False, torch.float32), (100_000, True, torch.bfloat16), (20_000, True, torch.float64)],
)
def test_many_boxes_take_little_memory_beside_the_result(count: int, equal: bool, dtype: torch.dtype) -> None:
    """About 1 KB a box and 64 MB; a copy of the map for each box would be 77 KB or more."""
    x = torch.randn(1, 64, 20, 30).to(dtype).requires_grad_()
    boxes = random_boxes(count, (20, 30))
    if equal:
        boxes[:] = torch.tensor([16.0, 16, 300, 300])
    region_pyramid_pool(x, [boxes[:100]], (2, 1)).sum().backward()
    result, rest = count * 320 * dtype.itemsize, count * 1024 + (64 << 20)
    with torch.no_grad():
        assert peak(lambda: region_pyramid_pool(x, [boxes], (2, 1))) < result + rest
    # The places of the maxima, int32, are kept for the gradient, which comes as large as the result.
    assert peak(lambda: region_pyramid_pool(x, [boxes], (2, 1)).sum().backward()) < 2 * result + count * 1280 + rest


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rule": "roipool"},
            "rule: expected one of paper, released, roi_pool; got 'roipool'; did you mean 'roi_pool'",
        ),
        ({"rule": "adaptive"}, "rule: expected one of paper, released, roi_pool; got 'adaptive'"),
        ({"reduce": "mean"}, "reduce: expected one of max, avg; got 'mean'"),
        ({"levels": (2, 0)}, "smallest level is 1"),
        ({"spatial_scale": 0}, "spatial_scale: expected cells per pixel above 0, such as 1 / 16; got 0"),
        ({"spatial_scale": (1 / 16, -1 / 16)}, r"per pixel above 0, .* got \(0.0625, -0.0625\)"),
        ({"spatial_scale": torch.nan}, "spatial_scale: expected a finite number, or a pair .*; got nan"),
        ({"spatial_scale": (1, 1, 1)}, r"or a pair \(vertical, horizontal\); got \(1, 1, 1\)"),
        ({"offset": torch.inf}, "offset: expected a finite number"),
        ({"on_bad": "skip"}, "on_bad: expected one of raise, clip, drop; got 'skip'"),
        ({"offset": (1.0,)}, r"offset: .* a pair \(vertical, horizontal\)"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_named_at_the_door_and_in_the_module(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        region_pyramid_pool(torch.zeros(1, 1, 4, 4), [box(0, 0, 9, 9)], **options)
    with pytest.raises(ValueError, match=message):
        RegionPyramidPool(**options)


@pytest.mark.usefixtures("unchecked")
def test_wrong_maps_and_sizes_are_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected 4 dimensions"):
        region_pyramid_pool(torch.zeros(1, 4, 4), [box(0, 0, 9, 9)])
    with pytest.raises(ValueError, match=r"sizes\[0\]: expected a height of 1..4"):
        region_pyramid_pool(torch.zeros(1, 1, 4, 4), [box(0, 0, 9, 9)], sizes=[(5, 4)])


def test_the_module_pools_with_what_it_was_given() -> None:
    module = RegionPyramidPool((4, (2, 3)), 1 / 8, "released", (1.0, 2.0), "avg", "clip")
    x, boxes = torch.randn(2, 3, 6, 7), [random_boxes(5, stride=8.0), random_boxes(2, stride=8.0)]
    sizes = [(6, 7), (3, 4)]
    expected = region_pyramid_pool(
        x, boxes, (4, (2, 3)), 1 / 8, "released", offset=(1.0, 2.0), reduce="avg", sizes=sizes, on_bad="clip"
    )
    assert torch.equal(module(x, boxes, sizes), expected)
    assert torch.equal(module(x, torch.cat(boxes), sizes, torch.tensor([0, 5, 7])), expected)
    assert not torch.equal(module(x, boxes), expected)
    assert not module.state_dict()
    assert module.bins == 22
    assert repr(module) == (
        "RegionPyramidPool(levels=(4, (2, 3)), spatial_scale=(0.125, 0.125), rule='released', offset=(1.0, 2.0),"
        " reduce='avg', on_bad='clip')"
    )
    x = torch.randn(1, 3, 6, 7)
    assert torch.equal(RegionPyramidPool()(x, [boxes[0]]), region_pyramid_pool(x, [boxes[0]]))
