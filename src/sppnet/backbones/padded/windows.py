"""Padding rules for windowed functions: convolutions, pools and the pads before them."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sppnet.backbones.geometry import Step
from sppnet.backbones.padded.ledger import Areas, DeferredPad, PaddingState, PaddingTracker, copy_to_canvas


def conv2d(
    ledger: PaddingTracker,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve with zeros in the padding, as if each image were convolved by itself."""
    extent = tuple((side - 1) * rate + 1 for side, rate in zip(weight.shape[2:], _pair(dilation), strict=True))
    if isinstance(padding, str):
        if padding == "same" and not all(side % 2 for side in extent):
            raise ledger.refusal("conv2d has an even kernel and padding='same'")
        padding = [side // 2 for side in extent] if padding == "same" else 0
    x, areas = _windows(ledger, input, extent, _pair(stride), _pair(padding))
    out: Tensor = func(x, weight, bias, stride, padding, dilation, groups)
    return ledger.mark(out, PaddingState(areas))


def max_pool2d(
    ledger: PaddingTracker,
    _func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Take maxima over windows, with minus infinity in the padding."""
    if return_indices:
        raise ledger.refusal("max_pool2d returns indices, which refer to the padded map")
    stride = _pair(stride or kernel_size)
    extent = tuple((side - 1) * rate + 1 for side, rate in zip(_pair(kernel_size), _pair(dilation), strict=True))
    x, areas = _windows(ledger, input, extent, stride, _pair(padding), ceil=ceil_mode, value=-math.inf)
    out = torch.max_pool2d(x, kernel_size, stride, padding, dilation, ceil_mode)
    ledger.mark(out, PaddingState(areas))
    return ledger.clear(out)  # cells without a valid input are minus infinity


def avg_pool2d(
    ledger: PaddingTracker,
    _func: Any,
    input: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Average over windows with zeros in the padding, and with the divisors of each single image."""
    stride = _pair(stride or kernel_size)
    extent, amounts = _pair(kernel_size), _pair(padding)
    if count_include_pad and ceil_mode and divisor_override is None:
        # The last windows count the padding cells that they cover, whose number depends on the image size.
        raise ledger.refusal("avg_pool2d has both ceil_mode and count_include_pad")
    x, areas = _windows(ledger, input, extent, stride, amounts, ceil=ceil_mode)
    cells = extent[0] * extent[1]
    out = F.avg_pool2d(x, kernel_size, stride, padding, ceil_mode, divisor_override=divisor_override or cells)
    if not count_include_pad and divisor_override is None:
        if ledger.deferred(input) is not None:
            raise ledger.refusal("avg_pool2d with count_include_pad=False follows a pad")
        ones = copy_to_canvas(
            x.new_ones(len(x), 1, *x.shape[2:]), ledger.known(input).areas, [(0, 0)] * len(x), _sides(x), 0.0
        )
        counts = F.avg_pool2d(ones, kernel_size, stride, padding, ceil_mode, divisor_override=1)
        out = out * (cells / counts.clamp(min=1))
    return ledger.mark(out, PaddingState(areas))


def _windows(
    ledger: PaddingTracker,
    x: Tensor,
    extent: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    ceil: bool = False,
    value: float = 0.0,
) -> tuple[Tensor, Areas]:
    """Return the input of a windowed layer with `value` in the padding, and the valid areas of its output."""
    deferred = ledger.deferred(x)
    if deferred is not None:
        return _apply_deferred(ledger, deferred, extent, stride, padding, ceil, value)
    valid = ledger.known(x)
    if valid.dims != (2, 3):
        raise ledger.refusal("a windowed layer gets a channels-last map")
    steps = [Step(e, s, p, p, ceil) for e, s, p in zip(extent, stride, padding, strict=True)]
    areas = _out_areas(ledger, valid.areas, steps)
    if max(extent) == 1 and max(padding) == 0:
        return x, areas
    if value == 0:
        return ledger.clear(x), areas
    if ledger.outside(x, valid.areas) is None:
        return x, areas
    return copy_to_canvas(x, valid.areas, [(0, 0)] * len(x), _sides(x), value), areas


def _apply_deferred(
    ledger: PaddingTracker,
    deferred: DeferredPad,
    extent: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    ceil: bool,
    value: float,
) -> tuple[Tensor, Areas]:
    """Return the result of :func:`_windows` for a layer after a deferred pad; each image is padded separately."""
    x = deferred.x
    valid = ledger.known(x)
    if deferred.value != value or ceil or (ledger.same and max(padding) > 0):
        raise ledger.refusal("a pad precedes a layer that does not support it")
    if not ledger.same:
        axes = zip(extent, stride, padding, deferred.before, deferred.after, strict=True)
        steps = [Step(e, s, p + before, p + after) for e, s, p, before, after in axes]
        size = tuple(side + b + a for side, b, a in zip(x.shape[2:], deferred.before, deferred.after, strict=True))
        canvas = copy_to_canvas(x, valid.areas, [deferred.before] * len(x), size, value)  # type: ignore[arg-type]
        return canvas, _out_areas(ledger, valid.areas, steps)
    steps = [Step(e, s, same=True) for e, s in zip(extent, stride, strict=True)]
    areas = _out_areas(ledger, valid.areas, steps)
    for step, side, before, after in zip(steps, x.shape[2:], deferred.before, deferred.after, strict=True):
        if (before, after) != (step.before_of(side), step.around(side) - step.before_of(side)):
            raise ledger.refusal(f"a pad by {before} and {after} cells does not follow TensorFlow's SAME rule")
    befores = [tuple(step.before_of(side) for step, side in zip(steps, area, strict=True)) for area in valid.areas]
    sides = zip(steps, x.shape[2:], strict=True)
    size = tuple((step.cells(side) - 1) * step.stride + step.extent for step, side in sides)
    return copy_to_canvas(x, valid.areas, befores, size, value), areas  # type: ignore[arg-type]


def pad(
    ledger: PaddingTracker,
    _func: Any,
    input: Tensor,
    pad: Sequence[int],
    mode: str = "constant",
    value: float | None = None,
) -> Tensor:
    """Defer the pad until the next layer, which pads each image separately."""
    if mode != "constant" or ledger.known(input).dims != (2, 3) or any(pad[4:]) or min(pad) < 0:
        raise ledger.refusal(f"pad with mode {mode} and amounts {tuple(pad)} is not a constant pad of rows and columns")
    left, right, top, bottom = [*pad, 0, 0][:4]
    shape = (*input.shape[:2], input.shape[2] + top + bottom, input.shape[3] + left + right)
    return ledger.defer(shape, DeferredPad(input, (top, left), (bottom, right), value or 0.0))


def _out_areas(ledger: PaddingTracker, areas: Areas, steps: Sequence[Step]) -> Areas:
    cells = tuple((steps[0].cells(height), steps[1].cells(width)) for height, width in areas)
    if min(map(min, cells)) < 1:
        raise ledger.refusal("an image is too small for this layer")
    return cells


def _sides(x: Tensor) -> tuple[int, int]:
    return x.shape[2], x.shape[3]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
