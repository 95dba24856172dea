"""Detection in overlapping tiles of a large image."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from sppnet.inference.results import Detections
from sppnet.inference.tiles import Span, tile_spans
from sppnet.ops.boxes import areas

_EDGE = 2.0  # pixels within which a box touches the border of its tile
_COVERED = 0.5  # share of a cut box that another one must cover to replace it
_OVERLAP = 0.5  # IoU of two boxes of the same object
_ROWS = 256  # boxes that are compared with all others at a time

Found = tuple[Detections, Float[Tensor, "p 4"], Float[Tensor, "k d"] | None]


@dataclass(frozen=True)
class Tiling:
    """Tiles of equal size in which an image is processed, so that small objects are not reduced.

    Attributes:
        side: largest side of a tile, in pixels of the image.
        overlap: smallest overlap of neighboring tiles in pixels, less than half a tile; None for a quarter. Objects
            that are at least 4 pixels smaller are whole in at least one tile, 2 pixels from its borders.
    """

    side: int
    overlap: int | None = None

    def __post_init__(self) -> None:
        if self.side < 64:
            raise ValueError(f"tile: expected a side of at least 64 pixels, got {self.side}")
        if not 0 <= self.shared <= self.side // 2 - 1:
            raise ValueError(f"overlap: expected 0 to {self.side // 2 - 1}, less than half a tile, got {self.overlap}")

    @property
    def shared(self) -> int:
        """Smallest overlap in pixels."""
        return self.side // 4 if self.overlap is None else self.overlap


def detect_tiles(image: Image.Image, tiling: Tiling, detect: Callable[[Image.Image], Found]) -> Found:
    """Detect objects in each tile of an image and merge them.

    Boxes of different tiles and the same class are compared: a box is dropped if it overlaps a better one by more than
    half, where whole boxes are better than those that a border between tiles cuts, or if it is cut and a larger one
    covers half of it.

    Args:
        image: RGB image.
        tiling: tiles.
        detect: function that returns the detections, proposals and vectors of a tile, in pixels of the tile.
    """
    down, across = (tile_spans(side, tiling.side, tiling.shared, 1) for side in (image.height, image.width))
    parts: list[Any] = []
    cut = []
    for (top, bottom), (left, right) in itertools.product(down, across):
        found, proposals, vectors = detect(image.crop((left, top, right, bottom)))
        shift = torch.tensor([left, top, left, top], dtype=torch.float32)
        boxes = found.boxes + shift
        cut.append(_is_cut(boxes, (left, right), (top, bottom), image.size))
        parts.append((boxes, found.scores, found.labels, proposals + shift, vectors))
    boxes, scores, labels, proposals = (torch.cat(values) for values in list(zip(*parts, strict=True))[:4])
    vectors = None if parts[0][4] is None else torch.cat([part[4] for part in parts])
    tiles = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part[0]) for part in parts]))
    kept = (scores - torch.cat(cut).float()).argsort(descending=True, stable=True)  # whole boxes before cut ones
    kept = kept[~_is_repeated(boxes[kept], labels[kept], tiles[kept])]
    kept = kept[~_is_covered(boxes[kept], labels[kept], tiles[kept], torch.cat(cut)[kept])]
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    return Detections(boxes[kept], scores[kept], labels[kept]), proposals, None if vectors is None else vectors[kept]


def _is_cut(boxes: Float[Tensor, "k 4"], columns: Span, rows: Span, size: tuple[int, int]) -> Tensor:
    """Return which boxes touch a border of their tile that is not a border of the image of this (width, height)."""
    cut = torch.zeros(len(boxes), dtype=torch.bool)
    for axis, ((start, end), length) in enumerate(zip((columns, rows), size, strict=True)):
        if start > 0:
            cut |= boxes[:, axis] < start + _EDGE
        if end < length:
            cut |= boxes[:, axis + 2] > end - _EDGE
    return cut


def _is_repeated(boxes: Float[Tensor, "k 4"], labels: Tensor, tiles: Tensor) -> Tensor:
    """Return which boxes overlap an earlier one of their class from another tile."""
    repeated = torch.zeros(len(boxes), dtype=torch.bool)
    for rows in torch.arange(len(boxes)).split(_ROWS):
        earlier = torch.arange(len(boxes)) < rows[:, None]
        rival = earlier & (labels[rows, None] == labels) & (tiles[rows, None] != tiles)
        repeated[rows] = ((box_iou(boxes[rows], boxes) > _OVERLAP) & rival).any(1)
    return repeated


def _is_covered(boxes: Float[Tensor, "k 4"], labels: Tensor, tiles: Tensor, cut: Tensor) -> Tensor:
    """Return which cut boxes are covered by a larger box of their class from another tile."""
    area, covered = areas(boxes), torch.zeros_like(cut)
    for rows in cut.nonzero()[:, 0].split(_ROWS):
        low = torch.maximum(boxes[rows, None, :2], boxes[:, :2])
        high = torch.minimum(boxes[rows, None, 2:], boxes[:, 2:])
        share = (high - low).clamp(min=0).prod(2) / area[rows, None].clamp(min=1e-9)
        rival = (labels[rows, None] == labels) & (tiles[rows, None] != tiles) & (area > area[rows, None])
        covered[rows] = ((share > _COVERED) & rival).any(1)
    return covered
