"""Pictures of detections: labeled boxes on an image, and mosaics of the best and the worst detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.evaluation.average_precision import Matches, match_detections
from sppnet.inference.drawing import BACKGROUND, TEXT, class_colour, load_font, truncate
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas, overlaps

_FAINT = "#9a9aa2"
_COLUMNS = 8
_TILE = 192  # side of a crop in a mosaic, pixels
_CAPTION = 38
_MARGIN = 8
_HEADING = 34
_MAX_ROWS = 65_500 // (_TILE + _CAPTION + _MARGIN) - 1  # a JPEG has at most 65,500 rows of pixels
_CONTEXT = 0.35  # shown on each side of a cropped box, as a fraction of its longer side
_MIN_CROP = 32  # side of the smallest crop, in pixels of the image

Edges = tuple[float, float, float, float]
CaptionedTile = tuple[Image.Image, tuple[str, ...]]


@dataclass(frozen=True)
class _Crop:
    """Tile of a mosaic: the image around a window, with a detection if there is one."""

    image: int
    label: int
    window: Edges
    detection: Edges | None
    caption: str


def draw_detections(
    image: Image.Image,
    detections: Detections,
    classes: Sequence[str],
    *,
    truths: Float[Tensor, "n 4"] | None = None,
) -> Image.Image:
    """Draw the outline, class and score of each detection, the highest score on top.

    Line width and font size scale with the image. A label is placed above its box, or at another corner if it would
    cover the label of a better detection. Labels stay inside the image; in a narrow image their font is smaller.

    Args:
        image: RGB image; it is not modified.
        detections: detections in pixels of the image.
        classes: class names, in label order.
        truths: xyxy edges of the true objects in pixels of the image, drawn as white dashes.
    """
    picture = image.copy()
    draw = ImageDraw.Draw(picture)
    longer = max(picture.size)
    width = max(2, round(longer / 400))
    order = detections.scores.argsort(descending=True, stable=True)
    boxes, labels = [_edges(box) for box in detections.boxes[order]], detections.labels[order].tolist()
    texts = [f"{classes[label]} {score:.2f}" for label, score in zip(labels, detections.scores[order], strict=True)]
    fonts = [_font_for(text, max(12, round(longer / 55)), picture.width) for text in texts]
    places: list[Edges] = []
    for box, text, font in zip(boxes, texts, fonts, strict=True):
        places.append(_place(box, _label_size(text, font), picture.size, places))
    for box, label in reversed(list(zip(boxes, labels, strict=True))):
        _outline(draw, box, class_colour(label), width)
    for box in () if truths is None else truths:
        _dashes(draw, _edges(box), max(1, width // 2))
    # Labels come last, so that no outline crosses them.
    for place, text, font, label in reversed(list(zip(places, texts, fonts, labels, strict=True))):
        left, top, right, bottom = place
        draw.rectangle((left, top, right - 1, bottom - 1), class_colour(label))
        draw.text(((left + right) / 2, (top + bottom) / 2), text, _text_color(class_colour(label)), font, anchor="mm")
    return picture


def write_mosaic(
    found: Sequence[Detections], samples: Sequence[DetectionSample], classes: Sequence[str], folder: Path
) -> None:
    """Write ``best.jpg``, the best true positives, and ``worst.jpg``, the worst false positives and missed objects.

    Each class has a row of eight crops. Detections are outlined in the color of their class, objects of the class are
    dashed in white. Half of a row in ``worst.jpg`` shows the false positives with the highest scores, the other half
    the largest missed objects; if there are too few of one kind, the other fills the row. A missed object is shown
    with the detection that overlaps it most.

    Args:
        found: detections of each image.
        samples: images with their objects, in the same order.
        classes: class names, in label order; at most 274 classes are shown.
        folder: output folder, created if missing.

    Raises:
        ImageError: an image to be shown cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    matches = match_detections(found, samples)
    best, worst = [], []
    for label, name in enumerate(classes):
        of_class = matches.label == label
        hits = np.flatnonzero(of_class & matches.hit)[:_COLUMNS]
        errors = np.flatnonzero(of_class & ~matches.hit & ~matches.ignored)
        missed = _missed(found, samples, matches, label, name)
        half = max(_COLUMNS // 2, _COLUMNS - len(missed))
        best.append([_detection(found, matches, row, name) for row in hits.tolist()])
        wrong = [_detection(found, matches, row, name) for row in errors[:half].tolist()]
        worst.append(wrong + missed[: _COLUMNS - len(wrong)])
    _write_rows(best, samples, "Best: true positives with the highest scores", folder / "best.jpg")
    _write_rows(worst, samples, "Worst: false positives with the highest scores, missed objects", folder / "worst.jpg")


def draw_errors(
    found: Sequence[Detections], samples: Sequence[DetectionSample], classes: Sequence[str], count: int
) -> tuple[list[CaptionedTile], list[CaptionedTile]]:
    """Draw the false positives with the highest scores, and the largest missed objects, with the lines of a caption.

    Args:
        found: detections of each image, of which all count.
        samples: images with their objects, in the same order.
        classes: class names, in label order.
        count: largest number of tiles of each kind.
    """
    matches = match_detections(found, samples)
    errors = np.flatnonzero(~matches.hit & ~matches.ignored)[:count].tolist()
    wrong = [_detection(found, matches, row, classes[matches.label[row]]) for row in errors]
    missed = [crop for label, name in enumerate(classes) for crop in _missed(found, samples, matches, label, name)]
    missed.sort(key=lambda crop: -float(areas(torch.tensor(crop.window))))
    pictures = []
    for crops in (wrong, missed[:count]):
        images = ((crop, load_image(samples[crop.image].path)) for crop in crops)
        tiles = ((crop, _tile(image, crop, samples[crop.image])) for crop, image in images)
        pictures.append([(tile, (*crop.caption.split("\n"), samples[crop.image].path.name)) for crop, tile in tiles])
    return pictures[0], pictures[1]


def _detection(found: Sequence[Detections], matches: Matches, row: int, name: str) -> _Crop:
    image, label, overlap = int(matches.image[row]), int(matches.label[row]), float(matches.overlap[row])
    note = ", duplicate" if overlap >= 0.5 and not matches.hit[row] else ""
    box = _edges(found[image].boxes[int(matches.index[row])])
    return _Crop(image, label, box, box, f"{name} {matches.score[row]:.2f}\noverlap {overlap:.2f}{note}")


def _missed(
    found: Sequence[Detections], samples: Sequence[DetectionSample], matches: Matches, label: int, name: str
) -> list[_Crop]:
    """Return crops of the missed objects of a class, largest first."""
    hit = set(zip(matches.image[matches.hit].tolist(), matches.object[matches.hit].tolist(), strict=True))
    missed = [
        (image, number)
        for image, sample in enumerate(samples)
        for number in ((sample.labels == label) & ~sample.difficult).nonzero()[:, 0].tolist()
        if (image, number) not in hit
    ]
    missed.sort(key=lambda pair: -float(areas(samples[pair[0]].boxes[pair[1]])))
    crops = []
    for image, number in missed[:_COLUMNS]:
        truth = samples[image].boxes[number]
        boxes = found[image].boxes[found[image].labels == label]
        shared = overlaps(boxes, truth[None])[:, 0]
        best = int(shared.argmax()) if len(shared) and shared.max() > 0 else None
        note = "no overlap" if best is None else f"best overlap {float(shared[best]):.2f}"
        nearest = None if best is None else _edges(boxes[best])
        crops.append(_Crop(image, label, _edges(truth), nearest, f"{name} missed\n{note}"))
    return crops


def _write_rows(rows: list[list[_Crop]], samples: Sequence[DetectionSample], title: str, file: Path) -> None:
    rows = [row for row in rows if row][:_MAX_ROWS]
    width = _COLUMNS * (_TILE + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, _HEADING + len(rows) * (_TILE + _CAPTION + _MARGIN)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _HEADING / 2), title if rows else f"{title}: none", TEXT, load_font(18), anchor="lm")
    cells = [(crop, row, column) for row, crops in enumerate(rows) for column, crop in enumerate(crops)]
    cells.sort(key=lambda cell: cell[0].image)
    for number, group in groupby(cells, key=lambda cell: cell[0].image):
        image = load_image(samples[number].path)
        for crop, row, column in group:
            left, top = _MARGIN + column * (_TILE + _MARGIN), _HEADING + row * (_TILE + _CAPTION + _MARGIN)
            sheet.paste(_tile(image, crop, samples[number]), (left, top))
            for line, (text, color) in enumerate(zip(crop.caption.split("\n"), (TEXT, _FAINT), strict=True)):
                draw.text(
                    (left, top + _TILE + 3 + 17 * line), truncate(text, load_font(14), _TILE), color, load_font(14)
                )
    sheet.save(file, quality=90)


