"""Overlapping tiles of an image, and blending of their outputs."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

Span = tuple[int, int]  # [start, end) in pixels


class Block(NamedTuple):
    """A part of an image with the final probabilities of its pixels.

    Attributes:
        row: index of the row of tiles, from 0.
        rows: [start, end) of the pixel rows.
        columns: [start, end) of the pixel columns.
        probabilities: class probabilities of shape (classes, height, width).
    """

    row: int
    rows: Span
    columns: Span
    probabilities: Float[Tensor, "classes h w"]


def tile_spans(size: int, tile: int, overlap: int, stride: int) -> list[Span]:
    """Cover an axis with as few tiles of at most `tile` pixels as possible, of about equal length.

    Tiles start at multiples of the stride, and their lengths have the same remainder modulo the stride as `size`, so
    padding that depends on the image size (TensorFlow's SAME) is the same as for the whole image. No pixel is in more
    than two tiles.

    Args:
        size: length of the axis in pixels, >= 1.
        tile: maximum tile length in pixels, a multiple of the stride.
        overlap: minimum overlap of neighbors in pixels, a multiple of the stride, at most ``tile / 2 - stride``.
        stride: stride of the model, from :func:`sppnet.segment.tiles.tile_stride`.

    Raises:
        ValueError: `tile` or `overlap` is illegal.
    """
    for name, value in (("tile", tile), ("overlap", overlap)):
        if value < 0 or value % stride:
            legal = max(-(-value // stride), name == "tile") * stride
            raise ValueError(f"{name}: expected a multiple of {stride}, the model's stride, got {value}; use {legal}")
    if tile < 2 * (overlap + stride):
        raise ValueError(
            f"tile: expected at least {2 * (overlap + stride)} pixels, twice the sum of overlap {overlap} and stride"
            f" {stride}, got {tile}"
        )
    if size <= tile:
        return [(0, size)]
    cells, rest = divmod(size, stride)
    shared = overlap // stride
    max_step = tile // stride - shared - (rest > 0)  # cells from one start to the next
    count = -(-(cells - shared) // max_step)
    step = max(-(-(cells - shared) // count), shared + (rest > 0))  # no pixel in three tiles
    starts = range(0, cells - shared, step)
    return [(start * stride, min((start + step + shared) * stride + rest, size)) for start in starts]


def blend_tiles(
    down: list[Span],
    across: list[Span],
    look: Callable[[Span, Span], Float[Tensor, "classes h w"]],
    first: int = 0,
) -> Iterator[Block]:
    """Compute tiles row by row, and yield pixels as soon as no later tile changes them.

    Where two tiles overlap, the weight of one falls linearly while that of the other rises. Only the overlaps with
    later tiles are kept in memory: the strip at the bottom of a row of tiles, and the strip at the right of a tile.

    Args:
        down: spans of the rows of tiles.
        across: spans of the columns of tiles.
        look: function from a row span and a column span to probabilities, which are modified in place.
        first: row of tiles to start with. The top strip of this row then lacks the contribution of the row above.
    """
    tall, wide = _overlap_of(down), _overlap_of(across)
    rising = tuple((torch.arange(length) + 0.5) / max(length, 1) for length in (tall, wide))
    above = torch.empty(0)  # weighted bottom strip of the row above: (classes, tall, width of the image)
    for row, (top, bottom) in enumerate(down):
        if row < first:
            continue
        end = bottom if row + 1 == len(down) else bottom - tall
        before = torch.empty(0)  # weighted right strip of the previous tile: (classes, height, wide)
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
            del tile  # free it before the next tile is computed


def _overlap_of(spans: list[Span]) -> int:
    """Return the number of pixels that neighboring spans share."""
    return spans[0][1] - spans[1][0] if len(spans) > 1 else 0
