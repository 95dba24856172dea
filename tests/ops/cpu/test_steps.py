"""Building blocks of the CPU kernels: derived levels, empty bins and streaming stores."""

import pytest
import torch

from sppnet.ops.cpu import dispatch as cpu
from tests.helpers.kernel_cases import DTYPES, LAYOUTS, PYRAMIDS, check_forward, make_map, make_windows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["ties", "nan"])
def test_derived_level_equals_level_pooled_from_the_map(kind: str, layout: torch.memory_format) -> None:
    x = make_map((2, 64, 13, 17), kind, torch.float32, layout)
    both, both_cells = cpu.forward(x, None, [(6, 4), (3, 2)], "adaptive", "max", True)
    coarse, coarse_cells = cpu.forward(x, None, [(3, 2)], "adaptive", "max", True)
    torch.testing.assert_close(both[:, 64 * 24 :], coarse, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(both_cells[:, 64 * 24 :], coarse_cells)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bins_outside_the_map_are_zero_without_a_cell(layout: torch.memory_format) -> None:
    x = make_map((1, 64, 6, 8), "lowest", torch.float32, layout)
    windows = torch.tensor([[0, 4, 0, 12, 6]])  # the right half is outside
    values, cells = cpu.forward(x, windows, [(1, 2)], "adaptive", "max", True)
    assert torch.equal(values, torch.tensor([-torch.inf, 0.0]).repeat(1, 64))
    assert torch.equal(cells, torch.tensor([4, -1], dtype=torch.int32).repeat(1, 64))


def test_streaming_stores_write_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_LARGE", 1)
    windows = make_windows((2, 0, 9, 8), 9, inside=True)
    for channels in (64, 83):  # with 83 channels, groups are not aligned to 64 bytes
        for dtype in DTYPES:
            check_forward(torch.randn(2, channels, 9, 8).to(dtype), windows, PYRAMIDS[0], "adaptive", "max")