def _tile(image: Image.Image, crop: _Crop, sample: DetectionSample) -> Image.Image:
    """Draw the square part of the image around the crop's window, with the boxes of its class."""
    x1, y1, x2, y2 = crop.window
    side = max((1 + 2 * _CONTEXT) * max(x2 - x1, y2 - y1), _MIN_CROP)
    left, top = (
        _shift_inside((low + high - side) / 2, side, limit)
        for low, high, limit in zip((x1, y1), (x2, y2), image.size, strict=True)
    )
    scale = _TILE / side
    visible = (max(left, 0), max(top, 0), min(left + side, image.width), min(top + side, image.height))
    size = max(1, round((visible[2] - visible[0]) * scale)), max(1, round((visible[3] - visible[1]) * scale))
    tile = Image.new("RGB", (_TILE, _TILE), "black")
    part = image.resize(size, Image.Resampling.BICUBIC, visible)
    tile.paste(part, (round((visible[0] - left) * scale), round((visible[1] - top) * scale)))
    draw = ImageDraw.Draw(tile)

    def to_tile(box: Edges) -> Edges:
        a, b, c, d = box
        return (a - left) * scale, (b - top) * scale, (c - left) * scale, (d - top) * scale

    if crop.detection:
        _outline(draw, to_tile(crop.detection), class_colour(crop.label), 3)
    for box in sample.boxes[sample.labels == crop.label]:
        _dashes(draw, to_tile(_edges(box)), 1)
    return tile


