"""Reading of boxes that come with images: CSV files, JSON Lines and the JSON of COCO."""

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

from sppnet.data.formats.coco import four_numbers, load_coco, short
from sppnet.data.listing import LocalImages, RemoteImages
from sppnet.errors import ImageError, list_some, suggest
from sppnet.io import remote

# Which four numbers, and in which unit, are two questions; a name answers both.
BoxFormat = Literal["xyxy", "xywh", "xyxy-normalised", "xywh-normalised"]
OnBad = Literal["raise", "clip", "drop"]

_IMAGE_COLUMNS = ("image", "path", "file", "file_name")
_BOX_COLUMNS: dict[tuple[str, ...], BoxFormat] = {("x1", "y1", "x2", "y2"): "xyxy", ("x", "y", "w", "h"): "xywh"}
# Normalised numbers beyond a box that leaves the image by its whole size are pixels.
_MOST_NORMALISED = 2.0


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of one image.

    Attributes:
        path: the image file; of one in a store its URL.
        boxes: xyxy edges in pixels of the image as its EXIF orientation turns it; they may leave the image.
        ids: one a box: the file's own, otherwise its number among the boxes of the file, from 0.
    """

    path: Path | str
    boxes: Float[Tensor, "k 4"]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class BoxFile:
    """The boxes of a file.

    Attributes:
        images: those that the file names, in its order.
        problems: boxes and images that were cut or left out, each with file and line.
    """

    images: tuple[ImageBoxes, ...]
    problems: tuple[str, ...]


class _Row(NamedTuple):
    """Boxes of one image as a file has them; ``numbers`` and ``ids`` are of one length, or there are no ids."""

    place: str  # in the file
    image: str
    numbers: Sequence[tuple[float, float, float, float]]
    ids: Sequence[str] | None
    format: BoxFormat


class _Found(NamedTuple):
    path: Path | str
    size: tuple[int, int]
    boxes: MutableSequence[float]
    ids: dict[str, None]


def read_boxes(file: Path, images: Path | str, box_format: BoxFormat | None = None, on_bad: OnBad = "raise") -> BoxFile:
    """Reads boxes of images, and brings them to xyxy edges in pixels.

    Args:
        file: in UTF-8, one of

            - .csv: a header with a column image, path, file or file_name, the columns x1, y1, x2, y2 or x, y, w, h, and
              if wanted id; others are ignored. One row a box.
            - .jsonl: one object a line, {"image": NAME, "boxes": [[...], ...], "ids": [...], "format": FORMAT} or
              {"image": NAME, "box": [...], "id": ID, "format": FORMAT}; ids and format may be left out.
            - .json: a COCO file, of which each annotation's bbox (x, y, width, height) and id are read.
        images: a folder, which names in the file are relative to (a file is found by its bare name too, where that is
            unique), or a single image; or the URL of such a folder, such as s3://bucket/photos.
        box_format: which numbers a box is: xyxy are edges, xywh the left and upper edge, width and height; in pixels
            of the image as its EXIF orientation turns it, or normalised, that is divided by the width and height of
            this image. Left out, it is that of the columns or of COCO, in pixels, or the "format" of the first line. It
            must not contradict them, and a file has one format.
        on_bad: what becomes of a box with a number that is not finite, with no area, or wholly outside its image, and
            of an image whose header cannot be read. raise: an error. clip: every box is cut at the edges of its image,
            one that leaves nothing is still an error. drop: they are left out, and other boxes kept as they are. What
            was cut or left out is named in ``problems``; an image whose boxes were all dropped keeps its place.

    Raises:
        ValueError: if the file is not as described, has a bad box, names images that are not there, or seems to be in
            another format: numbers of 0 to 1 alone are no pixels, numbers beyond 2 not normalised. The message names
            the line.
        ImageError: if the header of an image cannot be read.
        OSError: if the file cannot be read.
    """
    for name, value, kind in (("box_format", box_format, BoxFormat), ("on_bad", on_bad, OnBad)):
        if value not in get_args(kind) and (name, value) != ("box_format", None):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {value!r}")
    readers = {".csv": _read_csv, ".jsonl": _read_lines, ".json": _read_coco}
    file = Path(file)
    if file.suffix.lower() not in readers:
        raise ValueError(f"a box file must end in {', '.join(readers)}, got {file}")
    read = readers[file.suffix.lower()]
    if not remote.is_url(images) and not Path(images).exists():
        raise ValueError(f"images must be an image or a folder of images, got {images}, which is not there")
    folder = RemoteImages(str(images)) if remote.is_url(images) else LocalImages(Path(images))
    collection = _Collection(file, folder, on_bad)
    row = None
    try:
        if isinstance(folder, RemoteImages):
            folder.read_sizes(dict.fromkeys(row.image for row in read(file, box_format)))
        for row in read(file, box_format):
            collection.add(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a {file.suffix} file in UTF-8: {error}") from error
    if row is None:
        raise ValueError(f"{file} must name an image or more, got none")
    return collection.finish()


class _Collection:
    """Boxes by image, as they come; a box takes 16 bytes and its id."""

    def __init__(self, file: Path, images: LocalImages | RemoteImages, on_bad: OnBad) -> None:
        self.file, self.images, self.on_bad = file, images, on_bad
        self.count = 0  # of boxes
        self.found: dict[str, _Found | None] = {}  # by name in the file; None without image
        self.names: dict[Path | str, str] = {}
        self.missing: dict[str, str] = {}  # name and place
        self.problems: list[str] = []

    def add(self, row: _Row) -> None:
        if row.image not in self.found:
            self.found[row.image] = self._open(row)
        found = self.found[row.image]
        for number, box in enumerate(row.numbers, start=self.count):
            edges = None if found is None else self._edges(row, box, found.size)
            if found is not None and edges is not None:
                name = str(number) if row.ids is None else row.ids[number - self.count]
                if name in found.ids:
                    raise ValueError(f"{self.file}, {row.place}: the id {name!r} is that of two boxes of {row.image}")
                found.boxes.extend(edges)
                found.ids[name] = None
        self.count += len(row.numbers)

    def finish(self) -> BoxFile:
        if self.missing:
            named = list_some(f"{name} ({place})" for name, place in self.missing.items())
            hint = suggest(next(iter(self.missing)), self.images.names())
            raise ValueError(f"images named in {self.file} are missing in {self.images.root}: {named}{hint}")
        kept = [found for found in self.found.values() if found is not None]
        return BoxFile(
            tuple(
                ImageBoxes(
                    each.path, torch.tensor(each.boxes, dtype=torch.float32).reshape(len(each.ids), 4), tuple(each.ids)
                )
                for each in kept
            ),
            tuple(self.problems),
        )

    def _open(self, row: _Row) -> _Found | None:
        path = self._find(row)
        if path is None:
            return None
        if path in self.names:
            names = f"{self.names[path]!r} and {row.image!r}"
            raise ValueError(f"{self.file}, {row.place}: an image must have one name in a file; {path} is {names}")
        self.names[path] = row.image
        try:
            return _Found(path, self.images.size(path), array("f"), {})
        except ImageError as error:
            if self.on_bad == "raise":
                raise
            self.problems.append(f"{self.file}, {row.place}: {error}; the image is left out")
            return None

    def _find(self, row: _Row) -> Path | str | None:
        try:
            same = self.images.find(row.image)
        except ValueError as error:
            raise ValueError(f"{self.file}, {row.place}: {error}") from error
        if len(same) > 1:
            named = list_some(str(path) for path in same)
            raise ValueError(f"{self.file}, {row.place}: {row.image} must name one image, got {named}")
        if not same:
            self.missing[row.image] = row.place
        return same[0] if same else None

    def _edges(
        self, row: _Row, box: tuple[float, float, float, float], size: tuple[int, int]
    ) -> Sequence[float] | None:
        """The xyxy edges in pixels, in float32; None for a box that is left out."""
        height, width = size
        a, b, c, d = box
        normalised = row.format.endswith("normalised")
        if normalised and any(_MOST_NORMALISED < abs(value) < math.inf for value in box):
            raise ValueError(f"{self._name(row, box)} is in pixels; a file has one format")
        # Whole numbers are pixels: the first of an image is the box (0, 0, 1, 1).
        if not normalised and 0 <= min(box) <= max(box) <= 1 and any(value % 1 for value in box):
            raise ValueError(
                f"{self._name(row, box)} is normalised; a file has one format, and box_format may be"
                f" {row.format}-normalised"
            )
        if row.format.startswith("xywh"):
            c, d = a + c, b + d
        if normalised:
            a, b, c, d = a * width, b * height, c * width, d * height
        edges = array("f", (a, b, c, d))
        a, b, c, d = edges
        if not all(map(math.isfinite, edges)):
            fault, wanted = "has a number that is not finite", "four finite numbers"
        elif a >= c or b >= d:
            fault, wanted = "has no area", "edges with x1 < x2 and y1 < y2"
        elif c <= 0 or d <= 0 or a >= width or b >= height:
            fault, wanted = "is wholly outside", "a box that meets the image"
        elif self.on_bad == "clip" and (a < 0 or b < 0 or c > width or d > height):
            self.problems.append(f"{self._name(row, box)} leaves the image of {height} x {width} (height x width); cut")
            return array("f", (max(a, 0), max(b, 0), min(c, width), min(d, height)))
        else:
            return edges
        text = f"{self._name(row, box)} {fault}"
        if self.on_bad != "drop":
            raise ValueError(f"{text}; expected {wanted}, in an image of {height} x {width} (height x width)")
        self.problems.append(f"{text}; left out")
        return None

    def _name(self, row: _Row, box: tuple[float, float, float, float]) -> str:
        place = f", boxes[{row.numbers.index(box)}]" if len(row.numbers) > 1 else ""
        return f"{self.file}, {row.place}{place}: the {row.format} box {list(box)} of {row.image}"


def _agree(where: str, said: BoxFormat, box_format: BoxFormat | None) -> BoxFormat:
    """The wanted format, where it names the kind of numbers that the file says."""
    if box_format is not None and not box_format.startswith(said):
        raise ValueError(
            f"{where}: the boxes are {said}, so box_format must be {said} or {said}-normalised, got {box_format}"
        )
    return box_format or said


def _read_csv(file: Path, box_format: BoxFormat | None) -> Iterator[_Row]:
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        filled = (row for row in reader if len(row) > 1 or "".join(row).strip())
        header = [name.strip().lower() for name in next(filled, [])]
        image = [name for name in header if name in _IMAGE_COLUMNS]
        kinds = [names for names in _BOX_COLUMNS if set(names) <= set(header)]
        where = f"{file}, line {max(reader.line_num, 1)}"
        if len(image) != 1 or len(kinds) != 1 or len(set(header)) < len(header):
            raise ValueError(
                f"{where}: a header was expected with one of {', '.join(_IMAGE_COLUMNS)}, and either x1, y1, x2, y2 or"
                f" x, y, w, h, each once; got {','.join(header)!r}"
            )
        chosen = _agree(where, _BOX_COLUMNS[kinds[0]], box_format)
        corners = [header.index(name) for name in kinds[0]]
        named = [(name, header.index(name)) for name in (image[0], "id") if name in header]
        for row in filled:
            place = f"line {reader.line_num}"
            if len(row) != len(header):
                raise ValueError(f"{file}, {place}: {len(row)} values for {len(header)} columns")
            for name, column in named:
                if not row[column].strip():
                    raise ValueError(f"{file}, {place}: the {name} is empty")
            ids = [row[column].strip() for name, column in named[1:]]
            yield _Row(place, row[named[0][1]].strip(), [_box(row, corners, f"{file}, {place}")], ids or None, chosen)


def _box(row: list[str], corners: list[int], where: str) -> tuple[float, float, float, float]:
    x, y, z, w = corners
    try:
        return float(row[x]), float(row[y]), float(row[z]), float(row[w])
    except ValueError:
        raise ValueError(f"{where}: a box must be four numbers, got {[row[column] for column in corners]}") from None


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
        raise ValueError(f"{where}: an object with the name of an image under 'image' was expected, got {short(entry)}")
    if ("box" in entry) == ("boxes" in entry):
        raise ValueError(f"{where}: either 'box' or 'boxes' was expected, got {short(entry)}")
    boxes, ids = entry.get("boxes"), entry.get("ids")
    if "box" in entry:
        boxes, ids = [entry["box"]], [entry["id"]] if "id" in entry else None
    if not isinstance(boxes, list):
        raise ValueError(f"{where}: 'boxes' must be a list of boxes, got {short(boxes)}")
    numbers = []
    for box in boxes:
        values = four_numbers(box)
        if values is None:
            raise ValueError(f"{where}: a box must be a list of four numbers, got {short(box)}")
        numbers.append(values)
    if ids is not None:
        if not isinstance(ids, list) or any(type(name) not in (int, str) for name in ids) or len(ids) != len(boxes):
            raise ValueError(f"{where}: {len(boxes)} ids were expected, each a text or an integer, got {short(ids)}")
        ids = [str(name) for name in ids]
    said: Any = entry.get("format", box_format)
    if said not in get_args(BoxFormat):
        names = ", ".join(get_args(BoxFormat))
        raise ValueError(f"{where}: the format must be one of {names}, under 'format' or as box_format, got {said!r}")
    if box_format not in (None, said):
        raise ValueError(f"{where}: the format is {said}, where {box_format} was expected; a file has one format")
    return _Row(place, entry["image"], numbers, ids, said)


def _read_coco(file: Path, box_format: BoxFormat | None) -> Iterator[_Row]:
    coco = load_coco(file)
    chosen = _agree(str(file), "xywh", box_format)
    of: dict[int | str, list[int]] = {key: [] for key in coco.images}
    for number, entry in enumerate(coco.annotations):
        of[entry["image_id"]].append(number)
    for key, image in coco.images.items():
        if not of[key]:
            yield _Row(f"image {key!r}", image["file_name"], [], None, chosen)
        for number in of[key]:
            place, entry = f"annotations[{number}]", coco.annotations[number]
            box, name = four_numbers(entry.get("bbox")), entry.get("id", number)
            if box is None or type(name) not in (int, str):
                raise ValueError(f"{file}, {place}: a bbox of four numbers and an id were expected, got {short(entry)}")
            yield _Row(place, image["file_name"], [box], [str(name)], chosen)
