"""Readers of CSV files with the columns path and label."""

import csv
from pathlib import Path
from typing import NamedTuple

from sppnet.errors import list_some


def read_csv(file: Path) -> list[tuple[Path, str]]:
    """Read the image paths and class names of a CSV file; see `csv_rows`. Missing images raise a ValueError."""
    rows = read_csv_rows(file)
    missing = [f"{row.name} (line {row.line})" for row in rows if not (file.parent / row.name).is_file()]
    if missing:
        raise ValueError(f"images named in {file} are missing: {list_some(missing)}")
    return [(file.parent / row.name, row.label) for row in rows]


class CsvRow(NamedTuple):
    """The image path as written in the file, the class name, and the line number."""

    name: str
    label: str
    line: int


def read_csv_rows(file: Path) -> list[CsvRow]:
    """Read the rows of a CSV file of images (see `read_classification`); the images may be missing.

    Raises:
        ValueError: if the file is malformed; the message names the line.
        OSError: if it cannot be read.
    """
    rows: list[CsvRow] = []
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, skipinitialspace=True, strict=True)
            header = next(reader, [])
            for name in ("path", "label"):
                if header.count(name) != 1:
                    raise ValueError(
                        f"{file}: expected a header with the columns path and label, each once, got"
                        f" {','.join(header)!r}"
                    )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if not any(row):
                    raise ValueError(f"{where}: expected {len(header)} values, got an empty row")
                if len(row) != len(header):
                    raise ValueError(f"{where}: expected {len(header)} values, got {len(row)}")
                path, label = row[header.index("path")], row[header.index("label")]
                if not path or not label:
                    raise ValueError(f"{where}: expected a {'label' if path else 'path'}, got none")
                rows.append(CsvRow(path, label, reader.line_num))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a UTF-8 CSV file: {error}") from error
    if not rows:
        raise ValueError(f"{file}: expected at least one row below the header, got none")
    return rows
