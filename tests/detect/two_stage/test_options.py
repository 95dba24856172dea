"""Training options of two-stage detectors."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sppnet.detect.two_stage.options import TwoStageOptions


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"method": "spp"}, "method: expected one of two-stage, got 'spp'"),
        ({"side": 0}, "side: expected at least 1, got 0"),
        ({"windows": 0}, "windows: expected at least 1, got 0"),
        ({"side": 600, "max_side": 500}, "max_side: expected at least the side 600, got 500"),
        ({"dropout": 1.0}, r"dropout: expected a number in \[0, 1\), got 1.0"),
        ({"dropout": float("nan")}, r"dropout: expected a number in \[0, 1\), got nan"),
        ({"label_smoothing": 0.1}, "label_smoothing: expected no value, because .* by a fixed share, got 0.1; omit it"),
        ({"cache_limit": 0.0}, "cache_limit: expected "),
        ({"levels": ()}, "levels: expected "),
        ({"monitor": "top1"}, "monitor: expected one of map, ap50, got 'top1'"),
        ({"train_stages": "auto"}, "train_stages: expected "),
    ],
)
def test_rejects_illegal_values(values: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}"):
        TwoStageOptions(**values)


def test_weight_files_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert TwoStageOptions(weights="a.safetensors").weights == str(tmp_path / "a.safetensors")
    assert TwoStageOptions().weights == "auto"


def test_one_epoch_is_enough() -> None:
    assert TwoStageOptions(epochs=1).epochs == 1


def test_options_do_not_import_torch() -> None:
    code = "import sys, sppnet.detect.two_stage.options as o; o.TwoStageOptions(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
