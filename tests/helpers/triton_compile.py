"""Compile Triton kernels without a GPU."""

import warnings
from pathlib import Path
from typing import Any


def compile_for_gpu(kernel: Any, types: dict[str, str], constants: dict[str, Any], warps: int, folder: Path) -> None:
    """Compile and assemble a kernel for compute capability 9.0."""
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
        compiled = triton.compile(
            source, GPUTarget("cuda", 90, 32), options={"num_warps": warps, "enable_fp_fusion": False}
        )
    assert ".target sm_90" in compiled.asm["ptx"]
    assert compiled.asm["cubin"]
