"""Boxes of images, read from CSV, JSON Lines or COCO files and converted to pixels."""

import csv
import math
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sppnet.data.formats.box_formats import BoxFormat, OnBad
from sppnet.data.formats.box_rows import READERS, BoxRow
from sppnet.data.listing import LocalImages, RemoteImages
from sppnet.errors import ImageError, check_choice, did_you_mean, list_some
from sppnet.io import remote

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
        failures: errors of the skipped images.
    """

    images: tuple[ImageBoxes, ...]
    problems: tuple[str, ...]
    failures: tuple[ImageError, ...] = ()


class _ImageEntry(NamedTuple):
    path: Path | str
    size: tuple[int, int]
    boxes: MutableSequence[float]
    ids: dict[str, None]


def read_boxes(
    file: Path, images: Path | str | Sequence[Path], box_format: BoxFormat | None = None, on_bad: OnBad = "raise"
) -> BoxFile:
    """Read the boxes of images and convert them to xyxy edges in pixels.

    Args:
        file: UTF-8 file in one of three formats.

            - .csv: one box per row. The header has one of the columns image, path, file and file_name, either x1, y1,
              x2, y2 or x, y, w, h, and optionally id. Other columns are ignored.
            - .jsonl: one object per line, {"image": NAME, "boxes": [[...], ...], "ids": [...], "format": FORMAT} or
              {"image": NAME, "box": [...], "id": ID, "format": FORMAT}; ids and format are optional.
            - .json: a COCO file; bbox (x, y, width, height) and id of each annotation are read.
        images: path or URL (such as s3://bucket/photos) of the folder that image names in the file are relative to, or
            path of a single image. A file is also found by its base name if that is unique in the folder. Or absolute
            paths of image files: other images in the file are then ignored.
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
    if box_format is not None:
        check_choice("box_format", box_format, get_args(BoxFormat))
    check_choice("on_bad", on_bad, get_args(OnBad))
    file = Path(file)
    if file.suffix.lower() not in READERS:
        raise ValueError(f"file: expected one of the extensions {', '.join(READERS)}, got {file}")
    read = READERS[file.suffix.lower()]
    if isinstance(images, Path | str) and not remote.is_url(images) and not Path(images).exists():
        raise ValueError(f"images: expected an image or a folder of images, got {images}, which does not exist")
    row = None
    try:
        folder = _open_folder(images, (row.image for row in read(file, box_format)))
        collector = _BoxCollector(file, folder, on_bad)
        for row in read(file, box_format):
            collector.add(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a UTF-8 {file.suffix} file: {error}") from error
    if row is None:
        raise ValueError(f"{file}: expected at least one image, got none")
    return collector.finish()


def _open_folder(images: Path | str | Sequence[Path], names: Iterator[str]) -> LocalImages | RemoteImages:
    """Return the images that may be named in a box file, which names `names`."""
    if not isinstance(images, Path | str):
        return _GivenImages(images, dict.fromkeys(names))
    if not remote.is_url(images):
        return LocalImages(Path(images))
    folder = RemoteImages(str(images))
    folder.read_sizes(dict.fromkeys(names))
    return folder


class _GivenImages(LocalImages):
    """Image files given as absolute paths; the names of other images match nothing."""

    def __init__(self, paths: Sequence[Path], names: Iterable[str]) -> None:
        super().__init__(Path(os.path.commonpath([path.parent for path in paths])))
        self.counts = Counter(Path(name).name for name in names)
        for path in paths:
            self.by_file_name.setdefault(path.name, []).append(path)

    def find(self, name: str) -> list[Path]:
        """Return the image with this path relative to the common folder, else those whose path ends with the name.

        If there are none, an image of the same base name is returned if neither has a namesake.
        """
        parts = Path(os.path.normpath(name)).parts
        candidates = self.by_file_name.get(Path(name).name, [])
        matches = [path for path in candidates if path.parts[-len(parts) :] == parts]
        if self.root / name in matches:
            return [self.root / name]
        return matches or (candidates if len(candidates) == self.counts[Path(name).name] == 1 else [])


class _BoxCollector:
    """Boxes of a file, grouped by image; each box takes 16 bytes plus its id."""

    def __init__(self, file: Path, images: LocalImages | RemoteImages, on_bad: OnBad) -> None:
        self.file, self.images, self.on_bad = file, images, on_bad
        self.count = 0  # boxes read so far
        self.entries: dict[str, _ImageEntry | None] = {}  # by name in the file; None if missing or unreadable
        self.names: dict[Path | str, str] = {}
        self.missing: dict[str, str] = {}  # place in the file by name
        self.problems: list[str] = []
        self.failures: list[ImageError] = []

    def add(self, row: BoxRow) -> None:
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
        return BoxFile(tuple(images), tuple(self.problems), tuple(self.failures))

    def _open(self, row: BoxRow) -> _ImageEntry | None:
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
            self.failures.append(error)
            return None

    def _find(self, row: BoxRow) -> Path | str | None:
        try:
            matches = self.images.find(row.image)
        except ValueError as error:
            raise ValueError(f"{self.file}, {row.place}: {error}") from error
        if len(matches) > 1:
            paths = list_some(str(path) for path in matches)
            raise ValueError(f"{self.file}, {row.place}: expected one image named {row.image}, got {paths}")
        if not matches and not isinstance(self.images, _GivenImages):
            self.missing[row.image] = row.place
        return matches[0] if matches else None

    def _to_edges(
        self, row: BoxRow, box: tuple[float, float, float, float], size: tuple[int, int]
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

    def _describe(self, row: BoxRow, box: tuple[float, float, float, float]) -> str:
        place = f", boxes[{row.numbers.index(box)}]" if len(row.numbers) > 1 else ""
        return f"{self.file}, {row.place}{place}: {row.format} box {list(box)} of {row.image}"
