"""`sppnet cache`: list and delete what trainings have cached."""

import time
from pathlib import Path

from jsonargparse import Namespace
from rich.markup import escape
from rich.table import Table

from sppnet.cli.console import line, results
from sppnet.cli.parser import CommandParser

_TEXT = "folder, such as RUN/cache or the folder of --cache; its subfolders are searched"


def show_parser() -> CommandParser:
    """Build the argument parser of `sppnet cache list`."""
    parser = CommandParser("cache list", "List cached vectors, feature maps and proposals, and their sizes.")
    parser.option("data", "folder", _TEXT)
    return parser


def clear_parser() -> CommandParser:
    """Build the argument parser of `sppnet cache clear`."""
    text = "Delete cached vectors, feature maps and proposals, which later runs compute again, and no other file."
    parser = CommandParser("cache clear", text)
    parser.option("data", "folder", _TEXT)
    return parser


def show(arguments: Namespace) -> int:
    """List the caches in a folder and return 0."""
    from sppnet.training.cache import format_size, list_caches

    root = _folder(arguments)
    table = Table("folder", "images", "size", "last written", "computed with", title_justify="left")
    parts = list_caches(root)
    for part in parts:
        settings = ", ".join(f"{name} {value}" for name, value in part.settings.items())
        day = time.strftime("%Y-%m-%d %H:%M", time.localtime(part.modified))
        cells = (str(part.folder.relative_to(root)), str(part.files), format_size(part.bytes), day, settings)
        table.add_row(*map(escape, cells))
    if parts:
        results.print(table)
    line(f"{format_size(sum(part.bytes for part in parts))} in {root}")
    return 0


def clear(arguments: Namespace) -> int:
    """Delete the cached files in a folder and return 0."""
    from sppnet.training.cache import clear_cache, format_size, list_caches

    root = _folder(arguments)
    parts = list_caches(root)
    clear_cache(root)
    files, size = (sum(getattr(part, name) for part in parts) for name in ("files", "bytes"))
    line(f"deleted {files} files with {format_size(size)} from {root}")
    return 0


def _folder(arguments: Namespace) -> Path:
    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise ValueError(f"folder: expected an existing folder, got {folder}")
    return folder
