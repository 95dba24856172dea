"""Reader of CSV files with image paths and classes: a column of labels, or a column of 0 and 1 per class."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sppnet.data.items import Item, Part, Problems
from sppnet.data.listing import find_file

_PATHS = ("path", "filename")
_SEPARATORS = re.compile("[|;]")
_FLAGS = {"0": False, "1": True}
_MAX_SHOWN = 200  # characters of a header in a message


def find_splits(root: Path) -> dict[str | None, Path]:
    """Return a CSV file as a data set without splits; empty for anything else."""
    return {None: root} if root.suffix.lower() == ".csv" and root.is_file() else {}


def read(root: Path, split: str | None, source: Path, problems: Problems) -> Part:  # noqa: ARG001
    """Read a UTF-8 CSV file with a row per image.

    The column path (or filename) is relative to the folder of the file; a backslash separates folders, too, if the file
    exists under this name. The classes are in a column label, separated by | or ; if an image has several, or in one
    column of 0 and 1 per class. Next to a column label, other columns are ignored.

    Args:
        root: data set.
        split: name of the split.
        source: CSV file.
        problems: receives malformed rows, missing images and repeated images.

    Raises:
        OSError: the file cannot be read.
    """
    count = len(problems)
    rows = _rows(source, problems)
    _, names = next(rows, (0, []))
    header = [name.strip() for name in names]
    columns: _Columns | None = None
    first: dict[Path, Item] = {}
    items: list[Item] = []
    for line, row in rows:
        columns = columns or _find_columns(header, row)
        if columns is None:
            break
        entry = _parse(row, header, columns)
        if isinstance(entry, str):
            problems.report(source, "bad-annotation", f"line {line}: {entry}")
            continue
        name, labels = entry
        path, where = find_file(source.parent, name), f"{source}, line {line}"
        if path is None:
            path = source.parent / name
            problems.report(path, "missing", f"no such file, but {where} lists it")
        item = Item(path, labels, where=where)
        if (other := first.setdefault(path, item)) is not item:
            _report_repeated(item, other, problems)
        items.append(item)
    else:
        columns = columns or _find_columns(header, [])
    if columns is None and (header or len(problems) == count):
        expected = "expected a header with path and label, or path and a column of 0 and 1 per class, each once"
        text = ",".join(header)
        text = text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
        problems.report(source, "bad-annotation", f"line 1: {expected}, got {text!r}")
    elif not items and len(problems) == count:
        problems.report(source, "bad-annotation", "expected at least one row below the header, got none")
    return Part(items, columns and columns.classes)


class _Columns(NamedTuple):
    """Positions of the path and the label (None: a column per class), and the classes by column."""

    path: int
    label: int | None
    flags: dict[int, str]

    @property
    def classes(self) -> tuple[str, ...] | None:
        return tuple(self.flags.values()) or None


def _find_columns(header: Sequence[str], row: Sequence[str]) -> _Columns | None:
    """Return the columns of a file; None if the header is wrong. Columns of classes are told by the first row."""
    paths = [index for index, name in enumerate(header) if name in _PATHS]
    labels = [index for index, name in enumerate(header) if name == "label"]
    if len(paths) != 1 or len(labels) > 1:
        return None
    if labels:
        return _Columns(paths[0], labels[0], {})
    flags = {index: name for index, name in enumerate(header) if index != paths[0]}
    values = [row[index].strip() for index in flags if index < len(row)]
    distinct = all(flags.values()) and len(set(flags.values())) == len(flags)
    return _Columns(paths[0], None, flags) if flags and distinct and all(map(_FLAGS.__contains__, values)) else None


def _rows(source: Path, problems: Problems) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and values of each row, up to the first that is not CSV."""
    with source.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, skipinitialspace=True, strict=True)
        try:
            yield from ((reader.line_num, row) for row in reader)
        except (csv.Error, UnicodeDecodeError) as error:
            reason = f"line {reader.line_num}: cannot be read as a UTF-8 CSV file: {error}"
            problems.report(source, "bad-annotation", reason)


def _parse(row: Sequence[str], header: Sequence[str], columns: _Columns) -> tuple[str, tuple[str, ...]] | str:
    """Return the path and classes of a row, or what is wrong with it."""
    if not any(row):
        return f"expected {len(header)} values, got an empty row"
    if len(row) != len(header):
        return f"expected {len(header)} values, got {len(row)}"
    path = row[columns.path]
    if not path.strip():
        return "expected a path, got none"
    if columns.label is None:
        values = {name: row[index].strip() for index, name in columns.flags.items()}
        wrong = next((name for name, value in values.items() if value not in _FLAGS), None)
        if wrong is not None:
            return f"column {wrong}: expected 0 or 1, got {values[wrong][:_MAX_SHOWN]!r}"
        return path, tuple(name for name, value in values.items() if _FLAGS[value])
    label = row[columns.label]
    labels = _SEPARATORS.split(label)
    if not all(part.strip() for part in labels):
        got = f", got {label[:_MAX_SHOWN]!r}" if len(labels) > 1 else ", got none"
        return f"expected a label{got}"
    return path, (label,) if len(labels) == 1 else tuple(dict.fromkeys(part.strip() for part in labels))


def _report_repeated(item: Item, other: Item, problems: Problems) -> None:
    same = item.labels == other.labels
    labels = "" if same else f", which has the class {'|'.join(other.labels)} instead of {'|'.join(item.labels)}"
    kind = "duplicate" if same else "duplicate-across-classes"
    problems.report(item.path, kind, f"{item.where} repeats the file of line {other.where.rpartition(' ')[2]}{labels}")
