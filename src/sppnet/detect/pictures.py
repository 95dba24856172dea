"""Pictures of what a detector finds: boxes with names, precision-recall curves, the best and the worst detections."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageColor, ImageDraw, ImageFont
from torch import Tensor

from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.evaluation.average_precision import Matches, match_detections
from sppnet.inference.drawing import class_colour
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas, overlaps

_BACKGROUND, _TEXT, _FAINT = "#16161a", "#ebebeb", "#9a9aa2"
_COLUMNS = 8
_TILE = 192  # side of a crop in a mosaic, pixels
_CAPTION = 38
_MARGIN = 8
_HEADING = 34
_MOST_ROWS = 65_500 // (_TILE + _CAPTION + _MARGIN) - 1  # JPEG ends at 65,500 pixels
_CONTEXT = 0.35  # of the longer side of the box that a crop shows, on each side of it
_LEAST_WINDOW = 32  # pixels of the image that a crop shows at least

Edges = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Crop:
    """A tile of a mosaic: the part of an image around a window, with a detection where there is one."""

    image: int
    label: int
    window: Edges
    found: Edges | None
    caption: str


def draw_detections(
    image: Image.Image,
    detections: Detections,
    classes: Sequence[str],
    *,
    truths: Float[Tensor, "n 4"] | None = None,
) -> Image.Image:
    """A picture of the image with the outline, class and score of each detection, the surest on top.

    Lines and letters grow with the image. A label stands above its box, or at another corner of it where it would hide
    the label of a surer one. Labels lie inside the image; in a narrow one their letters are smaller.

    Args:
        image: RGB; left as it is.
        detections: in pixels of the image.
        classes: names that the labels index.
        truths: xyxy edges of objects, in pixels of the image; dashed in white.
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
    # Above all outlines, so that each can be read.
    for place, text, font, label in reversed(list(zip(places, texts, fonts, labels, strict=True))):
        left, top, right, bottom = place
        draw.rectangle((left, top, right - 1, bottom - 1), class_colour(label))
        draw.text(((left + right) / 2, (top + bottom) / 2), text, _ink(class_colour(label)), font, anchor="mm")
    return picture


