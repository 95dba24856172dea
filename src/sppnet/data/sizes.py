"""Sizes of many image files, read from their headers once and kept in a file."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sppnet.console import console, track
from sppnet.data.images import image_size
from sppnet.errors import ImageError
from sppnet.io.files import write_text

# Shorter side in pixels and width over height: the first bound that a value stays below names its group.
SIDES = ((128, "shorter side < 128"), (224, "128-223"), (320, "224-319"), (512, "320-511"), (1 << 30, "512 and more"))
ASPECTS = (
    (0.5, "width/height < 1:2"),
    (0.8, "1:2 to 4:5"),
    (1.25, "4:5 to 5:4"),
    (2.0, "5:4 to 2:1"),
    (1e9, "2:1 and more"),
)

_FORMAT = 1
_MANY = 5000  # files; of more a bar is shown
_THREADS = 16  # they wait for the disk
_QUEUED = 10_000  # files that wait for a thread

# Bytes of the file, nanoseconds of its last change, height, width.
_Entry = tuple[int, int, int, int]


def read_sizes(
    paths: Iterable[Path], cache: Path | None = None
) -> tuple[dict[Path, tuple[int, int]], list[ImageError]]:
    """Sizes of image files, as `load_image` gives them, without decoding anything.

    Args:
        paths: of the files; one that comes twice counts once.
        cache: a JSON file that keeps sizes by path. A file whose length or time of last change differs is read again;
            entries of other files stay. A damaged cache counts as empty and is replaced, one that cannot be written
            is left; the console says so. Only one process may use it at a time. None keeps nothing.

    Returns:
        (height, width) by path, in the order of the paths, and what is wrong with the files that have none. These are
        not kept, and looked at again each time.
    """
    unique = list(dict.fromkeys(paths))
    known = {} if cache is None else _read_cache(cache)
    sizes, failures, fresh = {}, [], {}
    found: Iterable[_Entry | ImageError] = _look_at_all(unique, known)
    if len(unique) > _MANY:
        found = track(found, "sizes of the images", len(unique))
    try:
        for path, entry in zip(unique, found, strict=True):
            if isinstance(entry, ImageError):
                failures.append(entry)
                continue
            sizes[path] = entry[2:]
            if known.get(_key(path)) != entry:
                fresh[_key(path)] = entry
    finally:  # what has been read is kept where the rest is interrupted
        if cache is not None and fresh:
            _write_cache(cache, known | fresh)
    return sizes, failures


def _look_at_all(paths: Sequence[Path], known: dict[str, _Entry]) -> Iterator[_Entry | ImageError]:
    with ThreadPoolExecutor(_THREADS, "sizes") as pool:
        for begin in range(0, len(paths), _QUEUED):
            yield from pool.map(_look_at, paths[begin : begin + _QUEUED], itertools.repeat(known))


def _look_at(path: Path, known: dict[str, _Entry]) -> _Entry | ImageError:
    try:
        status = path.stat()  # before the header: a file that changes in between is read again next time
        stamp = status.st_size, status.st_mtime_ns
    except OSError:
        stamp = 0, 0  # no image is empty; what is wrong is said below
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
    if not cache.exists():
        return {}
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"its format is {content['format']!r}, not {_FORMAT}")
        return {path: _checked(entry) for path, entry in content["sizes"].items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _say(f"{cache} is no cache of image sizes and is replaced: {type(error).__name__}: {error}")
        return {}


def _checked(entry: Any) -> _Entry:
    length, changed, height, width = entry
    if not all(type(number) is int for number in entry) or min(height, width) < 1:
        raise ValueError(f"expected bytes, time of change, height and width of a file; got {entry}")
    return length, changed, height, width


def _write_cache(cache: Path, entries: dict[str, _Entry]) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_text(json.dumps({"format": _FORMAT, "sizes": entries}) + "\n", cache)
    except OSError as error:
        _say(f"{cache}: sizes of images are not kept: {error.strerror or error}")


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def group_of(value: float, bounds: Sequence[tuple[float, str]]) -> str:
    """The name of the group that a value is in, by `SIDES` or `ASPECTS`."""
    return next(name for bound, name in bounds if value < bound)
