"""Where images are that a file names: below a folder on this machine, or below a URL."""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from sppnet.data.images import image_extensions, image_size
from sppnet.errors import ImageError
from sppnet.io import remote
from sppnet.io.remote import WILDCARDS, filesystem, is_url, read_bytes, store_errors

_HEADER_BYTES = 1 << 16


_REQUESTS = 32  # headers of images in a store that are read at a time


class LocalImages:
    """The images of a folder, or a single image."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bare: dict[str, list[Path]] = {}

    def find(self, name: str) -> list[Path]:
        """The image of that name relative to the folder; otherwise all that have this bare name.

        Raises:
            ValueError: it lies outside.
        """
        if self.root.is_file():
            return [self.root] if Path(name).name == self.root.name else []
        if (self.root / name).is_file():
            inside = os.path.relpath(self.root / name, self.root)
            if inside.startswith(os.pardir):
                raise ValueError(f"{name} lies outside {self.root}; name images in it")
            return [self.root / inside]
        if not self.bare:
            for path in list_images(self.root):
                self.bare.setdefault(path.name, []).append(path)
        return self.bare.get(Path(name).name, [])

    def size(self, path: Path | str) -> tuple[int, int]:
        """As :func:`sppnet.data.images.image_size`."""
        return image_size(path)

    def names(self) -> list[str]:
        """All names."""
        present = [str(path.relative_to(self.root)) for path in list_images(self.root) if path != self.root]
        return present or [self.root.name]


class RemoteImages:
    """The images below a URL, listed once; :meth:`read_sizes` asks for many headers at a time."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.urls: dict[str, str] = {}
        self.bare: dict[str, list[str]] = {}
        self.sizes: dict[str, tuple[int, int] | ImageError] = {}
        for url in image_names(self.root):
            name = remote.relative(url, self.root)
            self.urls[name] = url
            self.bare.setdefault(name.rpartition("/")[2], []).append(url)

    def find(self, name: str) -> list[str]:
        """As :meth:`LocalImages.find`."""
        return [self.urls[name]] if name in self.urls else self.bare.get(name.rpartition("/")[2], [])

    def read_sizes(self, names: Iterable[str]) -> None:
        """Read the headers of the images that these names mean."""
        urls = [found[0] for name in names if len(found := self.find(name)) == 1]
        with ThreadPoolExecutor(_REQUESTS) as pool:
            self.sizes = dict(zip(urls, pool.map(_size_or_error, urls), strict=True))

    def size(self, path: Path | str) -> tuple[int, int]:
        """(height, width) of an image that :meth:`read_sizes` was asked for."""
        found = self.sizes[str(path)]
        if isinstance(found, ImageError):
            raise found
        return found

    def names(self) -> list[str]:
        """All names."""
        return list(self.urls)


def _size_or_error(url: str) -> tuple[int, int] | ImageError:
    try:
        return header_size(url)
    except ImageError as error:
        return error


def list_images(path: str | os.PathLike[str]) -> list[Path]:
    """Lists the image files of a folder and of the folders in it, in sorted order.

    A file counts as an image by its extension, in either case; hidden files and folders are left out. A path
    to a file is listed whatever its extension, for it was named on purpose.

    Raises:
        ImageError: if the path does not exist or the folder holds no image.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ImageError(str(path), "no such file or folder")
    extensions = image_extensions()
    images = [file for file in walk_files(path) if file.suffix.lower() in extensions]
    if not images:
        raise ImageError(str(path), "the folder holds no image (no file ends in .jpg, .png or the like)")
    return images


def walk_files(folder: Path) -> Iterator[Path]:
    """Yields the files of a folder, then those of the folders in it, each in sorted order.

    Hidden files and folders are left out. Links are followed, and every folder is entered once.

    Raises:
        OSError: if a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise error

    seen = set()
    for current, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = os.path.realpath(current)
        if real in seen:  # a link back up would go round for ever
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(current, name) for name in sorted(files) if not name.startswith("."))


def image_names(name: str) -> list[str]:
    """The image files of a folder or a pattern, as :func:`sppnet.data.listing.list_images` lists those of a folder.

    Args:
        name: path or URL of a file or a folder, or such a pattern as ``s3://bucket/photos/**/*.jpg``.

    Raises:
        ImageError: there is no such file or folder, or it holds no image.
        OSError: it cannot be read.
    """
    wild = any(character in name for character in WILDCARDS)
    if not is_url(name) and (Path(name).exists() or not wild):
        return [str(path) for path in list_images(name)]
    files, path = filesystem(name)
    try:
        with store_errors(name):
            if files.isfile(path):
                return [name]
            found = files.glob(path) if wild else files.find(path)
    except FileNotFoundError:
        found = []
    # Of a pattern, all before the first wild character was named on purpose, hidden folders included.
    root = re.split(f"[{re.escape(WILDCARDS)}]", path)[0].rpartition("/")[0] if wild else path
    if not found:
        raise ImageError(name, "no file fits the pattern" if wild else "no such file or folder")
    extensions = image_extensions()
    kept = []
    for file in found:
        parts = PurePosixPath(file[len(root) :].lstrip("/")).parts
        if PurePosixPath(file).suffix.lower() in extensions and not any(part.startswith(".") for part in parts):
            kept.append((_walk_order(parts), file))
    if not kept:
        raise ImageError(name, "the folder holds no image (no file ends in .jpg, .png or the like)")
    return [files.unstrip_protocol(file) if is_url(name) else file for _, file in sorted(kept)]


def image_source(where: Path | str) -> Path | bytes:
    """What :func:`sppnet.data.images.load_image` takes for this image.

    Raises:
        ImageError: there is no such file, or it may not be read.
        OSError: the store does not answer. That says nothing about the image.
    """
    return where if isinstance(where, Path) else _read_image(where)


def header_size(where: Path | str) -> tuple[int, int]:
    """As :func:`sppnet.data.images.image_size`; of an image in a store the first 64 KB are read, and all if need be.

    Raises:
        ImageError, OSError: as :func:`image_source`; or it is not an image.
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
    """The files of a folder before those of the folders in it."""
    return tuple((number < len(parts) - 1, part) for number, part in enumerate(parts))
