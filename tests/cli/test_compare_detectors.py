"""Output and invalid arguments of `sppnet compare detectors`."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sppnet.cli.compare_detectors import paper_table, result_tables
from sppnet.cli.main import run
from sppnet.studies.detectors import (
    COLUMNS,
    PAPER,
    PAPER_SECONDS,
    DetectorComparison,
    DetectorResults,
    comparison_content,
)
from tests.helpers.detection_data import write_voc
from tests.helpers.two_stage import shorten_comparisons


def test_tables_show_means_ranges_and_speed_ups() -> None:
    precision = {row: [0.25, 0.5] for row in PAPER}
    parts = [row for row in PAPER_SECONDS if row != "speed-up"]
    columns = {
        name: DetectorResults(precision, dict.fromkeys(parts, seconds))
        for name, seconds in zip(COLUMNS, (0.5, 1.0, 8.0), strict=True)
    }
    two_stage = DetectorResults({"two-stage": [0.5, 0.75]}, {"in all": 0.125})
    content = comparison_content(DetectorComparison(columns, two_stage, 2.0, 2, (3, 2), 20.0, ()))
    console = Console(file=io.StringIO(), width=140)
    for table in result_tables(content):
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mean (min to max of 2 seeds), 3 training and 2 test images" in text
    assert text.count("37.5 (25.0 to 50.0)") == 3 * (len(PAPER) + 1)
    complete = [[cell.strip() for cell in line.split("│")[1:5]] for line in text.splitlines()[-5:-1]]
    assert complete[0] == ["SPP, 1 scale", "37.5 (25.0 to 50.0)", "2.000", "2.500"]
    assert complete[3] == ["two-stage", "62.5 (50.0 to 75.0)", "0.000", "0.125"]
    (speed_up,) = (line for line in text.splitlines() if "speed-up" in line)
    assert [cell.split()[0] for cell in speed_up.split("│")[2:5]] == ["16", "8", "1"]
    console.print(paper_table(content))
    (row,) = (line for line in console.file.getvalue().splitlines() if "ft fc7 bb" in line and "59.2" in line)  # type: ignore[attr-defined]
    assert [cell.strip() for cell in row.split("│")[2:5]] == ["58", "59.2", "58.5"]


def test_command_prints_the_verdict_before_the_papers_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shorten_comparisons(monkeypatch)
    data = write_voc(tmp_path / "data", 4, 3)
    (data / "annotations").mkdir()  # the data are also those of COCO
    (data / "annotations" / "train.json").write_text("{}")
    command = [
        "compare",
        "detectors",
        str(data),
        "--format",
        "voc",
        "--test-split",
        "test",
        "--out",
        str(tmp_path),
        "--max-images",
        "3",
    ]
    small = [
        "--backbone",
        "zf5",
        "--weights",
        "none",
        "--windows",
        "4",
        "--proposals",
        "grid",
        "--hidden",
        "16,16",
        "--levels",
        "2,1",
        "--epochs",
        "1",
    ]
    assert run([*command, *small, "--scales", "96", "--steps", "2", "--seeds", "2"]) == 0
    out = capsys.readouterr().out
    content = json.loads((tmp_path / "comparison.json").read_text())
    assert content["columns"]["SPP, 5 scales"]["ap50"].keys() == {"pool5", "fc6", "ft fc6", "ft fc7", "ft fc7 bb"}
    assert len(content["columns"]["R-CNN"]["ap50"]["fc6"]) == 2
    assert content["columns"]["R-CNN"]["seconds"]["speed-up"] == 1
    assert content["images"] == {"train": 3, "test": 3}
    assert len(content["detectors"]["two-stage"]["ap50"]) == 2
    places = [out.index(part) for part in ("mean (min to max", "seconds per image with", content["verdict"], "59.2")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "64"], "hidden: expected two sizes, those of fc6 and fc7, got (64,)"),
        (["--scales", "96,128"], "scales: expected one scale, got (96, 128)"),
        (["--max-images", "0"], "max_images: expected at least 1, got 0"),
        (["--test-split", "val"], "train, test"),
        (["--format", "coco"], "format: expected the format of"),
    ],
)
def test_invalid_arguments_create_no_folder(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_voc(tmp_path / "voc", 2, 1), tmp_path / "out"
    assert run(["compare", "detectors", str(data), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
