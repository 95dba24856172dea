"""Checks of data sets with planted defects."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.cli.main import run
from sppnet.data.check.run import check_data
from sppnet.data.items import KINDS
from tests.helpers.check_problems import kinds_by_path, reasons
from tests.helpers.defects import write_defects
from tests.helpers.images import write_classes


@pytest.fixture(scope="module")
def defects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    root = tmp_path_factory.mktemp("defects") / "photos"
    return root, write_defects(root)


def test_reports_exactly_the_planted_defects(
    defects: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = defects
    assert run(["check", str(root), "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["layout"] == "class folders"
    assert (content["images"], content["usable"]) == (29, 22)
    reported = {str(Path(problem["path"]).relative_to(root)): problem["kind"] for problem in content["problems"]}
    # The second of two identical files is reported.
    planted = {"green/0.png" if path == "blue/strayed.png" else path: kind for path, kind in planted.items()}
    assert reported == planted
    assert len(content["problems"]) == len(planted)
    assert all(problem["severity"] == KINDS[problem["kind"]] and problem["reason"] for problem in content["problems"])
    assert sum(content["counts"].values()) == len(planted)
    assert content["counts"]["alpha"] == 2
    assert sum(content["shorter_side"].values()) == sum(content["aspect"].values()) == 22
    assert content["sizes"]["height"]["least"] == 1
    assert sum(bucket["images"] for bucket in content["suggestions"]["buckets"]) == 22
    assert [problem["severity"] for problem in content["problems"]] == ["error"] * 7 + ["warning"] * 5 + ["note"] * 7


def test_text_output_has_one_line_per_file(
    defects: tuple[Path, dict[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = defects
    deep = root / ("long " * 40).strip()
    shutil.copytree(root / "red", deep / "again")
    try:
        assert run(["check", str(root)]) == 1
    finally:
        shutil.rmtree(deep)
    lines = capsys.readouterr().out.splitlines()
    assert f"  {deep}/again/empty.jpg: file is empty" in lines
    assert f"  {root}/red/empty.jpg: file is empty" in lines
    assert "error: empty-file (2)" in lines
    assert "note: cmyk (2)" in lines
    assert any(line.startswith(f"{root}: class folders, 39 images") for line in lines)
    for path in planted:
        assert any(str(root / path) in line for line in lines), path


def test_training_skips_and_reports_unusable_files(
    defects: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, planted = defects
    out = ["--out", str(tmp_path / "run")]
    assert run(["train", "classify", str(root), "--freeze-backbone", "--levels", "1", *out]) == 0
    messages = capsys.readouterr().err
    assert "white: class folder without images, not used as a class" in messages
    assert "7 images could not be used" in messages
    skipped = [path for path, kind in planted.items() if KINDS[kind] == "error" or kind in ("empty-class", "left-out")]
    assert all(str(root / path) in messages for path in skipped)
    assert "white" not in json.loads((tmp_path / "run/run.json").read_text())["config"]["classes"]
    assert run(["evaluate", str(tmp_path / "run"), str(root), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["images"] == 22
    assert "7 images could not be used" in captured.err


def test_classifies_duplicates_by_split_and_class(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2)):
        write_classes(tmp_path / split, count)
    pixels = Image.open(tmp_path / "train/red/0.png")
    pixels.save(tmp_path / "train/red/same.bmp")
    pixels.save(tmp_path / "val/red/leak.png")
    pixels.save(tmp_path / "val/blue/worse.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    pixels.rotate(180).save(tmp_path / "train/red/turned.png", exif=exif)
    other = np.asarray(pixels).reshape(pixels.width, pixels.height, 3)  # same bytes, different shape
    Image.fromarray(other).save(tmp_path / "train/red/other.png")
    (tmp_path / "val/pink").mkdir()
    shutil.copy(tmp_path / "val/red/0.png", tmp_path / "val/pink")
    (tmp_path / "val/pink/0.png").write_bytes(b"")
    check = check_data(tmp_path)
    assert [problem for problem in kinds_by_path(check) if problem[1] != "exif-turned"] == [
        ("train/red/same.bmp", "duplicate"),
        ("train/red/turned.png", "duplicate"),
        ("val/blue/worse.png", "duplicate-across-classes"),
        ("val/pink", "empty-class"),
        ("val/pink", "unknown-class"),
        ("val/pink/0.png", "empty-file"),
        ("val/red/leak.png", "duplicate-across-splits"),
    ]
    first = tmp_path / "train/red/0.png"
    assert reasons(check, "duplicate-across-splits") == [
        f"same pixels as {first}; this file is in val, the other in train"
    ]
    assert reasons(check, "duplicate-across-classes") == [
        f"same pixels as {first}; this file is in val, the other in train; this file has the class blue, the other red"
    ]
    assert reasons(check, "empty-class") == ["none of the 1 images of the class pink is usable"]


@pytest.mark.parametrize("row", [0, 255, 256, 299])
def test_images_that_differ_in_one_pixel_are_not_duplicates(row: int, tmp_path: Path) -> None:
    pixels = np.zeros((300, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pixels[row, 19, 2] = 1
    Image.fromarray(pixels).save(tmp_path / "b.png")
    assert not check_data(tmp_path).problems


def test_result_does_not_depend_on_the_number_of_threads(defects: tuple[Path, dict[str, str]]) -> None:
    assert check_data(defects[0], 1) == check_data(defects[0], 4)
