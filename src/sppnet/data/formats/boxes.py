"""Readers of box files for images: CSV, JSON Lines and COCO JSON."""

import csv
import json
import math
from array import array
from collections.abc import Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.data.formats.coco import four_numbers, load_coco, shorten
from sppnet.data.listing import LocalImages, RemoteImages
from sppnet.errors import ImageError, did_you_mean, list_some
from sppnet.io import remote

BoxFormat = Literal["xyxy", "xywh", "xyxy-normalised", "xywh-normalised"]
OnBad = Literal["raise", "clip", "drop"]

_IMAGE_COLUMNS = ("image", "path", "file", "file_name")
_BOX_COLUMNS: dict[tuple[str, ...], BoxFormat] = {("x1", "y1", "x2", "y2"): "xyxy", ("x", "y", "w", "h"): "xywh"}
# Normalized boxes may extend beyond the image, but larger values must be pixels.
_MAX_NORMALIZED = 2.0


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image.

    Attributes:
        path: path or URL of the image file.
        boxes: xyxy edges in pixels of the image with its EXIF orientation applied; they may extend beyond the image.
        ids: one id per box, either from the file or the index of the box in the file, from 0.
    """

    path: Path | str
    boxes: Float[Tensor, "k 4"]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class BoxFile:
    """The boxes of a file.

    Attributes:
        images: the images that the file names, in file order.
        problems: messages about clipped or dropped boxes and skipped images, each with file and line.
    """

    images: tuple[ImageBoxes, ...]
    problems: tuple[str, ...]


class _Row(NamedTuple):
    """Boxes of one image as stored in a file; ``ids`` is None or has one id per box."""

    place: str  # location in the file, for messages
    image: str
    numbers: Sequence[tuple[float, float, float, float]]
    ids: Sequence[str] | None
    format: BoxFormat


class _ImageEntry(NamedTuple):
    path: Path | str
    size: tuple[int, int]
    boxes: MutableSequence[float]
    ids: dict[str, None]


def read_boxes(file: Path, images: Path | str, box_format: BoxFormat | None = None, on_bad: OnBad = "raise") -> BoxFile:
    """Read the boxes of images and convert them to xyxy edges in pixels.

    Args:
        file: UTF-8 file in one of three formats.

            - .csv: one box per row. The header has one of the columns image, path, file and file_name, either x1, y1,
              x2, y2 or x, y, w, h, and optionally id. Other columns are ignored.
            - .jsonl: one object per line, {"image": NAME, "boxes": [[...], ...], "ids": [...], "format": FORMAT} or
              {"image": NAME, "box": [...], "id": ID, "format": FORMAT}; ids and format are optional.
            - .json: a COCO file; bbox (x, y, width, height) and id of each annotation are read.
        images: path or URL (such as s3://bucket/photos) of the folder that image names in the file are relative to, or
            path of a single image. A file is also found by its base name if that is unique in the folder.
        box_format: ``xyxy`` for edges or ``xywh`` for the left and top edge, width and height, in pixels of the image
            with its EXIF orientation applied; with ``-normalised`` appended, divided by its width and height. The
            default is the pixel format that matches the CSV columns or COCO, or the "format" of the first JSON line.
            It must not contradict these, and all boxes of a file must have the same format.
        on_bad: handling of boxes that are not finite, have no area or do not overlap the image, and of images whose
            header cannot be read. ``raise`` raises an error. ``clip`` clips all boxes to their image and skips bad
            images; bad boxes still raise an error. ``drop`` skips bad boxes and images; others are unchanged. What was
            clipped or skipped is listed in ``problems``; an image without any remaining box is kept.

    Raises:
        ValueError: if the file is malformed, has a bad box, names missing images, or its numbers do not fit the format
            (fractions within [0, 1] as pixels, or normalized values above 2). The message names the line.
        ImageError: if the header of an image cannot be read.
        OSError: if the file cannot be read.
    """
    for name, value, kind in (("box_format", box_format, BoxFormat), ("on_bad", on_bad, OnBad)):
        if value not in get_args(kind) and (name, value) != ("box_format", None):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(kind))}, got {value!r}")
    readers = {".csv": _read_csv, ".jsonl": _read_lines, ".json": _read_coco}
    file = Path(file)
    if file.suffix.lower() not in readers:
        raise ValueError(f"file: expected one of the extensions {', '.join(readers)}, got {file}")
    read = readers[file.suffix.lower()]
    if not remote.is_url(images) and not Path(images).exists():
        raise ValueError(f"images: expected an image or a folder of images, got {images}, which does not exist")
    folder = RemoteImages(str(images)) if remote.is_url(images) else LocalImages(Path(images))
    collector = _BoxCollector(file, folder, on_bad)
    row = None
    try:
        if isinstance(folder, RemoteImages):
            folder.read_sizes(dict.fromkeys(row.image for row in read(file, box_format)))
        for row in read(file, box_format):
            collector.add(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a UTF-8 {file.suffix} file: {error}") from error
    if row is None:
        raise ValueError(f"{file}: expected at least one image, got none")
    return collector.finish()


class _BoxCollector:
    """Boxes of a file, grouped by image; each box takes 16 bytes plus its id."""

    def __init__(self, file: Path, images: LocalImages | RemoteImages, on_bad: OnBad) -> None:
        self.file, self.images, self.on_bad = file, images, on_bad
        self.count = 0  # boxes read so far
        self.entries: dict[str, _ImageEntry | None] = {}  # by name in the file; None if missing or unreadable
        self.names: dict[Path | str, str] = {}
        self.missing: dict[str, str] = {}  # place in the file by name
        self.problems: list[str] = []

    def add(self, row: _Row) -> None:
        if row.image not in self.entries:
            self.entries[row.image] = self._open(row)
        entry = self.entries[row.image]
        for index, box in enumerate(row.numbers, start=self.count):
            edges = None if entry is None else self._to_edges(row, box, entry.size)
            if entry is not None and edges is not None:
                box_id = str(index) if row.ids is None else row.ids[index - self.count]
                if box_id in entry.ids:
                    where = f"{self.file}, {row.place}"
                    raise ValueError(f"{where}: expected unique box ids for {row.image}, got duplicate {box_id!r}")
                entry.boxes.extend(edges)
                entry.ids[box_id] = None
        self.count += len(row.numbers)

    def finish(self) -> BoxFile:
        if self.missing:
            missing = list_some(f"{name} ({place})" for name, place in self.missing.items())
            hint = did_you_mean(next(iter(self.missing)), self.images.names())
            raise ValueError(f"images named in {self.file} are missing from {self.images.root}: {missing}{hint}")
        images = []
        for entry in self.entries.values():
            if entry is not None:
                boxes = torch.tensor(entry.boxes, dtype=torch.float32).reshape(len(entry.ids), 4)
                images.append(ImageBoxes(entry.path, boxes, tuple(entry.ids)))
        return BoxFile(tuple(images), tuple(self.problems))

    def _open(self, row: _Row) -> _ImageEntry | None:
        path = self._find(row)
        if path is None:
            return None
        if path in self.names:
            names = f"{self.names[path]!r} and {row.image!r}"
            raise ValueError(f"{self.file}, {row.place}: expected one name for each image, got {names} for {path}")
        self.names[path] = row.image
        try:
            return _ImageEntry(path, self.images.size(path), array("f"), {})
        except ImageError as error:
            if self.on_bad == "raise":
                raise
            self.problems.append(f"{self.file}, {row.place}: {error}; image skipped")
            return None

    def _find(self, row: _Row) -> Path | str | None:
        try:
            matches = self.images.find(row.image)
        except ValueError as error:
            raise ValueError(f"{self.file}, {row.place}: {error}") from error
        if len(matches) > 1:
            paths = list_some(str(path) for path in matches)
            raise ValueError(f"{self.file}, {row.place}: expected one image named {row.image}, got {paths}")
        if not matches:
            self.missing[row.image] = row.place
        return matches[0] if matches else None

    def _to_edges(
        self, row: _Row, box: tuple[float, float, float, float], size: tuple[int, int]
    ) -> Sequence[float] | None:
        """Return the xyxy edges in pixels, as float32, or None for a dropped box."""
        height, width = size
        a, b, c, d = box
        normalized = row.format.endswith("normalised")
        if normalized and any(_MAX_NORMALIZED < abs(value) < math.inf for value in box):
            raise ValueError(
                f"{self._describe(row, box)}: expected normalized values, got pixels; use one format for all boxes"
            )
        # Boxes of whole numbers are pixels: the first pixel of an image is the box (0, 0, 1, 1).
        if not normalized and 0 <= min(box) <= max(box) <= 1 and any(value % 1 for value in box):
            raise ValueError(
                f"{self._describe(row, box)}: expected pixels, got normalized values; use one format for all boxes,"
                f" such as {row.format}-normalised"
            )
        if row.format.startswith("xywh"):
            c, d = a + c, b + d
        if normalized:
            a, b, c, d = a * width, b * height, c * width, d * height
        edges = array("f", (a, b, c, d))
        a, b, c, d = edges
        if not all(map(math.isfinite, edges)):
            fault, legal = "a number that is not finite", "four finite numbers"
        elif a >= c or b >= d:
            fault, legal = "a box without area", "x1 < x2 and y1 < y2"
        elif c <= 0 or d <= 0 or a >= width or b >= height:
            fault, legal = "a box outside the image", f"a box that overlaps the image of {height} x {width}"
        elif self.on_bad == "clip" and (a < 0 or b < 0 or c > width or d > height):
            problem = f"extends beyond the image of {height} x {width} (height x width); clipped"
            self.problems.append(f"{self._describe(row, box)} {problem}")
            return array("f", (max(a, 0), max(b, 0), min(c, width), min(d, height)))
        else:
            return edges
        if self.on_bad != "drop":
            raise ValueError(f"{self._describe(row, box)}: expected {legal}, got {fault}")
        self.problems.append(f"{self._describe(row, box)}: {fault}; dropped")
        return None

    def _describe(self, row: _Row, box: tuple[float, float, float, float]) -> str:
        place = f", boxes[{row.numbers.index(box)}]" if len(row.numbers) > 1 else ""
        return f"{self.file}, {row.place}{place}: {row.format} box {list(box)} of {row.image}"


def _resolve_format(where: str, stored: BoxFormat, box_format: BoxFormat | None) -> BoxFormat:
    """Return `box_format` if it is compatible with the stored format, or the stored format by default."""
    if box_format is not None and not box_format.startswith(stored):
        raise ValueError(f"box_format: expected {stored} or {stored}-normalised for {where}, got {box_format}")
    return box_format or stored


def _read_csv(file: Path, box_format: BoxFormat | None) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        rows = (row for row in reader if len(row) > 1 or "".join(row).strip())
        header = [name.strip().lower() for name in next(rows, [])]
        image_columns = [name for name in header if name in _IMAGE_COLUMNS]
        box_columns = [names for names in _BOX_COLUMNS if set(names) <= set(header)]
        where = f"{file}, line {max(reader.line_num, 1)}"
        if len(image_columns) != 1 or len(box_columns) != 1 or len(set(header)) < len(header):
            raise ValueError(
                f"{where}: expected a header with one of {', '.join(_IMAGE_COLUMNS)}, and either x1, y1, x2, y2 or"
                f" x, y, w, h, each once, got {','.join(header)!r}"
            )
        resolved = _resolve_format(where, _BOX_COLUMNS[box_columns[0]], box_format)
        corners = [header.index(name) for name in box_columns[0]]
        required = [(name, header.index(name)) for name in (image_columns[0], "id") if name in header]
        for row in rows:
            place = f"line {reader.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{file}, {place}: expected {len(header)} values, got {len(row)}")
            for name, column in required:
                if not row[column].strip():
                    raise ValueError(f"{file}, {place}: {name}: expected a value, got none")
            ids = [row[column].strip() for _, column in required[1:]]
            image = row[required[0][1]].strip()
            yield _Row(place, image, [_parse_box(row, corners, f"{file}, {place}")], ids or None, resolved)


def _parse_box(row: list[str], columns: list[int], where: str) -> tuple[float, float, float, float]:
    cells = [row[column] for column in columns]
    try:
        a, b, c, d = map(float, cells)
    except ValueError:
        raise ValueError(f"{where}: expected four numbers as the box, got {cells}") from None
    return a, b, c, d


def _read_lines(file: Path, box_format: BoxFormat | None) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if text.strip():
                row = _read_line(text, f"{file}, line {line}", f"line {line}", box_format)
                box_format = row.format
                yield row


def _read_line(text: str, where: str, place: str, box_format: BoxFormat | None) -> _Row:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} cannot be read as JSON: {error}") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("image"), str) or not entry["image"].strip():
        raise ValueError(f"{where}: expected an object with an image name under 'image', got {shorten(entry)}")
    if ("box" in entry) == ("boxes" in entry):
        raise ValueError(f"{where}: expected either 'box' or 'boxes', got {shorten(entry)}")
    boxes, ids = entry.get("boxes"), entry.get("ids")
    if "box" in entry:
        boxes, ids = [entry["box"]], [entry["id"]] if "id" in entry else None
    if not isinstance(boxes, list):
        raise ValueError(f"{where}: boxes: expected a list of boxes, got {shorten(boxes)}")
    numbers = []
    for box in boxes:
        values = four_numbers(box)
        if values is None:
            raise ValueError(f"{where}: expected a list of four numbers as the box, got {shorten(box)}")
        numbers.append(values)
    if ids is not None:
        if not isinstance(ids, list) or any(type(name) not in (int, str) for name in ids) or len(ids) != len(boxes):
            raise ValueError(f"{where}: expected {len(boxes)} ids, each a string or an integer, got {shorten(ids)}")
        ids = [str(name) for name in ids]
    line_format: Any = entry.get("format", box_format)
    if line_format not in get_args(BoxFormat):
        names = ", ".join(get_args(BoxFormat))
        raise ValueError(f"{where}: expected one of {names} under 'format' or as box_format, got {line_format!r}")
    if box_format not in (None, line_format):
        raise ValueError(
            f"{where}: format: expected {box_format}, got {line_format}; use one format for all boxes of a file"
        )
    return _Row(place, entry["image"], numbers, ids, line_format)


def _read_coco(file: Path, box_format: BoxFormat | None) -> Iterator[_Row]:
    coco = load_coco(file)
    resolved = _resolve_format(str(file), "xywh", box_format)
    numbers_by_image: dict[int | str, list[int]] = {image_id: [] for image_id in coco.images}
    for number, entry in enumerate(coco.annotations):
        numbers_by_image[entry["image_id"]].append(number)
    for image_id, image in coco.images.items():
        if not numbers_by_image[image_id]:
            yield _Row(f"image {image_id!r}", image["file_name"], [], None, resolved)
        for number in numbers_by_image[image_id]:
            place, entry = f"annotations[{number}]", coco.annotations[number]
            box, box_id = four_numbers(entry.get("bbox")), entry.get("id", number)
            if box is None or type(box_id) not in (int, str):
                raise ValueError(f"{file}, {place}: expected a bbox of four numbers and an id, got {shorten(entry)}")
            yield _Row(place, image["file_name"], [box], [str(box_id)], resolved)
