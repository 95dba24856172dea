"""Capabilities of each operator by dtype and layout: every cell of the tables in docs/capabilities.md is a check.

``python -m tests.test_capabilities`` rewrites the tables of the devices of this machine.
"""

import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from sppnet import pyramid_pool, region_pyramid_pool
from tests.helpers import slow_reference

PAGE = Path(__file__).parents[1] / "docs" / "capabilities.md"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
CHANNELS = 16
BOXES = (torch.tensor([[0.0, 0.0, 90.0, 60.0], [20.0, -30.0, 300.0, 40.5]]), torch.tensor([[8.0, 8.0, 8.0, 8.0]]))

Pool = Callable[[Tensor], Tensor]


def pyramid(x: Tensor) -> Tensor:
    """Pool with both reductions, so that every check covers both."""
    return torch.cat([pyramid_pool(x, (3, 1), reduce=reduce) for reduce in ("max", "avg")])


def region(x: Tensor) -> Tensor:
    boxes = [part.to(x.device) for part in BOXES]
    return torch.cat([region_pyramid_pool(x, boxes, (3, 1), reduce=reduce) for reduce in ("max", "avg")])


def slow_pyramid(x: Tensor) -> Tensor:
    return torch.cat(
        [slow_reference.pyramid(x, [(3, 3), (1, 1)], slow_reference.adaptive_bins, kind) for kind in ("max", "avg")]
    )


def slow_region(x: Tensor) -> Tensor:
    return torch.cat([slow_reference.regions(x, BOXES, [(3, 3), (1, 1)], "paper", kind) for kind in ("max", "avg")])


OPERATORS: dict[str, tuple[Pool, Pool]] = {
    "pyramid_pool": (pyramid, slow_pyramid),
    "region_pyramid_pool": (region, slow_region),
}

Maps = Callable[[int, int], Tensor]


def values(pool: Pool, slow: Pool, maps: Maps) -> None:
    x = maps(5, 7)
    vectors, expected = pool(x), slow(x.double()).to(x.dtype)
    half = len(vectors) // 2  # the maxima
    assert torch.equal(vectors[:half], expected[:half])
    torch.testing.assert_close(vectors, expected)


def gradient(pool: Pool, x: Tensor) -> Tensor:
    return vectors_and_gradient(pool, x)[1]


def vectors_and_gradient(pool: Pool, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    vectors = pool(x)
    weight = torch.arange(vectors.numel(), device=x.device).reshape(vectors.shape) % 9 - 4.0
    return vectors.detach(), torch.autograd.grad(vectors, x, weight.to(x.dtype))[0]


def assert_near(result: Tensor, expected: Tensor) -> None:
    """Check equality up to 4 roundings of the largest value, the accuracy of a sum in this dtype."""
    tolerance = 4 * torch.finfo(result.dtype).eps
    atol = tolerance * float(expected.abs().max())
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=atol)


def backward(pool: Pool, slow: Pool, maps: Maps) -> None:
    x = maps(5, 7)
    result = gradient(pool, x)
    assert_near(result, gradient(slow, x.double()))
    assert result.stride() == x.stride()


