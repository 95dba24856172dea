"""Recall of proposals."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.ops.boxes import overlaps


@dataclass(frozen=True)
class Recall:
    """How well proposals cover true boxes.

    Attributes:
        fractions: of the true boxes that are covered, one for each threshold.
        mean_best: mean over the true boxes of the best overlap that a proposal has with them.
    """

    fractions: tuple[float, ...]
    mean_best: float


def recall(
    proposals: Sequence[Float[Tensor, "_ 4"]],
    truths: Sequence[Float[Tensor, "_ 4"]],
    thresholds: Sequence[float] = (0.5, 0.7, 0.9),
) -> Recall:
    """The fraction of the true boxes that some proposal of their image overlaps enough.

    Args:
        proposals: of each image, xyxy edges.
        truths: of each image, xyxy edges; an image may have none, but not all.
        thresholds: least intersection over union; exactly as much counts.

    Raises:
        ValueError: another number of images, or no true box at all.
    """
    if len(proposals) != len(truths):
        raise ValueError(f"truths: expected those of {len(proposals)} images, as proposals has; got {len(truths)}")
    best = [
        overlaps(boxes, found).max(1).values if len(found) else torch.zeros(len(boxes))
        for found, boxes in zip(proposals, truths, strict=True)
        if len(boxes)
    ]
    if not best:
        raise ValueError("truths: expected at least one box in all images together; got none")
    every = torch.cat(best)
    fractions = tuple((every >= threshold).double().mean().item() for threshold in thresholds)
    return Recall(fractions, every.double().mean().item())
