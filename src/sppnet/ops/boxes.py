"""Box arithmetic: area, IoU, mirroring, and the offsets of box regression.

Boxes are xyxy edges in pixels: a box of one pixel is (0, 0, 1, 1). Areas equal those of the VOC tools, which use
inclusive corners and add 1 to each side. Unlike torchvision's box_area and box_iou, areas of inverted boxes are 0, IoUs
of empty boxes are 0 rather than NaN, and IoUs are computed in float64.
"""

import torch
from jaxtyping import Float
from torch import Tensor

# Largest log scale in `decode`: exp(11) is about 60,000, more than the side of any image in pixels.
_MAX_LOG_SIDE = 11.0


def areas(boxes: Float[Tensor, "*k 4"]) -> Float[Tensor, "*k"]:
    """Return width times height of each box, 0 for inverted boxes."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def overlaps(a: Float[Tensor, "k 4"], b: Float[Tensor, "n 4"]) -> Float[Tensor, "k n"]:
    """Return the IoU of every pair of boxes, 0 if both are empty."""
    a, b = a.double(), b.double()
    low = torch.maximum(a[:, None, :2], b[None, :, :2])
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = areas(torch.cat((low, high), dim=2))
    union = areas(a)[:, None] + areas(b)[None] - intersection
    return (intersection / union.masked_fill(union == 0, 1)).float()


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
