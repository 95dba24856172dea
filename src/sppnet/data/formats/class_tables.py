"""Names of the classes of segmentation masks: class files, the customary data sets' names, other orders."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.masks import IGNORE, Colour, LabelMap
from sppnet.errors import list_some, suggest

CAMVID = (
    "Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist",
)  # fmt: skip
CAMVID_COLOURS: tuple[Colour, ...] = (  # in which SegNet's authors show them
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
    """A class, or with the id -1 a colour that is ignored."""

    name: str
    id: int
    colour: Colour | None = None


def find_class_file(*folders: Path) -> Path | None:
    """The class file of a data set, if it has one.

    Raises:
        ValueError: if it has several.
    """
    found = list(dict.fromkeys(folder / name for folder in folders for name in CLASS_FILES if (folder / name).exists()))
    if len(found) > 1:
        raise ValueError(f"a data set must have one class file, got {list_some(str(file) for file in found)}")
    return found[0] if found else None


def numbered(names: Sequence[str]) -> list[ClassRow]:
    """Classes whose ids count from 0; a name such as ``class 7`` has the id that it says."""
    if all(re.fullmatch(r"class \d+", name) for name in names):
        return [ClassRow(name, int(name.removeprefix("class "))) for name in names]
    return [ClassRow(name, number) for number, name in enumerate(names)]


def read_class_file(file: Path) -> list[ClassRow]:
    """Reads the names of classes, in the order of their ids.

    Args:
        file: in UTF-8, one of

            - .txt: a name a line; the id is the number of the line, from 0.
            - .csv: with the columns name and perhaps id and r, g, b, others being ignored. Without the column id the
              id is the number of the row, from 0. Rows with the id -1 are colours that are ignored.

    Raises:
        ValueError: if it is no such file; the message names the line.
        OSError: if it cannot be read.
    """
    if file.suffix.lower() not in (".txt", ".csv"):
        raise ValueError(f"a class file must be .txt or .csv, got {file}")
    try:
        rows = _read_lines(file) if file.suffix.lower() == ".txt" else _read_csv(file)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as text in UTF-8: {error}") from error
    named = [row for row in rows if row.id != IGNORE]
    if not named:
        raise ValueError(f"{file} must name a class or more, got none")
    for what, values in (
        ("name", [row.name for row in named]),
        ("id", [str(row.id) for row in named]),
        ("colour", [str(row.colour) for row in rows if row.colour]),
    ):
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"{file} must have each {what} once, {list_some(twice)} comes again")
    return sorted(rows, key=lambda row: row.id)


def label_map(rows: Sequence[ClassRow], ignore: Sequence[int] | None, usual: Sequence[int]) -> LabelMap:
    """What masks stand for.

    Args:
        rows: the classes.
        ignore: raw ids that are ignored; classes that have them are left out.
        usual: raw ids that are ignored where `ignore` is None and no class has them.
    """
    kept = [row for row in rows if row.id != IGNORE and row.id not in (ignore or ())]
    ids = {row.id: index for index, row in enumerate(kept)}
    ignored = tuple(value for value in usual if value not in ids) if ignore is None else tuple(ignore)
    colours = {row.colour: ids.get(row.id, IGNORE) for row in rows if row.colour}
    return LabelMap(tuple(row.name for row in kept), ids, ignored, colours or None)


def reorder(labels: LabelMap, names: Sequence[str], root: Path) -> LabelMap:
    """The same ids and colours for classes in another order, such as a model's.

    Args:
        labels: of the data.
        names: of the classes; the data may lack some of them.
        root: the data set, for the message.

    Raises:
        ValueError: if the data have classes with other names.
    """
    index = {name: number for number, name in enumerate(names)}
    unknown = [name for name in labels.classes if name not in index]
    if unknown:
        raise ValueError(
            f"{root} has classes that are not among the {len(names)} of classes: {list_some(unknown)}"
            f"{suggest(unknown[0], names)}; a class file says which id has which name"
        )
    moved = {old: index[name] for old, name in enumerate(labels.classes)} | {IGNORE: IGNORE}
    colours = None if labels.colours is None else {colour: moved[old] for colour, old in labels.colours.items()}
    return LabelMap(tuple(names), {value: moved[old] for value, old in labels.ids.items()}, labels.ignore, colours)


def _read_lines(file: Path) -> list[ClassRow]:
    names = file.read_text(encoding="utf-8-sig").rstrip().splitlines()
    empty = [str(number) for number, name in enumerate(names, start=1) if not name.strip()]
    if empty:
        raise ValueError(f"{file} must have a name in every line, for its number is the id; empty: {list_some(empty)}")
    return [ClassRow(name.strip(), number) for number, name in enumerate(names)]


def _read_csv(file: Path) -> list[ClassRow]:
    rows: list[ClassRow] = []
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        header = [name.strip().lower() for name in next(reader, [])]
        known = [name for name in ("name", "id", *_RGB) if name in header]
        coloured = set(_RGB) <= set(known)
        if (
            "name" not in known
            or any(header.count(name) > 1 for name in known)
            or coloured != bool(set(_RGB) & set(known))
        ):
            raise ValueError(
                f"{file} must begin with a header of name and perhaps id and r, g, b, each once,"
                f" got {','.join(header)!r}"
            )
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            where = f"{file}, line {reader.line_num}"
            if len(values) != len(header):
                raise ValueError(f"{where}: {len(values)} values for {len(header)} columns")
            cells = dict(zip(header, (value.strip() for value in values), strict=True))
            if not cells["name"]:
                raise ValueError(f"{where}: the name is empty")
            number = _whole(cells["id"], IGNORE, 65_535, f"{where}: id") if "id" in known else len(rows)
            red, green, blue = (
                (_whole(cells[key], 0, 255, f"{where}: {key}") for key in _RGB) if coloured else (0, 0, 0)
            )
            rows.append(ClassRow(cells["name"], number, (red, green, blue) if coloured else None))
    return rows


def _whole(text: str, low: int, high: int, where: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", text) or not low <= int(text) <= high:
        raise ValueError(f"{where} must be a whole number of {low} to {high}, got {text!r}")
    return int(text)
