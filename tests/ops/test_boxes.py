"""Box arithmetic: literal values, slow references, and inverse functions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou

from sppnet.ops.boxes import areas, decode, encode, mirror, overlaps
from tests.helpers.boxes import pixels, slow_iou, some_boxes


def test_areas_computed_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 1, 1], [2, 3, 5, 7], [5, 0, 2, 4], [5, 5, 2, 2], [1, 1, 1, 9]])
    assert areas(boxes).tolist() == [1, 12, 0, 0, 0]
    assert areas(boxes[None]).shape == (1, 5)
    assert areas(boxes[:0]).shape == (0,)


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
def test_overlaps_of_boxes_with_area_equal_torchvisions(a: Tensor, b: Tensor) -> None:
    assert torch.equal(overlaps(a, b), box_iou(a.double(), b.double()).float())


@settings(deadline=None)  # the first example includes imports
@given(some_boxes(), some_boxes())
def test_overlaps_match_the_reference(a: Tensor, b: Tensor) -> None:
    expected = torch.tensor([[slow_iou(p, q) for q in b.tolist()] for p in a.tolist()])
    torch.testing.assert_close(overlaps(a, b), expected, rtol=1e-6, atol=0)
    assert torch.equal(overlaps(a, b), overlaps(b, a).T)
    assert (overlaps(a, a).diagonal() == 1).all()


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


def test_overlaps_of_tiny_boxes() -> None:
    box = torch.tensor([[0.0, 0.0, 1e-7, 1e-7]])
    half = torch.tensor([[0.0, 0.0, 1e-7, 5e-8]])
    assert overlaps(box, box).item() == 1
    assert overlaps(box, half).item() == pytest.approx(0.5)
    assert overlaps(torch.zeros(1, 4), torch.zeros(1, 4)).item() == 0
