"""Self-tests of the operators on this machine: every device, dtype and layout against a float64 reference."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from sppnet.ops import library, reference
from sppnet.ops.gpu.dispatch import has_c_compiler
from sppnet.ops.levels import CellRule, Reduce, parse_levels
from sppnet.ops.pyramid import pyramid_pool
from sppnet.ops.regions import box_windows, region_pyramid_pool
from sppnet.progress import track

LEVELS = (6, (4, 5), 3, 2, 1)
"""Levels whose bins nest (6, 3, 2, 1), and one whose bins do not."""
SIZES = ((1, 1), (1, 9), (7, 5), (24, 32), (38, 51))
"""(height, width) of feature maps: fewer cells than bins, odd sides, divisible by the levels and not."""
_CHANNELS = (3, 67)  # less than one SIMD vector; several vectors plus a remainder
# Boxes per image and cell rule: few and more boxes use different kernels; `roi_pool` allows boxes off the map.
_BOXES: tuple[tuple[int, CellRule], ...] = ((2, "paper"), (4, "roi_pool"))
_IMAGES, _STRIDE, _ROUNDINGS = 2, 16, 4
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_REDUCES: tuple[Reduce, ...] = ("max", "avg")
_LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_SERVERS = {
    "sppnet.ops.cpu.dispatch": "CPU kernels",
    "sppnet.ops.gpu.dispatch": "Triton kernels",
    "sppnet.ops.reference": "plain torch",
}


@dataclass(frozen=True)
class Case:
    """Test case: feature maps of one size, pooled whole if `boxes` is 0, else in that many boxes per image."""

    size: tuple[int, int]
    channels: int
    reduce: Reduce
    boxes: int
    rule: CellRule = "paper"

    def __str__(self) -> str:
        regions = f"{self.boxes} boxes per image ({self.rule})" if self.boxes else "whole maps"
        size = f"{self.size[0]} x {self.size[1]} cells (height x width)"
        return f"{self.reduce} over {size}, {self.channels} channels, {regions}"


@dataclass(frozen=True)
class Result:
    """Outcome of a self-test.

    Attributes:
        test: name of the test.
        device: torch device it ran on.
        dtype: dtype of the feature maps.
        served: kernels that ran.
        cases: number of cases tried; 0 if the test could not run.
        wrong: number of cases that failed.
        note: first failed case and its error, or the reason why the test could not run.
    """

    test: str
    device: str
    dtype: str
    served: str
    cases: int
    wrong: int = 0
    note: str = ""


def check_all(devices: Sequence[torch.device]) -> list[Result]:
    """Run all tests on these devices."""
    tried = cases()
    results = check_operators(devices, track(tried, "operators, compiled on first use", len(tried)))
    compiled = [check_compiled(device) for device in track(devices, "torch.compile", len(devices))]
    return [*results, *compiled, check_onnx()]


def cases() -> list[Case]:
    """Return all test cases of the operators, smallest maps first."""
    kinds: tuple[tuple[int, CellRule], ...] = ((0, "paper"), *_BOXES)
    return [
        Case(size, channels, reduce, *kind)
        for size, channels, reduce, kind in itertools.product(SIZES, _CHANNELS, _REDUCES, kinds)
    ]


def check_operators(devices: Sequence[torch.device], tried: Iterator[Case]) -> list[Result]:
    """Compare forward and backward of `pyramid_pool` and `region_pyramid_pool` with the reference.

    Args:
        devices: devices to test, each with all dtypes it supports.
        tried: cases to run, such as :func:`cases`.

    Returns:
        One result per operator, device and dtype.
    """
    kinds = [
        (test, device, dtype)
        for test in ("pyramid_pool", "region_pyramid_pool")
        for device in devices
        for dtype in _DTYPES
        if device.type != "mps" or dtype is not torch.float64
    ]
    outcomes: dict[tuple[str, torch.device, torch.dtype], list[str | None]] = {kind: [] for kind in kinds}
    for case in tried:
        maps, boxes = _inputs(case)
        expected = _reference(case, maps, boxes)
        for (test, device, dtype), problems in outcomes.items():
            if (test == "pyramid_pool") == (case.boxes == 0):
                for layout, memory_format in _LAYOUTS.items():
                    x = maps.to(device, dtype, memory_format=memory_format)
                    problem = _find_problem(case, x, boxes, expected)
                    problems.append(problem and f"{case}, {layout}: {problem}")
    return [_summarize(*kind, problems) for kind, problems in outcomes.items()]


def _summarize(test: str, device: torch.device, dtype: torch.dtype, outcomes: list[str | None]) -> Result:
    served = _SERVERS[library._kernels(torch.ones(1, device=device, dtype=dtype)).__name__]
    problems = [problem for problem in outcomes if problem]
    name = str(dtype).removeprefix("torch.")
    return Result(test, str(device), name, served, len(outcomes), len(problems), *problems[:1])


def _inputs(case: Case) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return maps with tied values, exact in every dtype, and boxes in pixels, some partly off the map."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 256, (_IMAGES, case.channels, *case.size), generator=generator) / 8 - 16
    height, width = (side * _STRIDE for side in case.size)
    corners = torch.rand(_IMAGES, case.boxes, 2, 2, generator=generator) * 1.5 - 0.25
    if case.rule == "paper":
        corners = corners.clamp(0, 1)
    boxes = torch.cat((corners.amin(2), corners.amax(2)), dim=2) * torch.tensor([width, height, width, height])
    return maps, tuple(boxes)


def _pool(x: Tensor, case: Case, boxes: Sequence[Tensor]) -> Tensor:
    if not case.boxes:
        return pyramid_pool(x, LEVELS, reduce=case.reduce)
    return region_pyramid_pool(x, boxes, LEVELS, 1 / _STRIDE, case.rule, reduce=case.reduce)


def _reference(case: Case, maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return vectors and gradient of the reference implementation in float64."""
    windows, grids = None, parse_levels(LEVELS)
    if case.boxes:
        images = torch.arange(_IMAGES).repeat_interleave(case.boxes)
        scale = (1 / _STRIDE, 1 / _STRIDE)
        windows = box_windows(torch.cat(list(boxes)), images, case.size, scale, (0.0, 0.0), case.rule)
    maps = maps.double()
    vectors, cells = reference.forward(maps, windows, grids, "adaptive", case.reduce, True)
    options = (list(maps.shape), False, grids)
    return vectors, reference.backward(_weights(vectors), cells, windows, *options, "adaptive", case.reduce)


