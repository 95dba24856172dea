"""Scores compared with values counted by hand, and evaluation of image files."""

from pathlib import Path

import pytest
import torch

from sppnet import Classifier, ClassifierConfig, create_backbone
from sppnet.classify.evaluate import evaluate_classifier, scores_of, top_classes
from sppnet.data.formats.class_folders import read_classification
from tests.helpers.images import write_classes


def test_scores_match_values_counted_by_hand() -> None:
    ranked = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 1], [0, 1]])
    labels = torch.tensor([0, 0, 0, 2, 1])
    scores = scores_of(ranked, labels)
    assert scores.images == 5
    assert scores.top1 == pytest.approx(3 / 5)
    assert scores.top5 == pytest.approx(5 / 5)
    assert scores.mean_per_class_accuracy == pytest.approx((2 / 3 + 1 + 0) / 3)


def test_scores_of_an_empty_set_are_zero() -> None:
    assert scores_of(torch.empty(0, 5, dtype=torch.long), torch.empty(0, dtype=torch.long)).images == 0


def test_rank_returns_five_or_all_classes() -> None:
    assert top_classes(torch.tensor([[0.1, 0.3, 0.2]])).tolist() == [[1, 2, 0]]
    assert top_classes(torch.randn(2, 9)).shape == (2, 5)


def test_groups_add_up_and_unreadable_files_are_reported(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 4, (60, 300))
    (root / "blue" / "broken.jpg").write_bytes(b"<html>")
    data = read_classification(root)
    model = Classifier(ClassifierConfig(data.classes, levels=(1,), head="plain"), create_backbone())
    evaluation = evaluate_classifier(model, data.samples, resize="warp:64")
    assert evaluation.resize == "warp:64"
    assert [Path(failure.path).name for failure in evaluation.failures] == ["broken.jpg"]
    for groups in (evaluation.by_size, evaluation.by_aspect):
        assert sum(scores.images for scores in groups.values()) == evaluation.scores.images == 12
        correct = sum(scores.images * scores.top1 for scores in groups.values())
        assert correct == pytest.approx(12 * evaluation.scores.top1)
