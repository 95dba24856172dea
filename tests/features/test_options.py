"""Configuration of region encoders: legal values, and import without torch."""

import subprocess
import sys
from typing import Any

import pytest

from sppnet import RegionEncoderConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": (2, 0)}, r"levels\[1\]: expected at least 1 bin per side"),
        ({"rule": "papr"}, "rule: expected one of paper, released, roi_pool, got 'papr'; did you mean 'paper'"),
        ({"reduce": "mean"}, "reduce: expected one of max, avg"),
        ({"scale_rule": "best"}, "scale_rule: expected one of paper, released"),
    ],
)
def test_rejects_invalid_options(options: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(ValueError, match=message):
        RegionEncoderConfig(**options)


def test_options_are_importable_without_torch() -> None:
    code = "import sys, sppnet.features.options; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
