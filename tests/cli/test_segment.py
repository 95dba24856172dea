"""`sppnet train segment`, and `sppnet evaluate` and `sppnet predict` for segmenters."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.main import run
from sppnet.cli.parser import options_of
from sppnet.cli.segment import train_parser
from sppnet.data.images import image_size
from sppnet.segment.options import SegmentOptions
from tests.helpers.segmentation_data import write_shapes
from tests.helpers.tiny_segmenter import COMMAND_OPTIONS


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data", "camvid", {"train": 4, "val": 2})


def test_trains_evaluates_and_writes_pictures(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run(["train", "segment", str(shapes), "--out", str(out), *COMMAND_OPTIONS, "--epochs", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("mean IoU ")
    assert f"{out} is ready after" in captured.out
    assert "IoU of the validation classes: background" in captured.err
    command = ["evaluate", str(out), str(shapes), "--scale-factors", "1,1.5", "--flip"]
    assert run([*command, "--pictures", str(tmp_path / "pictures"), "--report", str(tmp_path / "report")]) == 0
    shown = capsys.readouterr().out
    assert "mean IoU" in shown
    assert "calibration error 0." in shown
    assert {file.name for file in (tmp_path / "report").iterdir()} == {"report.html", "report.json", "images.csv"}
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == ["best.png", "worst.png"]
    assert run([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 2


def test_predict_writes_the_requested_files(
    data: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, bad, out = data / "test" / "red" / "0.png", tmp_path / "bad.png", tmp_path / "out"
    bad.write_bytes(b"no image")
    command = ["predict", str(segmenter), str(bad), str(image), "--json"]
    assert run([*command, "--out", str(out), "--write", "palette"]) == 1
    captured = capsys.readouterr()
    assert "bad.png" in captured.err
    result = json.loads(captured.out)
    assert result["source"] == str(image)
    assert result["files"] == {"palette": str(out / "0.png")}
    assert sum(item["share"] for item in result["classes"]) == pytest.approx(1)
    (mask,) = out.iterdir()
    with Image.open(mask) as labels:
        assert (labels.mode, labels.size[::-1]) == ("P", image_size(image))
    assert run(command) == 1
    assert json.loads(capsys.readouterr().out).keys() == {"source", "size", "classes"}


def test_prediction_without_an_output_folder_writes_no_files(
    data: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(segmenter), str(data / "test"), "--tile", "64", "--overlap", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert all("%" in line for line in lines)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--write", "palette"], "write: expected a folder for palette, got none; set --out"),
        (["--write", "palete", "--out", "out"], "write: expected one of palette, overlay, probabilities, got 'palete'"),
        (["--max-image-pixels", "0"], "max_image_pixels: expected at least 1, got 0"),
        (["--tile", "50"], "tile: expected a multiple of 16, the model's stride, got 50; use 64"),
    ],
)
def test_predict_rejects_illegal_options(
    options: list[str],
    message: str,
    data: Path,
    segmenter: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["predict", str(segmenter), str(data / "test"), *options]) == 2
    assert message in capsys.readouterr().err


def test_image_beyond_the_pixel_limit_is_refused(
    data: Path, segmenter: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(segmenter), str(data / "test" / "red" / "0.png"), "--max-image-pixels", "9"]) == 1
    assert "too many pixels" in capsys.readouterr().err


def test_interrupted_training_exits_with_130(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sppnet.segment.train.fit", lambda *_, **__: False)
    assert run(["train", "segment", str(shapes), "--out", str(tmp_path / "run"), *COMMAND_OPTIONS]) == 130
    assert "run the same command with --resume to continue" in capsys.readouterr().err


def test_options_are_parsed() -> None:
    def parse(*words: str) -> SegmentOptions:
        return options_of(SegmentOptions, train_parser().parse_args(["DATA", "--out", "RUN", *words]))

    assert parse() == parse("--rates", "auto") == SegmentOptions()
    options = parse("--crop", "64,80", "--scale-range", "0.5,1.5", "--ignore", "0,255", "--rates", "6,12,18")
    assert (options.rates, options.crop) == ((6, 12, 18), (64, 80))
    assert (options.scale_range, options.ignore) == ((0.5, 1.5), (0, 255))
