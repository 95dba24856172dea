"""Parsing of option values and printing of results, shared by all commands."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from sppnet.console import console, results
from sppnet.data.images import image_extensions
from sppnet.data.listing import list_images, walk_files
from sppnet.errors import ImageError
from sppnet.ops.bins import Level

T = TypeVar("T")


def parse_level_text(text: str | list[int]) -> tuple[Level, ...]:
    """Parse pyramid levels such as ``6,3,2,1`` or ``2x3,1`` (rows x columns), or a list from a YAML file.

    Raises:
        ValueError: malformed levels.
    """
    parts = [part for part in re.split(r"[,\s]+", str(text).strip("()[] ")) if part]
    if not parts or not all(re.fullmatch(r"\d+(x\d+)?", part) for part in parts):
        raise ValueError(f"levels: expected numbers such as 6,3,2,1 or 2x3,1, got {text!r}")
    levels: list[Level] = []
    for part in parts:
        rows, _, columns = part.partition("x")
        levels.append((int(rows), int(columns)) if columns else int(rows))
    return tuple(levels)


Number = TypeVar("Number", int, float)


def parse_numbers(name: str, text: str, kind: type[Number] = int, minimum: int = 1) -> tuple[Number, ...]:
    """Parse comma-separated numbers.

    Args:
        name: option name for the error message.
        text: option value.
        kind: type of the numbers.
        minimum: smallest legal number.

    Raises:
        ValueError: malformed text or a number below `minimum`.
    """
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not min(values) >= minimum:
        raise ValueError(f"{name}: expected comma-separated numbers of at least {minimum}, got {text!r}")
    return values


def find_images(names: Sequence[str]) -> tuple[list[Path], list[ImageError]]:
    """List the images among files and folders, and an error for each name without an image.

    Other files in the folders are reported on standard error, one line per extension.
    """
    extensions = image_extensions()
    for folder in filter(Path.is_dir, map(Path, names)):
        skipped: dict[str, list[Path]] = {}
        for file in walk_files(folder):
            if (extension := file.suffix.lower()) not in extensions:
                skipped.setdefault(extension, []).append(file)
        for extension, files in skipped.items():
            text = f"skipped, not an image by its extension: {files[0]}"
            more = f" and {len(files) - 1} more with {extension or 'no extension'}" if len(files) > 1 else ""
            console.print(text + more, highlight=False, soft_wrap=True, markup=False)
    return collect_images(names, list_images)


def collect_images(names: Sequence[str], list_one: Callable[[str], Sequence[T]]) -> tuple[list[T], list[ImageError]]:
    """Concatenate what `list_one` returns for each name, and collect the errors of names that it rejects."""
    items: list[T] = []
    failures: list[ImageError] = []
    for name in names:
        try:
            items += list_one(name)
        except ImageError as error:
            failures.append(error)
    return items, failures


def print_comparison(
    content: dict[str, Any], tables: Callable[[Any], Sequence[Table]], out: Path, as_json: bool
) -> None:
    """Print the results of a comparison as JSON or as tables.

    Args:
        content: results, as in comparison.json.
        tables: function that formats the results as tables.
        out: folder of comparison.json, printed after the tables.
        as_json: whether to print one JSON object and nothing else on standard output.
    """
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    for table in tables(content):
        results.print(table)
    console.print(f"results written to {out / 'comparison.json'}", highlight=False, markup=False)


def list_failures(failures: Sequence[ImageError], skipped: Sequence[Path]) -> None:
    """List skipped files and unusable images on standard error."""
    if skipped:
        console.print(f"{len(skipped)} files or folders were skipped:", highlight=False)
        for path in skipped:
            console.print(f"  {path}: {_why_skipped(path)}", highlight=False, soft_wrap=True, markup=False)
    if failures:
        console.print(f"{len(failures)} image{'s' * (len(failures) != 1)} could not be used:", highlight=False)
        for failure in failures:
            console.print(f"  {failure}", highlight=False, soft_wrap=True, markup=False)


def _why_skipped(path: Path) -> str:
    if path.is_dir():
        return "class folder without images, not used as a class"
    if path.suffix.lower() in image_extensions():
        return "image outside the class folders"
    return "not an image by its extension"


def list_problems(problems: Sequence[str], failures: Sequence[ImageError]) -> None:
    """List problems of a data set and unusable images on standard error."""
    for problem in problems:
        console.print(problem, highlight=False, soft_wrap=True, markup=False)
    list_failures(failures, ())


def print_error(text: str) -> None:
    """Print one line on standard error, prefixed with the program name."""
    console.print(f"sppnet: {text}", highlight=False, soft_wrap=True, markup=False)
