"""A grid of windows of several sizes and aspect ratios."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

# The grid's sides shrink by this factor from those of the image, and its windows are at most so much longer than wide.
_RATIO, _ASPECT, _LEAST_SIDE = 1.6, 2.0, 16
# Smaller windows are worth having as long as neighbours need not be further apart than this part of their side.
_STRIDE, _LEAST_STRIDE = 0.45, 0.1


def window_grid(size: tuple[int, int], max_windows: int) -> Float[Tensor, "k 4"]:
    """Windows of many sizes that slide over an image, edge to edge.

    Their sides are those of the image divided by powers of 1.6, down to 16 pixels, and one is at most twice the other;
    besides there is the whole image. As many sizes are taken as fit into the number of windows with neighbours at
    most 0.45 of their side apart; what is left of the number then brings the neighbours closer.

    Args:
        size: of the image, (height, width).
        max_windows: >= 1.

    Returns:
        xyxy edges in pixels of the image.
    """
    shapes: list[tuple[float, float]] = [size]
    least = float(min(size))
    while least >= min(_LEAST_SIDE, *size):
        finer = _shapes(size, least)
        if _count(size, finer, _STRIDE) > max_windows:
            break
        shapes, least = finer, least / _RATIO
    low, high = _LEAST_STRIDE, _STRIDE
    for _ in range(20):
        stride = (low + high) / 2
        low, high = (low, stride) if _count(size, shapes, stride) <= max_windows else (stride, high)
    return torch.cat([_slide(size, shape, high) for shape in shapes])


def _shapes(size: tuple[int, int], least: float) -> list[tuple[float, float]]:
    """The (height, width) of the grid's windows whose sides are at least so long, and that of the image."""
    heights, widths = (_ladder(side, least) for side in size)
    pairs = [
        (height, width) for height in heights for width in widths if max(height, width) <= _ASPECT * min(height, width)
    ]
    return pairs if size in pairs else [size, *pairs]


def _ladder(side: float, least: float) -> list[float]:
    """The side and what is left of it when it shrinks step by step."""
    sides = []
    while side >= least * (1 - 1e-9):
        sides.append(side)
        side /= _RATIO
    return sides


def _places(side: int, window: float, stride: float) -> int:
    """How many windows lie along a side, from edge to edge."""
    return 1 + math.ceil((side - window) / (stride * window) - 1e-9)


def _count(size: tuple[int, int], shapes: Sequence[tuple[float, float]], stride: float) -> int:
    return sum(_places(size[0], height, stride) * _places(size[1], width, stride) for height, width in shapes)


def _slide(size: tuple[int, int], shape: tuple[float, float], stride: float) -> Float[Tensor, "k 4"]:
    """Windows of one shape at all their places."""
    top, left = (
        torch.linspace(0, side - window, _places(side, window, stride), dtype=torch.float64)
        for side, window in zip(size, shape, strict=True)
    )
    y, x = torch.cartesian_prod(top, left).unbind(1)
    return torch.stack((x, y, x + shape[1], y + shape[0]), dim=1).float()
