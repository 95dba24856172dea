"""Tests of R-CNN windows: warps, crops against a slow reference, and vectors."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from sppnet import create_backbone, pyramid_pool
from sppnet.detect.classic.rcnn import CropEncoder, Warp, compute_warp
from sppnet.ops.levels import Reduce
from tests.helpers.window_cases import noise

Box = tuple[float, float, float, float]


@pytest.fixture(scope="module")
def encoder() -> CropEncoder:
    torch.manual_seed(0)
    return CropEncoder(create_backbone("zf5"), levels=(2, 1), side=48)


@cache
def smallest_encoder() -> CropEncoder:
    return CropEncoder(create_backbone("zf5"), levels=(1,), side=33)


def network_input(encoder: CropEncoder, image: Image.Image, boxes: Tensor) -> list[Tensor]:
    """Return the batches that the encoder passes to the network."""
    batches: list[Tensor] = []
    hook = encoder.backbone.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0].clone()))
    with torch.inference_mode():
        encoder.distinct(encoder.prepare(image), boxes)
    hook.remove()
    return batches


def away_from_zero(value: float) -> int:
    return int(math.copysign(math.floor(abs(value) + 0.5), value))


def slow_crop(image: Image.Image, box: Box, side: int, mean: list[float], std: list[float]) -> Tensor:
    """Crop as in the authors' code, with pixels counted from 1 and inclusive corners."""
    resample = Image.Resampling.BILINEAR
    x1, y1, x2, y2 = box[0] + 1, box[1] + 1, box[2], box[3]
    half_width, half_height = (x2 - x1 + 1) / 2, (y2 - y1 + 1) / 2
    scale = side / (side - 32)
    left, right = (away_from_zero(x1 + half_width + sign * half_width * scale) for sign in (-1, 1))
    top, bottom = (away_from_zero(y1 + half_height + sign * half_height * scale) for sign in (-1, 1))
    across, down = side / (right - left + 1), side / (bottom - top + 1)
    pad_x, pad_y = away_from_zero(max(0, 1 - left) * across), away_from_zero(max(0, 1 - top) * down)
    left, top, right, bottom = max(left, 1), max(top, 1), min(right, image.width), min(bottom, image.height)
    width = min(away_from_zero((right - left + 1) * across), side - pad_x)
    height = min(away_from_zero((bottom - top + 1) * down), side - pad_y)
    part = Image.fromarray(np.asarray(image)[top - 1 : bottom, left - 1 : right])
    canvas = np.empty((side, side, 3), dtype=np.float64)
    canvas[:] = np.asarray(mean) * 255
    canvas[pad_y : pad_y + height, pad_x : pad_x + width] = np.asarray(part.resize((width, height), resample))
    return torch.from_numpy((canvas / 255 - mean) / std).permute(2, 0, 1).float()


@pytest.mark.parametrize(
    ("pixels", "dilated", "size", "place"),
    [
        ((101, 51, 300, 250), (85, 35, 317, 267), (227, 227), (0, 0)),
        ((1, 1, 100, 200), (-7, -15, 109, 217), (211, 211), (16, 16)),
        ((401, 276, 500, 375), (393, 268, 509, 384), (210, 210), (0, 0)),
        ((1, 1, 500, 375), (-40, -30, 542, 407), (194, 195), (16, 16)),
    ],
)
def test_warp_has_hand_computed_values(
    pixels: tuple[int, int, int, int],
    dilated: tuple[int, int, int, int],
    size: tuple[int, int],
    place: tuple[int, int],
) -> None:
    """The image has 375 x 500 pixels; `pixels` and `dilated` count from 1 with inclusive corners."""
    (x1, y1, x2, y2), (left, top, right, bottom) = pixels, dilated
    part = (max(left - 1, 0), max(top - 1, 0), min(right, 500), min(bottom, 375))
    assert compute_warp((x1 - 1, y1 - 1, x2, y2), (375, 500), 227) == Warp(part, size, place)


def test_halves_are_rounded_away_from_zero() -> None:
    """-0.5 of the dilated box in the first case, 15.5 of the place and 48.5 of the size in the second."""
    assert compute_warp((0, 0, 3, 3), (10, 10), 64) == Warp((0, 0, 6, 6), (48, 48), (16, 16))
    assert compute_warp((1, 1, 64, 64), (200, 200), 64) == Warp((0, 0, 97, 97), (48, 48), (16, 16))


sides = st.integers(1, 700)
edges = st.floats(-0.5, 1.5)


@settings(deadline=None)  # the first example includes imports
@given(sides, sides, st.integers(33, 230), edges, edges, edges, edges)
def test_warp_stays_inside_the_image_and_the_square(
    height: int, width: int, side: int, a: float, b: float, c: float, d: float
) -> None:
    x1, x2 = sorted((min(a, c, 0.999) * width, max(b, d, 0.001) * width))
    y1, y2 = sorted((min(c, a, 0.999) * height, max(d, b, 0.001) * height))
    warp = compute_warp((x1, y1, x2, y2), (height, width), side)
    left, top, right, bottom = warp.box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    for length, start in zip(warp.size, warp.place, strict=True):
        assert length >= 1
        assert 0 <= start <= start + length <= side


