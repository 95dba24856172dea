"""`sppnet predict` for detectors, and conversion of the training options."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import sppnet
from sppnet.cli.detect import _options as train_options
from sppnet.cli.detect import train_parser
from sppnet.cli.main import run
from sppnet.data.images import image_size, load_image
from sppnet.detect.options import DetectOptions
from sppnet.detect.two_stage.options import TwoStageOptions
from sppnet.training.run import TrainingResult, save
from tests.helpers.detection_data import CLASSES
from tests.helpers.two_stage import tiny_detector


@pytest.fixture(scope="module")
def two_stage_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run of an untrained two-stage detector."""
    folder = tmp_path_factory.mktemp("two-stage")
    torch.manual_seed(0)
    save(tiny_detector(windows=20), folder)
    return folder


def predict(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, Any]]:
    assert run(["predict", *map(str, words), "--min-score", "0", "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_predict_gives_pictures_of_equal_name_different_files(
    data: Path, detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [data / "test" / name / "0.png" for name in ("red", "blue")]
    predictions = predict(capsys, detector_run, *images, "--out", tmp_path)
    assert [prediction["source"] for prediction in predictions] == [str(image) for image in images]
    pictures = [prediction["files"]["picture"] for prediction in predictions]
    assert pictures == [str(tmp_path / name) for name in ("0.jpg", "0-2.jpg")]
    for prediction in predictions:
        assert list(image_size(prediction["files"]["picture"])) == prediction["size"]


def test_predict_replaces_no_image_by_its_picture(
    data: Path, detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other photograph, b.jpg, is not among the images."""
    for name in ("a.jpg", "b.png", "b.jpg"):
        load_image(data / "test" / "red" / "0.png").save(tmp_path / name)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    predictions = predict(capsys, detector_run, "a.jpg", "b.png", "--out", tmp_path)
    pictures = [prediction["files"]["picture"] for prediction in predictions]
    assert pictures == [str(tmp_path / name) for name in ("a-2.jpg", "b-2.jpg")]
    assert all(path.read_bytes() == content for path, content in before.items())


def test_predict_prints_what_python_returns(data: Path, detector_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = data / "test" / "red" / "0.png"
    model = sppnet.load(detector_run)
    assert isinstance(model, sppnet.Detector)
    (result,) = model.predict(image, min_score=0)
    assert predict(capsys, detector_run, image) == [result.to_dict()]
    assert result.to_dict().keys() == {"source", "size", "objects"}


def test_predict_skips_unreadable_images_of_a_box_file(
    data: Path, detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = data / "test" / "red" / "0.png", tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    file = tmp_path / "boxes.csv"
    file.write_text("image,x1,y1,x2,y2\n" + "".join(f"{name},1,2,9,9\n" for name in (good.name, bad.name, "other.png")))
    assert run(["predict", str(detector_run), str(bad), str(good), "--proposals", str(file), "--json"]) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["source"] for line in out.splitlines()] == [str(good)]
    assert "1 image could not be used" in err
    assert str(bad) in err


def test_predict_prints_one_line_per_object(data: Path, detector_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(data / "test" / "red" / "0.png")
    assert run(["predict", str(detector_run), image, "--min-score", "0"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines
    for source, label, score, box in lines:
        assert (source, label in ("cat", "dog"), 0 <= float(score) <= 1) == (image, True, True)
        assert len([float(edge) for edge in box.split()]) == 4
    assert run(["predict", str(detector_run), image, "--min-score", "1.1"]) == 0
    assert not capsys.readouterr().out


def test_options_are_parsed() -> None:
    words = ["VOC", "--out", "RUN", "--method", "spp", "--levels", "2x3,1", "--scales", "480,576", "--hidden", "none"]
    options = train_options(train_parser().parse_args([*words, "--scorer", "svm", "--cell-rule", "released"]))
    assert isinstance(options, DetectOptions)
    assert (options.levels, options.scales, options.hidden) == (((2, 3), 1), (480, 576), ())
    assert (options.proposals, options.epochs, options.lr) == ("selective-search,grid", 10, None)
    assert (options.cell_rule, options.regression) == ("released", True)
    assert train_options(train_parser().parse_args(words[:5])) == DetectOptions()
    assert train_options(train_parser().parse_args(words[:3])) == TwoStageOptions()
    options = train_options(train_parser().parse_args([*words[:3], "--side", "64", "--windows", "9", "--lr", "1e-3"]))
    assert options == TwoStageOptions(side=64, windows=9, lr=1e-3)


@pytest.mark.parametrize(
    ("method", "words", "message"),
    [
        (
            "two-stage",
            "--scales 480",
            "scales: expected no value for the method 'two-stage', got (480,); omit --scales",
        ),
        ("two-stage", "--hidden none", "hidden: expected no value for the method 'two-stage', got (); omit --hidden"),
        ("two-stage", "--mirror false", "mirror: expected no value for the method 'two-stage', got False; omit"),
        ("two-stage", "--proposals grid", "proposals: expected no value for the method 'two-stage', got 'grid'; omit"),
        ("two-stage", "--proposal-seconds 3", "got 3.0; omit --proposal-seconds"),
        ("spp", "--side 480", "side: expected no value for the method 'spp', got 480; omit --side"),
        ("rcnn", "--max-side 900", "max_side: expected no value for the method 'rcnn', got 900; omit --max-side"),
        ("fast", "--dropout 0", "dropout: expected no value for the method 'fast', got 0.0; omit --dropout"),
        ("spp", "--cache-limit 9", "cache_limit: expected no value for the method 'spp', got 9.0; omit --cache-limit"),
        ("spp", "--patience 2", "patience: expected no value, because detectors are validated once"),
    ],
)
def test_train_rejects_options_of_other_methods(
    method: str, words: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(["train", "detect", "VOC", "--method", method, *words.split(), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("two_stage_run", "--proposals grid", "proposals: expected a detector of the method spp, rcnn or fast, got a"),
        ("two_stage_run", "--svd 4,4", "detector of the method two-stage in {run}; omit --svd"),
        ("two_stage_run", "--head-dtype bfloat16", "omit --head-dtype"),
        ("two_stage_run", "--workers 3", "omit --workers"),
        ("two_stage_run", "--cache x", "omit --cache"),
        ("two_stage_run", "--overlap 9", "overlap: expected --tile with it, got 9 alone; add --tile"),
        ("two_stage_run", "--tile 9", "tile: expected a side of at least 64 pixels, got 9"),
        ("two_stage_run", "--tile 100 --overlap 50", "overlap: expected 0 to 49, less than half a tile, got 50"),
        (
            "detector_run",
            "--tile 640",
            "tile: expected a two-stage detector, got a detector of the method spp in {run}",
        ),
        ("detector_run", "--overlap 9", "overlap: expected a two-stage detector, got a detector of the method spp"),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_options_of_the_other_kind_of_detector_are_errors(
    command: str,
    kind: str,
    words: str,
    message: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = request.getfixturevalue(kind)
    assert run([command, str(folder), str(tmp_path), *words.split()]) == 2
    assert message.format(run=folder) in capsys.readouterr().err


def test_vectors_need_a_two_stage_detector(
    data: Path, detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(detector_run), str(data), "--vectors", str(tmp_path / "vectors")]) == 2
    assert "vectors: expected a two-stage detector, got a detector of the method spp" in capsys.readouterr().err
    assert not (tmp_path / "vectors").exists()


def test_predict_writes_vectors_of_each_image(
    data: Path, two_stage_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [data / "test" / name / "0.png" for name in ("red", "blue")]
    predictions = predict(capsys, two_stage_run, *images, "--vectors", tmp_path / "vectors", "--tile", "64")
    files = [str(tmp_path / "vectors" / name) for name in ("0.safetensors", "0-2.safetensors")]
    assert [prediction["vectors"] for prediction in predictions] == files
    for prediction in predictions:
        tensors = load_file(prediction["vectors"])
        assert tensors.keys() == {"vectors", "boxes", "scores", "labels"}
        assert {len(tensor) for tensor in tensors.values()} == {len(prediction["objects"])}
        assert tensors["boxes"].tolist() == [detected["box"] for detected in prediction["objects"]]
        with safe_open(prediction["vectors"], "pt") as file:
            assert file.metadata()["source"] == prediction["source"]
            assert json.loads(file.metadata()["classes"]) == list(CLASSES)


def test_parsers_do_not_import_torch() -> None:
    code = "import sys, sppnet.cli.detect, sppnet.cli.compare_detectors as c; sppnet.cli.detect.train_parser();"
    code += "c.compare_parser(); assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_train_prints_validation_scores_and_interruptions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = TrainingResult(Path("RUN"), True, {"ap50": 0.5, "map": 0.25}, (), ("a problem",), 7.0, {"features": 3.0})
    calls = []

    def train(*arguments: object, **keywords: object) -> TrainingResult:
        calls.append(keywords)
        return result

    monkeypatch.setattr("sppnet.detect.train.train_detector", train)
    command = ["train", "detect", "VOC", "--out", str(tmp_path / "RUN"), "--val", "test"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert calls == [{"split": None, "val": "test", "resume": False, "format": None}]
    assert "AP50 50.0 %, AP50:95 25.0 %" in out
    assert "RUN is ready after 7 s" in out
    assert "a problem" in err
    result = replace(result, finished=False)
    assert run(command) == 130
    assert "--resume to continue" in capsys.readouterr().err
