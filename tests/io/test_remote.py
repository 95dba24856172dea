"""Local files and stores through one interface: atomic writes, partial reads, missing packages."""

import importlib.util
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
