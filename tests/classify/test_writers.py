"""Classifications as CSV and as folders of links."""

import csv
from pathlib import Path

import pytest

from sppnet.classify.predict import ClassificationResult
from sppnet.classify.writers import class_folders, csv_header, csv_row
from tests.helpers.images import write_files


def result(path: Path, label: str, *others: str) -> ClassificationResult:
    top = tuple((name, 0.5 / number) for number, name in enumerate((label, *others), start=1))
    return ClassificationResult(str(path), (2, 3), label, 0.5, top, (2, 3))


def test_rows_match_the_header_and_escape_control_characters(tmp_path: Path) -> None:
    assert csv_header(2) == ["path", "label", "score", "label_2", "score_2"]
    assert csv_row(result(Path("a\n\udcff.png"), "x", "y\t")) == [r"a\n\udcff.png", "x", "0.500000", r"y\t", "0.250000"]


def test_equal_names_of_a_class_are_numbered(tmp_path: Path) -> None:
    names = ("1/a.png", "2/a.png", "3/a.png", "a-2.png", "4/b\nc.png")
    images = [write_files(tmp_path / "images", name) / name for name in names]
    out = tmp_path / "out"
    with class_folders(out, 1) as add:
        for image in images:
            add(result(image, "cat"))
    links = {link.name: link.resolve() for link in (out / "cat").iterdir()}
    assert links == dict(
        zip(("a.png", "a-2.png", "a-3.png", "a-2-2.png", "b\nc.png"), map(Path.resolve, images), strict=True)
    )
    _, *rows = csv.reader((out / "predictions.csv").read_text().splitlines())
    assert [row[0] for row in rows] == [*map(str, images[:4]), rf"{tmp_path}/images/4/b\nc.png"]


def test_class_folders_stay_inside_the_output_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png")
    with class_folders(tmp_path / "out", 1) as add:
        for label in ("../x", "..", "a/b", "a%2Fb", "é 1"):
            add(result(tmp_path / "a.png", label))
    folders = {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()}
    assert folders == {"%2E.%2Fx", "%2E.", "a%2Fb", "a%252Fb", "é 1"}


def test_rejects_a_folder_with_files(tmp_path: Path) -> None:
    write_files(tmp_path, "a.png")
    with pytest.raises(ValueError, match="out: expected a new or empty folder"), class_folders(tmp_path, 1):
        pass
