"""Resampling of feature maps by the image positions of their cells."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Grid(NamedTuple):
    """Image positions of the cells of a map; by default each cell is a pixel.

    Attributes:
        stride: (vertical, horizontal) distance of adjacent cells in pixels.
        offset: (vertical, horizontal) 0-based index of the pixel under the center of the first cell.
    """

    stride: tuple[int, int] = (1, 1)
    offset: tuple[float, float] = (0.0, 0.0)


def resample(
    x: Float[Tensor, "n c _ _"],
    source: Grid,
    size: tuple[int, int],
    target: Grid = Grid(),  # noqa: B008
) -> Float[Tensor, "n c h w"]:
    """Interpolate a map bilinearly at the cells of another grid on the same image.

    Beyond the outermost cell centers, border values are repeated. The result depends on the positions of the cells,
    not on the size of the image, so a tile and the whole image have equal values at shared cells. The common resizing
    by the ratio of the side lengths shifts and stretches the map by fractions of a cell.

    Args:
        x: feature map (N, C, H, W).
        source: grid of `x`.
        size: (height, width) of the result, in cells of `target`.
        target: grid of the result; by default the pixels of the image.

    Returns:
        A map (N, C, height, width).
    """
    rows, columns = (
        _weights(
            x, axis, size[axis], (target.stride[axis], target.offset[axis]), (source.stride[axis], source.offset[axis])
        )
        for axis in (0, 1)
    )
    # Matrix products, with two nonzero weights per row, have deterministic gradients on every device, and on the CPU
    # are as fast as gathering up to about 400 cells per side.
    if x.is_contiguous(memory_format=torch.channels_last) and x.shape[1] > 1:
        stretched = columns @ x.permute(0, 2, 3, 1)  # (N, H, columns, C)
        out: Tensor = (rows @ stretched.flatten(2)).unflatten(2, (size[1], x.shape[1])).permute(0, 3, 1, 2)
    else:
        out = rows @ (x @ columns.T)
    return out


def _weights(x: Tensor, axis: int, size: int, target: tuple[int, float], source: tuple[int, float]) -> Tensor:
    """Compute the (size, cells) interpolation weights along an axis."""
    cells = x.shape[axis + 2]
    pixels = torch.arange(size, device=x.device, dtype=torch.float32) * target[0] + target[1]
    positions = ((pixels - source[1]) / source[0]).clamp(0, cells - 1)
    distance = (positions[:, None] - torch.arange(cells, device=x.device)).abs()
    return (1 - distance).clamp(min=0).to(x.dtype)
