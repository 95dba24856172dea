"""`sppnet predict` for detectors, and conversion of the training options."""

import json
from pathlib import Path

import pytest

from sppnet.cli.detect import options_of, train_parser
from sppnet.cli.main import run
from sppnet.data.images import image_size


def test_predict_draws_images_of_equal_name_to_different_files(
    data: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [str(data / "test" / name / "0.png") for name in ("red", "blue")]
    assert run(["predict", str(detector), *images, "--out", str(tmp_path), "--min-score", "0", "--json"]) == 0
    predictions = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [prediction["source"] for prediction in predictions] == images
    assert [prediction["picture"] for prediction in predictions] == [
        str(tmp_path / name) for name in ("0.png.jpg", "0.png-2.jpg")
    ]
    for prediction in predictions:
        assert list(image_size(prediction["picture"])) == prediction["size"]


def test_predict_prints_one_line_per_object(data: Path, detector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(data / "test" / "red" / "0.png")
    assert run(["predict", str(detector), image, "--min-score", "0"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines
    for source, label, score, box in lines:
        assert (source, label in ("cat", "dog"), 0 <= float(score) <= 1) == (image, True, True)
        assert len([float(edge) for edge in box.split()]) == 4
    assert run(["predict", str(detector), image, "--min-score", "1.1"]) == 0
    assert not capsys.readouterr().out


def test_options_are_parsed() -> None:
    words = ["VOC", "--out", "RUN", "--levels", "2x3,1", "--scales", "480,576", "--hidden", "none", "--scorer", "svm"]
    options = options_of(train_parser().parse_args(words))
    assert (options.levels, options.scales, options.hidden) == (((2, 3), 1), (480, 576), ())
    assert (options.proposals, options.epochs, options.lr) == ("selective-search,grid", 10, None)
