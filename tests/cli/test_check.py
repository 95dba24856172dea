"""Exit codes and messages of `sppnet check`."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.main import run
from tests.helpers.images import write_classes


def test_exit_code_is_0_for_notes_and_1_for_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", 2)
    Image.new("RGBA", (40, 40), (1, 2, 3, 4)).save(root / "red" / "alpha.png")
    assert run(["check", str(root), "--workers", "1"]) == 0
    assert "0 errors, 0 warnings, 1 notes" in capsys.readouterr().out
    shutil.copy(root / "red" / "0.png", root / "red" / "again.png")
    assert run(["check", str(root)]) == 1
    assert "0 errors, 1 warnings, 1 notes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/nowhere"], "no data set at"),
        (["{}/photos", "--workers", "0"], "workers: expected at least 1, got 0"),
        (["{}/photos/red/notes.txt"], "data: expected a folder, or a .csv, .json or .yaml file of annotations, got"),
        (["{}/empty"], "data: expected at least one image, got none in"),
    ],
)
def test_rejects_wrong_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_classes(tmp_path / "photos", 1)
    (tmp_path / "photos/red/notes.txt").touch()
    (tmp_path / "empty").mkdir()
    assert run(["check", *(text.format(tmp_path) for text in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out


def test_counts_examples_and_draws_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("training", 3), ("validation", 1)):
        write_classes(tmp_path / "photos" / split, count)
    folder = tmp_path / "pictures"
    assert run(["check", str(tmp_path / "photos"), "--json", "--pictures", str(folder)]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["classes"] == [
        {"class": name, "split": split, "images": count, "boxes": 0, "pixels": 0}
        for split, count in (("training", 3), ("validation", 1))
        for name in ("blue", "green", "red")
    ]
    with Image.open(folder / "samples.png") as picture:
        assert picture.width > 6 * 240
    assert run(["check", str(tmp_path / "photos")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "blue" in line] == [["│", "blue", "│", "3", "│", "1", "│"]]


def test_format_can_be_forced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_classes(tmp_path / "photos", 1)
    assert run(["check", str(root), "--format", "class-folders"]) == 0
    assert "class folders, 3 images" in capsys.readouterr().out
    assert run(["check", str(root), "--format", "coco"]) == 2
    assert "format: expected the format of" in capsys.readouterr().err
    assert run(["check", str(root), "--format", "cocoa"]) == 2
    assert "did you mean 'coco'?" in capsys.readouterr().err
