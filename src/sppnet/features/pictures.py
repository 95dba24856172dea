"""Pictures of the cells and bins that boxes cover: the whole image and a close-up of each box."""

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from sppnet.features.encoder import RegionEncoder
from sppnet.inference.drawing import BACKGROUND, TEXT, cell_borders, load_font, truncate
from sppnet.ops.bins import bin_edges
from sppnet.ops.levels import parse_levels

_MAX_BOXES = 8
_COLUMNS = 4
_PANEL = 320  # side of a close-up, pixels
_NAME = _PANEL - 60  # maximum width of a name, pixels
_MARGIN = 10
_CAPTION = 46
_WIDTH = _COLUMNS * (_PANEL + _MARGIN) - _MARGIN
_OVERVIEW = 760  # maximum height of the whole image, pixels
_COLORS = (
    (255, 99, 71),
    (64, 196, 255),
    (144, 238, 100),
    (255, 215, 64),
    (224, 130, 255),
    (255, 160, 60),
    (80, 240, 210),
    (255, 130, 190),
)
_TINT, _TINT_STRENGTH = (255, 166, 0), 0.38
_MIN_GRID = 5  # pixels between grid lines; a denser grid is not drawn

Edges = tuple[float, float, float, float]


def draw_regions(
    encoder: RegionEncoder, image: Image.Image, boxes: Float[Tensor, "k 4"], names: Sequence[str]
) -> Image.Image:
    """Draw the boxes on the image, and below it each box with its cells and the bins of the finest level.

    The image is darkened outside the cells that a box was rounded to. Bins are tinted like a checkerboard; tints add up
    where bins share cells.

    Args:
        encoder: encoder whose cells are drawn; the network does not run.
        image: RGB image; not modified.
        boxes: xyxy edges in pixels of the image. Only the first eight are drawn.
        names: box names.

    Raises:
        ValueError: the numbers of `names` and `boxes` differ.
    """
    if len(names) != len(boxes):
        raise ValueError(f"names: expected one for each of the {len(boxes)} boxes, got {len(names)}")
    boxes, names = boxes[:_MAX_BOXES], names[:_MAX_BOXES]
    overview = _overview(image, boxes, names)
    rows = -(-len(boxes) // _COLUMNS)
    height = overview.height + rows * (_PANEL + _CAPTION + _MARGIN) + 2 * _MARGIN
    sheet = Image.new("RGB", (_WIDTH + 2 * _MARGIN, height), BACKGROUND)
    sheet.paste(overview, (_MARGIN + (_WIDTH - overview.width) // 2, _MARGIN))
    draw, font = ImageDraw.Draw(sheet), load_font(15)
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):
        panel, caption = _panel(encoder, image, box, _COLORS[number])
        row, column = divmod(number, _COLUMNS)
        left = _MARGIN + column * (_PANEL + _MARGIN)
        top = overview.height + 2 * _MARGIN + row * (_PANEL + _CAPTION + _MARGIN)
        draw.text((left, top + 2), truncate(name, font, _NAME), _COLORS[number], font)
        draw.text((left, top + 22), caption, TEXT, font)
        sheet.paste(panel, (left + (_PANEL - panel.width) // 2, top + _CAPTION + (_PANEL - panel.height) // 2))
    return sheet


def _overview(image: Image.Image, boxes: Tensor, names: Sequence[str]) -> Image.Image:
    scale = min(_WIDTH / image.width, _OVERVIEW / image.height)
    picture = image.resize(_round_size(image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(picture), load_font(15)
    edges = (boxes * scale).tolist()
    for (x1, y1, x2, y2), color in zip(edges, _COLORS, strict=False):
        _outline(draw, (x1, y1, x2, y2), color)
    # Names go on top of all outlines.
    for (x, y, _, _), color, name in zip(edges, _COLORS, names, strict=False):
        position, text = (max(x, 0) + 7, max(y, 0) + 5), truncate(name, font, _NAME)
        left, top, right, bottom = draw.textbbox(position, text, font)
        draw.rectangle((left - 3, top - 3, right + 3, bottom + 3), color)
        draw.text(position, text, (0, 0, 0), font)
    return picture


def _panel(
    encoder: RegionEncoder, image: Image.Image, box: Tensor, color: tuple[int, int, int]
) -> tuple[Image.Image, str]:
    """Draw a close-up of a box; return it with its caption."""
    size = (image.height, image.width)
    covered = encoder.cells(box, size)
    left, top, right, bottom = covered.cells
    geometry = encoder.backbone.geometry
    offset = geometry.offset(*covered.network_size)
    y, x = cell_borders(covered.map_size, geometry.stride, offset, size, covered.network_size)
    # With the rule roi_pool a box can cover cells outside the map.
    y, x = y[max(top, 0) : max(bottom, 0) + 1], x[max(left, 0) : max(right, 0) + 1]
    shape = f"{bottom - top} x {right - left} cells"
    caption = shape if len(encoder.scales) == 1 else f"{shape} at scale {covered.scale}"
    x1, y1, x2, y2 = box.tolist()
    window = (min(x1, *x), min(y1, *y), max(x2, *x), max(y2, *y)) if x and y else (x1, y1, x2, y2)
    crop, scale = _crop(image, window)
    part = _round_size((crop[2] - crop[0]) * scale, (crop[3] - crop[1]) * scale)
    picture = image.resize(part, Image.Resampling.BICUBIC, crop)
    rows, columns = ([(position - crop[1]) * scale for position in y], [(position - crop[0]) * scale for position in x])
    if len(rows) > 1 and len(columns) > 1:
        picture = _tint(picture, encoder, rows, columns, (bottom - top, right - left), (top, left))
        _grid(picture, rows, columns)
    edges = ((x1 - crop[0]) * scale, (y1 - crop[1]) * scale, (x2 - crop[0]) * scale, (y2 - crop[1]) * scale)
    _outline(ImageDraw.Draw(picture), edges, color)
    return picture, caption


def _crop(image: Image.Image, window: Edges) -> tuple[Edges, float]:
    """Return the part of the image around a window, and the scale at which it fills a panel."""
    x1, y1, x2, y2 = window
    margin = 0.12 * max(x2 - x1, y2 - y1) + 2
    crop = (max(x1 - margin, 0), max(y1 - margin, 0), min(x2 + margin, image.width), min(y2 + margin, image.height))
    return crop, _PANEL / max(crop[2] - crop[0], crop[3] - crop[1])


def _tint(
    picture: Image.Image,
    encoder: RegionEncoder,
    rows: list[float],
    columns: list[float],
    window: tuple[int, int],
    first: tuple[int, int],
) -> Image.Image:
    """Darken the picture outside the cells, and tint every second bin of the finest level."""
    level = max(parse_levels(encoder.levels), key=lambda sides: sides[0] * sides[1])
    weight = np.zeros((picture.height, picture.width, 1))
    inside = np.zeros_like(weight)
    inside[round(rows[0]) : round(rows[-1]), round(columns[0]) : round(columns[-1])] = 1
    down, across = (bin_edges(side, bins) for side, bins in zip(window, level, strict=True))
    for (i, (top, bottom)), (j, (left, right)) in product(enumerate(down), enumerate(across)):
        if (i + j) % 2 == 0:
            y = [rows[min(max(cell + min(first[0], 0), 0), len(rows) - 1)] for cell in (top, bottom)]
            x = [columns[min(max(cell + min(first[1], 0), 0), len(columns) - 1)] for cell in (left, right)]
            weight[round(y[0]) : round(y[1]), round(x[0]) : round(x[1])] += _TINT_STRENGTH
    weight = np.minimum(weight, 0.5) * inside
    pixels = np.asarray(picture, dtype=float) * (0.35 + 0.65 * inside)
    return Image.fromarray((pixels * (1 - weight) + np.array(_TINT) * weight).round().astype(np.uint8))


def _grid(picture: Image.Image, rows: list[float], columns: list[float]) -> None:
    lines = Image.new("RGBA", picture.size)
    draw = ImageDraw.Draw(lines)
    color = (255, 255, 255, 150)
    spacing = min(b - a for borders in (rows, columns) for a, b in pairwise(borders))
    if spacing >= _MIN_GRID:
        for y in rows:
            draw.line((columns[0], y, columns[-1], y), color)
        for x in columns:
            draw.line((x, rows[0], x, rows[-1]), color)
    picture.paste(lines, mask=lines)


def _outline(draw: ImageDraw.ImageDraw, edges: Edges, color: tuple[int, int, int]) -> None:
    """Outline a box, which may extend beyond the picture, in color with black borders."""
    x1, y1, x2, y2 = map(round, edges)
    for inset, line_color in ((0, (0, 0, 0)), (1, color), (2, color), (3, color), (4, (0, 0, 0))):
        if x2 - x1 > 2 * inset and y2 - y1 > 2 * inset:
            draw.rectangle((x1 + inset, y1 + inset, x2 - 1 - inset, y2 - 1 - inset), outline=line_color)


def _round_size(width: float, height: float) -> tuple[int, int]:
    return max(1, round(width)), max(1, round(height))