def _weights(vectors: Tensor) -> Tensor:
    """Return incoming gradients that are exact in every dtype."""
    return (torch.arange(vectors.numel(), device=vectors.device) % 8 - 3.5).to(vectors.dtype).view(vectors.shape)


def _find_problem(case: Case, x: Tensor, boxes: Sequence[Tensor], expected: tuple[Tensor, Tensor]) -> str | None:
    """Describe what is wrong with the operator's vectors or gradient, or return None."""
    try:
        x = x.detach().requires_grad_()
        vectors = _pool(x, case, boxes)
        (gradient,) = torch.autograd.grad(vectors, x, _weights(vectors))
        no_grad = _pool(x.detach(), case, boxes)
    except Exception as error:  # anything a kernel or its compiler raises
        return _first_line(error)
    exact = case.reduce == "max"
    return (
        _difference("vectors", vectors.detach(), expected[0], exact)
        or _difference("vectors without grad", no_grad, expected[0], exact)
        or _difference("gradients", gradient, expected[1], False)
    )


def _difference(name: str, actual: Tensor, expected: Tensor, exact: bool) -> str | None:
    if actual.shape != expected.shape:
        return f"{name}: expected shape {tuple(expected.shape)}, got {tuple(actual.shape)}"
    error = (actual.cpu().double() - expected).abs()
    tolerance = 0.0 if exact else _ROUNDINGS * torch.finfo(actual.dtype).eps
    if (error <= tolerance * (expected.abs() + expected.abs().max())).all():  # False for NaN
        return None
    return f"{name} differ by up to {error.max():.2g}; largest expected value {expected.abs().max():.3g}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class _Layer(nn.Module):
    """Both operators between elementwise ones, as in a network."""

    def forward(self, x: Tensor) -> Tensor:
        boxes = [torch.tensor([[0.0, 0.0, 60.0, 90.0], [20.0, 10.0, 40.0, 300.0]], device=x.device)] * _IMAGES
        x = 2 * x
        return torch.cat([pyramid_pool(x, LEVELS), region_pyramid_pool(x, boxes, LEVELS)]).relu()


def check_compiled(device: torch.device) -> Result:
    """Compare a layer with its torch.compile version, one graph for all sizes."""

    def build() -> Callable[[Tensor], Tensor]:
        torch._dynamo.reset()
        compiled: Callable[[Tensor], Tensor] = torch.compile(_Layer(), fullgraph=True, dynamic=True)
        return compiled

    return _check_built("torch.compile", device, _missing_compiler(device), build)


def _missing_compiler(device: torch.device) -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from torch.utils._triton import has_triton

    if device.type == "cuda":
        if not has_triton():
            return "not installed: Triton"
        return "" if has_c_compiler() else "not installed: a C compiler"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return "not installed: a C++ compiler"
    return ""


def check_onnx() -> Result:
    """Compare a layer with its ONNX export in onnxruntime."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    note = f'not installed: {", ".join(missing)}; pip install ".[export]"' if missing else ""
    return _check_built("ONNX", torch.device("cpu"), note, _in_onnxruntime)


def _in_onnxruntime() -> Callable[[Tensor], Tensor]:
    import onnxruntime  # type: ignore[import-untyped, unused-ignore]

    from sppnet.ops.onnx import translations

    program = torch.onnx.export(
        _Layer().eval(),
        (torch.zeros(_IMAGES, 8, 5, 7),),
        dynamic_shapes=({2: "height", 3: "width"},),
        custom_translation_table=translations(),
        dynamo=True,
        verbose=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layer.onnx"
        program.save(path)  # type: ignore[union-attr]
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def _check_built(
    test: str, device: torch.device, missing: str, build: Callable[[], Callable[[Tensor], Tensor]]
) -> Result:
    """Compare the callable that `build` returns with the layer itself, at sizes it was not built with."""
    head = (test, str(device), "float32", "")
    if missing:
        return Result(*head, 0, note=missing)
    sizes = ((7, 5), (9, 4), (24, 32))
    problems = []
    try:
        layer, built = _Layer(), build()
        with torch.no_grad():
            for size in sizes:
                x = _inputs(Case(size, 8, "max", 0))[0].to(device)
                problem = _difference("vectors", built(x), layer(x).cpu().double(), True)
                if problem:
                    problems.append(f"{size[0]} x {size[1]} cells (height x width): {problem}")
    except Exception as error:  # anything a compiler raises
        problems.append(_first_line(error))
    return Result(*head, len(sizes), len(problems), *problems[:1])