def curvature(pool: Pool, x: Tensor) -> Tensor:
    """Return the Hessian of the sum of squared vectors, times the maps."""
    x = x.detach().requires_grad_()
    (first,) = torch.autograd.grad(pool(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad((first * x.detach()).sum(), x)[0]


def double_backward(pool: Pool, slow: Pool, maps: Maps) -> None:
    x = maps(5, 7)
    assert_near(curvature(pool, x), curvature(slow, x.double()))


def compiled(pool: Pool, slow: Pool, maps: Maps) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    fast = torch.compile(pool, fullgraph=True, dynamic=True, backend=counter)
    for height, width in ((5, 7), (9, 4), (12, 31)):
        x = maps(height, width)
        result, expected = vectors_and_gradient(fast, x), vectors_and_gradient(pool, x)
        assert all(map(torch.equal, result, expected))
    torch._dynamo.reset()
    assert counter.frame_count == 1


class Layer(nn.Module):
    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x)


def exported(pool: Pool, slow: Pool, maps: Maps) -> None:
    sizes = {2: torch.export.Dim("height"), 3: torch.export.Dim("width")}
    program = torch.export.export(Layer(pool), (maps(5, 7),), dynamic_shapes=(sizes,)).module()
    for height, width in ((9, 4), (1, 20)):
        x = maps(height, width)
        assert torch.equal(program(x), pool(x))


def onnx(pool: Pool, slow: Pool, maps: Maps) -> None:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    from sppnet.ops.onnx import translations

    sizes = {2: "height", 3: "width"}
    program = torch.onnx.export(
        Layer(pool).eval(),
        (maps(5, 7),),
        dynamic_shapes=(sizes,),
        custom_translation_table=translations(),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    with tempfile.TemporaryDirectory() as folder:
        program.save(Path(folder) / "pool.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "pool.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for height, width in ((9, 4), (1, 20)):
        x = maps(height, width).cpu()
        vectors = torch.from_numpy(session.run(None, {name: x.numpy()})[0])
        assert_near(vectors, pool(x).double())


def autocast(pool: Pool, slow: Pool, maps: Maps) -> None:
    x = maps(5, 7)
    halves = (torch.bfloat16, torch.float16)
    for dtype in (x.dtype,) if x.dtype in halves else halves:
        with torch.autocast(x.device.type, dtype=dtype):
            vectors = pool(x)
        assert vectors.dtype == x.dtype
        assert torch.equal(vectors, pool(x))


def deterministic(pool: Pool, slow: Pool, maps: Maps) -> None:
    x = maps(40, 50)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(pool, x), gradient(pool, x))
    finally:
        torch.use_deterministic_algorithms(False)


def vmap(pool: Pool, slow: Pool, maps: Maps) -> None:
    x = torch.stack([maps(5, 7), maps(5, 7)])
    batched: Pool = torch.vmap(pool)

    def looped(t: Tensor) -> Tensor:
        return torch.stack([pool(part) for part in t.unbind()])

    assert torch.equal(batched(x), looped(x))
    assert_near(gradient(batched, x), gradient(looped, x).double())


CHECKS: dict[str, Callable[[Pool, Pool, Maps], None]] = {
    "values": values,
    "backward": backward,
    "double backward": double_backward,
    "torch.compile": compiled,
    "torch.export": exported,
    "ONNX": onnx,
    "autocast": autocast,
    "deterministic": deterministic,
    "vmap": vmap,
}


def batch(dtype: torch.dtype, layout: torch.memory_format, device: str, height: int, width: int) -> Tensor:
    """Return maps whose values are exact in every dtype, without ties (several legal gradients) in small maps."""
    x = torch.rand(2, CHANNELS, height * width).argsort(2) % 256 / 8 - 2
    return x.reshape(2, CHANNELS, height, width).to(device, dtype).contiguous(memory_format=layout)


def outcome(check: Callable[[Pool, Pool, Maps], None], operator: str, maps: Maps) -> str:
    """Run a check and return its table cell: "yes", or "no" and the name of the error."""
    try:
        check(*OPERATORS[operator], maps)
    except Exception as exception:
        error: BaseException = exception
        while error.__cause__ is not None:
            error = error.__cause__
        return f"no: {type(error).__name__}"
    return "yes"


def cells(operator: str, dtype: str, layout: str, device: str, columns: Iterable[str]) -> dict[str, str]:
    maps = partial(batch, DTYPES[dtype], LAYOUTS[layout], device)
    return {column: outcome(CHECKS[column], operator, maps) for column in columns}


def section(device: str) -> str:
    """Return the heading and table of one device."""
    rows = [("operator", "dtype", "layout", *CHECKS), ("---",) * (3 + len(CHECKS))]
    rows += [(*names, *cells(*names, device, CHECKS).values()) for names in GRID]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"## {device}\n\ntorch {torch.__version__.partition('+')[0]}.\n\n{table}\n"


def written(device: str) -> dict[tuple[str, ...], dict[str, str]]:
    """Read the committed table of one device: cells by (operator, dtype, layout) and column."""
    text = PAGE.read_text().partition(f"## {device}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    if not rows:
        pytest.skip(f"docs/capabilities.md has no table for {device} yet: python -m tests.test_capabilities writes it")
    head, _, *body = rows
    return {tuple(row[:3]): dict(zip(head[3:], row[3:], strict=True)) for row in body}


GRID = [(operator, dtype, layout) for operator in OPERATORS for dtype in DTYPES for layout in LAYOUTS]
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
QUICK = [column for column in CHECKS if column != "ONNX"]
# The CPU kernels handle float32 and bfloat16; other dtypes share the implementation in plain torch.
CASES = [pytest.param(*names, marks=() if names[1] in ("float32", "bfloat16") else pytest.mark.slow) for names in GRID]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("operator", "dtype", "layout"), CASES)
@pytest.mark.usefixtures("unchecked")
def test_checks_match_the_table(operator: str, dtype: str, layout: str, device: str) -> None:
    expected = written(device)[operator, dtype, layout]
    assert list(expected) == list(CHECKS)
    assert cells(operator, dtype, layout, device, QUICK) == {column: expected[column] for column in QUICK}


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("operator", "dtype", "layout"), GRID)
@pytest.mark.usefixtures("unchecked")
def test_onnx_export_matches_the_table(operator: str, dtype: str, layout: str, device: str) -> None:
    pytest.importorskip("onnxruntime")
    assert cells(operator, dtype, layout, device, ["ONNX"])["ONNX"] == written(device)[operator, dtype, layout]["ONNX"]


def test_table_has_every_row() -> None:
    assert list(written("cpu")) == GRID


def test_failed_check_gives_the_name_of_the_error() -> None:
    maps = partial(batch, torch.float32, torch.contiguous_format, "cpu")
    OPERATORS["wrong"] = (pyramid, lambda x: slow_pyramid(x) + 1)
    try:
        assert outcome(values, "wrong", maps) == "no: AssertionError"
        assert outcome(autocast, "wrong", maps) == "yes"
    finally:
        del OPERATORS["wrong"]


def write() -> None:
    """Write the tables of this machine's devices to the page; keep those of other devices."""
    import onnxruntime  # noqa: F401  # without it the ONNX column would be wrong

    page = PAGE.read_text()
    for device in DEVICES:
        old = re.search(rf"## {device}\n.*?(?=\n## |\Z)", page, flags=re.DOTALL)
        new = section(device)
        page = page.replace(old[0], new) if old else f"{page.rstrip()}\n\n{new}"
    PAGE.write_text(page)


if __name__ == "__main__":
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    write()
    sys.stdout.write(PAGE.read_text())
