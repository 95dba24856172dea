"""Reports of detectors, compared with the evaluation that they show."""

import csv
import json
from pathlib import Path

import pytest

from sppnet.detect.calibrate import calibrate
from sppnet.detect.evaluate import evaluate_detector
from sppnet.detect.report import write_report
from tests.helpers.html_page import Page
from tests.helpers.noisy_detector import annotated_images, noisy_detector


@pytest.mark.parametrize("calibrated", [True, False])
def test_report_has_the_figures_of_the_evaluation(calibrated: bool, tmp_path: Path) -> None:
    data = annotated_images(tmp_path / "data")
    model = noisy_detector(data)
    report = evaluate_detector(model, data)
    if calibrated:
        calibrate(model, report)
        report = evaluate_detector(model, data)
    write_report(report, tmp_path / "out", run="runs/RUN", data="DATA")
    page = Page((tmp_path / "out" / "report.html").read_text())
    words = page.words()
    assert words.startswith("Detector RUN")
    assert f"AP50 {100 * report.scores.ap50:.1f} %" in words
    assert ("calibration error" in words) == ("Reliability" in words) == calibrated
    assert "Surest mistakes" in words
    assert page.values("img", "src")
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert content.items() >= json.loads(json.dumps(report.to_dict())).items()
    assert content["threshold"] == model.config.min_score
    counts = report.confusion
    assert content["confusion"] == {"classes": [*report.scores.per_class, "nothing"], "counts": counts.tolist()}
    with (tmp_path / "out" / "images.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == [str(sample.path) for sample in report.samples]
    totals = {name: sum(int(row[name]) for row in rows) for name in ("objects", "found", "missed", "false")}
    assert totals["objects"] == int(counts[:-1].sum())
    assert totals["found"] == int(counts.diag().sum()) == totals["objects"] - totals["missed"]
    assert totals["found"] + totals["false"] == int(counts[:, :-1].sum())
