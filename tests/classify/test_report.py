"""Reports of classifiers, compared with the evaluation that they show."""

import csv
import json
from pathlib import Path

import torch

from sppnet.classify.evaluate import ClassificationReport, evaluate_classifier
from sppnet.classify.report import write_report
from sppnet.data.formats.classification import read_classification
from tests.helpers.classifiers import build_classifier
from tests.helpers.html_page import Page
from tests.helpers.images import write_classes


def evaluate(root: Path) -> ClassificationReport:
    """Evaluate a classifier that takes each image for green."""
    data = read_classification(write_classes(root, 3))
    (root / "red" / "broken.png").write_bytes(b"no image")
    model = build_classifier(classes=data.classes, levels=(1,), head="plain")
    weight = model.head.get_parameter("weight")
    model.head.load_state_dict({"weight": 0.01 * weight, "bias": torch.tensor([0.0, 2.0, 0.0])})
    return evaluate_classifier(model, read_classification(root))


def test_report_has_the_figures_of_the_evaluation(tmp_path: Path) -> None:
    report = evaluate(tmp_path / "data")
    write_report(report, tmp_path / "out", run="runs/RUN", data="DATA", threshold=0.5)
    page = Page((tmp_path / "out" / "report.html").read_text())
    words = page.words()
    assert words.startswith("Classifier RUN")
    assert "accuracy 33.3 %" in words
    assert f"calibration error {report.ece:.3f}" in words
    assert "accepted, score ≥ 0.50 100.0 % of these correct 33.3 %" in words
    assert "green 50.0 % 33.3 % 100.0 % 3" in words  # F1, precision, recall, images
    assert "broken.png" in words
    assert "top-5" not in words
    assert len(page.values("img", "src")) == 6  # the mistakes
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content.items() >= json.loads(json.dumps(report.to_dict())).items()
    assert content["confusion"] == {"classes": ["blue", "green", "red"], "counts": [[0, 3, 0], [0, 3, 0], [0, 3, 0]]}
    assert content["per_class"]["blue"] == {"precision": None, "recall": 0.0, "f1": 0.0, "support": 3}


def test_table_has_a_row_per_image(tmp_path: Path) -> None:
    report = evaluate(tmp_path / "data")
    write_report(report, tmp_path / "out", run="RUN", data="DATA")
    with (tmp_path / "out" / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(image.path) for image in report.images]
    assert {row["predicted"] for row in rows} == {"green"}
    assert [row["correct"] for row in rows] == ["0"] * 3 + ["1"] * 3 + ["0"] * 3
    assert [float(row["score"]) for row in rows] == [round(image.score, 6) for image in report.images]
