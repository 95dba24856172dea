"""Pictures of segmentations: palette masks, overlays with a legend, and mosaics of the best and worst images."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw
from torch import Tensor

from sppnet.data.formats.masks import IGNORE, Colour, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.inference.drawing import BACKGROUND, TEXT, arrange, load_font, truncate
from sppnet.io.remote import atomic_write
from sppnet.segment.evaluate import SegmentationReport

Labels = Integer[np.ndarray, "h w"]

_VOID = 255  # index of ignored pixels in a palette mask
_MAX_SIDE = 2000  # pixels, of overlays
_OPACITY = 0.55  # of class colors over the image
_CORRECT, WRONG, _IGNORED = (46, 46, 52), (240, 90, 60), (215, 215, 220)
_MARGIN, _LINE, _FONT, _NAME = 8, 24, 15, 224  # pixels: gaps, lines of text, their font, longest name in a legend


def palette(colours: Sequence[Colour] = (), size: int = 256) -> UInt8[np.ndarray, "size 3"]:
    """Return a color table: the given RGB colors, then those of VOC.

    VOC distributes the bits of an index over the high bits of the channels, so that close indices differ in color.
    """
    index = np.arange(size)
    table = np.zeros((size, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    for row, color in zip(table, colours, strict=False):
        row[:] = color
    return table


def count_labels(labels: Labels, classes: int) -> np.ndarray:
    """Count the pixels of each class, in bands: a single pass would copy all labels of a huge image."""
    counts = np.zeros(classes, np.int64)
    for top in range(0, len(labels), 256):
        band = labels[top : top + 256]
        counts += np.bincount(band[band != IGNORE], minlength=classes)
    return counts


def labels_picture(labels: Labels, colours: Sequence[Colour] = ()) -> Image.Image:
    """Return a mask to be saved as PNG: 8-bit with a palette, or 16-bit gray if there are indices above 254.

    Args:
        labels: class index of each pixel; `IGNORE` becomes 255 in 8 bits and 65,535 in 16 bits.
        colours: RGB colors of the classes; missing ones default to VOC's.
    """
    if labels.max(initial=0) >= _VOID:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8, copy=False))
    picture.putpalette(palette(colours).tobytes())
    return picture


def overlay(image: Image.Image, labels: Labels, classes: Sequence[str], colours: Sequence[Colour] = ()) -> Image.Image:
    """Return the image blended with the class colors, and a legend of the classes that occur.

    Images with a side above 2,000 pixels are reduced.

    Args:
        image: RGB image.
        labels: class index of each pixel of the image.
        classes: class names.
        colours: RGB colors of the classes; missing ones default to VOC's.
    """
    counts = count_labels(labels, len(classes))
    scale = min(1.0, _MAX_SIDE / max(image.size))
    size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    rows, columns = (
        (np.arange(reduced) + 0.5) * side / reduced
        for reduced, side in zip(size, (image.height, image.width), strict=True)
    )
    shown = np.asarray(labels[rows.astype(int)[:, None], columns.astype(int)])
    reduced_image = image if scale == 1 else image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2)
    table = palette(colours, len(classes))
    entries = [
        (f"{_name(classes[index])}  {100 * counts[index] / labels.size:.1f} %", table[index])
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]
    return arrange([_blend(reduced_image, shown, table), _legend(entries)], _MARGIN)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture as PNG, atomically."""
    with atomic_write(path) as file:
        picture.save(file, format="PNG")


def write_mosaic(
    report: SegmentationReport,
    data: SegmentationData,
    predict: Callable[[Image.Image], Tensor],
    folder: Path,
    colours: Sequence[Colour] = (),
    count: int = 6,
) -> None:
    """Write best.png and worst.png: image, mask, prediction and errors of the images with the best and worst mean IoU.

    Args:
        report: evaluation on `data`.
        data: images and masks.
        predict: function that predicts the class index of each pixel.
        folder: folder of the two files; created if missing.
        colours: RGB colors of the classes; missing ones default to VOC's.
        count: maximum number of images per file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = palette(colours, len(data.classes))
    scored = [(value, index) for index, value in enumerate(report.by_image) if value is not None]
    for name, chosen in (("worst", sorted(scored)[:count]), ("best", sorted(scored, reverse=True)[:count])):
        rows, counts = [], np.zeros(len(data.classes), np.int64)
        for value, index in chosen:
            sample = report.samples[index]
            image, mask = load_pair(sample, data.labels)
            prediction = predict(image).numpy()
            rows.append(_row(image, mask, prediction, table, f"{sample.path.name}: mean IoU {100 * value:.1f} %"))
            counts += count_labels(mask, len(counts)) + count_labels(prediction, len(counts))
        legend = [(_name(data.classes[index]), table[index]) for index in np.flatnonzero(counts)]
        legend += [("wrong", WRONG), ("ignored", _IGNORED)]
        save_png(arrange([arrange(rows, vertically=True), _legend(legend)], _MARGIN), folder / f"{name}.png")


def panels(
    image: Image.Image, mask: Labels, prediction: Labels, table: np.ndarray, side: int = 360
) -> tuple[Image.Image, ...]:
    """Return an image, its mask, its prediction and the errors, with a longer side of at most `side` pixels."""
    errors = np.full((*mask.shape, 3), _CORRECT, np.uint8)
    errors[mask != prediction] = WRONG
    errors[mask == IGNORE] = _IGNORED
    scale = min(1.0, side / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    pictures = (image, _blend(image, mask, table), _blend(image, prediction, table), Image.fromarray(errors))
    return tuple(picture.resize(size) for picture in pictures)


def _row(image: Image.Image, mask: Labels, prediction: Labels, table: np.ndarray, title: str) -> Image.Image:
    pictures = panels(image, mask, prediction, table)
    size = pictures[0].size
    font = load_font(_FONT)
    captions = (truncate(title, font, 360), "mask", "prediction", "errors")
    width = max(size[0], *(math.ceil(font.getlength(caption)) + 2 for caption in captions)) + _MARGIN
    row = Image.new("RGB", (4 * width, size[1] + _LINE + _MARGIN), BACKGROUND)
    for index, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        ImageDraw.Draw(row).text((index * width + 2, 4), caption, TEXT, font)
        row.paste(picture, (index * width, _LINE))
    return row


def _blend(image: Image.Image, labels: Labels, table: np.ndarray) -> Image.Image:
    """Blend an image with the class colors, except at ignored pixels."""
    pixels = np.array(image)
    for top in range(0, len(pixels), 256):  # in bands, to save memory
        band, label = pixels[top : top + 256], labels[top : top + 256]
        blended = (1 - _OPACITY) * band + _OPACITY * table[np.where(label == IGNORE, 0, label).astype(np.int64)]
        pixels[top : top + 256] = np.where((label == IGNORE)[..., None], band, blended.round()).astype(np.uint8)
    return Image.fromarray(pixels)


def _legend(entries: Sequence[tuple[str, Any]]) -> Image.Image:
    font = load_font(_FONT)
    width = max((math.ceil(font.getlength(text)) for text, _ in entries), default=0) + 40
    picture = Image.new("RGB", (width, _LINE * len(entries) + 2 * _MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, (text, color) in enumerate(entries):
        top = _MARGIN + index * _LINE
        draw.rectangle((4, top + 3, 20, top + 19), tuple(map(int, color)), "#808088")
        draw.text((28, top + 2), text, TEXT, font)
    return picture


def _name(name: str) -> str:
    return truncate(name, load_font(_FONT), _NAME)