def _shift_inside(start: float, side: float, limit: int) -> float:
    """Return the start of a window shifted into the image, or centered on it if the window is larger."""
    return (limit - side) / 2 if side >= limit else min(max(start, 0), limit - side)


def _place(box: Edges, size: tuple[int, int], image_size: tuple[int, int], taken: Sequence[Edges]) -> Edges:
    """Return the first position of a label, outside the box or in its corners, that overlaps no other label."""
    x1, y1, x2, y2 = box
    width, height = size
    places = []
    for x, y in (
        *((x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2)),
        *((x1, y1), (x2 - width, y1), (x1, y2 - height), (x2 - width, y2 - height)),
    ):
        left = max(0, min(round(x), image_size[0] - width))
        top = max(0, min(round(y), image_size[1] - height))
        places.append((left, top, left + width, top + height))
    for place in places:
        if not any(
            place[0] < other[2] and other[0] < place[2] and place[1] < other[3] and other[1] < place[3]
            for other in taken
        ):
            return place
    return places[0]


def _outline(draw: ImageDraw.ImageDraw, box: Edges, color: str, width: int) -> None:
    """Draw a line along the inner side of the edges, surrounded by a black one."""
    left, top, right, bottom = _pixels(box)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black")
    draw.rectangle((left, top, right, bottom), outline=color, width=width)


def _dashes(draw: ImageDraw.ImageDraw, box: Edges, width: int) -> None:
    """Draw white dashes with black gaps along the inner side of the edges."""
    left, top, right, bottom = _pixels(box)
    draw.rectangle((left, top, right, bottom), outline="black", width=width)
    dash, step = 5 * width - 1, 8 * width
    for x in range(left, right + 1, step):
        for y in (top, max(bottom - width + 1, top)):
            draw.rectangle((x, y, min(x + dash, right), min(y + width - 1, bottom)), "white")
    for y in range(top, bottom + 1, step):
        for x in (left, max(right - width + 1, left)):
            draw.rectangle((x, y, min(x + width - 1, right), min(y + dash, bottom)), "white")


def _pixels(box: Edges) -> tuple[int, int, int, int]:
    """Return the first and last pixel of a box along x and y, at least one pixel in each direction."""
    left, top, right, bottom = map(round, box)
    return left, top, max(right - 1, left), max(bottom - 1, top)


def _edges(box: Tensor) -> Edges:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def _font_for(text: str, size: int, max_width: int) -> Any:
    """Return the largest font of at most this size, but at least 6, whose label fits into the width."""
    while size > 6 and _label_size(text, load_font(size))[0] > max_width:
        size -= 1
    return load_font(size)


def _label_size(text: str, font: Any) -> tuple[int, int]:
    """Return the (width, height) of a label in pixels; the height depends on the font alone."""
    return round(font.getlength(text) + font.size / 2), round(1.3 * font.size)


def _text_color(color: str) -> str:
    """Return black or white, whichever is legible on the color."""
    red, green, blue = ImageColor.getrgb(color)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 115 else "white"
