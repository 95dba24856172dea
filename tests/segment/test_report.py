"""Reports of segmenters, compared with the evaluation that they show."""

import csv
import json
from pathlib import Path

from sppnet.segment.evaluate import evaluate_segmenter, read_evaluation_data
from sppnet.segment.model import Segmenter
from sppnet.segment.options import View
from sppnet.segment.report import write_report
from sppnet.segment.views import segment_image
from tests.helpers.html_page import Page


def test_report_has_the_figures_of_the_evaluation(trained_model: Segmenter, dataset: Path, tmp_path: Path) -> None:
    data = read_evaluation_data(trained_model, dataset)
    report = evaluate_segmenter(trained_model, data)
    write_report(
        report,
        data,
        lambda image: segment_image(trained_model, image, View()),
        tmp_path,
        run="runs/RUN",
        name="DATA",
    )
    page = Page((tmp_path / "report.html").read_text())
    words = page.words()
    assert words.startswith("Segmenter RUN")
    assert f"mean IoU {100 * report.scores.miou:.1f} %" in words
    assert f"calibration error {report.ece:.3f}" in words
    disc = report.quality["disc"]
    assert disc.precision is not None
    assert f"disc {100 * (report.scores.per_class['disc'] or 0):.1f} % {100 * disc.precision:.1f} %" in words
    assert len(page.values("img", "src")) == 4 * 4
    content = json.loads((tmp_path / "report.json").read_text())
    assert content.items() >= json.loads(json.dumps(report.to_dict())).items()
    assert content["confusion"]["counts"] == report.confusion.tolist()
    with (tmp_path / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(sample.path) for sample in report.samples]
    assert [float(row["miou"]) for row in rows] == list(report.by_image)
    assert [float(row["pixel_accuracy"]) for row in rows] == list(report.accuracies)


def test_report_of_tiles_has_no_calibration(trained_model: Segmenter, dataset: Path, tmp_path: Path) -> None:
    view = View(tile=64, overlap=16)
    data = read_evaluation_data(trained_model, dataset)
    report = evaluate_segmenter(trained_model, data, view=view)
    write_report(report, data, lambda image: segment_image(trained_model, image, view), tmp_path, run="R", name="D")
    words = Page((tmp_path / "report.html").read_text()).words()
    assert "calibration error" not in words
    assert "Reliability" not in words
