"""Kernels shared by several threads."""

from collections.abc import Iterator

import pytest
import torch

from sppnet.ops.cpu import jobs
from tests.helpers.kernel_cases import LAYOUTS, PYRAMIDS, check_backward, check_forward, make_map, make_windows


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use two threads even for little work."""
    monkeypatch.setattr(jobs, "_SERIAL", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("two_threads")
def test_two_threads_share_the_units() -> None:
    for shape in ((3, 83, 17, 19), (1, 16, 4, 4)):
        for layout in LAYOUTS:
            x = make_map(shape, "nan", torch.float32, layout)
            for windows in (None, make_windows(shape, 9, inside=True)):
                check_forward(x, windows, PYRAMIDS[0], "adaptive", "max")
                check_backward(x, windows, PYRAMIDS[0], "adaptive", "max")