def write_mosaic(
    found: Sequence[Detections], samples: Sequence[DetectionSample], classes: Sequence[str], folder: Path
) -> None:
    """Write ``best.jpg``, the surest right detections, and ``worst.jpg``, the surest false ones and missed objects.

    Eight crops a class, a row each. Detections have their class's colour, the objects of the class are dashed in white.
    In ``worst.jpg`` half of a row are false detections and half missed objects, the largest first; where one kind is
    short the other takes its place. A missed object is shown with the detection that overlaps it most.

    Args:
        found: one an image.
        samples: the images' objects, in the same order.
        classes: names that the labels index; at most the first 274 that have something to show are shown.
        folder: made if it does not exist.

    Raises:
        ImageError: an image that is shown cannot be read.
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
    _write_rows(best, samples, "Best: the surest detections that find an object", folder / "best.jpg")
    _write_rows(worst, samples, "Worst: the surest false detections, and missed objects", folder / "worst.jpg")


def _detection(found: Sequence[Detections], matches: Matches, row: int, name: str) -> _Crop:
    image, label, overlap = int(matches.image[row]), int(matches.label[row]), float(matches.overlap[row])
    again = ", not the first" if overlap >= 0.5 and not matches.hit[row] else ""
    box = _edges(found[image].boxes[int(matches.index[row])])
    return _Crop(image, label, box, box, f"{name} {matches.score[row]:.2f}\noverlap {overlap:.2f}{again}")


def _missed(
    found: Sequence[Detections], samples: Sequence[DetectionSample], matches: Matches, label: int, name: str
) -> list[_Crop]:
    """The objects of a class that no detection found, largest first."""
    hit = set(zip(matches.image[matches.hit].tolist(), matches.object[matches.hit].tolist(), strict=True))
    missed = [
        (image, number)
        for image, sample in enumerate(samples)
        for number in ((sample.labels == label) & ~sample.difficult).nonzero()[:, 0].tolist()
        if (image, number) not in hit
    ]
    missed.sort(key=lambda place: -float(areas(samples[place[0]].boxes[place[1]])))
    crops = []
    for image, number in missed[:_COLUMNS]:
        truth = samples[image].boxes[number]
        boxes = found[image].boxes[found[image].labels == label]
        shared = overlaps(boxes, truth[None])[:, 0]
        best = int(shared.argmax()) if len(shared) and shared.max() > 0 else None
        note = "nothing there" if best is None else f"best overlap {float(shared[best]):.2f}"
        near = None if best is None else _edges(boxes[best])
        crops.append(_Crop(image, label, _edges(truth), near, f"{name} missed\n{note}"))
    return crops


def _write_rows(rows: list[list[_Crop]], samples: Sequence[DetectionSample], title: str, file: Path) -> None:
    rows = [row for row in rows if row][:_MOST_ROWS]
    width = _COLUMNS * (_TILE + _MARGIN) + _MARGIN
    sheet = Image.new("RGB", (width, _HEADING + len(rows) * (_TILE + _CAPTION + _MARGIN)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _HEADING / 2), title if rows else f"{title}: none", _TEXT, _font(18), anchor="lm")
    places = [(crop, row, column) for row, crops in enumerate(rows) for column, crop in enumerate(crops)]
    places.sort(key=lambda place: place[0].image)
    for number, group in groupby(places, key=lambda place: place[0].image):
        image = load_image(samples[number].path)
        for crop, row, column in group:
            left, top = _MARGIN + column * (_TILE + _MARGIN), _HEADING + row * (_TILE + _CAPTION + _MARGIN)
            sheet.paste(_tile(image, crop, samples[number]), (left, top))
            for line, (text, colour) in enumerate(zip(crop.caption.split("\n"), (_TEXT, _FAINT), strict=True)):
                draw.text((left, top + _TILE + 3 + 17 * line), _cut(text, _font(14), _TILE), colour, _font(14))
    sheet.save(file, quality=90)


def _tile(image: Image.Image, crop: _Crop, sample: DetectionSample) -> Image.Image:
    """A square part of the image around the crop's window, with the boxes of its class."""
    x1, y1, x2, y2 = crop.window
    side = max((1 + 2 * _CONTEXT) * max(x2 - x1, y2 - y1), _LEAST_WINDOW)
    left, top = (
        _inside((low + high - side) / 2, side, limit)
        for low, high, limit in zip((x1, y1), (x2, y2), image.size, strict=True)
    )
    scale = _TILE / side
    near = (max(left, 0), max(top, 0), min(left + side, image.width), min(top + side, image.height))
    size = max(1, round((near[2] - near[0]) * scale)), max(1, round((near[3] - near[1]) * scale))
    tile = Image.new("RGB", (_TILE, _TILE), "black")
    part = image.resize(size, Image.Resampling.BICUBIC, near)
    tile.paste(part, (round((near[0] - left) * scale), round((near[1] - top) * scale)))
    draw = ImageDraw.Draw(tile)

    def there(box: Edges) -> Edges:
        a, b, c, d = box
        return (a - left) * scale, (b - top) * scale, (c - left) * scale, (d - top) * scale

    if crop.found:
        _outline(draw, there(crop.found), class_colour(crop.label), 3)
    for box in sample.boxes[sample.labels == crop.label]:
        _dashes(draw, there(_edges(box)), 1)
    return tile


def _inside(start: float, side: float, limit: int) -> float:
    """Where a window starts that is moved into the image, or has it in its middle where it is larger."""
    return (limit - side) / 2 if side >= limit else min(max(start, 0), limit - side)


def _place(box: Edges, size: tuple[int, int], image_size: tuple[int, int], taken: Sequence[Edges]) -> Edges:
    """Where a label goes: outside the box, else in its corners; the first place that touches no other label."""
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


def _outline(draw: ImageDraw.ImageDraw, box: Edges, colour: str, width: int) -> None:
    """A line of a colour along the inner side of the edges, with a dark one around it."""
    left, top, right, bottom = _pixels(box)
    draw.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black")
    draw.rectangle((left, top, right, bottom), outline=colour, width=width)


def _dashes(draw: ImageDraw.ImageDraw, box: Edges, width: int) -> None:
    """White dashes with dark gaps along the inner side of the edges."""
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
    """The first and the last pixel in a box, at least one along each side."""
    left, top, right, bottom = map(round, box)
    return left, top, max(right - 1, left), max(bottom - 1, top)


def _edges(box: Tensor) -> Edges:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


@cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size=size)


def _font_for(text: str, size: int, room: int) -> Any:
    """The font of this size, or the largest below it, down to 6, with which the text's label has room."""
    while size > 6 and _label_size(text, _font(size))[0] > room:
        size -= 1
    return _font(size)


def _label_size(text: str, font: Any) -> tuple[int, int]:
    """Width and height of a label, pixels; all labels of a font are equally high."""
    return round(font.getlength(text) + font.size / 2), round(1.3 * font.size)


def _ink(colour: str) -> str:
    """Black or white, whichever can be read on a colour."""
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 115 else "white"


def _cut(text: str, font: Any, room: int) -> str:
    """The text, without its end where it has no room."""
    while len(text) > 1 and font.getlength(text) > room:
        text = text.rstrip("…")[:-1] + "…"
    return text
