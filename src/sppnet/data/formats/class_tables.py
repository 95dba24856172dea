"""Class tables of segmentation masks: names of known data sets, class files, and remapping to another class order."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sppnet.data.formats.annotations import report_similar
from sppnet.data.formats.classification import class_name
from sppnet.data.formats.mask_folders import has_pixel_values
from sppnet.data.formats.masks import IGNORE, Colour, LabelMap
from sppnet.data.items import Problems
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

CLASS_FILES = ("classes.txt", "classes.csv", "class_dict.csv", "labelmap.txt", "_classes.csv")
MAX_CLASSES = 32_767  # class indices are int16
_RGB = ("r", "g", "b")
_ALIASES = {"pixel value": "id", "class": "name"}  # Roboflow's columns
_CVAT_HEADER = re.compile(r"#\s*label\s*:", re.IGNORECASE)
_CVAT_ROW = re.compile(r"[^:]*:(\s*\d+\s*,\s*\d+\s*,\s*\d+\s*)?:[^:]*:[^:]*")
_BACKGROUND = "background"

Lines = list[tuple[int, str]]


class ClassRow(NamedTuple):
    """A class, or an ignored color if the id is -1."""

    name: str
    id: int
    colour: Colour | None = None


def find_class_file(*folders: Path) -> Path | None:
    """Return the class file in any of these folders, or None if there is none.

    Raises:
        ValueError: there are several.
    """
    paths = list(
        dict.fromkeys(
            folder / name
            for folder in folders
            for name in CLASS_FILES
            if (folder / name).is_file() and (name != "_classes.csv" or has_pixel_values(folder / name))
        )
    )
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
    """Read class names, sorted by id; see `parse_class_file`.

    Raises:
        ValueError: the file is malformed; the message names the line.
        OSError: it cannot be read.
    """
    problems = Problems()
    rows = parse_class_file(file, problems)
    problems.raise_errors()
    return rows


def parse_class_file(file: Path, problems: Problems) -> list[ClassRow]:
    """Read class names, sorted by id, and report all problems.

    Args:
        file: UTF-8 file in one of three formats. Lines that begin with # are comments.

            - .txt: one name per line; the id is the number of the line, from 0, without comments.
            - labelmap.txt of CVAT, or another .txt file of this format: ``name:r,g,b:parts:actions``. The id is the
              number of the line. Without a black class, black is the class ``background``, with the id 0, as CVAT
              leaves pixels without an object black. If no class has a color, the colors are those of VOC.
            - .csv: the column name and optionally id and r, g, b; other columns are ignored. Without the column id, the
              id is the row number, from 0. Rows with the id -1 define colors to ignore. Roboflow's columns, Class and
              Pixel Value, are name and id.
        problems: receives malformed lines, duplicates, and similar names.

    Raises:
        OSError: the file cannot be read.
    """
    count = len(problems)
    suffix = file.suffix.lower()
    if suffix not in (".txt", ".csv"):
        problems.report(file, "bad-annotation", "expected a class file that ends in .txt or .csv")
        return []
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        problems.report(file, "bad-annotation", f"cannot be read as UTF-8 text: {error}")
        return []
    lines = [(number, line) for number, line in enumerate(text.rstrip().split("\n"), start=1)]
    for number, line in lines:
        if "\0" in line:
            problems.report(file, "bad-annotation", f"line {number}: expected text, got a NUL character")
    content = [(number, line) for number, line in lines if not line.lstrip().startswith("#")]
    if len(problems) > count:
        return []
    if suffix == ".csv":
        rows = _parse_csv(file, content, problems)
    elif _is_cvat(file, lines, content):
        rows = _parse_cvat(file, content, problems)
    else:
        rows = _parse_names(file, content, problems)
    if len(problems) == count:
        _check_rows(file, rows, problems)
    return sorted(rows, key=lambda row: row.id)


def _check_rows(file: Path, rows: Sequence[ClassRow], problems: Problems) -> None:
    classes = [row for row in rows if row.id != IGNORE]
    if not classes:
        problems.report(file, "bad-annotation", "expected at least one class, got none")
    if len(classes) > MAX_CLASSES:
        reason = f"expected at most {MAX_CLASSES:,} classes, got {len(classes):,}"
        problems.report(file, "bad-annotation", reason)
    for column, values in (
        ("name", [row.name for row in classes]),
        ("id", [str(row.id) for row in classes]),
        ("color", [str(row.colour) for row in rows if row.colour]),
    ):
        duplicates = sorted(value for value, count in Counter(values).items() if count > 1)
        if duplicates:
            reason = f"{column}: expected unique values, got duplicates of {list_some(duplicates)}"
            problems.report(file, "bad-annotation", reason)
    report_similar([row.name for row in classes], file, problems)


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
    index = {class_name(name): number for number, name in enumerate(names)}
    unknown = [name for name in labels.classes if class_name(name) not in index]
    if unknown:
        raise ValueError(
            f"classes: expected all classes of {root}, got {len(names)} names that lack {list_some(unknown)}"
            f"{did_you_mean(unknown[0], names)}; a class file assigns names to ids"
        )
    new_index = {old: index[class_name(name)] for old, name in enumerate(labels.classes)} | {IGNORE: IGNORE}
    colors = None if labels.colours is None else {color: new_index[old] for color, old in labels.colours.items()}
    return LabelMap(tuple(names), {value: new_index[old] for value, old in labels.ids.items()}, labels.ignore, colors)


def _is_cvat(file: Path, lines: Lines, content: Lines) -> bool:
    """Return whether a file is CVAT's by its name, its header, or the form of all lines."""
    header = any(_CVAT_HEADER.match(line.lstrip()) for _, line in lines[:1])
    rows = [line for _, line in content if line.strip()]
    return file.name.lower() == "labelmap.txt" or header or (bool(rows) and all(map(_CVAT_ROW.fullmatch, rows)))


