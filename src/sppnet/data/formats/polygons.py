"""Masks of polygons and run-length encodings, as in COCO and YOLO annotations."""

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from numpy.typing import NDArray

from sppnet.data.formats.annotations import shorten
from sppnet.data.images import MAX_PIXELS, MAX_SIDE
from sppnet.errors import ImageError

_MAX_COORDINATE = 1e9
_MAX_DIGITS = 12  # of a compressed count, 5 bits each


class Shape(NamedTuple):
    """The pixels of an object.

    Attributes:
        label: class index.
        polygons: x1, y1, x2, y2, ... of each polygon in pixels; the object is their union.
        counts: run lengths in column-major order, background first; None for polygons.
    """

    label: int
    polygons: tuple["array[float]", ...] = ()
    counts: "array[int] | None" = None


@dataclass(frozen=True)
class PolygonMask:
    """The mask of an image from an annotation file.

    Attributes:
        file: annotation file.
        size: (height, width).
        parts: objects; later ones cover earlier ones.
        where: entry of the image in the file, for messages; empty if the file has a single image.
    """

    file: Path
    size: tuple[int, int]
    parts: tuple[Shape, ...] = field(default=(), hash=False, repr=False)
    where: str = ""

    def __str__(self) -> str:
        return f"{self.file}, {self.where}" if self.where else str(self.file)

    def rasterize(self, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> Int32[np.ndarray, "h w"]:
        """Return the class index of each pixel.

        Raises:
            ImageError: the mask is larger than the limits.
        """
        height, width = self.size
        if height * width > max_pixels or max(self.size) > max_side:
            limits = f"at most {max_pixels} pixels and sides of {max_side}"
            raise ImageError(str(self), f"mask size: expected {limits}, got {height} x {width} (height x width)")
        return rasterize(self.size, self.parts)


def rasterize(size: tuple[int, int], parts: Iterable[Shape]) -> Int32[np.ndarray, "h w"]:
    """Draw objects over a background of index 0; later objects cover earlier ones.

    A pixel belongs to a polygon if its center does (even-odd rule), so that the square (0, 0) to (2, 2) has 4 pixels.

    Args:
        size: (height, width) of the mask.
        parts: objects; the sum of run lengths is height * width.
    """
    mask = np.zeros(size, np.int32)
    for part in parts:
        if part.counts is not None:
            runs = np.repeat(np.arange(len(part.counts)) % 2 == 1, np.array(part.counts, np.int64))
            mask[runs.reshape(size[::-1]).T] = part.label
        for polygon in part.polygons:
            _fill(mask, np.array(polygon, np.float64).reshape(-1, 2), part.label)
    return mask


def _fill(mask: NDArray[np.int32], points: NDArray[np.float64], index: int) -> None:
    """Set the pixels inside a polygon: each edge toggles the pixels to its right in the rows that it crosses."""
    ends = np.roll(points, -1, axis=0)
    is_down = (points[:, 1] <= ends[:, 1])[:, None]
    (x0, y0), (x1, y1) = np.where(is_down, points, ends).T, np.where(is_down, ends, points).T
    start, stop = (np.ceil(y - 0.5).clip(0, mask.shape[0]).astype(np.int64) for y in (y0, y1))
    columns = np.ceil(points[:, 0] - 0.5).clip(0, mask.shape[1]).astype(np.int64)
    left, right = columns.min(), columns.max()
    top, bottom = start.min(), stop.max()
    if top >= bottom or left >= right:
        return
    lengths = stop - start
    edge = np.repeat(np.arange(len(points)), lengths)
    rows = np.arange(len(edge)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + start[edge]
    x = x0[edge] + (rows + 0.5 - y0[edge]) / (y1 - y0)[edge] * (x1 - x0)[edge]
    columns = np.ceil(x - 0.5).clip(left, right).astype(np.int64)
    toggles = np.zeros((bottom - top, right - left + 1), np.int32)
    np.add.at(toggles, (rows - top, columns - left), 1)
    inside = np.cumsum(toggles, axis=1)[:, :-1] % 2 == 1
    mask[top:bottom, left:right][inside] = index


def parse_segmentation(value: Any, size: tuple[int, int], index: int) -> Shape:
    """Return the object of a ``segmentation`` entry of COCO.

    Args:
        value: list of polygons, or an object with ``size`` and ``counts``.
        size: (height, width) of the image.
        index: class index of the object.

    Raises:
        ValueError: the entry is malformed.
    """
    if isinstance(value, dict):
        return Shape(index, counts=_parse_counts(value, size))
    if not isinstance(value, list) or not all(isinstance(polygon, list) for polygon in value):
        raise ValueError(f"expected a list of polygons or a run-length encoding, got {shorten(value)}")
    return Shape(index, tuple(_parse_polygon(polygon) for polygon in value))


def _parse_polygon(values: list[Any]) -> "array[float]":
    if len(values) % 2:
        raise ValueError(f"expected an even number of coordinates, got {len(values)}")
    if len(values) < 6:
        raise ValueError(f"expected a polygon of at least 3 points, got {len(values) // 2}")
    for value in values:
        if type(value) not in (int, float) or not abs(value) <= _MAX_COORDINATE:  # NaN fails the comparison
            raise ValueError(f"expected finite numbers up to {_MAX_COORDINATE:g}, got {shorten(value)}")
    return array("d", values)


def _parse_counts(value: dict[str, Any], size: tuple[int, int]) -> "array[int]":
    if value.get("size") != [*size]:
        shown = shorten(value.get("size"))
        raise ValueError(f"size: expected the size of the image, {[*size]} (height, width), got {shown}")
    counts = value.get("counts")
    if isinstance(counts, str):
        counts = decode_counts(counts)
    if not isinstance(counts, list) or any(type(count) is not int or count < 0 for count in counts):
        raise ValueError(f"counts: expected a string or a list of integers >= 0, got {shorten(counts)}")
    if sum(counts) != math.prod(size):
        raise ValueError(
            f"counts: expected the sum {math.prod(size)}, the number of pixels, got {shorten(sum(counts))}"
        )
    return array("q", counts)


def decode_counts(text: str) -> list[int]:
    """Decode the run lengths of COCO's compressed strings.

    Each character holds 5 bits, low bits first, and a flag for another character; from the fourth run on, the numbers
    are differences to the run before the last.

    Raises:
        ValueError: the string is malformed.
    """
    counts: list[int] = []
    value = shift = 0
    for char in text:
        bits = ord(char) - 48
        if not 0 <= bits < 64 or shift >= 5 * _MAX_DIGITS:
            raise ValueError(f"counts: expected a compressed run-length encoding, got {shorten(text)}")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError(f"counts: expected a complete run-length encoding, got {shorten(text)}")
    return counts
