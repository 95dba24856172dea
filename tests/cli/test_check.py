"""Exit codes and messages of `sppnet check`."""

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
        (["{}/photos/red/notes.txt"], "data: expected a folder, a .csv file of path,label or a COCO .json file"),
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
