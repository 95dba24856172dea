"""Losses of the dense head and of the region head."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from sppnet.detect.two_stage.assignment import assign
from sppnet.detect.two_stage.dense_head import DenseOutput
from sppnet.detect.two_stage.region_head import RegionOutput
from sppnet.ops.boxes import decode

_BOX_WEIGHT = _OBJECTNESS_WEIGHT = 2.0
_SMOOTHING = 0.05  # of the classes of regions


class Objects(NamedTuple):
    """Objects of an image, with boxes as xyxy edges in pixels of the input; difficult ones are ignored."""

    boxes: Float[Tensor, "k 4"]
    labels: Int[Tensor, " k"]
    difficult: Bool[Tensor, " k"]


class RegionTargets(NamedTuple):
    """Targets of the proposals of a batch.

    Attributes:
        proposals: boxes as xyxy edges in pixels of the input.
        boxes: box of the best object of each proposal.
        labels: class of the best object; -1 for background.
        iou: IoU with the best object; 0 for background.
    """

    proposals: Float[Tensor, "k 4"]
    boxes: Float[Tensor, "k 4"]
    labels: Int[Tensor, " k"]
    iou: Float[Tensor, " k"]


def class_weights(labels: Int[Tensor, " n"], classes: int) -> Float[Tensor, " classes"]:
    """Return class weights (mean count / count) ** 0.5 with a mean of 1 over the objects."""
    counts = torch.bincount(labels, minlength=classes).float().clamp(min=1)
    weights = (counts.mean() / counts).sqrt()
    return weights * counts.sum() / (weights * counts).sum()


def dense_loss(
    output: DenseOutput, objects: Sequence[Objects], weights: Float[Tensor, " classes"]
) -> Float[Tensor, ""]:
    """Compute the loss of the dense head: cross entropy to IoU-scaled targets, plus generalized IoU.

    Both are divided by the sum of the targets, or by the number of objects while targets are still small.

    Args:
        output: predictions for a batch.
        objects: objects of each image.
        weights: weight of the objects of each class.
    """
    targets, cell_weights = torch.zeros_like(output.logits), torch.ones_like(output.logits)
    box_losses, scales, count = [], [], 1
    for image, (boxes, labels, difficult) in enumerate(objects):
        boxes, labels, ignored = boxes[~difficult], labels[~difficult], boxes[difficult]
        cells, chosen, target = assign(
            output.logits[image].detach().sigmoid(), output.boxes[image].detach(), output.centers, boxes
        )
        weight = weights[labels[chosen]]
        targets[image, cells] = target
        cell_weights[image, _inside(output.centers, ignored)] = 0
        cell_weights[image, cells] = weight
        scales.append(target * weight)
        box_losses.append(generalized_box_iou_loss(output.boxes[image, cells], boxes[chosen]))
        count += len(boxes)
    scale = torch.cat(scales)
    total = scale.sum().clamp(min=count)
    box_loss = (torch.cat(box_losses) * scale).sum()
    score_loss = F.binary_cross_entropy_with_logits(output.logits, targets, cell_weights, reduction="sum")
    loss: Tensor = (score_loss + _BOX_WEIGHT * box_loss) / total
    return loss


def region_loss(output: RegionOutput, targets: RegionTargets) -> Float[Tensor, ""]:
    """Compute the loss of the region head.

    Cross entropy of the classes of positive proposals, cross entropy of the objectness to the IoU with an object, and
    generalized IoU of the refined boxes of positive proposals.
    """
    positive = targets.labels >= 0
    count = positive.sum().clamp(min=1)
    boxes = decode(targets.proposals[positive], output.offsets[positive])
    refined = generalized_box_iou_loss(boxes, targets.boxes[positive], reduction="sum")
    classes = F.cross_entropy(
        output.logits[positive], targets.labels[positive], label_smoothing=_SMOOTHING, reduction="sum"
    )
    objectness = F.binary_cross_entropy_with_logits(output.objectness, targets.iou)
    loss: Tensor = (classes + _BOX_WEIGHT * refined) / count + _OBJECTNESS_WEIGHT * objectness
    return loss


def _inside(centers: Float[Tensor, "n 2"], boxes: Float[Tensor, "k 4"]) -> Bool[Tensor, " n"]:
    """Return which centers are inside any of the boxes."""
    return ((centers[:, None] > boxes[:, :2]) & (centers[:, None] < boxes[:, 2:])).all(2).any(1)
