"""Values of a map at other places, by where its cells lie on the image."""

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.backbones import FeatureMap


def resample(
    source: FeatureMap,
    size: tuple[int, int],
    stride: tuple[int, int] = (1, 1),
    offset: tuple[float, float] = (0.0, 0.0),
) -> Float[Tensor, "n c h w"]:
    """Values of a map at the cells of another grid on the same image, bilinear between the map's centres.

    Beyond the first and the last centre the values of the border's cells hold. A value depends on the place of the
    cells and not on where the image ends, so a tile and the whole image, whose cells are the same, give the same.
    Resizing by the ratio of the sides, as is customary, shifts and stretches the map by parts of a cell.

    Args:
        source: the map and its place on the image.
        size: (rows, columns) of the grid.
        stride: (vertical, horizontal) pixels from one of its cells to the next; 1 for the pixels themselves.
        offset: (vertical, horizontal) 0-based index of the pixel under its first cell's centre.
    """
    x = source.data
    rows, columns = (
        _weights(x, axis, size[axis], (stride[axis], offset[axis]), (source.stride[axis], source.offset[axis]))
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
