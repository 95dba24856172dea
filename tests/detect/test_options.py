"""Tests of the training options of detectors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sppnet.detect.options import DetectOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"method": "faster"}, "method: expected one of spp, rcnn, fast, got 'faster'; did you mean 'fast'"),
        ({"scorer": "softmax", "hidden": ()}, "scorer: expected svm, got softmax; a softmax requires hidden sizes"),
        ({"scorer": "softmax", "finetune": False}, "scorer: .* requires hidden sizes and finetune"),
        ({"scorer": "SVM"}, "scorer: expected one of svm, softmax, got 'SVM'"),
        ({"hidden": (64, 0)}, r"hidden: expected sizes of at least 1, got \(64, 0\)"),
        ({"windows": 0}, "windows: expected at least 1, got 0"),
        ({"steps": 0}, "steps: expected at least 1, got 0"),
        ({"workers": 0}, "workers: expected at least 1, got 0"),
        ({"batch": 0}, "batch: expected at least 1, got 0"),
        ({"levels": (0,)}, "levels"),
        ({"cell_rule": "ceil"}, "cell_rule: expected one of paper, released, roi_pool, got 'ceil'"),
        ({"reduce": "sum"}, "reduce: expected one of max, avg, got 'sum'"),
        ({"scale_rule": "nearest"}, "scale_rule: expected one of paper, released, got 'nearest'"),
        ({"lr": -1.0}, "lr: expected a number of at least 0"),
        (
            {"method": "rcnn", "scales": (480,)},
            r"scales: expected the default \(688,\), got \(480,\); the method 'rcnn'",
        ),
        ({"method": "fast", "levels": (3,)}, r"levels: .* got \(3,\); the method 'fast' does not use this option"),
        ({"monitor": "map"}, "monitor: expected no value, because detectors are validated once, .* got 'map'"),
        ({"train_stages": "all"}, "train_stages: expected 0 for the method 'spp', got all; .* frozen convolutions"),
        ({"method": "fast", "freeze_backbone": True}, "train_stages: expected all for the method 'fast', got 0"),
        ({"method": "fast", "devices": 3}, "devices: expected 1 or 2 for the method 'fast', .* two images, got 3"),
        ({"method": "fast", "regression": False}, "regression: expected True, got False; Fast R-CNN"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_options(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectOptions(**values)


def test_files_are_stored_as_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run can then be resumed from another working directory."""
    monkeypatch.chdir(tmp_path)
    options = DetectOptions(proposals="a/../boxes.csv", weights="net.safetensors")
    assert (options.proposals, options.weights) == (str(tmp_path / "boxes.csv"), str(tmp_path / "net.safetensors"))
    assert (DetectOptions(proposals="grid").proposals, DetectOptions(weights="hub").weights) == ("grid", "hub")


def test_options_are_importable_without_torch() -> None:
    code = "import sys, sppnet.detect.options; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
