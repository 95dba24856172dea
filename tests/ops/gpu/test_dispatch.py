"""The kernels for a GPU: equal to plain torch on one or in Triton's interpreter, and fit for a GPU without one."""

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from sppnet.ops.gpu import dispatch as gpu
from sppnet.ops.reference import Reduce

pytest.importorskip("triton")
KERNELS = Path(__file__).parents[2] / "gpu_kernels.py"
GRIDS = ((6, 6), (3, 3), (1, 1))


def test_the_kernels_equal_plain_torch() -> None:
    """Triton chooses its interpreter when it is imported, so another process has to."""
    interpreter = "0" if torch.cuda.is_available() else "1"
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", str(KERNELS)],
        env={**os.environ, "TRITON_INTERPRET": interpreter, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout[-8000:] + found.stderr[-2000:]


def test_triton_is_not_imported_before_it_is_needed() -> None:
    code = "import sys, sppnet, sppnet.ops.gpu.dispatch; sys.exit('triton' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_map_in_main_memory_is_not_served() -> None:
    assert not gpu.serves(torch.zeros(1, 1, 1, 1))


def assemble(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, folder: Path) -> None:
    """Compile for a GPU of compute capability 9.0 and have its assembler accept the result; no GPU is needed."""
    import triton  # type: ignore[import-untyped]
    from triton.backends.compiler import GPUTarget  # type: ignore[import-untyped]
    from triton.compiler import ASTSource  # type: ignore[import-untyped]

    names = kernel.arg_names
    signature = {name: types.get(name, "constexpr") for name in names}
    source = ASTSource(
        kernel,
        signature,
        constexprs={name: constants.get(name) for name in names if name not in types},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in types if types[name].startswith("*")},
    )
    with triton.knobs.cache.scope(), warnings.catch_warnings():
        triton.knobs.cache.dir = str(folder)
        built = triton.compile(
            source, GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": False}
        )
    assert ".target sm_90" in built.asm["ptx"]
    assert built.asm["cubin"]


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="what is interpreted cannot be compiled")
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["pool-max", "pool-avg", "scatter", "spread"])
def test_the_kernels_compile_for_a_gpu(name: str, dtype: str, tmp_path: Path) -> None:
    from sppnet.ops.gpu import backward, forward

    sizes = dict.fromkeys(("channels", "height", "width", "length"), "i32")
    places = {"windows": "*i64", "order": "*i32", "firsts": "*i32"}
    options = {"WHOLE": False, "CHANNELS_LAST": dtype == "bf16"}
    levels, bins = gpu._starts(GRIDS)
    if name.startswith("pool"):
        reduce: Reduce = "max" if name == "pool-max" else "avg"
        plan, block_c, warps = gpu._plan((2, 256, 40, 60), 2000, GRIDS, reduce, False)
        types = {"x": f"*{dtype}", "values": f"*{dtype}", "cells": "*i32", "windows": "*i64", **sizes}
        constants = {"LEVELS": plan, "BLOCK_C": block_c, "MAX": reduce == "max", "SAVE": reduce == "max", **options}
        assemble(forward.pool, types, constants, warps, tmp_path)
    elif name == "scatter":
        types = {"grad": f"*{dtype}", "cells": "*i32", "order": "*i32", "firsts": "*i32", "total": "*fp32"}
        types |= {"channels": "i32", "area": "i32", "length": "i32"}
        constants = {"LEVELS": levels, "BINS": bins, "BLOCK_C": 1, "BLOCK": 64, **options}
        assemble(backward.scatter, types, constants, 2, tmp_path)
    else:
        types = {"grad": f"*{dtype}", "result": f"*{dtype}", **places, **sizes}
        constants = {"LEVELS": levels, "BLOCK_C": 8, "BLOCK": 128, **options}
        assemble(backward.spread, types, constants, 4, tmp_path)
