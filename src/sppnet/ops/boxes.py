"""Box arithmetic: area, IoU, non-maximum suppression, and the offsets of box regression.

Boxes are xyxy edges in pixels: a box of one pixel is (0, 0, 1, 1). Areas equal those of the VOC tools, which use
inclusive corners and add 1 to each side.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Largest log scale in `decode`: exp(11) is about 60,000, more than the side of any image in pixels.
_MAX_LOG_SIDE = 11.0


def areas(boxes: Float[Tensor, "*k 4"]) -> Float[Tensor, "*k"]:
    """Return width times height of each box, 0 for inverted boxes."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
    """Clip boxes to an image of this (height, width)."""
    limit = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    return torch.minimum(boxes.clamp(min=0), limit)


def overlaps(a: Float[Tensor, "k 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "k n"]:
    """Return the IoU of every pair of boxes, 0 if both are empty."""
    a, b = a.double(), b.double()
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = areas(torch.cat((low, high), dim=2))
    union = areas(a)[:, None] + areas(b)[None] - intersection
    return (intersection / union.clamp(min=1e-12)).float()


def suppress(boxes: Float[Tensor, "k 4"], scores: Float[Tensor, " k"], threshold: float) -> Int[Tensor, " n"]:
    """Return the indices kept by greedy non-maximum suppression of one class, best score first.

    Args:
        boxes: xyxy edges.
        scores: scores of any scale.
        threshold: a box is removed if its IoU with a kept box of higher score is larger than this.
    """
    from torchvision.ops import nms  # takes seconds to import

    # In float32 an IoU of exactly 0.3 would exceed the float64 threshold 0.3.
    kept: Tensor = nms(boxes.double(), scores.double(), threshold)
    return kept


def encode(proposals: Float[Tensor, "k 4"], targets: Float[Tensor, "k 4"]) -> Float[Tensor, "k 4"]:
    """Return the box-regression offsets from proposals to targets (R-CNN, appendix C).

    Args:
        proposals: boxes with positive width and height.
        targets: boxes with positive width and height.

    Returns:
        (dx / w, dy / h, log(w' / w), log(h' / h)): shift of the center, and scaling of a proposal of w x h.
    """
    center, sides = _centers_and_sides(proposals)
    target_center, target_sides = _centers_and_sides(targets)
    return torch.cat(((target_center - center) / sides, (target_sides / sides).log()), dim=1)


def decode(proposals: Float[Tensor, "k 4"], offsets: Float[Tensor, "k 4"]) -> Float[Tensor, "k 4"]:
    """Move and scale proposals by offsets: the inverse of :func:`encode`."""
    center, sides = _centers_and_sides(proposals)
    center = center + offsets[:, :2] * sides
    sides = sides * offsets[:, 2:].clamp(max=_MAX_LOG_SIDE).exp()
    return torch.cat((center - sides / 2, center + sides / 2), dim=1)


def mirror(boxes: Float[Tensor, "k 4"], width: int) -> Float[Tensor, "k 4"]:
    """Mirror boxes left to right in an image of this width."""
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((width - x2, y1, width - x1, y2), dim=1)


def _centers_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
