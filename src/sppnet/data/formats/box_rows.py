"""Parsers of box files: CSV, JSON Lines and COCO JSON."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_args

from sppnet.data.formats.annotations import shorten
from sppnet.data.formats.box_formats import BoxFormat
from sppnet.data.formats.coco import four_numbers, load_coco

_IMAGE_COLUMNS = ("image", "path", "file", "file_name")
_BOX_COLUMNS: dict[tuple[str, ...], BoxFormat] = {("x1", "y1", "x2", "y2"): "xyxy", ("x", "y", "w", "h"): "xywh"}


class BoxRow(NamedTuple):
    """Boxes of one image as stored in a file; ``ids`` is None or has one id per box."""

    place: str  # location in the file, for messages
    image: str
    numbers: Sequence[tuple[float, float, float, float]]
    ids: Sequence[str] | None
    format: BoxFormat


def _resolve_format(where: str, stored: BoxFormat, box_format: BoxFormat | None) -> BoxFormat:
    """Return `box_format` if it is compatible with the stored format, or the stored format by default."""
    if box_format is not None and not box_format.startswith(stored):
        raise ValueError(f"box_format: expected {stored} or {stored}-normalised for {where}, got {box_format}")
    return box_format or stored


def _read_csv(file: Path, box_format: BoxFormat | None) -> Iterator[BoxRow]:
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
            yield BoxRow(place, image, [_parse_box(row, corners, f"{file}, {place}")], ids or None, resolved)


def _parse_box(row: list[str], columns: list[int], where: str) -> tuple[float, float, float, float]:
    cells = [row[column] for column in columns]
    try:
        a, b, c, d = map(float, cells)
    except ValueError:
        raise ValueError(f"{where}: expected four numbers as the box, got {cells}") from None
    return a, b, c, d


def _read_lines(file: Path, box_format: BoxFormat | None) -> Iterator[BoxRow]:
    with file.open(encoding="utf-8-sig") as stream:
        for line, text in enumerate(stream, start=1):
            if text.strip():
                row = _read_line(text, f"{file}, line {line}", f"line {line}", box_format)
                box_format = row.format
                yield row


def _read_line(text: str, where: str, place: str, box_format: BoxFormat | None) -> BoxRow:
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
    return BoxRow(place, entry["image"], numbers, ids, line_format)


def _read_coco(file: Path, box_format: BoxFormat | None) -> Iterator[BoxRow]:
    coco = load_coco(file)
    resolved = _resolve_format(str(file), "xywh", box_format)
    numbers_by_image: dict[int | str, list[int]] = {image_id: [] for image_id in coco.images}
    for number, entry in enumerate(coco.annotations):
        numbers_by_image[entry["image_id"]].append(number)
    for image_id, image in coco.images.items():
        if not numbers_by_image[image_id]:
            yield BoxRow(f"image {image_id!r}", image["file_name"], [], None, resolved)
        for number in numbers_by_image[image_id]:
            place, entry = f"annotations[{number}]", coco.annotations[number]
            box, box_id = four_numbers(entry.get("bbox")), entry.get("id", number)
            if box is None or type(box_id) not in (int, str):
                raise ValueError(f"{file}, {place}: expected a bbox of four numbers and an id, got {shorten(entry)}")
            yield BoxRow(place, image["file_name"], [box], [str(box_id)], resolved)


# Functions from a file and the expected format (None for that of the file) to its rows, by extension.
READERS: dict[str, Callable[[Path, BoxFormat | None], Iterator[BoxRow]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_lines,
    ".json": _read_coco,
}
