import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from sppnet.data.formats.segmentation import read_segmentation
from sppnet.errors import ImageError
from sppnet.segment.evaluate import evaluate_segmenter, read_evaluation_data, scores_of
from sppnet.segment.model import Segmenter
from sppnet.segment.options import View
from tests.helpers.segmentation_data import CLASSES
from tests.helpers.tiny_segmenter import tiny_segmenter


def test_segmenter_learns_shapes_from_ten_images(trained_run: Path, trained_model: Segmenter, dataset: Path) -> None:
    report = evaluate_segmenter(trained_model, dataset)  # there is no test split
    content = json.loads(json.dumps(report.to_dict()))
    assert content.keys() == {
        *("miou", "pixel_accuracy", "mean_accuracy", "per_class", "pixels", "ece", "images", "failures"),
    }
    assert list(content["per_class"]) == list(CLASSES)
    assert (content["images"], content["failures"]) == (4, [])
    assert content["miou"] == report.scores.miou > 0.7
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    best = max(lines, key=lambda line: line["val_miou"])
    assert best["val_miou"] == pytest.approx(report.scores.miou, abs=1e-4)
    assert best["val_mean_accuracy"] == pytest.approx(report.scores.mean_accuracy, abs=1e-4)
    assert lines[-1]["train_pixel_accuracy"] > lines[0]["train_pixel_accuracy"]


def test_path_and_read_data_give_the_same_scores(trained_model: Segmenter, dataset: Path) -> None:
    view = View(scale_factors=(1.0, 1.5), flip=True)
    report = evaluate_segmenter(trained_model, dataset, split="train", view=view)
    data = read_evaluation_data(trained_model, dataset, "train")
    assert report == evaluate_segmenter(trained_model, data, view=view)
    assert report.scores != evaluate_segmenter(trained_model, data).scores
    with pytest.raises(ValueError, match=r"split: expected one of train, val for .*, got 'vla'; did you mean val"):
        evaluate_segmenter(trained_model, dataset, split="vla")
    with pytest.raises(ValueError, match=r"data: expected the classes of the model, .*'ground', .*'background'"):
        evaluate_segmenter(tiny_segmenter(), data)


def test_tiles_have_no_confidence_and_all_else_is_the_same(trained_model: Segmenter, dataset: Path) -> None:
    report = evaluate_segmenter(trained_model, dataset)
    assert report.confidence is not None
    labeled = sum(report.scores.pixels.values())
    assert len(report.confidence) == labeled  # the images are small
    assert report.confidence[:, 1].mean() == pytest.approx(report.scores.pixel_accuracy)
    assert int(report.confusion.sum()) == labeled
    assert report.quality["disc"].recall == int(report.confusion[1, 1]) / report.scores.pixels["disc"]
    ignoring = evaluate_segmenter(trained_model, dataset, ignore=(0, 255))
    assert ignoring.confidence is not None
    assert len(ignoring.confidence) == sum(ignoring.scores.pixels.values()) < labeled
    tiled = evaluate_segmenter(trained_model, dataset, view=View(tile=64, overlap=16))
    assert tiled.confidence is None
    assert tiled.ece is None
    assert len(tiled.accuracies) == 4


def test_scores_of_a_confusion_matrix() -> None:
    table = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    scores = scores_of(table, ("a", "b", "c"))
    assert scores.per_class == {"a": pytest.approx(6 / 9), "b": pytest.approx(3 / 6), "c": None}
    assert scores.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.pixel_accuracy == pytest.approx(9 / 12)
    assert scores.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert scores.pixels == {"a": 8, "b": 4, "c": 0}


def test_bad_masks_are_skipped_or_raised(trained_model: Segmenter, dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "data")
    Image.new("L", (80, 64), 7).save(root / "valannot" / "val_1.png")
    report = evaluate_segmenter(trained_model, root, split="val")
    assert len(report.samples) == 3
    (failure,) = report.to_dict()["failures"]
    assert failure["path"].endswith("val_1.png")
    assert "7 (5120 pixels)" in failure["reason"]
    with pytest.raises(ImageError, match=r"val_1\.png: ids without a class: 7"):
        evaluate_segmenter(trained_model, root, split="val", on_error="raise")
    for file in (root / "valannot").iterdir():
        Image.new("L", (80, 64), 7).save(file)
    message = r"expected labeled pixels, got none in 0 readable images; 4 cannot be used: .*7 \(5120 pixels\)"
    with pytest.raises(ValueError, match=message):
        evaluate_segmenter(trained_model, read_segmentation(root, "val"))


def test_ignored_ids_are_those_of_the_training_unless_given(trained_model: Segmenter, dataset: Path) -> None:
    scores = evaluate_segmenter(trained_model, dataset, ignore=(255,)).scores
    assert scores == evaluate_segmenter(trained_model, dataset).scores
    ignoring = evaluate_segmenter(trained_model, dataset, ignore=(0, 255)).scores
    assert ignoring.pixels == {**scores.pixels, "background": 0}
