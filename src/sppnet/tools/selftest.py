"""Tests of the operators on the machine at hand: every device, dtype and layout against the plain form in float64."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from sppnet.ops import library, reference
from sppnet.ops.bins import CellRule, parse_levels
from sppnet.ops.gpu.dispatch import has_c_compiler
from sppnet.ops.pyramid import pyramid_pool
from sppnet.ops.reference import Reduce
from sppnet.ops.regions import box_windows, region_pyramid_pool

LEVELS = (6, (4, 5), 3, 2, 1)
"""Levels that follow from each other, and one that does not."""
SIZES = ((1, 1), (1, 9), (7, 5), (24, 32), (38, 51))
"""(height, width) of maps: fewer cells than bins, odd, divisible and not."""
_CHANNELS = (3, 67)  # less than a vector; full vectors and a rest
# For an image; few for each map, and more, which other kernels serve; the second kind may leave the map.
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
    """Maps of one size, and what is pooled of them: boxes, or with none of them the maps whole."""

    size: tuple[int, int]
    channels: int
    reduce: Reduce
    boxes: int
    rule: CellRule = "paper"

    def __str__(self) -> str:
        what = f"{self.boxes} boxes an image ({self.rule})" if self.boxes else "whole maps"
        return f"{self.reduce} over {self.size[0]} x {self.size[1]} cells, {self.channels} channels, {what}"


@dataclass(frozen=True)
class Result:
    """What a test found.

    Attributes:
        test: its name.
        device: where it ran.
        dtype: of the maps.
        served: by which kernels.
        cases: how many were tried; 0 where the test could not be made.
        wrong: how many of them gave something else, or failed.
        note: the first wrong case and what was wrong with it, or why there was no test.
    """

    test: str
    device: str
    dtype: str
    served: str
    cases: int
    wrong: int = 0
    note: str = ""


def cases() -> list[Case]:
    """All that the operators are tried with, the smallest maps first."""
    kinds: tuple[tuple[int, CellRule], ...] = ((0, "paper"), *_BOXES)
    return [
        Case(size, channels, reduce, *kind)
        for size, channels, reduce, kind in itertools.product(SIZES, _CHANNELS, _REDUCES, kinds)
    ]


def check_operators(devices: Sequence[torch.device], tried: Iterator[Case]) -> list[Result]:
    """Compare `pyramid_pool` and `region_pyramid_pool`, forward and backward, with the plain form.

    Args:
        devices: that are tried, each with every dtype that it has.
        tried: cases, such as those of :func:`cases`.

    Returns:
        One result for each operator, device and dtype.
    """
    kinds = [
        (test, device, dtype)
        for test in ("pyramid_pool", "region_pyramid_pool")
        for device in devices
        for dtype in _DTYPES
        if device.type != "mps" or dtype is not torch.float64
    ]
    done: dict[tuple[str, torch.device, torch.dtype], list[str | None]] = {kind: [] for kind in kinds}
    for case in tried:
        maps, boxes = _inputs(case)
        expected = _reference(case, maps, boxes)
        for (test, device, dtype), found in done.items():
            if (test == "pyramid_pool") == (case.boxes == 0):
                for layout in _LAYOUTS:
                    problem = _try(case, maps.to(device, dtype, memory_format=_LAYOUTS[layout]), boxes, expected)
                    found.append(problem and f"{case}, {layout}: {problem}")
    return [_summarise(*kind, found) for kind, found in done.items()]


def _summarise(test: str, device: torch.device, dtype: torch.dtype, found: list[str | None]) -> Result:
    served = _SERVERS[library._kernels(torch.ones(1, device=device, dtype=dtype)).__name__]
    problems = [problem for problem in found if problem]
    return Result(
        test, str(device), str(dtype).removeprefix("torch."), served, len(found), len(problems), *problems[:1]
    )


def _inputs(case: Case) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Maps whose numbers every dtype holds, some of them equal, and boxes in pixels, some of them beyond the map."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randint(0, 256, (_IMAGES, case.channels, *case.size), generator=generator) / 8 - 16
    height, width = (side * _STRIDE for side in case.size)
    corners = torch.rand(_IMAGES, case.boxes, 2, 2, generator=generator) * 1.5 - 0.25
    if case.rule == "paper":
        corners = corners.clamp(0, 1)
    begin, end = corners.amin(2), corners.amax(2)
    boxes = torch.cat((begin, end), dim=2) * torch.tensor([width, height, width, height])
    return maps, tuple(boxes)


def _pool(x: Tensor, case: Case, boxes: Sequence[Tensor]) -> Tensor:
    if not case.boxes:
        return pyramid_pool(x, LEVELS, reduce=case.reduce)
    return region_pyramid_pool(x, boxes, LEVELS, 1 / _STRIDE, case.rule, reduce=case.reduce)


def _reference(case: Case, maps: Tensor, boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Vectors and gradient by the plain form, in float64."""
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
    """Of the sum of vectors whose gradient is compared: numbers that every dtype holds."""
    return (torch.arange(vectors.numel(), device=vectors.device) % 8 - 3.5).to(vectors.dtype).view(vectors.shape)


