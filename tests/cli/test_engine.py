"""Options of `--engine ray`."""

from pathlib import Path

import pytest

from sppnet.cli.main import run


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--actors", "2"], "actors: expected no value without --engine ray, got 2"),
        (["--shard", "2"], "shard: expected no value without --engine ray, got 2"),
        (["--engine", "ray"], "out: expected a folder with --engine ray, got none"),
        (["--engine", "ray", "--out", "{out}", "--views", "7"], "views: expected one of full, 10, 18, 96"),
        (["--engine", "ray", "--out", "{out}", "--batch", "0"], "batch: expected at least 1"),
        (
            ["--engine", "ray", "--out", "{out}", "--cache", "x"],
            "cache: expected a detector, got a classifier in imagenet",
        ),
        (["--engine", "ray", "--out", "{out}", "--actors", "0"], "actors: expected at least 1, got 0"),
        (["--engine", "ray", "--out", "{out}", "--ray-address", "here"], "ray_address: expected auto, host:port or"),
    ],
)
def test_rejects_invalid_options(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    arguments = [option.format(out=tmp_path / "out") for option in options]
    assert run(["predict", "imagenet", str(data), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_rejects_options_unsupported_on_ray(
    data: Path, detector_run: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def error(run_folder: Path, *options: str) -> str:
        arguments = ["--engine", "ray", "--out", str(tmp_path / "out"), *options]
        assert run(["predict", str(run_folder), str(data), *arguments]) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "workers: expected no value with --engine ray, got 3" in error(detector_run, "--workers", "3")
    assert "cache: expected no value with --engine ray" in error(detector_run, "--cache", str(tmp_path / "cache"))
    assert "proposals: expected no box file with --engine ray, got boxes.csv" in error(
        detector_run, "--proposals", "boxes.csv"
    )
    assert "engine: expected local for a segmenter, got ray" in error(segmenter)
