"""Tables and invalid arguments of `sppnet compare-detectors`."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from sppnet.cli.compare_detectors import tables
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


def test_tables_show_means_ranges_speed_ups_and_the_papers_results() -> None:
    precision = {row: [0.25, 0.5] for row in PAPER}
    parts = [row for row in PAPER_SECONDS if row != "speed-up"]
    columns = {
        name: DetectorResults(precision, dict.fromkeys(parts, seconds))
        for name, seconds in zip(COLUMNS, (0.5, 1.0, 8.0), strict=True)
    }
    console = Console(file=io.StringIO(), width=140)
    for table in tables(comparison_content(DetectorComparison(columns, 2, (3, 2), 20.0, ()))):
        console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "mean (min to max of 2 seeds), 3 training and 2 test images" in text
    assert text.count("37.5 (25.0 to 50.0) [") == 3 * len(PAPER)
    (speed_up,) = (line for line in text.splitlines() if "speed-up" in line)
    assert [cell.split()[0] for cell in speed_up.split("│")[2:5]] == ["16", "8", "1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hidden", "64"], "hidden: expected two sizes, those of fc6 and fc7, got (64,)"),
        (["--scales", "96,128"], "scales: expected one scale, got (96, 128)"),
        (["--images", "0"], "images: expected at least 1, got 0"),
        (["--test-split", "val"], "train, test"),
    ],
)
def test_invalid_arguments_create_no_folder(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_voc(tmp_path / "voc", 2, 1), tmp_path / "out"
    assert run(["compare-detectors", str(data), "--out", str(out), *options]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()
