"""Files on disks and in object stores: names with :// go through fsspec, all others are local paths."""

import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
WILDCARDS = "*?["


def is_url(name: str | Path) -> bool:
    """Whether a name goes through fsspec."""
    return "://" in str(name)


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of fsspec that a URL names, and the path on it.

    Raises:
        ModuleNotFoundError: its package is not installed.
        ValueError: there is no such protocol.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        found: tuple[Any, str] = url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        hint = f"install it with pip install {package}" if package else str(error)
        raise ModuleNotFoundError(f"{protocol}:// needs {package or 'another package'}; {hint}") from error
    except ValueError as error:
        raise ValueError(f"{url}: expected a path, or a URL such as s3://bucket/folder; {error}") from error
    return found


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """What goes wrong has the name of the place and is an OSError, as with files."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: no such file or folder") from error
    except (ImportError, MemoryError):
        raise
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{url}: a folder, not a file") from error
    except PermissionError as error:
        raise PermissionError(f"{url}: {error}") from error
    except Exception as error:  # stores have errors of their own, of every class
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


def join(folder: Path | str, name: str) -> Path | str:
    """A place in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def place(name: str, folder: Path | None = None) -> Path | str:
    """A name as it was typed, as a URL or an absolute path.

    Args:
        name: URL or path.
        folder: that the path is relative to; None for the working directory.
    """
    return name if is_url(name) else (folder or Path.cwd()) / name


def relative(where: Path | str, folder: Path | str) -> str:
    """The place as seen from a folder that it is in, with slashes; its bare name if it is the folder itself."""
    if isinstance(where, Path):
        return where.name if where == folder else where.relative_to(folder).as_posix()
    root = str(folder).rstrip("/")
    return PurePosixPath(where).name if where == root else where.removeprefix(f"{root}/")


def read_bytes(where: Path | str, end: int | None = None) -> bytes:
    """The content of a file.

    Args:
        where: it is.
        end: so many bytes from its beginning; None for all.

    Raises:
        OSError: it cannot be read.
    """
    if isinstance(where, Path):
        with where.open("rb") as file:
            return file.read(end)
    files, path = filesystem(where)
    with store_errors(where):
        size = None if end is None else files.size(path)
        # Not every store cuts a range at the end of the file.
        content: bytes = (
            files.cat_file(path) if end is None or size is None or size <= end else files.cat_file(path, 0, end)
        )
    return content


def exists(where: Path | str) -> bool:
    """Whether there is such a file."""
    if isinstance(where, Path):
        return where.exists()
    files, path = filesystem(where)
    with store_errors(where):
        found: bool = files.exists(path)
    return found


def list_names(folder: Path | str) -> set[str]:
    """Names of the files of a folder, none where there is no such folder."""
    if isinstance(folder, Path):
        return {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    files, path = filesystem(folder)
    with store_errors(folder):
        files.invalidate_cache(path)
        return {PurePosixPath(name).name for name in files.find(path, maxdepth=1)}


def remove(where: Path | str) -> None:
    """Delete a file."""
    if isinstance(where, Path):
        where.unlink(missing_ok=True)
        return
    files, path = filesystem(where)
    with store_errors(where):
        files.rm_file(path)


def make_folder(folder: Path | str) -> None:
    """Make a folder where there are folders: object stores have none."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        return
    files, path = filesystem(folder)
    if not _stores_objects(folder):
        with store_errors(folder):
            files.makedirs(path, exist_ok=True)


def write_text(text: str, where: Path | str) -> None:
    """Write text so that the file is either the old one or the new one."""
    with whole_file(where) as file:
        file.write_text(text, encoding="utf-8")


@contextmanager
def whole_file(where: Path | str) -> Iterator[Path]:
    """A local file to write to, which takes its place when the block ends; until then the old one is there.

    Several processes may do so at a time. One that is killed leaves a name with ``.part`` in it, or nothing: an object
    appears in its store when all of it is there.
    """
    if isinstance(where, Path):
        part = where.with_name(f"{where.stem}.{uuid.uuid4().hex}.part{where.suffix}")
        try:
            yield part
            part.replace(where)
        finally:
            part.unlink(missing_ok=True)
        return
    files, path = filesystem(where)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PurePosixPath(path).name
        yield file
        with store_errors(where):
            if _stores_objects(where):
                files.put_file(str(file), path)
            else:
                part_name = f"{path}.{uuid.uuid4().hex}.part"
                files.put_file(str(file), part_name)
                files.mv(part_name, path)


def remove_parts(folder: Path | str) -> None:
    """Delete what killed processes left of :func:`whole_file`, when none is at work."""
    for name in list_names(folder):
        if ".part" in name:
            remove(join(folder, name))


@contextmanager
def local_copy(where: Path | str) -> Iterator[Path]:
    """A file as a local one: itself, or a copy that is deleted afterwards."""
    if isinstance(where, Path):
        yield where
        return
    files, path = filesystem(where)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PurePosixPath(path).name
        with store_errors(where):
            files.get_file(path, str(file))
        yield file


def state(where: Path | str) -> tuple[int, int | str]:
    """Size in bytes and time of change of a file, or what its store has in place of the time; -1 where it is not."""
    if isinstance(where, Path):
        try:
            stat = where.stat()
        except OSError:
            return -1, -1
        return stat.st_size, stat.st_mtime_ns
    files, path = filesystem(where)
    try:
        with store_errors(where):
            info = files.info(path)
    except FileNotFoundError:
        return -1, -1
    marks = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"))
    return info["size"], next((str(mark) for mark in marks if mark), "")


def _stores_objects(url: str) -> bool:
    return url.partition("://")[0] in _PACKAGES
