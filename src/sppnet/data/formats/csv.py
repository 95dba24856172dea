"""CSV files with the columns path and label."""

import csv
from pathlib import Path
from typing import NamedTuple

from sppnet.errors import list_some


def read_csv(file: Path) -> list[tuple[Path, str]]:
    rows = csv_rows(file)
    missing = [f"{row.name} (line {row.line})" for row in rows if not (file.parent / row.name).is_file()]
    if missing:
        raise ValueError(f"image files named in {file} are missing: {list_some(missing)}")
    return [(file.parent / row.name, row.label) for row in rows]


class CsvRow(NamedTuple):
    """The path of an image as it is written, its class name, and the line that has them."""

    name: str
    label: str
    line: int


def csv_rows(file: Path) -> list[CsvRow]:
    """The rows of a CSV file of images, see `read_classification`; that the images exist is not known.

    Raises:
        ValueError: if it is no such file; the message names the line.
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
                        f"{file} must begin with a header that names the columns path and label once each, "
                        f"got {','.join(header)!r}"
                    )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if not any(row):
                    raise ValueError(f"{where}: the row is empty")
                if len(row) != len(header):
                    raise ValueError(f"{where}: {len(row)} values for {len(header)} columns")
                path, label = row[header.index("path")], row[header.index("label")]
                if not path or not label:
                    raise ValueError(f"{where}: the {'label' if path else 'path'} is empty")
                rows.append(CsvRow(path, label, reader.line_num))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{file} cannot be read as a CSV file in UTF-8: {error}") from error
    if not rows:
        raise ValueError(f"{file} names no image below its header")
    return rows
