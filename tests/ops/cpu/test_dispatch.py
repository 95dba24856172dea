"""Choice of the CPU kernel, packed maps, plans and tables."""

from typing import NoReturn

import pytest
import torch
from torch import Tensor

from sppnet.ops import reference
from sppnet.ops.bins import bin_edges
from sppnet.ops.cpu import dispatch as cpu
from sppnet.ops.levels import Reduce
from tests.helpers.kernel_cases import LAYOUTS, PYRAMIDS, check_forward, make_windows


def test_few_windows_match_the_reference() -> None:
    x = torch.randn(3, 80, 9, 21)
    windows = torch.tensor([[0, 0, 0, 5, 9], [1, 2, 3, 21, 4], [2, 0, 0, 1, 1]])
    for layout in LAYOUTS:
        check_forward(x.contiguous(memory_format=layout), windows, PYRAMIDS[0], "adaptive", "max")


def test_merging_equal_windows_keeps_the_result() -> None:
    x, windows = torch.randn(2, 70, 12, 9), make_windows((2, 70, 12, 9), 20, inside=True)
    merged = cpu.forward(x, windows, PYRAMIDS[1], "adaptive", "max", True)
    separate = cpu.forward(x, windows, PYRAMIDS[1], "adaptive", "max", True, merge=False)
    assert torch.equal(merged[0], separate[0])
    assert torch.equal(merged[1], separate[1])


def test_strided_maps_match_the_reference() -> None:
    x = torch.randn(3, 40, 20, 30)[::2, 3:37, 1:18, ::2]
    check_forward(x, None, PYRAMIDS[0], "adaptive", "max")
    check_forward(x, make_windows(tuple(x.shape), 9, inside=True), PYRAMIDS[0], "adaptive", "max")


@pytest.mark.parametrize("count", [0, 1])
def test_empty_inputs(count: int) -> None:
    values, cells = cpu.forward(
        torch.randn(1, 20, 5, 5), torch.zeros(0, 5, dtype=torch.long), [(2, 2)], "adaptive", "max", True
    )
    assert values.shape == cells.shape == (0, 80)
    assert cpu.serves(torch.randn(count, 20, 5, 5)) == bool(count)


def test_edges_of_whole_maps_match_bin_edges() -> None:
    edges = cpu._whole_edges(13, 10, ((6, 4),), "adaptive")[0].tolist()
    assert edges == [list(edge) for edge in (*bin_edges(13, 6), *bin_edges(10, 4))]


def test_plan_derives_levels_from_the_coarsest_nesting_level() -> None:
    plan = cpu._plan(((1, 1), (6, 6), (4, 4), (3, 3), (2, 6)), "adaptive", "max")
    sources = {tuple(row[:2]): None if row[2] < 0 else tuple(plan[row[2]][:2]) for row in plan.tolist()}
    assert sources == {(6, 6): None, (4, 4): None, (2, 6): (6, 6), (3, 3): (6, 6), (1, 1): (3, 3)}
    assert (cpu._plan(((2, 2), (1, 1)), "sliding", "max")[:, 2] == -1).all()


def fail_if_packed(*_: object) -> NoReturn:
    raise AssertionError("the maps were packed")


@pytest.mark.parametrize("channels", [1, 3, 15])
@pytest.mark.parametrize("reduce", ["max", "avg"])
def test_maps_of_few_channels_are_not_packed(channels: int, reduce: Reduce, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_packed", fail_if_packed)
    x = torch.randn(2, channels, 37, 53)
    values, cells = cpu.forward(x, None, [(4, 4), (1, 1)], "adaptive", reduce, True)
    expected, expected_cells = reference.forward(x, None, [(4, 4), (1, 1)], "adaptive", reduce, True)
    assert torch.equal(values, expected)
    assert torch.equal(cells, expected_cells)


@pytest.mark.parametrize("channels", [3, 16, 64])
def test_large_maps_are_not_packed_for_few_boxes(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_packed", fail_if_packed)
    monkeypatch.setattr(cpu, "_SMALL", 1 << 10)
    x = torch.randn(1, channels, 61, 47)
    windows = torch.tensor([[0, 0, 0, 20, 30], [0, 5, 5, 46, 11], [0, 40, 1, 47, 61]])
    values, cells = cpu.forward(x, windows, [(3, 3), (1, 1)], "adaptive", "max", True)
    expected, expected_cells = reference.forward(x, windows, [(3, 3), (1, 1)], "adaptive", "max", True)
    assert torch.equal(values, expected)
    assert torch.equal(cells, expected_cells)


@pytest.mark.parametrize("channels", [3, 16, 64])
def test_maps_are_packed_for_many_large_boxes(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_SMALL", 0)
    packed_maps = []
    pack = cpu._packed

    def record(x: Tensor) -> Tensor:
        packed_maps.append(x)
        return pack(x)

    monkeypatch.setattr(cpu, "_packed", record)
    x = torch.randn(1, channels, 12, 9)
    windows = torch.tensor([[0, 0, 0, 9, 12 - row % 3] for row in range(100)])
    values, _ = cpu.forward(x, windows, [(3, 3)], "adaptive", "max", False)
    assert packed_maps
    assert torch.equal(values, reference.forward(x, windows, [(3, 3)], "adaptive", "max", False)[0])
