"""Sizes of many image files, read from their headers and cached in a file."""

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from sppnet.data.images import image_size
from sppnet.errors import ImageError
from sppnet.io.files import read_json
from sppnet.io.remote import write_text, writers_lock
from sppnet.progress import track

_logger = logging.getLogger(__name__)

# Groups of shorter sides (pixels) and aspect ratios (width / height): (exclusive upper bound, name).
SIDES = ((128, "shorter side < 128"), (224, "128-223"), (320, "224-319"), (512, "320-511"), (1 << 30, "512 and more"))
ASPECTS = (
    (0.5, "width/height < 1:2"),
    (0.8, "1:2 to 4:5"),
    (1.25, "4:5 to 5:4"),
    (2.0, "5:4 to 2:1"),
    (1e9, "2:1 and more"),
)

_FORMAT = 1
_BAR_THRESHOLD = 5000  # a progress bar is shown for more files
_THREADS = 16  # they mostly wait for the disk
_QUEUE_SIZE = 10_000

_Side = Annotated[int, Meta(ge=1)]
_Entry = tuple[int, int, _Side, _Side]  # file size in bytes, modification time in ns, height, width


@dataclass(frozen=True)
class _Cache:
    """Content of the cache file: entries by absolute path."""

    format: int
    sizes: dict[str, _Entry]


def read_sizes(
    paths: Iterable[Path], cache: Path | None = None
) -> tuple[dict[Path, tuple[int, int]], list[ImageError]]:
    """Return the sizes of image files as loaded by `load_image`, without decoding them.

    Args:
        paths: image files; duplicates are ignored.
        cache: JSON file that stores sizes by path; None for no cache. Files whose length or modification time changed
            are read again; entries of files not in `paths` are kept. A damaged cache is replaced, and failure to write
            it is not an error; both print a message. Must not be used by several processes at the same time.

    Returns:
        (height, width) by path, in the order of `paths`, and the errors of the unreadable files. Errors are not cached.
    """
    unique = list(dict.fromkeys(paths))
    known = {} if cache is None else _read_cache(cache)
    sizes, failures, fresh = {}, [], {}
    entries: Iterable[_Entry | ImageError] = _read_entries(unique, known)
    if len(unique) > _BAR_THRESHOLD:
        entries = track(entries, "image sizes", len(unique))
    try:
        for path, entry in zip(unique, entries, strict=True):
            if isinstance(entry, ImageError):
                failures.append(entry)
                continue
            sizes[path] = entry[2:]
            if known.get(_key(path)) != entry:
                fresh[_key(path)] = entry
    finally:  # also when interrupted, so that the work done so far is not lost
        if cache is not None and fresh:
            _write_cache(cache, known | fresh)
    return sizes, failures


def _read_entries(paths: Sequence[Path], known: dict[str, _Entry]) -> Iterator[_Entry | ImageError]:
    with ThreadPoolExecutor(_THREADS, "sizes") as pool:
        for begin in range(0, len(paths), _QUEUE_SIZE):
            yield from pool.map(_read_entry, paths[begin : begin + _QUEUE_SIZE], itertools.repeat(known))


def _read_entry(path: Path, known: dict[str, _Entry]) -> _Entry | ImageError:
    try:
        status = path.stat()  # before the header: a file that changes in between is read again next time
        stamp = status.st_size, status.st_mtime_ns
    except OSError:
        stamp = 0, 0  # matches no cached image; image_size reports the problem
    entry = known.get(_key(path))
    if entry is not None and entry[:2] == stamp:
        return entry
    try:
        return *stamp, *image_size(path)
    except ImageError as error:
        return error


def _key(path: Path) -> str:
    return str(path.absolute())


def _read_cache(cache: Path) -> dict[str, _Entry]:
    try:
        content = read_json(cache, _Cache)
        if content.format != _FORMAT:
            raise ValueError(f"format: expected {_FORMAT}, got {content.format}")
        return content.sizes
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        _logger.warning(f"{cache} is not a valid cache of image sizes and is replaced: {error}")
        return {}


def _write_cache(cache: Path, entries: dict[str, _Entry]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with writers_lock(cache.parent, nested=False):
            write_text(json.dumps({"format": _FORMAT, "sizes": entries}) + "\n", cache)
    except OSError as error:
        _logger.warning(f"{cache}: image sizes cannot be cached: {error.strerror or error}")


def group_of(value: float, bounds: Sequence[tuple[float, str]]) -> str:
    """Return the name of the group of a value, by `SIDES` or `ASPECTS`."""
    return next(name for bound, name in bounds if value < bound)
