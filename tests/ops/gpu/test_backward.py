"""Compilation of the Triton gradient kernels."""

import os
from pathlib import Path

import pytest

from sppnet.ops.gpu import dispatch as gpu
from tests.helpers.triton_compile import compile_for_gpu

pytest.importorskip("triton")
GRIDS = ((6, 6), (3, 3), (1, 1))
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"
)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_scatter_compiles_for_gpu(dtype: str, tmp_path: Path) -> None:
    from sppnet.ops.gpu import backward

    levels, bins = gpu._starts(GRIDS)
    types = {"grad": f"*{dtype}", "cells": "*i32", "order": "*i32", "firsts": "*i32", "total": "*fp32"}
    types |= {"channels": "i32", "area": "i32", "length": "i32"}
    constants = {"LEVELS": levels, "BINS": bins, "BLOCK_C": 1, "BLOCK": 64}
    constants |= {"WHOLE": False, "CHANNELS_LAST": dtype == "bf16"}
    compile_for_gpu(backward.scatter, types, constants, 2, tmp_path)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_spread_compiles_for_gpu(dtype: str, tmp_path: Path) -> None:
    from sppnet.ops.gpu import backward

    types = {"grad": f"*{dtype}", "windows": "*i64", "order": "*i32", "firsts": "*i32", "result": f"*{dtype}"}
    types |= {"channels": "i32", "height": "i32", "width": "i32", "length": "i32"}
    constants = {"LEVELS": gpu._starts(GRIDS)[0], "BLOCK_C": 8, "BLOCK": 128}
    constants |= {"WHOLE": False, "CHANNELS_LAST": dtype == "bf16"}
    compile_for_gpu(backward.spread, types, constants, 4, tmp_path)
