"""JSON output and conflicting options of `sppnet export` and `sppnet verify`."""

import json
import math
from pathlib import Path

import pytest

from sppnet.cli.export import _json_content
from sppnet.cli.main import run
from sppnet.export.verify import Mismatch, Verification


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--levels", "2,1"], "levels: expected no value without --regions, got 2,1"),
        (["--regions", "--with-preprocessing"], "with-preprocessing: expected images as input, got --regions"),
    ],
)
def test_rejects_conflicting_options(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", "imagenet", "--out", str(tmp_path / "model.onnx"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_json_has_null_for_infinite_differences() -> None:
    mismatches = (Mismatch((3, 4), 1, math.inf, "onnxruntime failed"), Mismatch((5, 6), 1, 0.5, "differs"))
    report = Verification("model.onnx", "classify", 2, 1e-4, math.inf, (3, 4), mismatches, 1.0)
    content = json.loads(json.dumps(_json_content(report)), parse_constant=pytest.fail)
    assert content["worst"] is None
    assert [mismatch["error"] for mismatch in content["mismatches"]] == [None, 0.5]
