"""`sppnet train classify`, and `sppnet evaluate` and `sppnet predict` for classifiers."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sppnet.classify.predict
from sppnet.classify.options import ClassifyOptions
from sppnet.cli.classify import train_parser
from sppnet.cli.main import run
from sppnet.cli.parser import options_of


def test_training_options_default_to_those_of_the_dataclass(tmp_path: Path) -> None:
    arguments = train_parser().parse_args(["DATA", "--out", "RUN"])
    assert options_of(ClassifyOptions, arguments) == ClassifyOptions()
    (tmp_path / "options.yaml").write_text("levels: [2, 1]\nhead: fc\nlr: 0.1\nfreeze_backbone: true\n")
    arguments = train_parser().parse_args(["DATA", "--out", "RUN", "--config", str(tmp_path / "options.yaml")])
    expected = replace(ClassifyOptions(), levels=(2, 1), head="fc", lr=0.1, freeze_backbone=True)
    assert options_of(ClassifyOptions, arguments) == expected


def test_training_prints_its_accuracy_and_lists_skipped_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images" / "red").mkdir(parents=True)
    (tmp_path / "images" / "blue").symlink_to(data / "train" / "blue")
    (tmp_path / "images" / "red" / "0.png").symlink_to(data / "train" / "red" / "0.png")
    (tmp_path / "images" / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "images" / "red" / "notes.txt").write_text("not an image")
    command = ["train", "classify", str(tmp_path / "images"), "--freeze-backbone", "--levels", "1"]
    assert run([*command, "--val", str(tmp_path / "images"), "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    rows = [[cell.strip() for cell in row.strip("│").split("│")] for row in out.splitlines() if row.startswith("│")]
    assert rows == [[f"{name} images", "5", "100.00", "100.00"] for name in ("training", "validation")]
    assert f"{tmp_path / 'run'} is ready after" in out
    assert "notes.txt: skipped, not an image by its extension" in err
    assert "gone.png: no such file" in err


def test_evaluate_prints_one_json_object(trained: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", str(trained), str(data), "--split", "test", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["images"] == 6
    assert content["top1"] > 0.5
    assert content["top5"] == 1
    assert 0 <= content["mean_per_class_accuracy"] <= 1


def test_evaluate_compares_policies_on_the_test_split_by_default(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data), "--compare", "center-crop,warp,square-min,native", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content["compare"]) == {"center-crop:224", "warp:224", "square-min", "native"}
    assert all(part["images"] == 6 for part in content["compare"].values())


def test_evaluate_prints_tables_on_standard_output(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["evaluate", str(trained), str(data / "test")]) == 0
    captured = capsys.readouterr()
    assert "mean per class" in captured.out
    assert "by aspect ratio" in captured.out
    assert "calibration error 0." in captured.out
    assert "top-5" not in captured.out  # there are three classes
    assert "mean per class" not in captured.err


def test_evaluate_writes_a_report(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", str(trained), str(data), "--report", str(tmp_path / "report")]
    assert run([*command, "--json"]) == 0
    captured = capsys.readouterr()
    content = json.loads(captured.out)
    assert f"report written to {tmp_path / 'report'}" in captured.err
    stored = json.loads((tmp_path / "report" / "report.json").read_text())
    assert stored.items() >= content.items()
    assert stored.keys() - content.keys() == {"threshold", "per_class", "confusion", "reliability"}
    assert len((tmp_path / "report" / "images.csv").read_text().splitlines()) == 7
    assert run([*command, "--compare", "native,warp"]) == 2
    assert "report: expected no value with --compare" in capsys.readouterr().err


def test_predict_reports_unknown_images(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "noise.png"
    Image.effect_noise((90, 70), 90).convert("RGB").save(image)
    command = ["predict", str(trained), str(data / "test"), str(image)]
    assert run([*command, "--json", "--unknown"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    threshold = json.loads((trained / "run.json").read_text())["config"]["threshold"]
    assert 0 < threshold < 1
    for line in lines:
        assert line["label"] == ("unknown" if line["score"] < threshold else line["top"][0]["label"])
        assert line["score"] == line["top"][0]["score"]
    assert run(command) == 0
    assert "\tunknown\t" not in capsys.readouterr().out
    assert run(["predict", "imagenet", str(image), "--unknown"]) == 2
    assert "unknown: expected a classifier with a threshold, got one without" in capsys.readouterr().err


def test_predict_prints_json_lines_and_lists_unusable_files(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    arguments = ["predict", str(trained), str(data / "test"), str(tmp_path), str(tmp_path / "none.png"), "--json"]
    assert run(arguments) == 1
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert len(lines) == 6
    assert {line["label"] for line in lines} <= {"blue", "green", "red"}
    assert list(lines[0]) == ["source", "size", "label", "score", "top", "network_size"]
    assert lines[0]["top"][0] == {"label": lines[0]["label"], "score": lines[0]["score"]}
    assert "2 images could not be used" in captured.err
    assert "broken.jpg: file is empty" in captured.err
    assert "none.png: no such file" in captured.err


def test_predictions_do_not_depend_on_the_batch_size(
    trained: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictions = []
    for batch in ("1", "32"):
        assert run(["predict", str(trained), str(data / "test"), "--batch", batch, "--json"]) == 0
        predictions.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    assert len(predictions[0]) == len(predictions[1]) == 6
    for single, batched in zip(*predictions, strict=True):
        assert single["label"] == batched["label"]
        assert single["score"] == pytest.approx(batched["score"], rel=1e-5)


def test_interrupted_prediction_keeps_its_lines_and_reports_failures(
    trained: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.png").write_bytes(b"<html>")
    predict_images = sppnet.classify.predict.predict_images

    def interrupt(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, result in enumerate(predict_images(*arguments, **options)):
            if number == 3:
                raise KeyboardInterrupt
            yield result

    monkeypatch.setattr("sppnet.classify.predict.predict_images", interrupt)
    assert run(["predict", str(trained), str(tmp_path), str(data / "test")]) == 130
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "broken.png: not an image" in err
    assert "interrupted; results printed so far are complete" in err


def test_warns_once_about_sizes_outside_the_trained_ones(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side in (1, 60, 300):
        Image.new("RGB", (side, side)).save(tmp_path / f"{side}.png")
    assert run(["predict", str(trained), str(tmp_path), "--batch", "1"]) == 0
    out, err = capsys.readouterr()
    assert [Path(line.split("\t")[0]).name for line in out.splitlines()] == ["1.png", "300.png", "60.png"]
    assert err.count("2 of 3 images were classified at a shorter side outside") == err.count("outside") == 1
