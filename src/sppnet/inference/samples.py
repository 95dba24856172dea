"""Picture of samples of a data set with their labels, boxes and masks."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from sppnet.data.check.items import Entry
from sppnet.data.images import load_image
from sppnet.data.items import Problems
from sppnet.errors import ImageError, list_some, printable
from sppnet.inference.drawing import BACKGROUND, TEXT, arrange, class_colour, load_font, truncate

SIDE = 240  # of the square of each image, in pixels
_COLUMNS, _MARGIN, _LINE, _FONT = 6, 8, 20, 14
_OPACITY = 0.5  # of the colors of masks


def draw_samples(entries: Sequence[Entry], count: int = 24) -> Image.Image:
    """Draw images with their boxes and masks, their classes below them.

    Args:
        entries: images and annotations, of which evenly spaced ones are drawn. Those that cannot be decoded are not.
        count: largest number of images.
    """
    chosen = np.linspace(0, len(entries) - 1, min(count, len(entries))).round().astype(int)
    names = sorted({name for index in chosen for name in _classes(entries[index])})
    colors = {name: class_colour(number) for number, name in enumerate(names)}
    tiles = [tile for index in chosen if (tile := _draw(entries[index], colors)) is not None]
    rows = [tiles[start : start + _COLUMNS] for start in range(0, len(tiles), _COLUMNS)]
    return arrange([arrange(row, _MARGIN) for row in rows], _MARGIN, vertically=True)


def _classes(entry: Entry) -> list[str]:
    boxes = (box.name for item in entry.items.values() for box in item.boxes)
    masks = entry.label_map.classes if entry.label_map else ()
    return list(dict.fromkeys([*entry.labels, *boxes, *masks]))


def _draw(entry: Entry, colors: dict[str, str]) -> Image.Image | None:
    """Draw one image in a square with a caption; None if it cannot be decoded."""
    try:
        image = load_image(entry.path)
        size = image.height, image.width
        mask = entry.class_mask(size)
    except ImageError:
        return None
    names = [*entry.labels]
    if mask is not None and entry.label_map:
        classes = entry.label_map.classes
        present = [index for index in np.unique(mask).tolist() if index >= 0]
        names += [classes[index] for index in present]
        shown = {index: colors[name] for index in present if (name := classes[index]).lower() != "background"}
        image = _tint(image, mask, shown)
    scale = SIDE / max(size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    tile = Image.new("RGB", (SIDE, SIDE + _LINE), BACKGROUND)
    left, top = (SIDE - width) // 2, (SIDE - height) // 2
    tile.paste(image.resize((width, height)), (left, top))
    draw = ImageDraw.Draw(tile)
    for name, edges in entry.fitted_boxes(size, Problems()):
        names.append(name)
        x1, y1, x2, y2 = (value * scale for value in edges)
        right, bottom = max(x2 - 1, x1), max(y2 - 1, y1)
        draw.rectangle((left + x1, top + y1, left + right, top + bottom), outline=colors[name], width=2)
    font = load_font(_FONT)
    caption = printable(list_some(dict.fromkeys(names)) or entry.path.name)
    draw.text((2, SIDE + 2), truncate(caption, font, SIDE - 4), TEXT, font)
    return tile


def _tint(image: Image.Image, mask: np.ndarray, colors: dict[int, str]) -> Image.Image:
    """Blend the pixels of each class with its color; ignored pixels stay as they are."""
    pixels = np.asarray(image).copy()
    for index, color in colors.items():
        chosen = mask == index
        rgb = np.array(ImageColor.getrgb(color))
        pixels[chosen] = ((1 - _OPACITY) * pixels[chosen] + _OPACITY * rgb).round().astype(np.uint8)
    return Image.fromarray(pixels)
