"""Pictures of what a segmenter answers: palette masks, overlays with a legend, the best and the worst images."""

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

_VOID = 255  # what pixels that do not count are in a palette mask
_LONGEST = 2000  # side of overlays, pixels
_STRENGTH = 0.55  # of the classes' colours over the photograph
_BACKGROUND, _TEXT, _RIGHT, _WRONG, _UNCOUNTED = "#16161a", "#ebebeb", (46, 46, 52), (240, 90, 60), (215, 215, 220)
_MARGIN, _LINE = 8, 24


def palette(colours: Sequence[Colour] = (), size: int = 256) -> UInt8[np.ndarray, "size 3"]:
    """RGB of indices from 0 on: those given, then VOC's.

    VOC spreads the bits of an index over the high bits of the three channels, so that near indices look unlike.
    """
    index = np.arange(size)
    table = np.zeros((size, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            table[:, channel] |= (((index >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    for row, colour in zip(table, colours, strict=False):
        row[:] = colour
    return table


def count_labels(labels: Labels, classes: int) -> np.ndarray:
    """How many pixels have each class; counted in bands, since all at once would copy the labels of a huge image."""
    counts = np.zeros(classes, np.int64)
    for top in range(0, len(labels), 256):
        part = labels[top : top + 256]
        counts += np.bincount(part[part != IGNORE], minlength=classes)
    return counts


def write_labels(labels: Labels, path: Path, colours: Sequence[Colour] = ()) -> None:
    """Write a mask as PNG: indices with a palette, or 16-bit grey where there are indices above 254.

    Args:
        labels: index of each pixel's class; `IGNORE` becomes 255, or 65,535.
        path: of the PNG file; it is the old one or the new one.
        colours: RGB of the classes; VOC's for those without.
    """
    _save(labels_picture(labels, colours), path)


def labels_picture(labels: Labels, colours: Sequence[Colour] = ()) -> Image.Image:
    """The mask that :func:`write_labels` writes."""
    if labels.max(initial=0) >= _VOID:
        return Image.fromarray(labels.astype(np.uint16))
    picture = Image.fromarray(labels.astype(np.uint8, copy=False))
    picture.putpalette(palette(colours).tobytes())
    return picture


def write_overlay(
    image: Image.Image, labels: Labels, path: Path, classes: Sequence[str], colours: Sequence[Colour] = ()
) -> None:
    """Write the photograph in the colours of its classes, beside a legend of those that are there, as PNG.

    An image with a side above 2,000 pixels is shown smaller.

    Args:
        image: RGB.
        labels: index of each pixel's class, of the image's size.
        path: of the PNG file.
        classes: their names.
        colours: RGB of the classes; VOC's for those without.
    """
    counts = count_labels(labels, len(classes))
    scale = min(1.0, _LONGEST / max(image.size))
    size = (max(1, round(image.height * scale)), max(1, round(image.width * scale)))
    rows, columns = (
        (np.arange(seen) + 0.5) * side / seen for seen, side in zip(size, (image.height, image.width), strict=True)
    )
    shown = np.asarray(labels[rows.astype(int)[:, None], columns.astype(int)])
    photograph = image if scale == 1 else image.resize(size[::-1], Image.Resampling.BILINEAR, reducing_gap=2)
    table = palette(colours, len(classes))
    entries = [
        (f"{_cut(classes[index])}  {100 * counts[index] / labels.size:.1f} %", table[index])
        for index in np.argsort(-counts, kind="stable")
        if counts[index]
    ]
    _save(_beside(_mixed(photograph, shown, table), _legend(entries)), path)


def write_probabilities(probabilities: Float[Tensor, "classes h w"], path: Path) -> None:
    """Write probabilities as a float16 .npy file of (classes, height, width); it is the old one or the new one."""
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
    """Write best.png and worst.png: photograph, mask, answer, and where they differ, of the images by their mean IoU.

    Args:
        evaluation: of these data.
        data: images and masks.
        answer: gives the classes of an image's pixels.
        folder: for the two files; made if need be.
        colours: RGB of the classes; VOC's for those without.
        count: most images in each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = palette(colours, len(data.classes))
    scored = [(value, index) for index, value in enumerate(evaluation.by_image) if value is not None]
    for name, chosen in (("worst", sorted(scored)[:count]), ("best", sorted(scored, reverse=True)[:count])):
        rows, shown = [], np.zeros(len(data.classes), np.int64)
        for value, index in chosen:
            sample = evaluation.samples[index]
            image, mask = load_pair(sample, data.labels)
            found = answer(image).numpy()
            rows.append(_row(image, mask, found, table, f"{sample.path.name}: mean IoU {100 * value:.1f} %"))
            shown += count_labels(mask, len(shown)) + count_labels(found, len(shown))
        legend = [(_cut(data.classes[index]), table[index]) for index in np.flatnonzero(shown)]
        legend += [("wrong", _WRONG), ("does not count", _UNCOUNTED)]
        _save(_beside(_stack(rows), _legend(legend)), folder / f"{name}.png")


def _row(image: Image.Image, mask: Labels, found: Labels, table: np.ndarray, title: str) -> Image.Image:
    wrong = np.full((*mask.shape, 3), _RIGHT, np.uint8)
    wrong[mask != found] = _WRONG
    wrong[mask == IGNORE] = _UNCOUNTED
    parts = [image, _mixed(image, mask, table), _mixed(image, found, table), Image.fromarray(wrong)]
    scale = min(1.0, 360 / max(image.size))
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    heads = (_cut(title, 48), "mask", "answer", "where they differ")
    width = max(size[0], *(math.ceil(_font().getlength(head)) + 2 for head in heads)) + _MARGIN
    row = Image.new("RGB", (4 * width, size[1] + _LINE + _MARGIN), _BACKGROUND)
    for index, (head, part) in enumerate(zip(heads, parts, strict=True)):
        ImageDraw.Draw(row).text((index * width + 2, 4), head, _TEXT, _font())
        row.paste(part.resize(size), (index * width, _LINE))
    return row


def _mixed(image: Image.Image, labels: Labels, table: np.ndarray) -> Image.Image:
    """The photograph in the classes' colours; pixels that do not count keep their own."""
    mixed = np.array(image)
    for top in range(0, len(mixed), 256):  # in bands, for the sake of memory
        part, label = mixed[top : top + 256], labels[top : top + 256]
        colour = (1 - _STRENGTH) * part + _STRENGTH * table[np.where(label == IGNORE, 0, label).astype(np.int64)]
        mixed[top : top + 256] = np.where((label == IGNORE)[..., None], part, colour.round()).astype(np.uint8)
    return Image.fromarray(mixed)


def _legend(entries: Sequence[tuple[str, Any]]) -> Image.Image:
    width = max((math.ceil(_font().getlength(text)) for text, _ in entries), default=0) + 40
    picture = Image.new("RGB", (width, _LINE * len(entries) + 2 * _MARGIN), _BACKGROUND)
    draw = ImageDraw.Draw(picture)
    for index, (text, colour) in enumerate(entries):
        top = _MARGIN + index * _LINE
        draw.rectangle((4, top + 3, 20, top + 19), tuple(map(int, colour)), "#808088")
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


def _cut(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _save(picture: Image.Image, path: Path) -> None:
    part = path.with_name(f"{path.name}.part")
    picture.save(part, format="PNG")
    part.replace(path)
