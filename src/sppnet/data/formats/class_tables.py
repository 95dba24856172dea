"""Class tables of segmentation masks: names of known data sets, class files, and remapping to another class order."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.masks import IGNORE, Colour, LabelMap
from sppnet.errors import did_you_mean, list_some

CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
CAMVID_COLOURS: tuple[Colour, ...] = (  # the palette of SegNet's authors
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip

CLASS_FILES = ("classes.txt", "classes.csv", "class_dict.csv")
_RGB = ("r", "g", "b")


class ClassRow(NamedTuple):
    """A class, or an ignored color if the id is -1."""

    name: str
    id: int
    colour: Colour | None = None


def find_class_file(*folders: Path) -> Path | None:
    """Return the class file in any of these folders, or None if there is none.

    Raises:
        ValueError: if there are several.
    """
    paths = list(dict.fromkeys(folder / name for folder in folders for name in CLASS_FILES if (folder / name).exists()))
    if len(paths) > 1:
        raise ValueError(
            f"class file: expected at most one in a data set, got {list_some(str(path) for path in paths)}"
        )
    return paths[0] if paths else None


def rows_from_names(names: Sequence[str]) -> list[ClassRow]:
    """Return classes with ids counted from 0; if all names have the form ``class 7``, their numbers are the ids."""
    if all(re.fullmatch(r"class \d+", name) for name in names):
        return [ClassRow(name, int(name.removeprefix("class "))) for name in names]
    return [ClassRow(name, number) for number, name in enumerate(names)]


def read_class_file(file: Path) -> list[ClassRow]:
    """Read class names, sorted by id.

    Args:
        file: UTF-8 file in one of two formats.

            - .txt: one name per line; the id is the line number, from 0.
            - .csv: the column name and optionally id and r, g, b; other columns are ignored. Without the column id, the
              id is the row number, from 0. Rows with the id -1 define colors to ignore.

    Raises:
        ValueError: if the file is malformed; the message names the line.
        OSError: if it cannot be read.
    """
    if file.suffix.lower() not in (".txt", ".csv"):
        raise ValueError(f"class file: expected .txt or .csv, got {file}")
    try:
        rows = _read_lines(file) if file.suffix.lower() == ".txt" else _read_csv(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as UTF-8 text: {error}") from error
    classes = [row for row in rows if row.id != IGNORE]
    if not classes:
        raise ValueError(f"{file}: expected at least one class, got none")
    for column, values in (
        ("name", [row.name for row in classes]),
        ("id", [str(row.id) for row in classes]),
        ("color", [str(row.colour) for row in rows if row.colour]),
    ):
        duplicates = sorted({value for value in values if values.count(value) > 1})
        if duplicates:
            raise ValueError(f"{file}: {column}: expected unique values, got duplicates of {list_some(duplicates)}")
    return sorted(rows, key=lambda row: row.id)


def label_map(rows: Sequence[ClassRow], ignore: Sequence[int] | None, usual: Sequence[int]) -> LabelMap:
    """Build the map from raw ids and colors to class indices.

    Args:
        rows: the classes.
        ignore: raw ids to ignore; classes with such an id are removed.
        usual: raw ids to ignore if `ignore` is None and no class has them.
    """
    kept = [row for row in rows if row.id != IGNORE and row.id not in (ignore or ())]
    ids = {row.id: index for index, row in enumerate(kept)}
    ignored = tuple(value for value in usual if value not in ids) if ignore is None else tuple(ignore)
    colors = {row.colour: ids.get(row.id, IGNORE) for row in rows if row.colour}
    return LabelMap(tuple(row.name for row in kept), ids, ignored, colors or None)


def reorder(labels: LabelMap, names: Sequence[str], root: Path) -> LabelMap:
    """Remap ids and colors to another class order, such as that of a model.

    Args:
        labels: label map of the data.
        names: class names in the new order; the data may lack some of them.
        root: the data set, for error messages.

    Raises:
        ValueError: if a class of the data is not in `names`.
    """
    index = {name: number for number, name in enumerate(names)}
    unknown = [name for name in labels.classes if name not in index]
    if unknown:
        raise ValueError(
            f"classes: expected all classes of {root}, got {len(names)} names that lack {list_some(unknown)}"
            f"{did_you_mean(unknown[0], names)}; a class file assigns names to ids"
        )
    new_index = {old: index[name] for old, name in enumerate(labels.classes)} | {IGNORE: IGNORE}
    colors = None if labels.colours is None else {color: new_index[old] for color, old in labels.colours.items()}
    return LabelMap(tuple(names), {value: new_index[old] for value, old in labels.ids.items()}, labels.ignore, colors)


def _read_lines(file: Path) -> list[ClassRow]:
    names = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    empty = [str(number) for number, name in enumerate(names, start=1) if not name.strip()]
    if empty:
        raise ValueError(
            f"{file}: expected a name on every line (the line number is the id), got none on {list_some(empty)}"
        )
    return [ClassRow(name.strip(), number) for number, name in enumerate(names)]


def _read_csv(file: Path) -> list[ClassRow]:
    rows: list[ClassRow] = []
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        columns = [name for name in ("name", "id", *_RGB) if name in header]
        has_colors = set(_RGB) <= set(columns)
        if (
            "name" not in columns
            or any(header.count(name) > 1 for name in columns)
            or has_colors != bool(set(_RGB) & set(columns))
        ):
            raise ValueError(
                f"{file}: expected a header with name and optionally id and r, g, b, each once,"
                f" got {','.join(header)!r}"
            )
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            where = f"{file}, line {reader.line_num}"
            if len(values) != len(header):
                raise ValueError(f"{where}: expected {len(header)} values, got {len(values)}")
            cells = dict(zip(header, (value.strip() for value in values), strict=True))
            if not cells["name"]:
                raise ValueError(f"{where}: expected a name, got none")
            number = _parse_integer(cells["id"], IGNORE, 65_535, f"{where}: id") if "id" in columns else len(rows)
            red, green, blue = (
                (_parse_integer(cells[key], 0, 255, f"{where}: {key}") for key in _RGB) if has_colors else (0, 0, 0)
            )
            rows.append(ClassRow(cells["name"], number, (red, green, blue) if has_colors else None))
    return rows


def _parse_integer(text: str, low: int, high: int, where: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", text) or not low <= int(text) <= high:
        raise ValueError(f"{where}: expected an integer from {low} to {high}, got {text!r}")
    return int(text)
