"""Sliding maxima with stride 1 for several window sizes at once: the pooling of YOLO's SPP and SPPF."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sppnet.ops.pyramid import check_feature_maps

Variant = Callable[[Tensor, Sequence[int]], list[Tensor]]


def sliding_max(x: Float[Tensor, "n c h w"], kernels: Sequence[int]) -> list[Float[Tensor, "n c h w"]]:
    """Return the maximum over the k x k window around each cell, for each k in `kernels`.

    Each result equals ``max_pool2d(x, k, stride=1, padding=k // 2)``: cells outside the map are ignored, and the size
    of the map is kept. A window of k >= 2 * side - 1 covers the whole side from every cell; if this holds for both
    sides, the result is the global maximum. A window that contains NaN gives NaN.

    The implementation is the one of :data:`VARIANTS` that is fastest for `x`, see :func:`pick_variant`. All give the
    same values (the sign of a zero may differ), and the same gradients where a window has a unique maximum; which of
    several equal cells gets the gradient may differ.

    Args:
        x: feature maps, contiguous or channels_last, of any floating-point dtype; only n may be 0.
        kernels: window sides in cells, odd and strictly increasing.

    Returns:
        One map per kernel, with the shape, dtype and memory layout of `x`. It may be a view of a larger tensor.

    Raises:
        TypeError: `x` is not a floating-point tensor, or a kernel is not an integer.
        ValueError: wrong rank, an empty side, no kernels, an even kernel, or kernels that do not increase.
    """
    check_feature_maps(x)
    return VARIANTS[pick_variant(x)](x, parse_kernels(kernels))


def parse_kernels(kernels: Sequence[int]) -> tuple[int, ...]:
    """Return window sides as integers.

    Raises:
        TypeError: not a sequence of integers.
        ValueError: no sides, an even side, a side below 1, or sides that do not increase.
    """
    try:
        sides = tuple(operator.index(side) for side in kernels)
    except TypeError:
        raise TypeError(f"kernels: expected a sequence of odd sides such as (5, 9, 13), got {kernels!r}") from None
    if not sides:
        raise ValueError("kernels: expected at least one side, got none; for example (5, 9, 13)")
    for index, side in enumerate(sides):
        minimum = sides[index - 1] + 2 if index else 1
        if side % 2 == 0 or side < minimum:
            lower = f"{side - 1} or " if side % 2 == 0 and side > minimum else ""
            expected = f"an odd side of at least {minimum}" + (" (larger than the previous one)" if index else "")
            raise ValueError(
                f"kernels[{index}]: expected {expected}, got {side}; nearest legal side:"
                f" {lower}{max(side + 1 - side % 2, minimum)}"
            )
    return sides


def pick_variant(x: Float[Tensor, "n c h w"]) -> str:
    """Return the name in :data:`VARIANTS` that is fastest for a map, as measured by ``benchmarks/dense.py``.

    - Inside a graph (compile, export, trace): ``separable``, which has one form for all sizes.
    - On devices other than the CPU: ``chain``, which launches the fewest kernels.
    - With gradients: ``chain_last``. ``shifted`` would save a mask per comparison, and the separable variants have
      twice the backward passes.
    - Otherwise: ``shifted``; but ``separable_last`` for maps so small that shifts mostly read padding, and for
      tensors so small that call overhead dominates.
    """
    if in_graph():
        return "separable"
    if x.device.type != "cpu":
        return "chain"
    if x.requires_grad and torch.is_grad_enabled():
        return "chain_last"
    small = x.shape[2] * x.shape[3] <= (169 if _is_channels_last(x) else 49)
    return "separable_last" if small or x.numel() <= 1 << 14 else "shifted"


def in_graph() -> bool:
    """Return whether torch is building a graph (compile, export, trace), which other sizes may use."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _is_channels_last(x: Tensor) -> bool:
    """Return whether the channels of a cell are adjacent in memory."""
    return x.stride(1) == 1 < x.shape[1]


def _parallel(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Pool each side independently."""
    return [F.max_pool2d(x, side, 1, side // 2) for side in kernels]


def _chain(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Pool each side from the previous result: a maximum of window maxima is the maximum of a larger window."""
    maps, previous = [], 1
    for side in kernels:
        step, previous = side - previous + 1, side
        x = F.max_pool2d(x, step, 1, step // 2)
        maps.append(x)
    return maps


def _separable(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Pool as in :func:`_chain`, along rows and then along columns."""
    maps, previous = [], 1
    for side in kernels:
        step, previous = side - previous + 1, side
        x = F.max_pool2d(x, (1, step), 1, (0, step // 2))
        x = F.max_pool2d(x, (step, 1), 1, (step // 2, 0))
        maps.append(x)
    return maps


def _chain_last(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    return _in_channels_last(_chain, x, kernels)


def _separable_last(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    return _in_channels_last(_separable, x, kernels)


def _in_channels_last(variant: Variant, x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Run a variant in channels_last memory, where torch's pooling is vectorized over channels; convert back."""
    if _is_channels_last(x):
        return variant(x, kernels)
    maps = variant(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), kernels)
    return [pooled.contiguous() for pooled in maps]


def _shifted(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Take maxima of the map and shifted copies of it; each step at most doubles the side of the windows.

    With the padded map flattened to a line, a shift along a row or a column is a shift of the line: each step is
    one pass over memory, in either layout, without indexing.
    """
    n, c, height, width = x.shape
    last = _is_channels_last(x)
    maps = x.permute(0, 2, 3, 1) if last else x.reshape(n * c, height, width, 1)
    # Padding beyond side - 1 adds nothing. The right padding of a row is the left padding of the next.
    top, left = min(kernels[-1] // 2, height - 1), min(kernels[-1] // 2, width - 1)
    lines = F.pad(maps, (0, 0, left, 0, top, top + 1), value=-math.inf).flatten(1)
    cell = maps.shape[3]
    row = (left + width) * cell
    rows = columns = 1  # size of the windows, which begin at the positions in `lines` that hold their maxima
    pooled = []
    for side in kernels:
        lines, rows = _widen(lines, rows, min(side, 2 * height - 1), row)
        lines, columns = _widen(lines, columns, min(side, 2 * width - 1), cell)
        first = (top - rows // 2) * row + (left - columns // 2) * cell
        inside = lines[:, first : first + height * row].unflatten(1, (height, left + width, -1))[:, :, :width]
        pooled.append(inside.permute(0, 3, 1, 2) if last else inside.reshape(n, c, height, width))
    return pooled


def _widen(lines: Tensor, side: int, target: int, step: int) -> tuple[Tensor, int]:
    """Widen maxima over `side` numbers, spaced `step` apart, to maxima over `target` numbers."""
    while side < target:
        shift = min(side, target - side)
        lines = torch.maximum(lines[:, : -shift * step], lines[:, shift * step :])
        side += shift
    return lines, side


VARIANTS: Mapping[str, Variant] = {
    "parallel": _parallel,
    "chain": _chain,
    "separable": _separable,
    "chain_last": _chain_last,
    "separable_last": _separable_last,
    "shifted": _shifted,
}
"""Implementations with equal results, by name; they take kernels from :func:`parse_kernels`."""
