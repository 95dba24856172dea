"""Output, exit codes and invalid arguments of `sppnet convert`."""

import subprocess
import sys
from pathlib import Path

import pytest

from sppnet.cli.main import run
from tests.helpers.annotation_files import write_yolo


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_yolo(tmp_path / "data", "0 0.5 0.5 0.5 0.5")


def test_prints_the_number_of_images(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    assert run(["convert", str(data), "--to", "voc", "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: train 2 images\n"


def test_unreadable_images_are_listed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (data / "images" / "train" / "b.jpg").write_bytes(b"no image")
    assert run(["convert", str(data), "--to", "coco", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert "train 1 images" in out
    assert "1 image could not be used:" in err
    assert "b.jpg" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{data}", "--out", "{data}"], "out: expected a new folder, got {data}, which exists"),
        (["{data}/images", "--out", "{data}/new"], "root: expected a data set in one of the formats voc, coco, yolo"),
        (["{data}", "--out", "{data}/new", "--format", "coco"], "format: expected the format of {data}, got coco"),
        (["{data}/none", "--out", "{data}/new"], "no data set at {data}/none"),
    ],
)
def test_invalid_arguments_write_nothing(
    arguments: list[str], message: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(data.rglob("*"))
    assert run(["convert", *(text.format(data=data) for text in arguments), "--to", "coco"]) == 2
    assert message.format(data=data) in " ".join(capsys.readouterr().err.split())
    assert sorted(data.rglob("*")) == before


def test_rejects_unknown_formats(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(["convert", str(data), "--to", "vocs", "--out", str(data / "new")])
    assert "--to: expected one of coco, yolo, voc, csv, got 'vocs'; did you mean voc?" in capsys.readouterr().err


def test_parser_does_not_import_torch() -> None:
    code = "import sys, sppnet.cli.convert as c; c.convert_parser(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
