"""Cache of tensors that are computed from image files: one file per image, found by the content of the image."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sppnet.io.files import read_json, read_tensors, save_tensors, write_json
from sppnet.io.remote import writers_lock

SETTINGS = "cache.json"
GIGABYTE = 10**9
_FILE = re.compile(r"[0-9a-f]{16,64}(-mirrored)?")  # name of a cached file of any task, without .safetensors


@dataclass(frozen=True)
class TensorCache:
    """Tensors of image files, computed with the same settings; see :func:`open_cache`.

    Attributes:
        folder: folder of the files.
        root: folder of the caches of all settings.
        limit: largest size of `root`, in bytes.
    """

    folder: Path
    root: Path
    limit: float

    def file(self, digest: str) -> Path:
        """Return the path of the tensors of an image with this :func:`content_digest`."""
        return self.folder / digest[:2] / f"{digest}.safetensors"

    def read(self, digest: str) -> dict[str, Tensor] | None:
        """Return the tensors of an image; None if they are missing or damaged."""
        try:
            return read_tensors(self.file(digest))[0]
        except (FileNotFoundError, ValueError):
            return None

    def write(self, digest: str, tensors: dict[str, Tensor]) -> None:
        """Write the tensors of an image, which another process may write at the same time."""
        self.file(digest).parent.mkdir(exist_ok=True)
        save_tensors(tensors, self.file(digest))

    def used(self) -> int:
        """Return the size of the caches of all settings, in bytes."""
        return sum(part.bytes for part in list_caches(self.root))

    def reserve(self, images: int, tensors: Mapping[str, Tensor]) -> None:
        """Check that there is room for the tensors of some images, estimated from those of the first one.

        Raises:
            ValueError: the limit or the disk space is too small.
        """
        size, used = sum(tensor.nbytes for tensor in tensors.values()), self.used()
        free = shutil.disk_usage(self.folder).free
        if size * images > min(self.limit - used, free):
            raise ValueError(
                f"cache: expected room for about {format_size(size * images)} ({images} images of {format_size(size)}),"
                f" got {format_size(free)} of free disk space and a limit of {format_size(self.limit)}, of which"
                f" {format_size(used)} are used in {self.root}; raise cache_limit, clear the cache with `sppnet cache"
                " clear`, or choose another folder"
            )


@contextmanager
def open_cache(root: Path, settings: Mapping[str, Any], limit: float) -> Iterator[TensorCache]:
    """Open the cache of tensors that are computed with some settings, for several processes at a time.

    Args:
        root: folder of the caches of all settings, created if missing.
        settings: everything except the image that the tensors depend on, as JSON values; a digest of them names the
            folder of the cache.
        limit: largest size of the caches of all settings, in bytes.
    """
    text = json.dumps(settings, sort_keys=True)
    folder = root / hashlib.sha256(text.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with writers_lock(folder):
        if not (folder / SETTINGS).exists():
            write_json(dict(settings), folder / SETTINGS)
        yield TensorCache(folder, root, limit)


def content_digest(path: Path) -> str | None:
    """Return a hash of the content of a file; None if it cannot be read."""
    try:
        if not path.is_file():  # opening a pipe would block
            return None
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


@dataclass(frozen=True)
class CachePart:
    """A folder of cached files.

    Attributes:
        folder: path of the folder.
        files, bytes: number and total size of the files.
        modified: time of the last change of a file, in seconds since the epoch.
        settings: settings that the files were computed with; empty if unknown.
    """

    folder: Path
    files: int
    bytes: int
    modified: float
    settings: Mapping[str, Any]


def list_caches(root: Path) -> list[CachePart]:
    """List the folders with cached files in a folder and its subfolders: vectors, maps and proposals of all tasks."""
    groups: dict[Path, list[tuple[int, float]]] = {}
    for file in _cached_files(root):
        folder = file.parent.parent if len(file.parent.name) == 2 else file.parent
        try:
            status = file.stat()
        except FileNotFoundError:  # cleared in the meantime
            continue
        groups.setdefault(folder, []).append((status.st_size, status.st_mtime))
    parts = []
    for folder, states in sorted(groups.items()):
        sizes, times = zip(*states, strict=True)
        parts.append(CachePart(folder, len(states), sum(sizes), max(times), _read_settings(folder)))
    return parts


def clear_cache(root: Path) -> None:
    """Delete the cached files in a folder and its subfolders, and the folders that are then empty."""
    for file in list(_cached_files(root)):
        file.unlink(missing_ok=True)
        for folder in file.parents:
            if folder == root or any(other.name != SETTINGS for other in folder.iterdir()):
                break
            (folder / SETTINGS).unlink(missing_ok=True)
            folder.rmdir()


def format_size(size: float) -> str:
    """Format a number of bytes, such as ``1.5 MB``."""
    power = next((power for power in range(4) if size < 1000 ** (power + 1)), 4)
    return f"{size / 1000**power:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _cached_files(root: Path) -> Iterator[Path]:
    files = (file for file in root.rglob("*.safetensors") if _FILE.fullmatch(file.stem))
    return (file for file in files if not file.parent.name.startswith("."))  # not files that are being written


def _read_settings(folder: Path) -> Mapping[str, Any]:
    try:
        return read_json(folder / SETTINGS, dict)
    except (OSError, ValueError):
        return {}