@settings(deadline=None, max_examples=25)  # the first example includes imports
@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_accepts_any_box_of_whole_pixels(height: int, width: int, data: st.DataObject) -> None:
    """Corner pixels, the whole image and a random box."""
    encoder = smallest_encoder()
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    drawn = [[0, 0, 1, 1], [width - 1, height - 1, width, height], [0, 0, width, height], [x1, y1, x2, y2]]
    boxes = torch.tensor(drawn, dtype=torch.float32)
    with torch.inference_mode():
        vectors = encoder.distinct(noise(height, width), boxes).data
    assert vectors.shape == (4, 256)
    assert vectors.isfinite().all()


BOXES: list[Box] = [
    (30, 20, 70, 60),  # inside the image with its context
    (0, 0, 40, 30),
    (80, 50, 120, 90),
    (0, 0, 120, 90),
    (5, 80, 6, 81),
    (119, 0, 120, 1),
    (10.25, 3.5, 90.75, 81.5),
    (-20, -30, 200, 100),
]


@pytest.mark.parametrize("side", [48, 227])
def test_crops_match_the_slow_reference(side: int) -> None:
    """The border outside the image has the mean color, and no pixels outside the box are filtered into the crop."""
    backbone, image = create_backbone("zf5"), noise(90, 120)
    crops = torch.cat(network_input(CropEncoder(backbone, (1,), side), image, torch.tensor(BOXES)))
    for crop, box in zip(crops, BOXES, strict=True):
        expected = slow_crop(image, box, side, list(backbone.mean), list(backbone.std))
        torch.testing.assert_close(crop, expected, rtol=0, atol=1e-3)
    top = compute_warp(BOXES[3], (90, 120), side).place[0]
    assert not crops[3, :, :top].any()
    assert crops[3, :, top].any()


@pytest.mark.parametrize("reduce", ["max", "avg"])
def test_vector_is_the_pyramid_of_the_map_of_its_crop(encoder: CropEncoder, reduce: Reduce) -> None:
    backbone, image = encoder.backbone, noise(90, 120)
    mean, std = list(backbone.mean), list(backbone.std)
    pooling = CropEncoder(backbone, (2, 1), 48, reduce)
    with torch.inference_mode():
        vectors = pooling.distinct(pooling.prepare(image), torch.tensor(BOXES))
        for row, box in zip(vectors.data[vectors.index], BOXES, strict=True):
            features = backbone(slow_crop(image, box, 48, mean, std)[None])
            expected = pyramid_pool(features.data, (2, 1), reduce=reduce)[0]
            torch.testing.assert_close(row, expected, rtol=1e-3, atol=1e-4)
    assert vectors.data.shape == (len(BOXES), pooling.length)
    assert pooling.length == 256 * 5


@pytest.mark.parametrize(("count", "batches"), [(1, [1]), (32, [32]), (33, [32, 1]), (70, [32, 32, 6])])
def test_boxes_keep_their_order_across_batches(encoder: CropEncoder, count: int, batches: list[int]) -> None:
    image = noise(90, 120)
    first = torch.rand(count, 2) * torch.tensor([80.0, 60])
    boxes = torch.cat((first, first + 1 + torch.rand(count, 2) * 29), dim=1)
    assert [len(batch) for batch in network_input(encoder, image, boxes)] == batches
    with torch.inference_mode():
        vectors = encoder.distinct(image, boxes)
        assert vectors.index.tolist() == list(range(count))
        for row in {0, count // 2, count - 1}:
            single = encoder.distinct(image, boxes[row : row + 1]).data[0]
            torch.testing.assert_close(vectors.data[row], single, rtol=1e-4, atol=1e-5)


def test_no_boxes_give_no_vectors(encoder: CropEncoder) -> None:
    with torch.inference_mode():
        vectors = encoder.distinct(noise(20, 30), torch.empty(0, 4))
    assert vectors.data.shape == (0, encoder.length)
    assert vectors.index.shape == (0,)


def test_default_side_is_that_of_the_weights() -> None:
    backbone = create_backbone("zf5")
    assert CropEncoder(backbone).side == backbone.side == 224
    (batch,) = network_input(CropEncoder(backbone, (1,)), noise(20, 30), torch.tensor([[2.0, 3, 9, 9]]))
    assert batch.shape == (1, 3, 224, 224)


@pytest.mark.usefixtures("unchecked")
def test_rejects_sides_up_to_twice_the_context(encoder: CropEncoder) -> None:
    for side in (32, 0):
        with pytest.raises(ValueError, match=rf"side: expected more than 32 \(twice the context\), got {side}"):
            CropEncoder(encoder.backbone, (1,), side)
