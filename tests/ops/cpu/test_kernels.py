"""Values and cells of the CPU kernels."""

import ctypes
import mmap
import os
import sys
from typing import get_args

import numpy as np
import pytest
import torch

from sppnet.ops.levels import Reduce, Rule
from tests.helpers.kernel_cases import DTYPES, KINDS, LAYOUTS, PYRAMIDS, SHAPES, check_forward, make_map, make_windows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_maxima_match_the_reference(kind: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES:
        x = make_map(shape, kind, dtype, layout)
        for grids in PYRAMIDS:
            check_forward(x, None, grids, "adaptive", "max")
            check_forward(x, make_windows(shape, 12, inside=grids[0] == (4, 4)), grids, "adaptive", "max")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_means_match_the_reference(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for shape in SHAPES[:4]:
        x = make_map(shape, "normal", dtype, layout)
        check_forward(x, None, PYRAMIDS[1], "adaptive", "avg")
        check_forward(x, make_windows(shape, 6, inside=False), PYRAMIDS[1], "adaptive", "avg")


@pytest.mark.parametrize("rule", ["sliding", "caffe"])
def test_other_rules_match_the_reference(rule: Rule) -> None:
    x = torch.randn(2, 33, 13, 12)
    for reduce in get_args(Reduce):
        check_forward(x, None, [(3, 3), (1, 1), (2, 4)], rule, reduce)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="protects memory with a Linux system call")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("height", "width"), [(3, 5), (7, 17), (4, 1), (1, 16), (5, 31)])
def test_reads_stay_inside_the_map(height: int, width: int, dtype: torch.dtype, layout: torch.memory_format) -> None:
    """The map ends where accessible memory ends: reading one byte more would crash the process."""
    shape = (2, 65, height, width)
    size = int(np.prod(shape)) * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
    assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), 0) == 0, os.strerror(ctypes.get_errno())
    buffer = (ctypes.c_uint8 * size).from_buffer(memory, pages * mmap.PAGESIZE - size)
    flat = torch.from_numpy(np.ctypeslib.as_array(buffer)).view(dtype)
    n, c, h, w = shape
    x = flat.view(shape) if layout == torch.contiguous_format else flat.view(n, h, w, c).permute(0, 3, 1, 2)
    x.copy_(torch.randn(shape))
    check_forward(x, None, PYRAMIDS[0], "adaptive", "max")
    check_forward(x, make_windows(shape, 7, inside=True), PYRAMIDS[0], "adaptive", "max")
