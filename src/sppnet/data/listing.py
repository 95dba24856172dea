"""Listing and lookup of image files in local folders and object stores."""

import codecs
import csv
import io
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from sppnet.data.images import image_extensions, image_size
from sppnet.data.splits import is_system_file
from sppnet.errors import ImageError
from sppnet.io import remote
from sppnet.io.remote import WILDCARDS, filesystem, is_url, read_bytes, store_errors

_MAX_SHOWN = 200  # characters of a header in a message
_HEADER_BYTES = 1 << 16
_REQUESTS = 32  # concurrent reads of image headers in a store


class LocalImages:
    """The images of a folder, or a single image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.by_file_name: dict[str, list[Path]] = {}

    def find(self, name: str) -> list[Path]:
        """Return the image with this path relative to the folder, or else all images with the same file name.

        Raises:
            ValueError: the image is outside the folder.
        """
        if self.root.is_file():
            return [self.root] if Path(name).name == self.root.name else []
        if (self.root / name).is_file():
            inside = os.path.relpath(self.root / name, self.root)
            if inside.startswith(os.pardir):
                raise ValueError(f"{name} is outside {self.root}; name only images in this folder")
            return [self.root / inside]
        if not self.by_file_name:
            for path in list_images(self.root):
                self.by_file_name.setdefault(path.name, []).append(path)
        return self.by_file_name.get(Path(name).name, [])

    def size(self, path: Path | str) -> tuple[int, int]:
        """Return the (height, width) of an image, as :func:`sppnet.data.images.image_size`."""
        return image_size(path)

    def names(self) -> list[str]:
        """Return all image names, relative to the folder."""
        present = [str(path.relative_to(self.root)) for path in list_images(self.root) if path != self.root]
        return present or [self.root.name]


class RemoteImages:
    """The images below a URL, listed once; :meth:`read_sizes` reads many headers concurrently."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.urls: dict[str, str] = {}
        self.by_file_name: dict[str, list[str]] = {}
        self.sizes: dict[str, tuple[int, int] | ImageError] = {}
        for url in list_image_names(self.root):
            name = remote.relative(url, self.root)
            self.urls[name] = url
            self.by_file_name.setdefault(name.rpartition("/")[2], []).append(url)

    def find(self, name: str) -> list[str]:
        """Return the matching images, as :meth:`LocalImages.find`."""
        return [self.urls[name]] if name in self.urls else self.by_file_name.get(name.rpartition("/")[2], [])

    def read_sizes(self, names: Iterable[str]) -> None:
        """Read the sizes of the images with these names; ambiguous and missing names are skipped."""
        urls = [matches[0] for name in names if len(matches := self.find(name)) == 1]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            self.sizes = dict(zip(urls, pool.map(_size_or_error, urls), strict=True))

    def size(self, path: Path | str) -> tuple[int, int]:
        """Return the (height, width) of an image; call :meth:`read_sizes` with its name first."""
        size = self.sizes[str(path)]
        if isinstance(size, ImageError):
            raise size
        return size

    def names(self) -> list[str]:
        """Return all image names, relative to the URL."""
        return list(self.urls)


def _size_or_error(url: str) -> tuple[int, int] | ImageError:
    try:
        return header_size(url)
    except ImageError as error:
        return error


def list_images(path: str | os.PathLike[str]) -> list[Path]:
    """List the image files of a folder and its subfolders, in the order of `walk_files`.

    Images are recognized by their extension, ignoring case; hidden files and folders are skipped. A single
    file is returned unchanged, whatever its extension.

    Raises:
        ImageError: the path does not exist, or the folder contains no images.
    """
    path = Path(path)
    if os.path.isfile(path):  # noqa: PTH113 (false for names that are too long)
        return [path]
    if not os.path.isdir(path):  # noqa: PTH112
        raise ImageError(str(path), "no such file or folder")
    extensions = image_extensions()
    images = [file for file in walk_files(path) if file.suffix.lower() in extensions]
    if not images:
        raise ImageError(str(path), "the folder contains no images (no file ends in .jpg, .png or similar)")
    return images


def read_list(file: Path | None) -> list[str]:
    """Return the paths and URLs in a file, or on standard input if it is None.

    A file that ends in .csv has a header with the column path. Others have one path per line, or paths that end with
    NUL as those of ``find -print0``. Empty lines are skipped. Paths in a file are relative to its folder, see
    :func:`find_file`; those on standard input to the working directory.

    Raises:
        ValueError: there are no paths, or the CSV file is malformed or has no column path.
        OSError: the file cannot be read.
    """
    if file is None:
        stream = getattr(sys.stdin, "buffer", sys.stdin)  # programs replace it by streams of text
        content = stream.read()
    else:
        content = file.read_bytes()
    text = content if isinstance(content, str) else os.fsdecode(content.removeprefix(codecs.BOM_UTF8))
    if file is not None and file.suffix.lower() == ".csv":
        names = _read_column(text, file)
    else:
        names = [name for name in re.split("\0" if "\0" in text else "\r?\n", text) if name.strip()]
    if not names:
        where = f"list: expected paths in {file}" if file else "images: expected one path per line on standard input"
        raise ValueError(f"{where}, got none")
    if file is None:
        return names
    return [name if is_url(name) else str(find_file(file.parent, name) or file.parent / name) for name in names]


