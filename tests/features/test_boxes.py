"""Boxes as arguments of region encoders: accepted forms, and error messages."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet import RegionEncoder

IMAGE = Image.effect_noise((90, 70), 60).convert("RGB")
BOXES = [[1, 2, 30, 40], [5, 6, 90, 70]]


@pytest.mark.parametrize(
    "boxes",
    [
        BOXES,
        [BOXES],
        tuple(map(tuple, BOXES)),
        torch.tensor(BOXES),
        torch.tensor([BOXES]).short(),
        np.array(BOXES, dtype=np.uint16),
        [np.array(BOXES, dtype=float)],
    ],
)
def test_boxes_may_be_integers_arrays_and_nested_lists(encoder: RegionEncoder, boxes: Any) -> None:
    (result,) = encoder.predict(IMAGE, boxes)
    assert result.boxes.dtype == torch.float32
    assert result.boxes.tolist() == BOXES
    assert torch.equal(result.vectors, encoder(IMAGE, torch.tensor(BOXES).float())[0])


@pytest.mark.parametrize("boxes", [[], [[]], torch.empty(0, 4)])
def test_images_without_boxes_have_empty_results(encoder: RegionEncoder, boxes: Any) -> None:
    (result,) = encoder.predict(IMAGE, boxes)
    assert result.vectors.shape == (0, encoder.length)
    assert [len(part.boxes) for part in encoder.predict([IMAGE] * 2, [[], BOXES])] == [0, 2]
    assert encoder.predict([], []) == []


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("boxes", "error", "message"),
    [
        ([[5.0, 5, 3, 9]], ValueError, r"boxes[0][0]: expected finite xyxy with x1 < x2 and y1 < y2"),
        ([[1.0, 1, 9, 9], [5, 5, 9, 5]], ValueError, r"boxes[0][1]: expected finite xyxy"),
        ([[1.0, 1, float("nan"), 9]], ValueError, "boxes[0][0]: expected finite xyxy"),
        ([[90.0, 1, 99, 9]], ValueError, "overlaps the image of 70 x 90 (height x width) pixels, got [90.0"),
        ([[-9.0, 1, 0, 9]], ValueError, "overlaps the image"),
        (
            torch.ones(4),
            ValueError,
            "boxes[0]: expected integers or float32 numbers (K, 4), xyxy in pixels, got shape (4,)",
        ),
        (torch.ones(1, 4).half(), TypeError, "boxes[0]: expected integers or float32 numbers (K, 4)"),
        ([[1, 2, 3, 4], [5, 6]], TypeError, "boxes[0]: expected numbers (K, 4), xyxy in pixels, got [[1, 2, 3, 4], [5"),
        ("1 2 3 4", TypeError, "boxes[0]: expected numbers (K, 4), xyxy in pixels, got '1 2 3 4'"),
        ([torch.ones(1, 4)] * 2, ValueError, "boxes: expected one tensor for each of the 1 images, got 2"),
    ],
)
def test_rejects_invalid_boxes(encoder: RegionEncoder, boxes: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        encoder(IMAGE, boxes)
