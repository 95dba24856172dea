"""Overlapping tiles: where they lie, and how their outputs are blended."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

OVERLAP = 64  # pixels
Span = tuple[int, int]  # first pixel, and the one after the last


class Block(NamedTuple):
    """A part of an image, with the probabilities that its pixels have in the end.

    Attributes:
        row: of tiles, counted from 0.
        rows: first row of pixels, and the one after the last.
        columns: the same of columns.
        probabilities: (classes, height, width).
    """

    row: int
    rows: Span
    columns: Span
    probabilities: Float[Tensor, "classes h w"]


def tile_spans(size: int, tile: int, overlap: int, stride: int) -> list[Span]:
    """Where tiles lie along an axis: as few of at most `tile` pixels as cover it, and about equally long.

    They start at multiples of the stride, and the remainders of their lengths by the stride are that of `size`, so
    paddings that depend on an image's size (TensorFlow's SAME) are the whole image's, too. At most two tiles lie over
    each other.

    Args:
        size: of the image, pixels; at least 1.
        tile: a multiple of the stride.
        overlap: least pixels that neighbours have in common; a multiple of the stride, at most half of the tile less
            one stride.
        stride: from :func:`tile_stride`.

    Raises:
        ValueError: `tile` or `overlap` are no such numbers.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value < 0 or value % stride:
            above = max(-(-value // stride), name == "tile") * stride
            raise ValueError(f"{name}: expected a multiple of {stride}, the model's stride; got {value}, take {above}")
    if tile < 2 * (overlap + stride):
        raise ValueError(
            f"tile: expected at least {2 * (overlap + stride)} pixels, twice the overlap of {overlap} and a stride of"
            f" {stride}; got {tile}"
        )
    if size <= tile:
        return [(0, size)]
    cells, rest = divmod(size, stride)
    common = overlap // stride
    widest = tile // stride - common - (rest > 0)  # cells from one start to the next
    count = -(-(cells - common) // widest)
    step = max(-(-(cells - common) // count), common + (rest > 0))  # no third tile over two
    starts = range(0, cells - common, step)
    return [(start * stride, min((start + step + common) * stride + rest, size)) for start in starts]


def blend_tiles(
    down: list[Span],
    across: list[Span],
    look: Callable[[Span, Span], Float[Tensor, "classes h w"]],
    first: int = 0,
) -> Iterator[Block]:
    """Look at tiles row by row, and give each time the pixels that no later tile will change.

    Where tiles lie over each other, the weight of the one falls from pixel to pixel as that of the other rises. Only
    these strips are kept: the one under a row of tiles, and the one to the right of a tile.

    Args:
        down: spans of rows of tiles.
        across: spans of columns of tiles.
        look: from spans of rows and columns to probabilities, which may be changed in place.
        first: row of tiles to start at. Its upper strip then lacks what the row above would add.
    """
    tall, wide = _strip(down), _strip(across)
    rising = tuple((torch.arange(strip) + 0.5) / max(strip, 1) for strip in (tall, wide))
    above = torch.empty(0)  # the strip of the row above, weighted: (classes, tall, width of the image)
    for row, (top, bottom) in enumerate(down):
        if row < first:
            continue
        end = bottom if row + 1 == len(down) else bottom - tall
        before = torch.empty(0)  # the strip of the tile before, weighted: (classes, height, wide)
        for left, right in across:
            tile = look((top, bottom), (left, right))
            if left > 0:
                tile[:, :, :wide].mul_(rising[1]).add_(before)
            if right < across[-1][1]:
                right -= wide
                before = tile[:, :, right - left :] * (1 - rising[1])
                tile = tile[:, :, : right - left]
            if row > first:
                tile[:, :tall].mul_(rising[0][:, None]).add_(above[:, :, left:right])
            elif not above.numel():
                above = tile.new_empty(len(tile), tall, across[-1][1])
            if end < bottom:
                above[:, :, left:right] = tile[:, end - top :] * (1 - rising[0][:, None])
            yield Block(row, (top, end), (left, right), tile[:, : end - top])
            del tile  # before the next one comes


def _strip(spans: list[Span]) -> int:
    """What each span has in common with the next."""
    return spans[0][1] - spans[1][0] if len(spans) > 1 else 0