def _try(case: Case, x: Tensor, boxes: Sequence[Tensor], expected: tuple[Tensor, Tensor]) -> str | None:
    """What is wrong with the operator's vectors or gradient."""
    try:
        x = x.detach().requires_grad_()
        vectors = _pool(x, case, boxes)
        (gradient,) = torch.autograd.grad(vectors, x, _weights(vectors))
        alone = _pool(x.detach(), case, boxes)
    except Exception as error:  # whatever a kernel or its compiler raises
        return _first_line(error)
    exact = case.reduce == "max"
    return (
        _difference("vectors", vectors.detach(), expected[0], exact)
        or _difference("vectors without a gradient", alone, expected[0], exact)
        or _difference("gradient", gradient, expected[1], False)
    )


def _difference(what: str, found: Tensor, expected: Tensor, exact: bool) -> str | None:
    if found.shape != expected.shape:
        return f"{what}: expected the shape {tuple(expected.shape)}; got {tuple(found.shape)}"
    off = (found.cpu().double() - expected).abs()
    step = 0.0 if exact else _ROUNDINGS * torch.finfo(found.dtype).eps
    if (off <= step * (expected.abs() + expected.abs().max())).all():  # never so for what is no number
        return None
    return f"{what} differ by up to {off.max():.2g}, of values up to {expected.abs().max():.3g}"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


class _Layer(nn.Module):
    """Both operators between others, as in a network."""

    def forward(self, x: Tensor) -> Tensor:
        boxes = [torch.tensor([[0.0, 0.0, 60.0, 90.0], [20.0, 10.0, 40.0, 300.0]], device=x.device)] * _IMAGES
        x = 2 * x
        return torch.cat([pyramid_pool(x, LEVELS), region_pyramid_pool(x, boxes, LEVELS)]).relu()


def check_compiled(device: torch.device) -> Result:
    """Compile a layer with torch.compile's own compiler, one graph for all sizes, and compare."""

    def build() -> Callable[[Tensor], Tensor]:
        torch._dynamo.reset()
        compiled: Callable[[Tensor], Tensor] = torch.compile(_Layer(), fullgraph=True, dynamic=True)
        return compiled

    return _check_built("torch.compile", device, _no_compiler(device), build)


def _no_compiler(device: torch.device) -> str:
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
    """Write a layer as an ONNX file, run it in onnxruntime and compare."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    note = f'not installed: {", ".join(missing)}; pip install "sppnet[export]"' if missing else ""
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
    """Compare what `build` made of a layer with the layer itself, at sizes that it has not seen."""
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
                    problems.append(f"{size[0]} x {size[1]} cells: {problem}")
    except Exception as error:  # whatever a compiler raises
        problems.append(_first_line(error))
    return Result(*head, len(sizes), len(problems), *problems[:1])
