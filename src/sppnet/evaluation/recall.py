"""Recall of proposals."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.ops.boxes import overlaps


@dataclass(frozen=True)
class Recall:
    """Coverage of true boxes by proposals.

    Attributes:
        fractions: fraction of covered true boxes, one for each threshold.
        mean_best: mean over the true boxes of the highest overlap with a proposal.
    """

    fractions: tuple[float, ...]
    mean_best: float


def recall(
    proposals: Sequence[Float[Tensor, "_ 4"]],
    truths: Sequence[Float[Tensor, "_ 4"]],
    thresholds: Sequence[float] = (0.5, 0.7, 0.9),
) -> Recall:
    """Compute the fraction of true boxes that are covered by a proposal in their image.

    Args:
        proposals: xyxy edges of the proposals of each image.
        truths: xyxy edges of the true boxes of each image; some images may have none.
        thresholds: minimum overlaps (intersection over union) to be covered, inclusive.

    Raises:
        ValueError: `proposals` and `truths` differ in length, or there is no true box.
    """
    if len(proposals) != len(truths):
        raise ValueError(f"truths: expected one entry per image of proposals ({len(proposals)}), got {len(truths)}")
    best = [
        overlaps(truth, boxes).max(1).values if len(boxes) else torch.zeros(len(truth))
        for boxes, truth in zip(proposals, truths, strict=True)
        if len(truth)
    ]
    if not best:
        raise ValueError("truths: expected at least one box, got none in any image")
    best_overlaps = torch.cat(best)
    fractions = tuple((best_overlaps >= threshold).double().mean().item() for threshold in thresholds)
    return Recall(fractions, best_overlaps.double().mean().item())