def _parse_cvat(file: Path, lines: Lines, problems: Problems) -> list[ClassRow]:
    rows: list[ClassRow] = []
    for number, line in lines:
        if not line.strip():
            continue
        values = [value.strip() for value in line.split(":")]
        colors = values[1].split(",") if len(values) > 1 and values[1] else []
        color = [_parse_integer(value.strip(), 0, 255) for value in colors]
        if not values[0] or len(values) > 4 or len(color) not in (0, 3) or None in color:
            expected = "name:r,g,b:parts:actions with colors from 0 to 255"
            problems.report(file, "bad-annotation", f"line {number}: expected {expected}, got {line.strip()[:100]!r}")
        else:
            red, green, blue = color or (None, None, None)
            colour = None if red is None or green is None or blue is None else (red, green, blue)
            rows.append(ClassRow(class_name(values[0]), len(rows), colour))
    has_colors = any(row.colour for row in rows)
    if rows and not any(row.colour == (0, 0, 0) if has_colors else row.name == _BACKGROUND for row in rows):
        if any(row.name == _BACKGROUND for row in rows):  # of another color
            return rows
        rows = [ClassRow(_BACKGROUND, 0, (0, 0, 0) if has_colors else None), *rows]
    if not has_colors:
        rows.sort(key=lambda row: row.name != _BACKGROUND)
        return [ClassRow(row.name, number, _voc_color(number)) for number, row in enumerate(rows)]
    return [ClassRow(row.name, number, row.colour) for number, row in enumerate(rows)]


def _voc_color(index: int) -> Colour | None:
    """Return the color of a class in the masks of VOC; None beyond its 256 colors."""
    if index > 255:
        return None
    bits = [[index >> (3 * position + channel) & 1 for position in range(3)] for channel in range(3)]
    red, green, blue = (sum(bit << (7 - position) for position, bit in enumerate(channel)) for channel in bits)
    return red, green, blue


def _parse_names(file: Path, lines: Lines, problems: Problems) -> list[ClassRow]:
    for number, name in lines:
        if not name.strip() and (len(lines) > 1 or name):
            reason = "expected a name on every line (its number is the id), got none"
            problems.report(file, "bad-annotation", f"line {number}: {reason}")
    names = [class_name(name) for _, name in lines]
    return [ClassRow(name, number) for number, name in enumerate(names)] if any(names) else []


def _parse_csv(file: Path, lines: Lines, problems: Problems) -> list[ClassRow]:
    rows: list[ClassRow] = []
    reader = csv.reader((f"{line}\n" for _, line in lines), skipinitialspace=True, strict=True)
    try:
        header = [_ALIASES.get(name.strip().lower(), name.strip().lower()) for name in next(reader, [])]
        columns = [name for name in ("name", "id", *_RGB) if name in header]
        has_colors = set(_RGB) <= set(columns)
        if (
            "name" not in columns
            or any(header.count(name) > 1 for name in columns)
            or has_colors != bool(set(_RGB) & set(columns))
        ):
            expected = "expected a header with name and optionally id and r, g, b, each once"
            problems.report(file, "bad-annotation", f"{expected}, got {','.join(header)[:100]!r}")
            return []
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            row = _parse_row(header, values, has_colors, len(rows))
            if isinstance(row, str):
                problems.report(file, "bad-annotation", f"line {lines[reader.line_num - 1][0]}: {row}")
            else:
                rows.append(row)
    except csv.Error as error:
        number = lines[min(reader.line_num, len(lines)) - 1][0] if lines else 1
        problems.report(file, "bad-annotation", f"line {number}: cannot be read as CSV: {error}")
    return rows


def _parse_row(header: list[str], values: list[str], has_colors: bool, number: int) -> ClassRow | str:
    """Return the class of a row, or what is wrong with it."""
    if len(values) != len(header):
        return f"expected {len(header)} values, got {len(values)}"
    cells = dict(zip(header, (value.strip() for value in values), strict=True))
    if not cells["name"]:
        return "expected a name, got none"
    limits = {"id": (IGNORE, 65_535)} if "id" in header else {}
    limits |= dict.fromkeys(_RGB, (0, 255)) if has_colors else {}
    parsed = {key: _parse_integer(cells[key], *limit) for key, limit in limits.items()}
    for key, value in parsed.items():
        if value is None:
            low, high = limits[key]
            return f"{key}: expected an integer from {low} to {high}, got {cells[key][:100]!r}"
    integers = {key: value for key, value in parsed.items() if value is not None}
    color = (integers["r"], integers["g"], integers["b"]) if has_colors else None
    return ClassRow(class_name(cells["name"]), integers.get("id", number), color)


def _parse_integer(text: str, low: int, high: int) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text) and low <= int(text) <= high else None
