"""`sppnet predict` for segmenters, and conversion of the training options."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sppnet.cli.main import run
from sppnet.cli.segment import options_of, train_parser
from sppnet.data.images import image_size


def test_predict_writes_the_requested_files(
    data: Path, segmenter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = data / "test" / "red" / "0.png"
    assert run(["predict", str(segmenter), str(image), "--out", str(tmp_path), "--output", "palette", "--json"]) == 0
    prediction = json.loads(capsys.readouterr().out)
    assert prediction["source"] == str(image)
    assert sum(prediction["classes"].values()) == pytest.approx(1)
    (mask,) = tmp_path.iterdir()
    with Image.open(mask) as labels:
        assert (labels.mode, labels.size[::-1]) == ("P", image_size(image))


def test_predict_requires_a_folder_for_output(data: Path, segmenter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", str(segmenter), str(data / "test"), "--output", "palette"]) == 2
    assert "output: expected a folder for palette, got none; set --out" in capsys.readouterr().err


def test_options_are_parsed() -> None:
    words = ["DATA", "--out", "RUN", "--crop", "64,80", "--scale", "0.5,1.5", "--ignore", "0,255"]
    options = options_of(train_parser().parse_args(words))
    assert (options.rates, options.crop, options.scale, options.ignore) == ((), (64, 80), (0.5, 1.5), (0, 255))
    assert options_of(train_parser().parse_args([*words, "--rates", "6,12,18"])).rates == (6, 12, 18)
