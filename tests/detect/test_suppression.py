"""Non-maximum suppression: literal values and a slow reference."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet.detect.suppression import suppress
from sppnet.ops.boxes import overlaps
from tests.helpers.boxes import pixels, slow_iou, some_boxes


def test_suppress_keeps_boxes_at_exactly_the_threshold() -> None:
    boxes = pixels((0, 0, 99, 99), (0, 0, 99, 29))
    scores = torch.tensor([0.9, 0.5])
    assert overlaps(boxes[:1], boxes[1:]) == torch.tensor(0.3)
    assert suppress(boxes, scores, 0.3).tolist() == [0, 1]
    assert suppress(boxes, scores, math.nextafter(0.3, 0)).tolist() == [0]


def test_suppress_computed_by_hand() -> None:
    boxes = pixels((0, 0, 99, 99), (0, 0, 99, 49), (10, 10, 109, 109), (200, 200, 299, 299), (0, 0, 99, 29))
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5])
    assert suppress(boxes, scores, 0.3).tolist() == [0, 3, 4]
    order = torch.tensor([4, 2, 0, 3, 1])
    assert suppress(boxes[order], scores[order], 0.3).tolist() == [2, 3, 0]
    assert suppress(boxes[:0], scores[:0], 0.3).shape == (0,)


@settings(deadline=None)  # the first example includes imports
@given(some_boxes(), st.sampled_from([0.0, 0.3, 0.5, 0.9]))
def test_suppress_matches_the_reference(boxes: Tensor, threshold: float) -> None:
    scores = torch.arange(len(boxes), 0, -1).float()
    kept: list[int] = []
    for index, row in enumerate(boxes.tolist()):
        if all(slow_iou(boxes[other].tolist(), row) <= threshold for other in kept):
            kept.append(index)
    assert suppress(boxes, scores, threshold).tolist() == kept
