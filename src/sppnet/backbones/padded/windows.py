"""What windowed layers do to a padded batch: convolutions, pools, and the paddings before them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.backbones.geometry import Step
from sppnet.backbones.padded.ledger import Areas, Deferred, Ledger, Valid, place


def conv2d(
    book: Ledger,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Zeros outside, as the image alone is padded with zeros."""
    extent = tuple((side - 1) * rate + 1 for side, rate in zip(weight.shape[2:], _pair(dilation), strict=True))
    if isinstance(padding, str):
        if padding == "same" and not all(side % 2 for side in extent):
            raise book.refusal("a convolution of an even kernel pads by 'same'")
        padding = [side // 2 for side in extent] if padding == "same" else 0
    x, areas = _windows(book, input, extent, _pair(stride), _pair(padding))
    out: Tensor = func(x, weight, bias, stride, padding, dilation, groups)
    return book.mark(out, Valid(areas))


def max_pool2d(
    book: Ledger,
    _func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Minus infinity outside."""
    if return_indices:
        raise book.refusal("max_pool2d gives indices, which are of the padded map")
    stride = _pair(stride or kernel_size)
    extent = tuple((side - 1) * rate + 1 for side, rate in zip(_pair(kernel_size), _pair(dilation), strict=True))
    x, areas = _windows(book, input, extent, stride, _pair(padding), ceil=ceil_mode, value=-math.inf)
    out = torch.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    return _cut(book, out, areas)


def avg_pool2d(
    book: Ledger,
    _func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Zeros outside, and the divisor that each window of the image has."""
    stride = _pair(stride or kernel_size)
    extent, around = _pair(kernel_size), _pair(padding)
    if count_include_pad and ceil_mode and divisor_override is None:
        # Windows that reach over the end count the padding that they see, which ends elsewhere for each image.
        raise book.refusal("avg_pool2d rounds up and counts its padding")
    x, areas = _windows(book, input, extent, stride, around, ceil=ceil_mode)
    cells = extent[0] * extent[1]
    out = F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, divisor_override=divisor_override or cells)
    if not count_include_pad and divisor_override is None:
        if book.deferred(input) is not None:
            raise book.refusal("avg_pool2d leaves out the padding before it")
        ones = place(x.new_ones(len(x), 1, *x.shape[2:]), book.known(input).areas, [(0, 0)] * len(x), _sides(x), 0.0)
        counts = F.avg_pool2d(ones, kernel_size, stride, padding, ceil_mode, divisor_override=1)
        out = out * (cells / counts.clamp(min=1))
    return book.mark(out, Valid(areas))


def _windows(
    book: Ledger,
    x: Tensor,
    extent: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    ceil: bool = False,
    value: float = 0.0,
) -> tuple[Tensor, Areas]:
    """What a windowed layer is to see, and the areas of what it then makes."""
    deferred = book.deferred(x)
    if deferred is not None:
        return _padded(book, deferred, extent, stride, padding, ceil, value)
    valid = book.known(x)
    if valid.dims != (2, 3):
        raise book.refusal("a windowed layer sees a map whose channels are last")
    steps = [Step(e, s, p, p, ceil) for e, s, p in zip(extent, stride, padding, strict=True)]
    areas = _out_areas(book, valid.areas, steps)
    if max(extent) == 1 and max(padding) == 0:
        return x, areas
    if value == 0:
        return book.clear(x), areas
    if book.outside(x, valid.areas) is None:
        return x, areas
    return place(x, valid.areas, [(0, 0)] * len(x), _sides(x), value), areas


def _padded(
    book: Ledger,
    deferred: Deferred,
    extent: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool,
    value: float,
) -> tuple[Tensor, Areas]:
    """The same after a padding of its own, whose amounts may follow each image's size."""
    x = deferred.x
    valid = book.known(x)
    if deferred.value != value or ceil or (book.same and max(padding) > 0):
        raise book.refusal("a padding goes before a layer that it does not suit")
    if not book.same:
        outer = zip(extent, stride, padding, deferred.before, deferred.after, strict=True)
        steps = [Step(e, s, p + before, p + after) for e, s, p, before, after in outer]
        size = tuple(side + b + a for side, b, a in zip(x.shape[2:], deferred.before, deferred.after, strict=True))
        return place(x, valid.areas, [deferred.before] * len(x), size, value), _out_areas(book, valid.areas, steps)  # type: ignore[arg-type]
    steps = [Step(e, s, same=True) for e, s in zip(extent, stride, strict=True)]
    areas = _out_areas(book, valid.areas, steps)
    for step, side, before, after in zip(steps, x.shape[2:], deferred.before, deferred.after, strict=True):
        if (before, after) != (step.before_of(side), step.around(side) - step.before_of(side)):
            raise book.refusal(f"a padding of {before} and {after} cells is not TensorFlow's")
    befores = [tuple(step.before_of(side) for step, side in zip(steps, area, strict=True)) for area in valid.areas]
    seen = zip(steps, x.shape[2:], strict=True)
    size = tuple((step.cells(side) - 1) * step.stride + step.extent for step, side in seen)
    return place(x, valid.areas, befores, size, value), areas  # type: ignore[arg-type]


def pad(
    book: Ledger,
    _func: Any,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    """Put off until the layer that follows, which says how much each image needs."""
    if mode != "constant" or book.known(input).dims != (2, 3) or any(pad[4:]) or min(pad) < 0:
        raise book.refusal(f"pad of mode {mode} and amounts {tuple(pad)} looks at what lies at the image's end")
    left, right, top, bottom = [*pad, 0, 0][:4]
    shape = (*input.shape[:2], input.shape[2] + top + bottom, input.shape[3] + left + right)
    return book.defer(shape, Deferred(input, (top, left), (bottom, right), value or 0.0))


def _out_areas(book: Ledger, areas: Areas, steps: Sequence[Step]) -> Areas:
    cells = tuple((steps[0].cells(height), steps[1].cells(width)) for height, width in areas)
    if min(map(min, cells)) < 1:
        raise book.refusal("an image is too small for this layer")
    return cells


def _cut(book: Ledger, out: Tensor, areas: Areas) -> Tensor:
    """A maximum's map, of which cells outside may be minus infinity, with zeros there."""
    book.mark(out, Valid(areas))
    return book.clear(out)


def _sides(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
