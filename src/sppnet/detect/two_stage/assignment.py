"""Task-aligned assignment of the cells of a map to objects (TOOD, Feng et al., 2021, section 3.2)."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_iou

_CANDIDATES = 10  # per object
_IOU_POWER = 6
_TINY = torch.finfo(torch.float32).tiny


class Assignment(NamedTuple):
    """Positive cells of an image; all others are background.

    Attributes:
        cells: indices of the cells.
        objects: index of the object of each cell.
        targets: target score of each cell, in [0, 1]; the best cell of an object has its IoU with the object.
    """

    cells: Int[Tensor, " p"]
    objects: Int[Tensor, " p"]
    targets: Float[Tensor, " p"]


@torch.no_grad()
def assign(
    scores: Float[Tensor, " n"],
    boxes: Float[Tensor, "n 4"],
    centers: Float[Tensor, "n 2"],
    objects: Float[Tensor, "k 4"],
) -> Assignment:
    """Assign cells to the objects that their predictions fit best.

    The ten cells inside an object with the highest ``score * IoU ** 6`` are its positives. A cell that several objects
    claim goes to the one with the highest IoU. An object without a cell center inside gets the nearest cell.

    Args:
        scores: predicted probability that a cell is on an object.
        boxes: predicted boxes, as xyxy edges in pixels of the input.
        centers: (x, y) of the centers of the cells.
        objects: boxes of the objects, with an area.
    """
    if not len(objects):
        none = torch.zeros(0, dtype=torch.long, device=scores.device)
        return Assignment(none, none, scores.new_zeros(0))
    iou = box_iou(boxes, objects)
    inside = ((centers[:, None] > objects[:, :2]) & (centers[:, None] < objects[:, 2:])).all(2)
    alignment = scores[:, None] * iou**_IOU_POWER
    values, rows = (alignment * inside).topk(min(_CANDIDATES, len(boxes)), dim=0)
    positive = torch.zeros_like(inside).scatter_(0, rows, values > 0)
    without = (~positive.any(0)).nonzero()[:, 0]
    distances = torch.cdist(centers, (objects[without, :2] + objects[without, 2:]) / 2)
    positive[distances.argmin(0), without] = True
    # A nearest cell beats all other claims, because its object has no other cell.
    claims = iou * positive
    claims[distances.argmin(0), without] = 2
    cells = positive.any(1).nonzero()[:, 0]
    chosen = claims[cells].argmax(1)
    alignment, iou = alignment[cells, chosen], iou[cells, chosen]
    highest = alignment.new_zeros(len(objects)).scatter_reduce_(0, chosen, alignment, "amax")
    best_iou = iou.new_zeros(len(objects)).scatter_reduce_(0, chosen, iou, "amax")
    return Assignment(cells, chosen, alignment / highest[chosen].clamp(min=_TINY) * best_iou[chosen])
