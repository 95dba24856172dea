"""What commands share: levels as people write them, lists of what could not be used, figures of comparisons."""

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
    """Levels as people type them: ``6,3,2,1`` or, with rows x columns, ``2x3,1``; or a list from a YAML file.

    Raises:
        ValueError: anything else.
    """
    parts = [part for part in re.split(r"[,\s]+", str(text).strip("()[] ")) if part]
    if not parts or not all(re.fullmatch(r"\d+(x\d+)?", part) for part in parts):
        raise ValueError(f"levels: expected numbers such as 6,3,2,1 or 2x3,1; got {text!r}")
    levels: list[Level] = []
    for part in parts:
        rows, _, columns = part.partition("x")
        levels.append((int(rows), int(columns)) if columns else int(rows))
    return tuple(levels)


Number = TypeVar("Number", int, float)


def numbers(name: str, text: str, kind: type[Number] = int, least: int = 1) -> tuple[Number, ...]:
    """Numbers separated by commas.

    Args:
        name: of the option, for the message.
        text: what was typed.
        kind: of number.
        least: the smallest that is taken.
    """
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not min(values) >= least:
        raise ValueError(f"{name}: expected numbers of at least {least}, separated by commas; got {text!r}")
    return values


def find_images(names: Sequence[str]) -> tuple[list[Path], list[ImageError]]:
    """The images that files and folders hold, and the errors of those that are none.

    What else is in the folders is told on standard error, by its extension: beside photographs there may be thousands
    of text files.
    """
    extensions = image_extensions()
    for folder in filter(Path.is_dir, map(Path, names)):
        others: dict[str, list[Path]] = {}
        for file in walk_files(folder):
            if (ending := file.suffix.lower()) not in extensions:
                others.setdefault(ending, []).append(file)
        for ending, files in others.items():
            text = f"passed over, no image by its extension: {files[0]}"
            more = f" and {len(files) - 1} more with {ending or 'none'}" if len(files) > 1 else ""
            console.print(text + more, highlight=False, soft_wrap=True, markup=False)
    return collect_images(names, list_images)


def collect_images(names: Sequence[str], list_one: Callable[[str], Sequence[T]]) -> tuple[list[T], list[ImageError]]:
    """All that each name stands for, in order, and the errors of those that stand for nothing."""
    found: list[T] = []
    failures: list[ImageError] = []
    for name in names:
        try:
            found += list_one(name)
        except ImageError as error:
            failures.append(error)
    return found, failures


def tell_comparison(
    content: dict[str, Any], tables: Callable[[Any], Sequence[Table]], out: Path, as_json: bool
) -> None:
    """Print the figures of a comparison, as JSON or in tables that end with the place of their file.

    Args:
        content: the figures, which `out` has in comparison.json.
        tables: makes tables of them.
        out: folder of the comparison.
        as_json: one JSON object on standard output and nothing else.
    """
    if as_json:
        sys.stdout.write(json.dumps(content) + "\n")
        return
    for table in tables(content):
        results.print(table)
    console.print(f"the figures are in {out / 'comparison.json'}", highlight=False, markup=False)


def list_failures(failures: Sequence[ImageError], skipped: Sequence[Path]) -> None:
    """Name on standard error what a data set of classes has passed over, and what could not be read."""
    if skipped:
        console.print(f"{len(skipped)} files or folders were passed over:", highlight=False)
        for path in skipped:
            console.print(f"  {path}: {_why_skipped(path)}", highlight=False, soft_wrap=True, markup=False)
    if failures:
        console.print(f"{len(failures)} image{'s' * (len(failures) != 1)} could not be used:", highlight=False)
        for failure in failures:
            console.print(f"  {failure}", highlight=False, soft_wrap=True, markup=False)


def _why_skipped(path: Path) -> str:
    if path.is_dir():
        return "a class folder without an image; it is no class"
    if path.suffix.lower() in image_extensions():
        return "an image beside the class folders"
    return "no image by its extension"


def list_problems(problems: Sequence[str], failures: Sequence[ImageError]) -> None:
    """Name on standard error what a data set left out and what could not be read."""
    for problem in problems:
        console.print(problem, highlight=False, soft_wrap=True, markup=False)
    list_failures(failures, ())


def complain(text: str) -> None:
    """One line on standard error."""
    console.print(f"sppnet: {text}", highlight=False, soft_wrap=True, markup=False)
