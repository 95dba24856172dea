"""Conflicting and renamed options of `sppnet export` and `sppnet verify`."""

from pathlib import Path

import pytest

from sppnet.cli.main import run


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "2,1"], "levels: expected no value without --regions, got (2, 1)"),
        (["--regions", "--with-preprocessing"], "with_preprocessing: expected images as input, got --regions"),
    ],
)
def test_rejects_conflicting_options(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "imagenet", "--out", str(tmp_path / "model.onnx"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["export", "verify"])
def test_sizes_is_now_called_num_sizes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["imagenet", "--out", "model.onnx"] if command == "export" else ["model.onnx", "imagenet"]
    with pytest.raises(SystemExit, match="2"):
        run([command, *arguments, "--sizes", "3"])
    assert "--sizes is now called --num-sizes" in capsys.readouterr().err
