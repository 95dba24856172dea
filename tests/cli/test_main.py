"""Exit codes and messages of the command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "classify", "{}/nowhere", "--out", "{}/r"], "no data set at"),
        (
            ["train", "classify", "{data}/train/red", "--out", "{}/r"],
            "expected a folder of class folders, got 4 images",
        ),
        (["train", "classify", "{data}", "--out", "{}/r", "--backbone", "resnet81"], "got 'resnet81'; close matches: "),
        (
            ["train", "classify", "{data}", "--out", "{}/r", "--backbone", "resnet18"],
            "weights: expected 'hub' (download from timm)",
        ),
        (["train", "classify", "{data}", "--out", "{}/r", "--levels", "2,0"], "smallest level is 1"),
        (["train", "classify", "{data}", "--out", "{}/r", "--levels", "two"], "levels: expected numbers"),
        (["train", "classify", "{data}", "--out", "{run}"], "already contains a training"),
        (["evaluate", "{}/nowhere", "{data}"], "no such folder"),
        (["evaluate", "{data}", "{data}"], "it has no run.json"),
        (["evaluate", "{run}", "{data}", "--split", "vla"], "split: expected one of train, test"),
        (["evaluate", "{run}", "{data}", "--resize", "center-crp"], "did you mean center-crop"),
        (["predict", "{run}", "{data}", "--views", "7"], "views: expected one of full, 10, 18, 96"),
        (["predict", "{run}", "{data}", "--views", "10", "--resize", "native"], "which have fixed sizes, got native"),
        (["evaluate", "{run}", "{data}", "--compare", "native,wrap"], "did you mean warp"),
        (["predict", "{run}", "{data}", "--device", "abacus"], "device: expected an available device, got 'abacus'"),
        (["predict", "{run}", "{data}", "--batch", "0"], "batch: expected at least 1"),
    ],
)
def test_invalid_arguments_exit_with_2(
    arguments: list[str], message: str, trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {"run": str(trained), "data": str(data)}
    assert run([text.format(tmp_path, **paths) for text in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_standard_output_prints_no_traceback(trained: Path, data: Path, unbuffered: str) -> None:
    command = [sys.executable, "-m", "sppnet", "predict", str(trained), str(data / "test")]
    env = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert "Error" not in process.stderr.read()
    assert process.returncode == 1


def test_warnings_of_pillow_are_not_printed(trained: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60)).save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 60_000)
    command = [sys.executable, "-m", "sppnet", "predict", str(trained), str(tmp_path / "a.jpg")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "a.jpg\t" in done.stdout
    assert "EXIF" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train"], ["predict"], ["evaluate", "--fly"], ["train", "classify"]]
)
def test_unknown_or_missing_arguments_exit_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 2


@pytest.mark.parametrize("arguments", [["--help"], ["train", "classify", "--help"], ["--version"]])
def test_help_and_version_exit_with_0(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        run(arguments)
    assert error.value.code == 0
    assert "sppnet" in capsys.readouterr().out
