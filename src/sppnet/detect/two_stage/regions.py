"""Proposals of the dense head, and their sampling for training the region head."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image, nms, remove_small_boxes

from sppnet.detect.two_stage.dense_head import DenseOutput
from sppnet.detect.two_stage.losses import Objects, RegionTargets

_CANDIDATES, _OVERLAP, _SMALLEST = 2000, 0.7, 1.0  # cells, NMS threshold, shortest side in pixels
_POSITIVES, _NEGATIVES, _FEWEST_NEGATIVES = 48, 64, 16  # regions per image
_POSITIVE_IOU = 0.5
_JITTERS = 4  # copies of each object whose edges are moved
_JITTER = 0.08  # standard deviation of these moves, in sides of the object
_TINY = 1e-6


class Regions(NamedTuple):
    """Proposals of an image, best first.

    Attributes:
        boxes: xyxy edges in pixels of the input, inside the image.
        scores: probability of an object according to the dense head.
    """

    boxes: Float[Tensor, "k 4"]
    scores: Float[Tensor, " k"]


def propose(output: DenseOutput, image: int, size: tuple[int, int], count: int, least: float = 0.0) -> Regions:
    """Return the best proposals of an image.

    Args:
        output: predictions for a batch.
        image: index of the image.
        size: (height, width) of the image in pixels of the input, without padding.
        count: maximum number of proposals.
        least: lowest score of a proposal.
    """
    scores, rows = output.logits[image].sigmoid().topk(min(_CANDIDATES, output.logits.shape[1]))
    rows, scores = rows[scores >= least], scores[scores >= least]
    boxes = clip_boxes_to_image(output.boxes[image, rows], size)
    usable = remove_small_boxes(boxes, _SMALLEST)
    boxes, scores = boxes[usable], scores[usable]
    kept = nms(boxes, scores, _OVERLAP)[:count]
    return Regions(boxes[kept], scores[kept])


def sample(regions: Float[Tensor, "n 4"], objects: Objects) -> RegionTargets:
    """Draw training regions of an image among its proposals, its objects and jittered copies of the objects.

    At most 48 regions overlap an object by 0.5 or more and have its class; about as many others are background.

    Args:
        regions: proposals, as xyxy edges in pixels of the input.
        objects: objects of the image; difficult ones are ignored.
    """
    boxes, labels = objects.boxes[~objects.difficult], objects.labels[~objects.difficult]
    if len(boxes):
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        noise = torch.randn(_JITTERS, *boxes.shape, device=boxes.device) * _JITTER
        jittered = (boxes + noise * sides).flatten(0, 1)
        regions = torch.cat((regions, jittered[remove_small_boxes(jittered, 2.0)], boxes))
    ignored = objects.boxes[objects.difficult]
    if len(ignored):
        covered = box_iou(regions, ignored).amax(1) >= _POSITIVE_IOU
        regions = regions[~covered | (box_iou(regions, boxes).amax(1) >= _POSITIVE_IOU if len(boxes) else False)]
    if len(boxes):
        iou, best = box_iou(regions, boxes).max(1)
    else:
        iou, best = regions.new_zeros(len(regions)), labels.new_zeros(len(regions))
    positive = _draw((iou >= _POSITIVE_IOU).nonzero()[:, 0], _POSITIVES)
    wanted = max(_FEWEST_NEGATIVES, min(_NEGATIVES, len(positive)))
    negative = _draw((iou < _POSITIVE_IOU).nonzero()[:, 0], wanted)
    rows = torch.cat((positive, negative))
    is_positive = torch.arange(len(rows), device=rows.device) < len(positive)
    matched = boxes[best[rows]] if len(boxes) else regions[rows]
    classes = labels[best[rows]] if len(boxes) else rows
    return RegionTargets(
        regions[rows], matched, torch.where(is_positive, classes, -1), torch.where(is_positive, iou[rows], 0.0)
    )


def _draw(rows: Int[Tensor, " n"], count: int) -> Int[Tensor, " m"]:
    return rows[torch.randperm(len(rows), device=rows.device)[:count]]


def decay_duplicates(
    boxes: Float[Tensor, "k 4"], scores: Float[Tensor, " k"], labels: Int[Tensor, " k"]
) -> Float[Tensor, " k"]:
    """Reduce the scores of boxes that overlap better ones of their class, in proportion to the IoU.

    This is Matrix NMS with linear decay (SOLOv2, Wang et al., 2020, section 3.3): a better box counts less if it is
    itself a duplicate. Unlike with a threshold of the IoU, the boxes of neighboring objects remain.

    Args:
        boxes: xyxy edges, the highest score first.
        scores: scores in [0, 1], in descending order.
        labels: classes of the boxes.
    """
    if not len(boxes):
        return scores
    iou = (box_iou(boxes, boxes) * (labels[:, None] == labels)).triu(1)  # rows are better than columns
    distinct = (1 - iou.amax(0)).clamp(min=_TINY)
    decay: Tensor = ((1 - iou) / distinct[:, None]).amin(0).clamp(max=1)
    return scores * decay
