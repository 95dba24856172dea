"""Arithmetic of boxes: overlap, suppression, and the offsets that box regression learns.

Boxes are xyxy edges in pixels: a box of one pixel is (0, 0, 1, 1). What the VOC tools count from inclusive corners with
"+1" is the plain area of the edges.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# exp of more than this many natural logarithms would be no box of an image that has one pixel a side.
_MAX_LOG_SIDE = 11.0


def areas(boxes: Float[Tensor, "*k 4"]) -> Float[Tensor, "*k"]:
    """Width times height of each box, 0 for an inverted one."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
    """The parts of the boxes that lie in an image of this (height, width)."""
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limit)


def overlaps(a: Float[Tensor, "k 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "k n"]:
    """Intersection over union of every pair; 0 where both boxes are empty."""
    a, b = a.double(), b.double()
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = areas(torch.cat((low, high), dim=2))
    union = areas(a)[:, None] + areas(b)[None] - shared
    return (shared / union.clamp(min=1e-12)).float()


def suppress(boxes: Float[Tensor, "k 4"], scores: Float[Tensor, " k"], threshold: float) -> Int[Tensor, " n"]:
    """Greedy non-maximum suppression of one class: indices that stay, best score first.

    Args:
        boxes: xyxy edges.
        scores: of any scale.
        threshold: a box goes where it overlaps a better one that stays by more than this; exactly this stays.
    """
    from torchvision.ops import nms  # seconds to import

    # In float32 an overlap of exactly 0.3 is above the float64 threshold 0.3.
    kept: Tensor = nms(boxes.double(), scores.double(), threshold)
    return kept


def encode(proposals: Float[Tensor, "k 4"], targets: Float[Tensor, "k 4"]) -> Float[Tensor, "k 4"]:
    """What turns proposals into targets (R-CNN, appendix C): shifts of the centre in sides, logarithms of the sides.

    Args:
        proposals: with positive sides.
        targets: with positive sides.

    Returns:
        (dx / w, dy / h, log(w' / w), log(h' / h)).
    """
    centre, sides = _centres(proposals)
    target_centre, target_sides = _centres(targets)
    return torch.cat(((target_centre - centre) / sides, (target_sides / sides).log()), dim=1)


def decode(proposals: Float[Tensor, "k 4"], offsets: Float[Tensor, "k 4"]) -> Float[Tensor, "k 4"]:
    """Proposals moved and scaled by offsets; the inverse of :func:`encode`."""
    centre, sides = _centres(proposals)
    centre = centre + offsets[:, :2] * sides
    sides = sides * offsets[:, 2:].clamp(max=_MAX_LOG_SIDE).exp()
    return torch.cat((centre - sides / 2, centre + sides / 2), dim=1)


def mirror(boxes: Float[Tensor, "k 4"], width: int) -> Float[Tensor, "k 4"]:
    """The boxes on an image of this width that is mirrored left to right."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
