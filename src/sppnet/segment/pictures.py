"""Pictures of segmentations: palette masks, overlays with a legend, and mosaics of the best and worst images."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sppnet.data.formats.masks import IGNORE, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.segment.evaluate import SegmentEvaluation

Labels = Integer[np.ndarray, "h w"]
Colour = tuple[int, int, int]

_VOID = 255  # index of ignored pixels in a palette mask
_MAX_SIDE = 2000  # pixels, of overlays
_OPACITY = 0.55  # of class colors over the image
_BACKGROUND, _TEXT, _CORRECT, _WRONG, _IGNORED = "#16161a", "#ebebeb", (46, 46, 52), (240, 90, 60), (215, 215, 220)
_MARGIN, _LINE = 8, 24  # pixels


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


def write_labels(labels: Labels, path: Path, colours: Sequence[Colour] = ()) -> None:
    """Write a mask as PNG: 8-bit with a palette, or 16-bit gray if there are indices above 254.

    Args:
        labels: class index of each pixel; `IGNORE` becomes 255 in 8 bits and 65,535 in 16 bits.
        path: path of the PNG file, which is replaced atomically.
        colours: RGB colors of the classes; missing ones default to VOC's.
    """
    _save(labels_picture(labels, colours), path)


def labels_picture(labels: Labels, colours: Sequence[Colour] = ()) -> Image.Image:
    """Return the mask that :func:`write_labels` writes."""
    if labels.max(initial=0) >= _VOID:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8, copy=False))
    picture.putpalette(palette(colours).tobytes())
    return picture


def write_overlay(
    image: Image.Image, labels: Labels, path: Path, classes: Sequence[str], colours: Sequence[Colour] = ()
) -> None:
    """Write the image blended with the class colors, and a legend of the classes that occur, as PNG.

    Images with a side above 2,000 pixels are reduced.

    Args:
        image: RGB image.
        labels: class index of each pixel of the image.
        path: path of the PNG file.
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
        (f"{_truncate(classes[index])}  {100 * counts[index] / labels.size:.1f} %", table[index])
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]
    _save(_beside(_blend(reduced_image, shown, table), _legend(entries)), path)


def write_probabilities(probabilities: Float[Tensor, "classes h w"], path: Path) -> None:
    """Write probabilities as a float16 .npy file of shape (classes, height, width), replaced atomically."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        np.save(file, probabilities.numpy().astype(np.float16))
    part.replace(path)


def write_mosaic(
    evaluation: SegmentEvaluation,
    data: SegmentationData,
    answer: Callable[[Image.Image], Tensor],
    folder: Path,
    colours: Sequence[Colour] = (),
    count: int = 6,
) -> None:
    """Write best.png and worst.png: image, mask, prediction and errors of the images with the best and worst mean IoU.

    Args:
        evaluation: evaluation on `data`.
        data: images and masks.
        answer: function that predicts the class index of each pixel.
        folder: folder of the two files; created if missing.
        colours: RGB colors of the classes; missing ones default to VOC's.
        count: maximum number of images per file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = palette(colours, len(data.classes))
    scored = [(value, index) for index, value in enumerate(evaluation.by_image) if value is not None]
    for name, chosen in (("worst", sorted(scored)[:count]), ("best", sorted(scored, reverse=True)[:count])):
        rows, counts = [], np.zeros(len(data.classes), np.int64)
        for value, index in chosen:
            sample = evaluation.samples[index]
            image, mask = load_pair(sample, data.labels)
            prediction = answer(image).numpy()
            rows.append(_row(image, mask, prediction, table, f"{sample.path.name}: mean IoU {100 * value:.1f} %"))
            counts += count_labels(mask, len(counts)) + count_labels(prediction, len(counts))
        legend = [(_truncate(data.classes[index]), table[index]) for index in np.flatnonzero(counts)]
        legend += [("wrong", _WRONG), ("ignored", _IGNORED)]
        _save(_beside(_stack(rows), _legend(legend)), folder / f"{name}.png")


def _row(image: Image.Image, mask: Labels, prediction: Labels, table: np.ndarray, title: str) -> Image.Image:
    errors = np.full((*mask.shape, 3), _CORRECT, np.uint8)
    errors[mask != prediction] = _WRONG
    errors[mask == IGNORE] = _IGNORED
    pictures = [image, _blend(image, mask, table), _blend(image, prediction, table), Image.fromarray(errors)]
    scale = min(1.0, 360 / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    captions = (_truncate(title, 48), "mask", "prediction", "errors")
    width = max(size[0], *(math.ceil(_font().getlength(caption)) + 2 for caption in captions)) + _MARGIN
    row = Image.new("RGB", (4 * width, size[1] + _LINE + _MARGIN), _BACKGROUND)
    for index, (caption, picture) in enumerate(zip(captions, pictures, strict=True)):
        ImageDraw.Draw(row).text((index * width + 2, 4), caption, _TEXT, _font())
        row.paste(picture.resize(size), (index * width, _LINE))
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
    width = max((math.ceil(_font().getlength(text)) for text, _ in entries), default=0) + 40
    picture = Image.new("RGB", (width, _LINE * len(entries) + 2 * _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, (text, color) in enumerate(entries):
        top = _MARGIN + index * _LINE
        draw.rectangle((4, top + 3, 20, top + 19), tuple(map(int, color)), "#808088")
        draw.text((28, top + 2), text, _TEXT, _font())
    return picture


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (left.width + _MARGIN + right.width, max(left.height, right.height)), _BACKGROUND)
    whole.paste(left, (0, 0))
    whole.paste(right, (left.width + _MARGIN, 0))
    return whole


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    width = max((row.width for row in rows), default=1)
    whole = Image.new("RGB", (width, max(sum(row.height for row in rows), 1)), _BACKGROUND)
    top = 0
    for row in rows:
        whole.paste(row, (0, top))
        top += row.height
    return whole


@cache
def _font() -> Any:
    return ImageFont.load_default(15)


def _truncate(text: str, length: int = 28) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _save(picture: Image.Image, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    picture.save(part, format="PNG")
    part.replace(path)
