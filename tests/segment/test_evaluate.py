import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from sppnet.cli.main import run
from sppnet.data.formats.segmentation import read_segmentation
from sppnet.segment.evaluate import evaluate_segmenter, scores_of
from tests.helpers.tiny_segmenter import tiny_segmenter


def test_segmenter_learns_shapes_from_ten_images(
    trained_run: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained_run), str(dataset), "--split", "val", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.keys() >= {"miou", "pixel_accuracy", "per_class", "failures", "images"}
    assert list(scores["per_class"]) == list(read_segmentation(dataset, "val").classes)
    assert scores["images"] == 4
    assert scores["miou"] > 0.7
    lines = [json.loads(line) for line in (trained_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["val_miou"] == pytest.approx(scores["miou"], abs=1e-6)
    assert lines[-1]["train_pixel_accuracy"] > lines[0]["train_pixel_accuracy"]


def test_command_prints_scores_and_writes_pictures(
    trained_run: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained_run), str(dataset), "--split", "val", "--scales", "1,1.5", "--flip"]
    assert run([*command, "--pictures", str(tmp_path / "pictures")]) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert list((tmp_path / "pictures").iterdir())


def test_scores_of_a_confusion_matrix() -> None:
    table = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    scores = scores_of(table, ("a", "b", "c"))
    assert scores.per_class == {"a": pytest.approx(6 / 9), "b": pytest.approx(3 / 6), "c": None}
    assert scores.miou == pytest.approx((6 / 9 + 3 / 6) / 2)
    assert scores.pixel_accuracy == pytest.approx(9 / 12)
    assert scores.mean_accuracy == pytest.approx((6 / 8 + 3 / 4) / 2)
    assert scores.pixels == {"a": 8, "b": 4, "c": 0}


def test_rejects_data_without_labeled_pixels(dataset: Path, tmp_path: Path) -> None:
    root = shutil.copytree(dataset, tmp_path / "data")
    for file in (root / "valannot").iterdir():
        Image.new("L", (80, 64), 7).save(file)
    message = r"expected labeled pixels, got none in 0 readable images; 4 cannot be used: .*7 \(5120 pixels\)"
    with pytest.raises(ValueError, match=message):
        evaluate_segmenter(tiny_segmenter(), read_segmentation(root, "val"))
