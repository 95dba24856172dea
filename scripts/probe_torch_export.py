"""Report whether torch exports a pyramid of its own adaptive pools correctly for every map size.

Usage: python scripts/probe_torch_export.py
"""

import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

LEVELS = (6, 3, 2, 1)
TRACED = (24, 30)  # multiples of every level
OTHERS = ((36, 48), (13, 17), (7, 25), (5, 4))  # only the first again
POOLS: dict[str, Callable[[Tensor, int], Tensor]] = {"max": F.adaptive_max_pool2d, "avg": F.adaptive_avg_pool2d}


class Pyramid(nn.Module):
    """Concatenation of torch's adaptive pools, one per level."""

    def __init__(self, pool: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        """Pool (N, C, H, W) to (N, C * bins)."""
        return torch.cat([self.pool(x, level).flatten(1) for level in LEVELS], dim=1)


def compare(exported: Callable[[Tensor], Tensor], model: nn.Module) -> str:
    """Describe whether the exported function matches the model at sizes that were not traced."""
    errors = [error for error in (error_at(size, exported, model) for size in OTHERS) if error]
    if not errors:
        return f"exact at all {len(OTHERS)} other sizes"
    traced = error_at(TRACED, exported, model) or "exact"
    return f"NOT exact: wrong at {len(errors)} of {len(OTHERS)} other sizes, {errors[0]}; at the traced size: {traced}"


def error_at(size: tuple[int, int], exported: Callable[[Tensor], Tensor], model: nn.Module) -> str:
    """Describe the error at a size; empty if the values match."""
    x = torch.randn(1, 8, *size)
    expected = model(x)
    try:
        vector = exported(x)
    except Exception as error:
        return f"{size[0]} x {size[1]}: {first_line(error)}"
    if vector.shape != expected.shape:
        return f"{size[0]} x {size[1]}: shape {tuple(vector.shape)} instead of {tuple(expected.shape)}"
    return "" if torch.allclose(vector, expected, rtol=1e-4, atol=1e-5) else f"{size[0]} x {size[1]}: wrong values"


def through_onnx(model: nn.Module) -> str:
    """Export with torch.onnx.export and compare in onnxruntime."""
    try:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError as error:
        return f"not tried: {error}"
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pyramid.onnx"
        try:
            program = torch.onnx.export(
                model, (torch.randn(1, 8, *TRACED),), dynamo=True, dynamic_shapes=(sizes,), verbose=False
            )
            if program is None:
                return "refused without a message"
            program.save(path)
            session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:
            return f"refused: {first_line(error)}"
        name = session.get_inputs()[0].name
        return compare(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), model)


def through_export(model: nn.Module) -> str:
    """Export with torch.export and compare."""
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    try:
        program = torch.export.export(model, (torch.randn(1, 8, *TRACED),), dynamic_shapes=(sizes,))
    except Exception as error:
        return f"refused: {first_line(error)}"
    return compare(program.module(), model)


def through_compile(model: nn.Module, backend: str) -> str:
    """Compile with torch.compile, compare, and count the graphs."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(model, dynamic=True, backend=counter)
    try:
        compiled(torch.randn(1, 8, *TRACED))
    except Exception as error:
        return f"refused: {first_line(error)}"
    verdict = compare(compiled, model)
    return f"{verdict}; {counter.frame_count} graph(s) for {len(OTHERS) + 1} sizes"


def first_line(error: BaseException) -> str:
    """Return the first line of the root cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:160]}"


def installed(name: str) -> str:
    """Return the name and version of a package, or that it is missing."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"


def main() -> None:
    """Export each pool in each way and print the results."""
    warnings.simplefilter("ignore")
    versions = [installed(name) for name in ("torch", "onnx", "onnxscript", "onnxruntime")]
    report([f"python {platform.python_version()}", *versions])
    verdicts = []
    for name, pool in POOLS.items():
        model = Pyramid(pool).eval()
        outcomes = {
            "torch.onnx.export(dynamo=True)": through_onnx(model),
            "torch.export": through_export(model),
            "torch.compile(dynamic=True), aot_eager": through_compile(model, "aot_eager"),
            "torch.compile(dynamic=True), inductor": through_compile(model, "inductor"),
        }
        report([f"adaptive_{name}_pool2d, levels {LEVELS}, traced at {TRACED[0]} x {TRACED[1]}:"])
        report([f"  {way}: {verdict}" for way, verdict in outcomes.items()], "\n")
        verdicts += [outcomes["torch.onnx.export(dynamo=True)"], outcomes["torch.export"]]
    exact = all(verdict.startswith("exact") for verdict in verdicts)
    report([f"torch's adaptive pools export correctly for every size: {'yes' if exact else 'no'}"])


def report(parts: list[str], separator: str = ", ") -> None:
    """Print the parts, joined by the separator."""
    sys.stdout.write(separator.join(parts) + "\n")


if __name__ == "__main__":
    main()
