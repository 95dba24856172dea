"""Waiting for a condition with a deadline that no working machine exceeds."""

import time
from collections.abc import Callable

TIMEOUT = 120.0  # seconds


def wait_until(condition: Callable[[], bool], timeout: float = TIMEOUT) -> None:
    """Poll until the condition is true; fail after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "timeout"
        time.sleep(0.02)
