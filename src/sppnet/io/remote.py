"""Local files and object stores: names with :// go through fsspec, all others are local paths."""

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any

_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
WILDCARDS = "*?["
_PREFIX, _SUFFIX = ".sppnet-", ".part"  # of the names of temporary files and folders


def is_url(name: str | Path) -> bool:
    """Return whether a name is a URL, to be opened with fsspec."""
    return "://" in str(name)


def filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path on it.

    Raises:
        ModuleNotFoundError: the package for the protocol is not installed.
        ValueError: unknown protocol.
    """
    from fsspec.core import url_to_fs

    protocol = url.partition("://")[0]
    try:
        resolved: tuple[Any, str] = url_to_fs(url)
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        hint = f"install it with pip install {package}" if package else str(error)
        raise ModuleNotFoundError(f"{protocol}:// needs {package or 'another package'}; {hint}") from error
    except ValueError as error:
        raise ValueError(f"{url}: expected a path, or a URL such as s3://bucket/folder; {error}") from error
    return resolved


@contextmanager
def store_errors(url: str) -> Iterator[None]:
    """Convert errors of a store into OSErrors that name the URL, as for local files."""
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
    except Exception as error:  # stores raise their own, unrelated exception types
        raise OSError(f"{url}: {type(error).__name__}: {error}") from error


def join(folder: Path | str, name: str) -> Path | str:
    """Return the path or URL of a name in a folder."""
    return folder / name if isinstance(folder, Path) else f"{folder.rstrip('/')}/{name}"


def resolve(name: str, folder: Path | None = None) -> Path | str:
    """Resolve a name: a URL is returned unchanged, a path is made absolute.

    Args:
        name: URL or path.
        folder: base of relative paths; None for the working directory.
    """
    return name if is_url(name) else (folder or Path.cwd()) / name


def relative(where: Path | str, folder: Path | str) -> str:
    """Return a path or URL relative to a folder that contains it, with slashes; its last part if both are the same."""
    if isinstance(where, Path):
        return where.name if where == folder else where.relative_to(folder).as_posix()
    root = str(folder).rstrip("/")
    return PurePosixPath(where).name if where == root else where.removeprefix(f"{root}/")


def read_bytes(where: Path | str, end: int | None = None) -> bytes:
    """Return the content of a file.

    Args:
        where: path or URL.
        end: maximum number of bytes to read from the start; None for all.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(where, Path):
        with where.open("rb") as file:
            return file.read(end)
    files, path = filesystem(where)
    with store_errors(where):
        size = None if end is None else files.size(path)
        # Not every store clips a range at the end of the file.
        content: bytes = (
            files.cat_file(path) if end is None or size is None or size <= end else files.cat_file(path, 0, end)
        )
    return content


def exists(where: Path | str) -> bool:
    """Return whether a file exists."""
    if isinstance(where, Path):
        return where.exists()
    files, path = filesystem(where)
    with store_errors(where):
        present: bool = files.exists(path)
    return present


def list_names(folder: Path | str) -> set[str]:
    """Return the names of the files in a folder; empty if the folder does not exist."""
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
    """Create a folder and its parents; does nothing in object stores, which have no folders."""
    if isinstance(folder, Path):
        folder.mkdir(parents=True, exist_ok=True)
        return
    files, path = filesystem(folder)
    if not _stores_objects(folder):
        with store_errors(folder):
            files.makedirs(path, exist_ok=True)


def write_text(text: str, where: Path | str) -> None:
    """Write text in UTF-8 atomically, with escapes for the undecodable bytes of file names."""
    with atomic_write(where) as file:
        file.write_text(text, encoding="utf-8", errors="backslashreplace")


@contextmanager
def atomic_write(where: Path | str) -> Iterator[Path]:
    """Write a file atomically: yields the local path of an empty file that replaces `where` when the block ends.

    Readers find the old or the new file, never a part of it, and several processes may write the same file at the same
    time. If the block raises an error, `where` is unchanged. A killed process leaves a temporary folder or file, which
    :func:`remove_temporary_files` deletes, or nothing in object stores.

    Raises:
        OSError: the file cannot be written; the error names `where`.
    """
    if isinstance(where, Path):
        try:
            # A folder, because writers may have temporary files of their own.
            with tempfile.TemporaryDirectory(_SUFFIX, _PREFIX, where.parent) as folder:
                part = Path(folder, where.name)
                part.touch()
                mode = part.stat().st_mode  # some writers create files that only their owner can read
                yield part
                part.chmod(mode)
                part.replace(where)
        except OSError as error:
            if _PREFIX in str(error.filename):
                error.filename = str(where)
            raise
        return
    files, path = filesystem(where)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, PurePosixPath(path).name)
        file.touch()
        yield file
        with store_errors(where):
            if _stores_objects(where):
                files.put_file(str(file), path)
                return
            name = str(PurePosixPath(path).with_name(f"{_PREFIX}{uuid.uuid4().hex}{_SUFFIX}"))
            try:
                files.put_file(str(file), name)
                files.mv(name, path)
            except BaseException:
                with suppress(Exception):
                    files.rm_file(name)
                raise


def remove_temporary_files(folder: Path | str) -> None:
    """Delete what killed processes left in :func:`atomic_write`, while no process is writing."""
    for name in list_names(folder):
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX):
            if isinstance(folder, Path):
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                remove(join(folder, name))


@contextmanager
def writers_lock(folder: Path, *, nested: bool = True) -> Iterator[None]:
    """Lock a folder for writers; the first of several deletes the temporary files of killed ones.

    Nothing is deleted on Windows and on file systems without locks.

    Args:
        folder: existing folder.
        nested: whether the lock includes the direct subfolders.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # another writer has the lock, or the file system has none
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for part in (folder, *(filter(Path.is_dir, folder.iterdir()) if nested else ())):
                remove_temporary_files(part)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def local_copy(where: Path | str) -> Iterator[Path]:
    """Yield a local path to a file: its own path, or for a URL a copy that is deleted afterwards."""
    if isinstance(where, Path):
        yield where
        return
    files, path = filesystem(where)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PurePosixPath(path).name
        with store_errors(where):
            files.get_file(path, str(file))
        yield file


def file_version(where: Path | str) -> tuple[int, int | str]:
    """Return (size in bytes, modification time in ns or a store's tag such as an ETag); (-1, -1) for a missing file."""
    if isinstance(where, Path):
        try:
            stat = where.stat()
        except (FileNotFoundError, NotADirectoryError):
            return -1, -1
        return stat.st_size, stat.st_mtime_ns
    files, path = filesystem(where)
    try:
        with store_errors(where):
            info = files.info(path)
    except FileNotFoundError:
        return -1, -1
    tags = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "LastModified", "created"))
    return info["size"], next((str(tag) for tag in tags if tag), "")


def _stores_objects(url: str) -> bool:
    return url.partition("://")[0] in _PACKAGES