def _read_column(text: str, file: Path) -> list[str]:
    """Return the values of the column path of a CSV file."""
    rows = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
    try:
        header = [name.strip() for name in next(rows, [])]
        if header.count("path") != 1:
            raise ValueError(f"list: expected one column path in {file}, got {','.join(header)[:_MAX_SHOWN]!r}")
        column = header.index("path")
        names = [(rows.line_num, row[column : column + 1]) for row in rows if row]
    except csv.Error as error:
        raise ValueError(f"list: expected CSV in {file}, got {error} in line {rows.line_num}") from error
    if empty := [number for number, name in names if not "".join(name).strip()]:
        raise ValueError(f"list: expected a path in {file}, line {empty[0]}, got none")
    return [name[0] for _, name in names]


def find_file(folder: Path, name: str) -> Path | None:
    """Return the file that an annotation means by a path relative to its folder; None if there is none.

    If no file has this name, backslashes are read as separators of folders, and the composed and decomposed forms of
    letters with accents (Unicode NFC and NFD) are tried, because file systems and archives change them.
    """
    for separated in dict.fromkeys((name, name.replace("\\", "/"))):
        for form in dict.fromkeys((separated, *(unicodedata.normalize(form, separated) for form in ("NFC", "NFD")))):
            # Unlike Path.is_file, this is false for names that are too long.
            if os.path.isfile(path := folder / form):  # noqa: PTH113
                return path
    return None


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder, then those of its subfolders, each in sorted order.

    Hidden files and those of operating systems are skipped, see :func:`sppnet.data.splits.is_system_file`. Links are
    followed; every folder is visited once.

    Raises:
        OSError: a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    visited = set()
    for current, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(current)
        if real in visited:  # otherwise a link to a parent folder would recurse forever
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        yield from (Path(current, name) for name in sorted(files) if not is_system_file(name))


def list_image_names(name: str) -> list[str]:
    """List the image files of a path, URL or pattern, in the order of `list_images`.

    Args:
        name: path or URL of a file or folder, or a pattern such as ``s3://bucket/photos/**/*.jpg``.

    Raises:
        ImageError: the file or folder does not exist, or contains no images.
        OSError: the file or folder cannot be read.
    """
    is_pattern = any(character in name for character in WILDCARDS)
    if not is_url(name) and (os.path.exists(name) or not is_pattern):  # noqa: PTH110 (false for too long names)
        return [str(path) for path in list_images(name)]
    files, path = filesystem(name)
    try:
        with store_errors(name):
            if files.isfile(path):
                return [name]
            matches = files.glob(path) if is_pattern else files.find(path)
    except FileNotFoundError:
        matches = []
    # Hidden folders before the first wildcard were named explicitly, so they are not skipped.
    root = re.split(f"[{re.escape(WILDCARDS)}]", path)[0].rpartition("/")[0] if is_pattern else path
    if not matches:
        raise ImageError(name, "no file matches the pattern" if is_pattern else "no such file or folder")
    extensions = image_extensions()
    images = []
    for file in matches:
        parts = PurePosixPath(file[len(root) :].lstrip("/")).parts
        if PurePosixPath(file).suffix.lower() in extensions and not any(map(is_system_file, parts)):
            images.append((_walk_order(parts), file))
    if not images:
        raise ImageError(name, "the folder contains no images (no file ends in .jpg, .png or similar)")
    return [files.unstrip_protocol(file) if is_url(name) else file for _, file in sorted(images)]


def image_source(where: Path | str) -> Path | bytes:
    """Return a source for :func:`sppnet.data.images.load_image`: the path of a local image, the bytes of a remote one.

    Raises:
        ImageError: the file does not exist, or reading it is not permitted.
        OSError: the store does not respond, which is not an error of the image.
    """
    return where if isinstance(where, Path) else _read_image(where)


def header_size(where: Path | str) -> tuple[int, int]:
    """Return the (height, width) of an image; in a store, only the first 64 KB are read if they suffice.

    Raises:
        ImageError: as `image_source`, or the file is not an image.
        OSError: as `image_source`.
    """
    if isinstance(where, Path):
        return image_size(where)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "header"
        try:
            file.write_bytes(_read_image(where, _HEADER_BYTES))
            return image_size(file)
        except ImageError:
            file.write_bytes(_read_image(where))
        try:
            return image_size(file)
        except ImageError as error:
            raise ImageError(where, error.reason) from error


def _read_image(url: str, end: int | None = None) -> bytes:
    try:
        return read_bytes(url, end)
    except FileNotFoundError as error:
        raise ImageError(url, "no such file") from error
    except IsADirectoryError as error:
        raise ImageError(url, "a folder, not a file") from error
    except PermissionError as error:
        raise ImageError(url, f"cannot be read: {error.__cause__}") from error


def _walk_order(parts: tuple[str, ...]) -> tuple[tuple[bool, str], ...]:
    """Return a sort key that puts the files of a folder before those of its subfolders."""
    return tuple((number < len(parts) - 1, part) for number, part in enumerate(parts))
