"""Scores compared with values counted by hand, and evaluation of image files."""

import json
from pathlib import Path

import pytest
import torch

from sppnet import Classifier, ClassifierConfig, ImageError, create_backbone
from sppnet.classify.evaluate import evaluate_classifier, scores_of, top_classes
from sppnet.data.formats.classification import read_classification
from tests.helpers.classifiers import build_classifier
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
    evaluation = evaluate_classifier(model, data, resize="warp:64")
    assert evaluation.resize == "warp:64"
    assert [Path(failure.path).name for failure in evaluation.failures] == ["broken.jpg"]
    for groups in (evaluation.by_size, evaluation.by_aspect):
        assert sum(scores.images for scores in groups.values()) == evaluation.scores.images == 12
        correct = sum(scores.images * scores.top1 for scores in groups.values())
        assert correct == pytest.approx(12 * evaluation.scores.top1)
    content = evaluation.to_dict()
    assert content == json.loads(json.dumps(content))
    assert (content["images"], content["top1"], content["outside"]) == (12, evaluation.scores.top1, 0)
    assert content["by_size"]["128-223"]["images"] == evaluation.by_size["128-223"].images
    assert content["failures"] == [{"path": str(root / "blue" / "broken.jpg"), "reason": evaluation.failures[0].reason}]
    with pytest.raises(ImageError, match="broken"):
        evaluate_classifier(model, data, on_error="raise")


def test_paths_data_sets_and_samples_give_the_same_scores(tmp_path: Path) -> None:
    for split, count in (("train", 1), ("val", 2), ("test", 3)):
        write_classes(tmp_path / split, count)
    (tmp_path / "test" / "red" / "notes.txt").write_text("not an image")
    model = build_classifier(classes=("blue", "green", "red"))
    data = read_classification(tmp_path, "test")
    report = evaluate_classifier(model, tmp_path)
    assert report == evaluate_classifier(model, data)
    assert report.problems == (f"{tmp_path / 'test' / 'red' / 'notes.txt'}: skipped, not an image by its extension",)
    assert report.scores == evaluate_classifier(model, data.samples).scores
    assert evaluate_classifier(model, str(tmp_path), split="val").scores.images == 6


def test_problems_give_the_reason_for_skipping(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "data", 1)
    (root / "empty").mkdir()
    for name in ("stray.png", "red/notes.txt"):
        (root / name).write_text("")
    assert read_classification(root).problems == (
        f"{root / 'stray.png'}: skipped, image outside the class folders",
        f"{root / 'empty'}: class folder without images, not used as a class",
        f"{root / 'red' / 'notes.txt'}: skipped, not an image by its extension",
    )


def test_rejects_data_with_other_classes(tmp_path: Path) -> None:
    data = read_classification(write_classes(tmp_path / "data", 1))
    with pytest.raises(ValueError, match="data: expected the classes of the model, red, green, blue, got blue, green"):
        evaluate_classifier(build_classifier(classes=("red", "green", "blue")), data)
    with pytest.raises(ValueError, match="that lack red; did you mean rad"):
        evaluate_classifier(build_classifier(classes=("blue", "green", "rad")), tmp_path / "data")
