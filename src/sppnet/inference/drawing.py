"""Positions of feature-map cells and bins on an image, drawing of boxes, and fonts and colors of all pictures."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sppnet.backbones.backbone import FeatureMap
from sppnet.ops.bins import bin_edges
from sppnet.ops.levels import Level, parse_levels

# The seven bright Okabe-Ito colors, then greedily the color of sufficient lightness and chroma that is farthest in Lab
# from all previous ones, in the worst case of normal vision, protanopia and deuteranopia.
_COLORS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#4b00ff", "#00ff96", "#7869ff"),
    *("#b4002d", "#4bffff", "#96a55a", "#a50069", "#1e4bb4", "#7896ff", "#96f0c3", "#87f069", "#3c693c", "#3cc3d2"),
)

BACKGROUND, TEXT = "#16161a", "#ebebeb"
_TINT = (255, 166, 0)
_STRENGTH = 0.75
_LABEL: dict[str, Any] = {"align": "center", "stroke_width": 2}
_GAP = 8  # total horizontal and vertical margin of a label, in pixels


def bin_boxes(
    features: FeatureMap, image_size: tuple[int, int], network_size: tuple[int, int], level: Level
) -> Float[Tensor, "bins 4"]:
    """Compute the boxes of one level's bins on the image (SPP-net, section 2.2).

    A cell covers the part of the image that is closer to its center than to any other: from
    ``offset + stride * (i - 0.5)`` to ``offset + stride * (i + 0.5)``, and up to the image border for the first and
    the last cell. Bins follow the rule ``adaptive`` and overlap by up to one cell if the level does not divide the
    map. Together they cover the image.

    Args:
        features: feature map of images that all have `network_size`, without padding.
        image_size: (height, width) of the image to draw on, in pixels.
        network_size: (height, width) of the whole image as input of the network, in pixels.
        level: n >= 1 for n x n bins, or (rows, columns).

    Returns:
        xyxy edges in pixels of the image, in row-major order.

    Raises:
        ValueError: a size or level is below 1, or the batch is padded.
    """
    if features.sizes is not None:
        raise ValueError("features: expected a map without padding (sizes None), got one with sizes")
    if min(*image_size, *network_size) < 1:
        raise ValueError(
            f"image_size, network_size: expected at least 1 x 1 pixels, got {image_size} and {network_size}"
        )
    ((rows, columns),) = parse_levels([level])
    y, x = cell_borders(features.data.shape[2:], features.stride, features.offset, image_size, network_size)
    return torch.tensor(
        [
            (x[left], y[top], x[right], y[bottom])
            for top, bottom in bin_edges(features.data.shape[2], rows)
            for left, right in bin_edges(features.data.shape[3], columns)
        ]
    )


def cell_borders(
    map_size: Sequence[int],
    stride: tuple[int, int],
    offset: tuple[float, float],
    image_size: tuple[int, int],
    network_size: tuple[int, int],
) -> tuple[list[float], list[float]]:
    """Compute the borders of the rows and columns of a map in pixels of the image, including the image edges.

    Args:
        map_size: (height, width) of the map, in cells.
        stride: (vertical, horizontal) stride of the map, in pixels of the network input.
        offset: (vertical, horizontal) center of the first cell, in pixels of the network input.
        image_size: (height, width) of the image, in pixels.
        network_size: (height, width) of the network input, in pixels.
    """
    sides = zip(map_size, stride, offset, image_size, network_size, strict=True)
    y, x = (_axis_borders(*side) for side in sides)
    return y, x


def _axis_borders(cells: int, stride: int, offset: float, image_side: int, network_side: int) -> list[float]:
    # Pixel p covers p to p + 1; the offset refers to pixel centers, at p + 0.5.
    inner = [offset + 0.5 + stride * (cell - 0.5) for cell in range(1, cells)]
    borders = [0.0, *(min(max(border, 0.0), float(network_side)) for border in inner), float(network_side)]
    return [border * image_side / network_side for border in borders]


def draw_bins(
    image: Image.Image,
    boxes: Float[Tensor, "n 4"],
    *,
    values: Sequence[float] | None = None,
    labels: Sequence[str] | None = None,
) -> Image.Image:
    """Return a copy of the image with boxes drawn on it.

    Args:
        image: RGB image; not modified.
        boxes: xyxy edges in pixels of the image.
        values: one value in [0, 1] per box, shown as a tint. The image is then converted to gray, and overlapping
            boxes get the mean of their tints.
        labels: one label per box, centered in the box if it fits, wrapped at spaces if necessary.

    Raises:
        ValueError: the length of `values` or `labels` differs from `boxes`, or a value is outside [0, 1].
    """
    for name, entries in (("values", values), ("labels", labels)):
        if entries is not None and len(entries) != len(boxes):
            raise ValueError(f"{name}: expected one per box ({len(boxes)}), got {len(entries)}")
    corners: list[list[int]] = boxes.round().long().tolist()
    picture = image.copy() if values is None else _tint(image, corners, values)
    outlines = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(outlines)
    width = 2 if min(picture.size) >= 200 else 1
    for left, top, right, bottom in corners:
        if right > left and bottom > top:
            draw.rectangle((left, top, right - 1, bottom - 1), outline=(255, 255, 255, 170), width=width)
    picture.paste(outlines, mask=outlines)
    if labels:
        _draw_labels(picture, corners, labels)
    return picture


def _tint(image: Image.Image, corners: list[list[int]], values: Sequence[float]) -> Image.Image:
    total, count = np.zeros((2, image.height, image.width, 1))
    for (left, top, right, bottom), value in zip(corners, values, strict=True):
        if not 0 <= value <= 1:
            raise ValueError(f"values: expected numbers in [0, 1], got {value}")
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    strength = _STRENGTH * total / np.maximum(count, 1)
    gray = np.asarray(image.convert("L"), dtype=float)[..., None]
    # Scale the tint by brightness, so that the image remains recognizable.
    tinted = gray * (1 - strength) + np.array(_TINT) * (0.4 + 0.6 * gray / 255) * strength
    return Image.fromarray(tinted.round().astype(np.uint8))


def _draw_labels(picture: Image.Image, corners: list[list[int]], labels: Sequence[str]) -> None:
    """Draw the labels in the largest common font size at which all fit; at the smallest, skip those that do not fit."""
    smallest, largest = (max(12, max(picture.size) // part) for part in (40, 25))
    draw = ImageDraw.Draw(picture)
    best: list[tuple[tuple[float, float], str]] = []
    font = load_font(smallest)
    for size in range(largest, smallest - 1, -1):
        font = load_font(size)
        wrapped = [label.replace(" ", "\n") for label in labels]
        best = max(_place_labels(draw, corners, labels, font), _place_labels(draw, corners, wrapped, font), key=len)
        if len(best) == len(labels):
            break
    for position, text in best:
        draw.multiline_text(position, text, (255, 255, 255), font, stroke_fill=(0, 0, 0), **_LABEL)


def _place_labels(
    draw: ImageDraw.ImageDraw, corners: list[list[int]], labels: Sequence[str], font: Any
) -> list[tuple[tuple[float, float], str]]:
    """Return position and text of the labels, centered in their boxes, skipping those that do not fit or overlap."""
    places: list[tuple[tuple[float, float], str]] = []
    taken: list[tuple[float, float, float, float]] = []
    for (left, top, right, bottom), label in zip(corners, labels, strict=True):
        x1, y1, x2, y2 = draw.multiline_textbbox((0, 0), label, font, **_LABEL)
        width, height = x2 - x1 + _GAP, y2 - y1 + _GAP
        x, y = (left + right - width) / 2, (top + bottom - height) / 2
        overlapping = any(x < b[2] and b[0] < x + width and y < b[3] and b[1] < y + height for b in taken)
        if width <= right - left and height <= bottom - top and not overlapping:
            taken.append((x, y, x + width, y + height))
            places.append(((x - x1 + _GAP / 2, y - y1 + _GAP / 2), label))
    return places


@cache
def load_font(size: int) -> Any:
    """Return the font of all pictures in a size in pixels."""
    return ImageFont.load_default(size)


def truncate(text: str, font: Any, max_width: int) -> str:
    """Shorten a text with an ellipsis to fit into a width in pixels."""
    while len(text) > 1 and font.getlength(text) > max_width:
        text = text.rstrip("…")[:-1] + "…"
    return text


def arrange(pictures: Sequence[Image.Image], margin: int = 0, *, vertically: bool = False) -> Image.Image:
    """Place pictures side by side, or below each other, on the background color, `margin` pixels apart."""
    axis = int(vertically)
    lengths, widths = [picture.size[axis] for picture in pictures], [picture.size[1 - axis] for picture in pictures]
    size = max(sum(lengths) + margin * (len(pictures) - 1), 1), max(widths, default=1)
    sheet, start = Image.new("RGB", size[::-1] if vertically else size, BACKGROUND), 0
    for picture, length in zip(pictures, lengths, strict=True):
        sheet.paste(picture, (0, start) if vertically else (start, 0))
        start += length + margin
    return sheet


def class_colour(label: int) -> str:
    """Return the color of a class as #rrggbb, cycling through 20 that color-blind readers can distinguish too."""
    return _COLORS[label % len(_COLORS)]
