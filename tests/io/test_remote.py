"""Local files and stores through one interface: atomic writes, partial reads, missing packages."""

import importlib.util
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from sppnet.io import remote


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_writes_are_atomic(tmp_path: Path, prefix: str) -> None:
    where = remote.resolve(f"{prefix}{tmp_path}/a.txt")
    remote.write_text("old", where)
    with pytest.raises(TypeError), remote.atomic_write(where) as file:
        file.write_text("half") + "more"  # type: ignore[operator]
    assert (tmp_path / "a.txt").read_text() == "old"
    assert remote.list_names(remote.resolve(f"{prefix}{tmp_path}")) == {"a.txt"}
    with remote.atomic_write(where) as file:
        file.write_text("new")
        assert remote.read_bytes(where) == b"old"
    assert remote.read_bytes(where, 2) == b"ne"


def write_often(where: Path, letter: str) -> None:
    for _ in range(50):
        with remote.atomic_write(where) as file, file.open("w") as stream:
            for _ in range(100):
                stream.write(100 * letter)
                stream.flush()


def test_processes_that_write_the_same_file_do_not_collide(tmp_path: Path) -> None:
    where = tmp_path / "a.txt"
    remote.write_text("", where)
    with ProcessPoolExecutor(2, get_context("fork")) as pool:
        writers = [pool.submit(write_often, where, letter) for letter in "ab"]
        while not all(writer.done() for writer in writers):
            assert where.read_text() in ("", 10_000 * "a", 10_000 * "b")
    assert [writer.result() for writer in writers] == [None, None]
    assert remote.list_names(tmp_path) == {"a.txt"}


@pytest.mark.parametrize(
    ("name", "error"), [("missing/a", FileNotFoundError), ("file/a", NotADirectoryError), ("folder", IsADirectoryError)]
)
def test_errors_name_the_file(tmp_path: Path, name: str, error: type[OSError]) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(error) as info:
        remote.write_text("text", tmp_path / name)
    assert info.value.filename == str(tmp_path / name)


def test_names_may_have_the_maximum_length(tmp_path: Path) -> None:
    remote.write_text("text", tmp_path / (251 * "a" + ".txt"))
    assert len(remote.list_names(tmp_path)) == 1


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_removes_what_killed_processes_left(tmp_path: Path, prefix: str) -> None:
    folder = remote.resolve(f"{prefix}{tmp_path}")
    (tmp_path / "photo.part1").touch()
    writing = remote.atomic_write(remote.join(folder, "a.txt"))
    writing.__enter__().write_text("half")
    if prefix:
        (tmp_path / ".sppnet-1f.part").touch()
    remote.remove_temporary_files(folder)
    assert remote.list_names(folder) == {"photo.part1"}


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_state_changes_with_the_file(tmp_path: Path, prefix: str) -> None:
    where = remote.resolve(f"{prefix}{tmp_path}/a.txt")
    assert remote.file_version(where) == (-1, -1)
    remote.write_text("old", where)
    before = remote.file_version(where)
    assert before[0] == 3
    remote.write_text("longer", where)
    assert remote.file_version(where) != before
    with remote.local_copy(where) as file:
        assert file.read_text() == "longer"


@pytest.mark.parametrize("prefix", ["", "memory://"])
def test_relative_names(prefix: str) -> None:
    root, inner = remote.resolve(f"{prefix}/photos"), remote.resolve(f"{prefix}/photos/a/b.png")
    assert remote.relative(inner, root) == "a/b.png"
    assert remote.relative(root, root) == "photos"
    assert remote.join(root, "a/b.png") == inner


def test_missing_package_and_unknown_protocol() -> None:
    if importlib.util.find_spec("gcsfs"):
        pytest.skip("gcsfs is installed")
    with pytest.raises(ModuleNotFoundError, match="gs:// needs gcsfs; install it with pip install gcsfs"):
        remote.filesystem("gs://bucket/photos")
    with pytest.raises(ValueError, match="expected a path, or a URL such as s3://bucket/folder"):
        remote.filesystem("s4://bucket/photos")
