"""Recall of proposals."""

import pytest
import torch

from sppnet.evaluation.recall import recall


def test_recall_is_the_fraction_of_covered_boxes() -> None:
    """The best overlaps are 1, 1/2 and 0, and 0 in an image without proposals."""
    truths = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 5, 5]])]
    proposals = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 5], [90, 0, 95, 5]]), torch.empty(0, 4)]
    result = recall(proposals, truths, (0.5, 0.51, 1.0))
    assert result.fractions == (0.5, 0.25, 0.25)
    assert result.mean_best == pytest.approx((1 + 0.5) / 4)


def test_overlap_equal_to_the_threshold_counts() -> None:
    assert recall([torch.tensor([[0.0, 0, 7, 1]])], [torch.tensor([[0.0, 0, 10, 1]])], (0.7,)).fractions == (1,)


def test_rejects_different_lengths_and_missing_boxes() -> None:
    with pytest.raises(ValueError, match=r"truths: expected one entry per image of proposals \(2\), got 1"):
        recall([torch.empty(0, 4)] * 2, [torch.empty(0, 4)])
    with pytest.raises(ValueError, match=r"truths: expected at least one box, got none in any image"):
        recall([torch.ones(1, 4)], [torch.empty(0, 4)])
