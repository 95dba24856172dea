"""Compilation of the Triton pooling kernel."""

import os
from pathlib import Path
from typing import get_args

import pytest

from sppnet.ops.gpu import dispatch as gpu
from sppnet.ops.levels import Reduce
from tests.helpers.triton_compile import compile_for_gpu

pytest.importorskip("triton")
GRIDS = ((6, 6), (3, 3), (1, 1))
pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="interpreted kernels cannot be compiled"
)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("reduce", get_args(Reduce))
def test_pool_compiles_for_gpu(reduce: Reduce, dtype: str, tmp_path: Path) -> None:
    from sppnet.ops.gpu import forward

    levels, block_c, warps = gpu._plan((2, 256, 40, 60), 2000, GRIDS, reduce, False)
    types = {"x": f"*{dtype}", "values": f"*{dtype}", "cells": "*i32", "windows": "*i64", "channels": "i32"}
    types |= {"height": "i32", "width": "i32", "length": "i32"}
    constants = {"LEVELS": levels, "BLOCK_C": block_c, "MAX": reduce == "max", "SAVE": reduce == "max"}
    constants |= {"WHOLE": False, "CHANNELS_LAST": dtype == "bf16"}
    compile_for_gpu(forward.pool, types, constants, warps, tmp_path)
