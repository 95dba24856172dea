"""Request limits."""

from dataclasses import replace

import pytest

from tests.helpers.web_clients import LIMITS


@pytest.mark.parametrize("name", ["max_bytes", "max_image_pixels", "max_boxes", "queue"])
def test_rejects_limits_below_one(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected at least 1, got 0"):
        replace(LIMITS, **{name: 0})


def test_rejects_a_time_limit_of_zero() -> None:
    with pytest.raises(ValueError, match="upload_seconds: expected more than 0, got 0"):
        replace(LIMITS, upload_seconds=0)
