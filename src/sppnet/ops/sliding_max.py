"""Maxima over the windows around every cell, several window sides at once: the pools of YOLO's SPP and SPPF."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sppnet.ops.pyramid import check_map

Variant = Callable[[Tensor, Sequence[int]], list[Tensor]]


def sliding_max(x: Float[Tensor, "n c h w"], kernels: Sequence[int]) -> list[Float[Tensor, "n c h w"]]:
    """Maximum over the k x k window around each cell, for each k of `kernels`.

    What lies outside the map does not count, so each map equals ``max_pool2d(x, k, stride=1, padding=k // 2)``; the
    size stays. A window of k >= 2 * side - 1 sees the whole side from every cell, so on a map of such sides it is
    the global maximum. NaN stays NaN in every window that sees it.

    The maps are computed in the way of :data:`VARIANTS` that is fastest for `x`, see :func:`pick_variant`. All give
    the same numbers (the sign of a zero may differ), and the same gradients where a window has one largest cell; of
    several, each may choose another.

    Args:
        x: feature maps, contiguous or channels_last, of any floating dtype; n may be 0, c, h and w may not.
        kernels: sides of the windows in cells, odd, each larger than the one before.

    Returns:
        A map of the shape, dtype and memory layout of `x` for each side, in the order of `kernels`. It may be a view
        of a larger tensor.

    Raises:
        TypeError: `x` is not a floating-point tensor, or a side is not an integer.
        ValueError: wrong rank, an empty side, no kernel, an even one, or one that is not larger than the one before.
    """
    check_map(x)
    return VARIANTS[pick_variant(x)](x, parse_kernels(kernels))


def parse_kernels(kernels: Sequence[int]) -> tuple[int, ...]:
    """Window sides as integers.

    Raises:
        TypeError: no sequence of integers.
        ValueError: none, an even one, one below 1, or one that is not larger than the one before.
    """
    try:
        sides = tuple(operator.index(side) for side in kernels)
    except TypeError:
        raise TypeError(f"kernels: expected a sequence of odd sides such as (5, 9, 13); got {kernels!r}") from None
    if not sides:
        raise ValueError("kernels: expected at least one side, for example (5, 9, 13); got none")
    for index, side in enumerate(sides):
        least = sides[index - 1] + 2 if index else 1
        if side % 2 == 0 or side < least:
            below = f"{side - 1} or " if side % 2 == 0 and side > least else ""
            wanted = f"an odd side of at least {least}" + (" (larger than the one before)" if index else "")
            raise ValueError(
                f"kernels[{index}]: expected {wanted}; got {side}; next that is possible:"
                f" {below}{max(side + 1 - side % 2, least)}"
            )
    return sides


def pick_variant(x: Float[Tensor, "n c h w"]) -> str:
    """Name of the way of :data:`VARIANTS` that is fastest for a map, by measurement (``benchmarks/dense.py``).

    - Inside a graph (compile, export, trace): ``separable``, one form for all sizes.
    - On other devices than the CPU: ``chain``, which has the fewest kernels.
    - Where a gradient is wanted: ``chain_last``. Shifts would save a mask for each comparison, and rows and columns
      apart have twice the backward passes.
    - Otherwise ``shifted``, or ``separable_last`` on maps so small that shifts mostly read their padding, or so few
      numbers in all that their many calls take longer than the work.
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
    """Whether a graph is being made that serves other sizes too: compile, export or trace."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def _is_channels_last(x: Tensor) -> bool:
    """Whether the channels of a cell are neighbours in memory."""
    return x.stride(1) == 1 < x.shape[1]


def _parallel(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Each side by itself."""
    return [F.max_pool2d(x, side, 1, side // 2) for side in kernels]


def _chain(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Each from the one before: a maximum over windows of maxima over windows is that over the larger window."""
    maps, before = [], 1
    for side in kernels:
        step, before = side - before + 1, side
        x = F.max_pool2d(x, step, 1, step // 2)
        maps.append(x)
    return maps


def _separable(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """The chain, with rows first and the columns of what they leave."""
    maps, before = [], 1
    for side in kernels:
        step, before = side - before + 1, side
        x = F.max_pool2d(x, (1, step), 1, (0, step // 2))
        x = F.max_pool2d(x, (step, 1), 1, (step // 2, 0))
        maps.append(x)
    return maps


def _chain_last(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    return _in_channels_last(_chain, x, kernels)


def _separable_last(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    return _in_channels_last(_separable, x, kernels)


def _in_channels_last(variant: Variant, x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """In channels_last memory, where torch's pool takes a vector of channels at a time, and back."""
    if _is_channels_last(x):
        return variant(x, kernels)
    maps = variant(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2), kernels)
    return [one.contiguous() for one in maps]


def _shifted(x: Tensor, kernels: Sequence[int]) -> list[Tensor]:
    """Maxima of the map and of the map shifted by some cells; the windows grow by up to their own side each time.

    A padded map is one line of numbers, and a shift along a row or a column is a shift of the line. So each step is
    one pass over memory, in either layout, with nothing to index.
    """
    n, c, height, width = x.shape
    last = _is_channels_last(x)
    maps = x.permute(0, 2, 3, 1) if last else x.reshape(n * c, height, width, 1)
    # Windows of more than 2 * side - 1 see nothing more. What a row has on its right is the left of the next one.
    top, left = min(kernels[-1] // 2, height - 1), min(kernels[-1] // 2, width - 1)
    lines = F.pad(maps, (0, 0, left, 0, top, top + 1), value=-math.inf).flatten(1)
    cell = maps.shape[3]
    row = (left + width) * cell
    rows = columns = 1  # of the window that `lines` holds the maxima of, which begins at the number where they stand
    found = []
    for side in kernels:
        lines, rows = _widen(lines, rows, min(side, 2 * height - 1), row)
        lines, columns = _widen(lines, columns, min(side, 2 * width - 1), cell)
        first = (top - rows // 2) * row + (left - columns // 2) * cell
        inside = lines[:, first : first + height * row].unflatten(1, (height, left + width, -1))[:, :, :width]
        found.append(inside.permute(0, 3, 1, 2) if last else inside.reshape(n, c, height, width))
    return found


def _widen(lines: Tensor, side: int, target: int, step: int) -> tuple[Tensor, int]:
    """Maxima of `side` numbers that stand `step` apart become those of `target` numbers."""
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
"""Ways to the same maps by name, for kernels as :func:`parse_kernels` gives them."""
