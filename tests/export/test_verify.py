"""Comparison of ONNX files with their runs: agreement, mismatches, and files that do not belong to the run."""

import dataclasses
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

from sppnet import Classifier
from sppnet.cli.main import run
from sppnet.export.models import export_regions
from sppnet.export.verify import Mismatch, Verification, verify
from sppnet.training.run import save
from tests.helpers.classifiers import build_classifier

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_exported_files_match_their_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("plain", "pixels", "regions"):
        assert run(["verify", str(folder / f"{name}.onnx"), str(folder / "run"), "--num-sizes", "24", "--json"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert content["mismatches"] == []
        assert content["worst"] < 1e-5


def test_lists_every_size_at_which_file_and_run_differ(
    folder: Path, model: Classifier, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with torch.random.fork_rng():
        other = build_classifier(levels=(6, 3, 2, 1))
        with torch.no_grad():
            other.head.fc.bias += 0.1  # type: ignore[union-attr, operator]
    save(other, tmp_path / "other")
    arguments = ["verify", str(folder / "plain.onnx"), str(tmp_path / "other"), "--num-sizes", "5"]
    assert run([*arguments, "--json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert len(content["mismatches"]) == content["sizes"] == 5
    assert content["mismatches"][0]["size"] == [1, 1]
    assert content["worst"] == max(mismatch["error"] for mismatch in content["mismatches"])
    assert run(arguments) == 1
    table = capsys.readouterr().out
    assert "differences above 1e-04" in table
    assert "1 x 600" in table
    assert run([*arguments, "--tolerance", "100"]) == 0


def test_failed_runs_and_wrong_output_shapes_are_mismatches(folder: Path, model: Classifier, tmp_path: Path) -> None:
    file = onnx.load(folder / "plain.onnx")
    file.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 600
    onnx.save(file, tmp_path / "fixed.onnx")
    report = verify(tmp_path / "fixed.onnx", model, 5)
    assert [mismatch.size for mismatch in report.mismatches] == [(1, 1), (1, 600), (2, 3), report.mismatches[3].size]
    assert "onnxruntime failed: " in report.mismatches[0].reason
    assert report.worst == float("inf")
    two_classes = dataclasses.replace(model.config, classes=("ash", "birch"))
    file = onnx.load(folder / "plain.onnx")
    next(item for item in file.metadata_props if item.key == "classes").value = json.dumps(two_classes.classes)
    onnx.save(file, tmp_path / "three.onnx")
    report = verify(tmp_path / "three.onnx", Classifier(two_classes, model.backbone).eval(), 1)
    pattern = r"file and model differ at 1 of 1 sizes: 1 x 1: output shape \((\d), 3\), expected \(\1, 2\)"
    assert re.search(pattern, report.summary())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none.onnx", "{run}"], "file: expected an existing file, got"),
        (["{run}/run.json", "{run}"], "file: expected an ONNX file, got"),
        (["{}/bare.onnx", "{run}"], "file: expected a file written by `sppnet export`, got"),
        (["{}/newer.onnx", "{run}"], "file: expected format 1, got 2 in"),
        (["{folder}/plain.onnx", "imagenet"], "with 3 classes (ash, birch, cedar, ...), got 1000 classes (tench"),
        (["{folder}/regions.onnx", "imagenet"], "test_resnet, stage None, got tf_efficientnet_lite0, stage None"),
        (["{folder}/plain.onnx", "{run}", "--num-sizes", "0"], "num_sizes: expected at least 1, got 0"),
    ],
)
def test_rejects_wrong_arguments(
    arguments: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = onnx.load(folder / "plain.onnx")
    next(item for item in file.metadata_props if item.key == "format").value = "2"
    onnx.save(file, tmp_path / "newer.onnx")
    del file.metadata_props[:]
    onnx.save(file, tmp_path / "bare.onnx")
    assert run(["verify", *(text.format(tmp_path, run=folder / "run", folder=folder) for text in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.replace("\n", " ")
    assert not captured.out


def test_json_has_null_for_infinite_differences() -> None:
    mismatches = (Mismatch((3, 4), 1, math.inf, "onnxruntime failed"), Mismatch((5, 6), 1, 0.5, "differs"))
    report = Verification("model.onnx", "classify", 2, 1e-4, math.inf, (3, 4), mismatches, 1.0)
    content = json.loads(json.dumps(report.to_dict()), parse_constant=pytest.fail)
    assert content["worst"] is None
    assert [mismatch["error"] for mismatch in content["mismatches"]] == [None, 0.5]


def test_missing_packages_are_named(
    monkeypatch: pytest.MonkeyPatch, folder: Path, model: Classifier, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ModuleNotFoundError, match=r"ONNX files need the package onnxruntime, .* extra 'export'"):
        verify(folder / "plain.onnx", model)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ModuleNotFoundError, match="ONNX files need the package onnxscript"):
        export_regions(model, tmp_path / "m.onnx")
