"""`sppnet evaluate` and `sppnet predict` for classifiers."""

import json
from pathlib import Path

import pytest

from sppnet.cli.main import run


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
    assert "mean per class" not in captured.err


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
    for single, batched in zip(*predictions, strict=True):
        assert single["label"] == batched["label"]
        assert single["score"] == pytest.approx(batched["score"], rel=1e-5)
