"""The CPU kernels: equal to the plain form, in every layout and number, with threads, up to the last byte of memory."""

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from sppnet.ops import reference
from sppnet.ops.bins import Rule, bin_edges
from sppnet.ops.cpu import dispatch as cpu
from sppnet.ops.cpu import jobs
from sppnet.ops.reference import Grids, Reduce

SHAPES = [(2, 64, 13, 13), (3, 83, 17, 19), (2, 5, 3, 4), (1, 128, 20, 37), (2, 16, 1, 1), (2, 70, 5, 40)]
PYRAMIDS: list[Grids] = [[(4, 4), (2, 2), (1, 1)], [(1, 1), (3, 5), (6, 2), (2, 2)]]
LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two threads, whatever the work."""
    monkeypatch.setattr(jobs, "_SERIAL", 0)
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


def draw(shape: tuple[int, ...], kind: str, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    x = torch.randn(shape)
    if kind == "ties":
        x = x.round()
    elif kind == "nan":
        x.view(-1)[torch.randint(x.numel(), (1 + x.numel() // 50,))] = torch.nan
    elif kind == "lowest":
        x.fill_(-torch.inf)
    elif kind == "infinite":
        x.view(-1)[::7], x.view(-1)[3::7] = torch.inf, -torch.inf
    return x.to(dtype).contiguous(memory_format=layout)


def draw_windows(shape: tuple[int, ...], count: int, inside: bool) -> Tensor:
    """Windows of cells, the first third of them twice; some leave the map unless they have to stay inside."""
    low, sides = (0 if inside else -2), torch.tensor([shape[3], shape[2]])
    first = torch.stack([torch.randint(low, int(side), (count,)) for side in sides], 1)
    last = first + torch.randint(1, 8, (count, 2))
    last = torch.minimum(last, sides) if inside else last
    windows = torch.cat((torch.randint(shape[0], (count, 1)), first, last), 1)
    return torch.cat((windows, windows[: count // 3]))


def check(x: Tensor, windows: Tensor | None, grids: Grids, rule: Rule, reduce: Reduce) -> None:
    """Values, cells and gradients are those of the plain form."""
    expected, expected_cells = reference.forward(x, windows, grids, rule, reduce, True)
    for save in (False, True):
        values, cells = cpu.forward(x, windows, grids, rule, reduce, save)
        near = 0.0 if reduce == "max" else 1e-5 if x.dtype == torch.float32 else 2e-2
        torch.testing.assert_close(values, expected, equal_nan=True, rtol=near, atol=near)
        assert torch.equal(cells, expected_cells if save else torch.empty(0, dtype=torch.int32))
    cells = expected_cells
    grad = torch.randn(expected.shape).to(x.dtype)
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    arguments = (grad, cells, windows, list(x.shape), last, grids, rule, reduce)
    found, expected = cpu.backward(*arguments), reference.backward(*arguments)
    near = 1e-5 if x.dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
    assert found.stride() == expected.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "ties", "nan", "lowest", "infinite"])
def test_maxima_equal_the_plain_form(kind: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES:
        x = draw(shape, kind, dtype, layout)
        for grids in PYRAMIDS:
            check(x, None, grids, "adaptive", "max")
            check(x, draw_windows(shape, 12, inside=grids[0] == (4, 4)), grids, "adaptive", "max")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_means_equal_the_plain_form(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES[:4]:
        x = draw(shape, "normal", dtype, layout)
        check(x, None, PYRAMIDS[1], "adaptive", "avg")
        check(x, draw_windows(shape, 6, inside=False), PYRAMIDS[1], "adaptive", "avg")


@pytest.mark.parametrize("rule", ["sliding", "caffe"])
def test_other_rules_equal_the_plain_form(rule: Rule) -> None:
    x = torch.randn(2, 33, 13, 12)
    for reduce in get_args(Reduce):
        check(x, None, [(3, 3), (1, 1), (2, 4)], rule, reduce)


def test_few_windows_are_pooled_without_packing() -> None:
    x = torch.randn(3, 80, 9, 21)
    windows = torch.tensor([[0, 0, 0, 5, 9], [1, 2, 3, 21, 4], [2, 0, 0, 1, 1]])
    for layout in LAYOUTS:
        check(x.contiguous(memory_format=layout), windows, PYRAMIDS[0], "adaptive", "max")


@pytest.mark.usefixtures("two_threads")
def test_threads_share_the_work() -> None:
    for shape in ((3, 83, 17, 19), (1, 16, 4, 4)):
        for layout in LAYOUTS:
            x = draw(shape, "nan", torch.float32, layout)
            for windows in (None, draw_windows(shape, 9, inside=True)):
                check(x, windows, PYRAMIDS[0], "adaptive", "max")


def test_large_outputs_go_past_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_LARGE", 1)
    for channels in (64, 83):  # of the second the groups do not begin at multiples of 64 bytes
        for dtype in DTYPES:
            check(
                torch.randn(2, channels, 9, 8).to(dtype),
                draw_windows((2, 0, 9, 8), 9, True),
                PYRAMIDS[0],
                "adaptive",
                "max",
            )


def test_equal_windows_merged_or_not() -> None:
    x, windows = torch.randn(2, 70, 12, 9), draw_windows((2, 70, 12, 9), 20, inside=True)
    merged = cpu.forward(x, windows, PYRAMIDS[1], "adaptive", "max", True)
    apart = cpu.forward(x, windows, PYRAMIDS[1], "adaptive", "max", True, merge=False)
    assert torch.equal(merged[0], apart[0])
    assert torch.equal(merged[1], apart[1])


def test_other_strides() -> None:
    x = torch.randn(3, 40, 20, 30)[::2, 3:37, 1:18, ::2]
    check(x, None, PYRAMIDS[0], "adaptive", "max")
    check(x, draw_windows(tuple(x.shape), 9, inside=True), PYRAMIDS[0], "adaptive", "max")


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_pool(count: int) -> None:
    values, cells = cpu.forward(
        torch.randn(1, 20, 5, 5), torch.zeros(0, 5, dtype=torch.long), [(2, 2)], "adaptive", "max", True
    )
    assert values.shape == cells.shape == (0, 80)
    assert cpu.serves(torch.randn(count, 20, 5, 5)) == bool(count)


def test_cut_by_the_integer_rule() -> None:
    edges = cpu._whole_edges(13, 10, ((6, 4),), "adaptive")[0].tolist()
    assert edges == [list(edge) for edge in (*bin_edges(13, 6), *bin_edges(10, 4))]


def test_plan_takes_a_level_from_the_coarsest_that_it_nests_in() -> None:
    plan = cpu._plan(((1, 1), (6, 6), (4, 4), (3, 3), (2, 6)), "adaptive", "max")
    sources = {tuple(row[:2]): None if row[2] < 0 else tuple(plan[row[2]][:2]) for row in plan.tolist()}
    assert sources == {(6, 6): None, (4, 4): None, (2, 6): (6, 6), (3, 3): (6, 6), (1, 1): (3, 3)}
    assert (cpu._plan(((2, 2), (1, 1)), "sliding", "max")[:, 2] == -1).all()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="guards memory by a call of Linux")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(3, 5), (7, 17), (4, 1), (1, 16), (5, 31)])
def test_nothing_behind_the_map_is_read(
    height: int, width: int, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """The map ends where memory does: one byte more would end the process."""
    shape = (2, 65, height, width)
    size = int(np.prod(shape)) * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
    assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0, os.strerror(ctypes.get_errno())
    held = (ctypes.c_uint8 * size).from_buffer(memory, pages * mmap.PAGESIZE - size)
    flat = torch.from_numpy(np.ctypeslib.as_array(held)).view(dtype)
    n, c, h, w = shape
    x = flat.view(shape) if layout == torch.contiguous_format else flat.view(n, h, w, c).permute(0, 3, 1, 2)
    x.copy_(torch.randn(shape))
    check(x, None, PYRAMIDS[0], "adaptive", "max")
    check(x, draw_windows(shape, 7, inside=True), PYRAMIDS[0], "adaptive", "max")
