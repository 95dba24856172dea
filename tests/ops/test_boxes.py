"""Box arithmetic: literal values, slow references, and inverse functions."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet.ops.boxes import areas, clip, decode, encode, mirror, overlaps, suppress


def pixels(*corners: tuple[int, int, int, int]) -> Tensor:
    """Return boxes from inclusive corner pixels, as in the VOC tools."""
    return torch.tensor(corners, dtype=torch.float32) + torch.tensor([0.0, 0, 1, 1])


@st.composite
def some_boxes(draw: st.DrawFn, count: int | None = None) -> Tensor:
    """Draw boxes with integer edges and sides of at least 1 pixel."""
    size = draw(st.integers(1, 6)) if count is None else count
    numbers = st.tuples(st.integers(-500, 1500), st.integers(-500, 1500), st.integers(1, 900), st.integers(1, 900))
    rows = draw(st.lists(numbers, min_size=size, max_size=size))
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float32)


def slow_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union else 0.0


def test_areas_computed_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 3, 5, 7], [5, 0, 2, 4], [5, 5, 2, 2], [1, 1, 1, 9]])
    assert areas(boxes).tolist() == [1, 12, 0, 0, 0]
    assert areas(boxes[None]).shape == (1, 5)
    assert areas(boxes[:0]).shape == (0,)


def test_clip_keeps_the_part_inside_the_image() -> None:
    boxes = torch.tensor([[-5.0, -6, 20, 20], [1, 2, 3, 4], [90, 90, 99, 99], [-9, -9, -1, -1]])
    assert clip(boxes, (10, 12)).tolist() == [[0, 0, 12, 10], [1, 2, 3, 4], [12, 10, 12, 10], [0, 0, 0, 0]]


def test_overlaps_computed_by_hand() -> None:
    a, b = pixels((0, 0, 9, 9), (0, 0, 99, 99)), pixels((5, 5, 14, 14), (0, 0, 99, 29), (200, 200, 201, 201))
    iou = overlaps(a, b)
    assert iou[0, 0].item() == pytest.approx(25 / 175, abs=1e-7)
    assert iou[1, 1] == torch.tensor(0.3)
    assert iou[:, 2].tolist() == [0, 0]


def test_overlaps_of_empty_boxes_are_0() -> None:
    empty = torch.tensor([[3.0, 3, 3, 3], [9, 9, 2, 2]])
    assert overlaps(empty, empty).tolist() == [[0, 0], [0, 0]]
    assert overlaps(empty[:0], empty).shape == (0, 2)


@settings(deadline=None)  # the first example includes imports
@given(some_boxes(), some_boxes())
def test_overlaps_match_the_reference(a: Tensor, b: Tensor) -> None:
    expected = torch.tensor([[slow_iou(p, q) for q in b.tolist()] for p in a.tolist()])
    torch.testing.assert_close(overlaps(a, b), expected, rtol=1e-6, atol=0)
    assert torch.equal(overlaps(a, b), overlaps(b, a).T)
    assert (overlaps(a, a).diagonal() == 1).all()


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


def test_offsets_computed_by_hand() -> None:
    proposal, target = torch.tensor([[50.0, 50, 150, 250]]), torch.tensor([[60.0, 40, 180, 240]])
    assert encode(proposal, target)[0].tolist() == pytest.approx([0.2, -0.05, 0.182322, 0], abs=1e-6)
    torch.testing.assert_close(decode(proposal, encode(proposal, target)), target)
    torch.testing.assert_close(decode(proposal, torch.zeros(1, 4)), proposal)


@settings(deadline=None)  # the first example includes imports
@given(some_boxes(4), some_boxes(4))
def test_decode_inverts_encode(proposals: Tensor, targets: Tensor) -> None:
    """In float32 the tolerance is wide: shifts are stored relative to the proposal's sides."""
    offsets = encode(proposals, targets)
    torch.testing.assert_close(decode(proposals, offsets), targets, rtol=1e-4, atol=0.02)
    exact = decode(proposals.double(), encode(proposals.double(), targets.double()))
    torch.testing.assert_close(exact, targets.double(), rtol=1e-12, atol=1e-9)


def test_decode_of_extreme_offsets_is_finite() -> None:
    boxes = decode(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 1e4, -1e4]]))
    assert boxes.isfinite().all()
    assert boxes[0, 1] == boxes[0, 3] == 5


@settings(deadline=None)  # the first example includes imports
@given(some_boxes(), st.integers(1, 2000))
def test_mirror_is_its_own_inverse_and_keeps_overlaps(boxes: Tensor, width: int) -> None:
    mirrored = mirror(boxes, width)
    assert torch.equal(mirror(mirrored, width), boxes)
    assert torch.equal(areas(mirrored), areas(boxes))
    assert torch.equal(overlaps(mirrored, mirrored), overlaps(boxes, boxes))


def test_mirrored_box_contains_the_mirrored_object() -> None:
    image = torch.zeros(1, 5, 9)
    image[:, 1:4, 2:6] = 1
    ((x1, y1, x2, y2),) = mirror(torch.tensor([[2.0, 1, 6, 4]]), 9).long().tolist()
    assert (x1, y1, x2, y2) == (3, 1, 7, 4)
    assert image.flip(2)[:, y1:y2, x1:x2].sum() == image.sum() == 12
