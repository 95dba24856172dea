"""Sliding-window proposals of several sizes and aspect ratios."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

_RATIO = 1.6  # between successive window sides
_ASPECT, _MIN_SIDE = 2.0, 16  # maximum aspect ratio, minimum side in pixels
_MAX_STRIDE, _MIN_STRIDE = 0.45, 0.1  # fractions of the window side


def window_grid(size: tuple[int, int], max_windows: int) -> Float[Tensor, "k 4"]:
    """Return sliding windows of many sizes that cover an image from edge to edge.

    Window sides are the image's sides divided by powers of 1.6, down to 16 pixels, with aspect ratios up to 2; the
    whole image is always included. Smaller sizes are added as long as all windows fit into `max_windows` at a stride
    of 0.45 of the window side. The stride is then reduced to use the remaining windows.

    Args:
        size: (height, width) of the image.
        max_windows: maximum number of windows, >= 1.

    Returns:
        xyxy edges in pixels of the image.
    """
    shapes: list[tuple[float, float]] = [size]
    min_side = float(min(size))
    while min_side >= min(_MIN_SIDE, *size):
        candidates = _shapes(size, min_side)
        if _count(size, candidates, _MAX_STRIDE) > max_windows:
            break
        shapes, min_side = candidates, min_side / _RATIO
    low, high = _MIN_STRIDE, _MAX_STRIDE
    for _ in range(20):
        stride = (low + high) / 2
        low, high = (low, stride) if _count(size, shapes, stride) <= max_windows else (stride, high)
    return torch.cat([_slide(size, shape, high) for shape in shapes])


def _shapes(size: tuple[int, int], min_side: float) -> list[tuple[float, float]]:
    """Return the (height, width) of all windows with sides of at least `min_side`, and that of the image."""
    heights, widths = (_ladder(side, min_side) for side in size)
    pairs = [
        (height, width) for height in heights for width in widths if max(height, width) <= _ASPECT * min(height, width)
    ]
    return pairs if size in pairs else [size, *pairs]


def _ladder(side: float, min_side: float) -> list[float]:
    """Return a side divided by powers of the ratio, down to `min_side`."""
    sides = []
    while side >= min_side * (1 - 1e-9):
        sides.append(side)
        side /= _RATIO
    return sides


def _positions(side: int, window: float, stride: float) -> int:
    """Return the number of window positions along a side of the image."""
    return 1 + math.ceil((side - window) / (stride * window) - 1e-9)


def _count(size: tuple[int, int], shapes: Sequence[tuple[float, float]], stride: float) -> int:
    return sum(_positions(size[0], height, stride) * _positions(size[1], width, stride) for height, width in shapes)


def _slide(size: tuple[int, int], shape: tuple[float, float], stride: float) -> Float[Tensor, "k 4"]:
    """Return the windows of one shape at all positions."""
    top, left = (
        torch.linspace(0, side - window, _positions(side, window, stride), dtype=torch.float64)
        for side, window in zip(size, shape, strict=True)
    )
    y, x = torch.cartesian_prod(top, left).unbind(1)
    return torch.stack((x, y, x + shape[1], y + shape[0]), dim=1).float()
