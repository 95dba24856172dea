"""OpenVINO as a second runtime for ONNX files."""

from pathlib import Path
from typing import Any

import pytest


def openvino_model(path: Path) -> Any:
    """Compile an ONNX file for the CPU in float32; skip the test if OpenVINO is not installed."""
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    return core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
