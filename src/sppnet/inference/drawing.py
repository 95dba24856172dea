"""Where cells and bins lie on an image, and pictures of boxes: outlines, names and a tint."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sppnet.backbones.backbone import FeatureMap
from sppnet.ops.bins import Level, bin_edges, parse_levels

# The seven bright colours of Okabe and Ito, then each time the colour of some lightness and strength that is farthest
# from all before it, in Lab, to the worst of normal sight, protanopia and deuteranopia.
_COLOURS = (
    *("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#4b00ff", "#00ff96", "#7869ff"),
    *("#b4002d", "#4bffff", "#96a55a", "#a50069", "#1e4bb4", "#7896ff", "#96f0c3", "#87f069", "#3c693c", "#3cc3d2"),
)

_TINT = (255, 166, 0)
_STRENGTH = 0.75
_TEXT: dict[str, Any] = {"align": "center", "stroke_width": 2}
_GAP = 8  # pixels that a label keeps from the border of its box and from other labels, both sides together


def bin_boxes(
    features: FeatureMap, image_size: tuple[int, int], network_size: tuple[int, int], level: Level
) -> Float[Tensor, "bins 4"]:
    """Boxes of one level's bins on the image (SPP-net, section 2.2).

    The area of a cell is the part of the image that is nearer to its centre than to any other cell's: inside the
    map ``offset + stride * (i - 0.5)`` to ``offset + stride * (i + 0.5)``, and up to the image's border for the
    first and the last cell. Bins are cut by the rule ``adaptive`` and overlap by up to one cell where the level
    does not divide the map. All of them together cover the image.

    Args:
        features: map of images that all have `network_size`; a padded batch is refused.
        image_size: (height, width) of the image that is drawn on, pixels.
        network_size: (height, width) at which the network saw the whole of it, pixels.
        level: n >= 1 for n x n bins, or (rows, columns).

    Returns:
        xyxy edges in pixels of the image, row by row.

    Raises:
        ValueError: a size or a level below 1, or a padded batch.
    """
    if features.sizes is not None:
        raise ValueError("features: expected a map without padding (sizes None); got one with sizes")
    if min(*image_size, *network_size) < 1:
        raise ValueError(
            f"image_size, network_size: expected at least 1 x 1 pixels; got {image_size} and {network_size}"
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
    """Borders between the rows of a map and between its columns, in pixels of the image, its edges included.

    Args:
        map_size: (height, width) of the map, in cells.
        stride: of the map.
        offset: of the map.
        image_size: (height, width) of the image, pixels.
        network_size: (height, width) at which the network saw it, pixels.
    """
    sides = zip(map_size, stride, offset, image_size, network_size, strict=True)
    y, x = (_axis_borders(*side) for side in sides)
    return y, x


def _axis_borders(cells: int, stride: int, offset: float, image_side: int, network_side: int) -> list[float]:
    # Pixel p covers p to p + 1, so that its centre, which the offset names, lies at p + 0.5.
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
    """A picture of the image with boxes drawn over it.

    Args:
        image: RGB; left as it is.
        boxes: xyxy edges in pixels of the image.
        values: in [0, 1], one a box. The image is then drawn in grey, so that all colour is the boxes' tint, and
            where boxes overlap the tint is the mean of theirs.
        labels: one a box, written into its middle where there is room, over several lines if need be.

    Raises:
        ValueError: `values` or `labels` are not as many as `boxes`, or a value is outside [0, 1].
    """
    for name, given in (("values", values), ("labels", labels)):
        if given is not None and len(given) != len(boxes):
            raise ValueError(f"{name}: expected one for each of the {len(boxes)} boxes; got {len(given)}")
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
        _write(picture, corners, labels)
    return picture


def _tint(image: Image.Image, corners: list[list[int]], values: Sequence[float]) -> Image.Image:
    total, count = np.zeros((2, image.height, image.width, 1))
    for (left, top, right, bottom), value in zip(corners, values, strict=True):
        if not 0 <= value <= 1:
            raise ValueError(f"values: expected numbers in [0, 1]; got {value}")
        total[top:bottom, left:right] += value
        count[top:bottom, left:right] += 1
    strength = _STRENGTH * total / np.maximum(count, 1)
    grey = np.asarray(image.convert("L"), dtype=float)[..., None]
    # Dark parts of the image stay darker than bright ones of the same value, so that it can be recognised.
    tinted = grey * (1 - strength) + np.array(_TINT) * (0.4 + 0.6 * grey / 255) * strength
    return Image.fromarray(tinted.round().astype(np.uint8))


def _write(picture: Image.Image, corners: list[list[int]], labels: Sequence[str]) -> None:
    """Write all labels in one size, the largest at which all have room; else in the smallest those that have."""
    smallest, largest = (max(12, max(picture.size) // part) for part in (40, 25))
    draw = ImageDraw.Draw(picture)
    best: list[tuple[tuple[float, float], str]] = []
    font = ImageFont.load_default(size=smallest)
    for size in range(largest, smallest - 1, -1):
        font = ImageFont.load_default(size=size)
        broken = [label.replace(" ", "\n") for label in labels]
        best = max(_places(draw, corners, labels, font), _places(draw, corners, broken, font), key=len)
        if len(best) == len(labels):
            break
    for place, text in best:
        draw.multiline_text(place, text, (255, 255, 255), font, stroke_fill=(0, 0, 0), **_TEXT)


def _places(
    draw: ImageDraw.ImageDraw, corners: list[list[int]], labels: Sequence[str], font: Any
) -> list[tuple[tuple[float, float], str]]:
    """Where labels go, in the middle of their boxes, without those that lack room or would touch another."""
    places: list[tuple[tuple[float, float], str]] = []
    taken: list[tuple[float, float, float, float]] = []
    for (left, top, right, bottom), label in zip(corners, labels, strict=True):
        x1, y1, x2, y2 = draw.multiline_textbbox((0, 0), label, font, **_TEXT)
        width, height = x2 - x1 + _GAP, y2 - y1 + _GAP
        x, y = (left + right - width) / 2, (top + bottom - height) / 2
        touches = any(x < b[2] and b[0] < x + width and y < b[3] and b[1] < y + height for b in taken)
        if width <= right - left and height <= bottom - top and not touches:
            taken.append((x, y, x + width, y + height))
            places.append(((x - x1 + _GAP / 2, y - y1 + _GAP / 2), label))
    return places


def class_colour(label: int) -> str:
    """The colour of a class, #rrggbb; twenty differ, for colour-blind people too, and then they come again."""
    return _COLOURS[label % len(_COLOURS)]
