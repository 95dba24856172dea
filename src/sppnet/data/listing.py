"""Where images are that a file names: below a folder on this machine, or below a URL."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sppnet import remote
from sppnet.data.images import ImageError, image_size, list_images

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
        for url in remote.image_names(self.root):
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
        return remote.header_size(url)
    except ImageError as error:
        return error
