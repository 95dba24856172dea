"""Values of a map at other places, by where its cells lie on the image."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Grid(NamedTuple):
    """Where the cells of a map lie on an image; by default each cell is a pixel.

    Attributes:
        stride: (vertical, horizontal) pixels from one cell to the next.
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

    Outside the first and last cell centers the border values are repeated. The result depends on where the cells lie
    on the image, not on where the image ends, so a tile and the whole image give equal values at shared cells. Resizing
    by the ratio of the side lengths, as is common, shifts and stretches the map by fractions of a cell.

    Args:
        x: the map (N, C, H, W).
        source: the grid of `x`.
        size: (height, width) of the result, in cells of `target`.
        target: the grid of the result; the pixels of the image by default.

    Returns:
        A map (N, C, height, width).
    """
    rows, columns = (
        _weights(
            x, axis, size[axis], (target.stride[axis], target.offset[axis]), (source.stride[axis], source.offset[axis])
        )
        for axis in (0, 1)
    )
    # Products with two numbers a row that are not 0: their gradients are sums in a fixed order on every device, and on
    # the CPU they cost no more than gathering up to some 400 cells a side.
    if x.is_contiguous(memory_format=torch.channels_last) and x.shape[1] > 1:
        wide = columns @ x.permute(0, 2, 3, 1)  # (N, H, columns, C)
        out: Tensor = (rows @ wide.flatten(2)).unflatten(2, (size[1], x.shape[1])).permute(0, 3, 1, 2)
    else:
        out = rows @ (x @ columns.T)
    return out


def _weights(x: Tensor, axis: int, size: int, target: tuple[int, float], source: tuple[int, float]) -> Tensor:
    """What each cell along an axis of the map gives to each place: (size, cells)."""
    cells = x.shape[axis + 2]
    pixels = torch.arange(size, device=x.device, dtype=torch.float32) * target[0] + target[1]
    places = ((pixels - source[1]) / source[0]).clamp(0, cells - 1)
    distance = (places[:, None] - torch.arange(cells, device=x.device)).abs()
    return (1 - distance).clamp(min=0).to(x.dtype)
