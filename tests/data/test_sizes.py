"""Sizes of image files: agreement with loaded images, caching, and unreadable files."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sppnet.data import sizes
from sppnet.data.images import load_image
from sppnet.data.sizes import read_sizes
from sppnet.progress import on_progress


def write_image(path: Path, height: int, width: int) -> Path:
    Image.new("RGB", (width, height), "red").save(path)
    return path


def set_heights(cache: Path, height: int) -> None:
    """Replace all heights in a cache, to make its sizes differ from those of the files."""
    content = json.loads(cache.read_text())
    for entry in content["sizes"].values():
        entry[2] = height
    cache.write_text(json.dumps(content))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [write_image(tmp_path / f"{side}.png", side, 2 * side) for side in (3, 5, 4)]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=6))
@settings(max_examples=20)
def test_sizes_match_loaded_images(tmp_path_factory: pytest.TempPathFactory, sizes: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("images")
    paths = [write_image(folder / f"{number}.png", *size) for number, size in enumerate(sizes)]
    for _ in range(2):  # from the files, then from the cache
        result, failures = read_sizes(paths, folder / "sizes.json")
        assert list(result) == paths
        assert not failures
        assert result == {path: load_image(path).size[::-1] for path in paths}


def test_rotated_photographs_have_their_upright_size(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_sizes([tmp_path / "turned.jpg"], None) == ({tmp_path / "turned.jpg": (20, 10)}, [])


def test_cached_files_are_not_read_again(paths: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "made" / "sizes.json"
    assert read_sizes(paths, cache)[0][paths[0]] == (3, 6)
    set_heights(cache, 99)
    written = cache.stat().st_mtime_ns
    assert read_sizes([*paths, paths[0]], cache)[0] == {
        path: (99, width) for path, width in zip(paths, (6, 10, 8), strict=True)
    }
    assert cache.stat().st_mtime_ns == written


@pytest.mark.parametrize("change", ["time", "bytes"])
def test_changed_files_are_read_again(paths: list[Path], tmp_path: Path, change: str) -> None:
    cache = tmp_path / "sizes.json"
    read_sizes(paths, cache)
    set_heights(cache, 99)
    before = paths[1].stat()
    if change == "time":
        os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:
        paths[1].write_bytes(paths[1].read_bytes() + b"more")
        os.utime(paths[1], ns=(before.st_atime_ns, before.st_mtime_ns))
    for _ in range(2):  # the new entry is cached
        assert read_sizes(paths, cache)[0] == {paths[0]: (99, 6), paths[1]: (5, 10), paths[2]: (99, 8)}


def test_entries_of_other_files_are_kept(paths: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "sizes.json"
    read_sizes(paths[:1], cache)
    read_sizes(paths[1:], cache)
    set_heights(cache, 99)
    assert [size[0] for size in read_sizes(paths, cache)[0].values()] == [99, 99, 99]


def test_relative_paths_use_the_same_entry(paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "sizes.json"
    read_sizes(paths, cache)
    set_heights(cache, 99)
    monkeypatch.chdir(tmp_path)
    assert read_sizes([Path("3.png")], cache) == ({Path("3.png"): (99, 6)}, [])


def test_unreadable_files_are_reported_and_not_cached(paths: list[Path], tmp_path: Path) -> None:
    cache = tmp_path / "sizes.json"
    empty, text, missing = tmp_path / "empty.png", tmp_path / "text.png", tmp_path / "missing.png"
    empty.touch()
    text.write_text("not an image")
    for _ in range(2):
        result, failures = read_sizes([empty, paths[0], text, missing, paths[1], empty], cache)
        assert list(result) == paths[:2]
        assert [failure.path for failure in failures] == [str(empty), str(text), str(missing)]
        assert [failure.reason.split(":")[0] for failure in failures] == [
            "file is empty",
            "not an image",
            "no such file",
        ]
    assert set(json.loads(cache.read_text())["sizes"]) == {str(path) for path in paths[:2]}
    write_image(text, 7, 8)
    assert read_sizes([text], cache) == ({text: (7, 8)}, [])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"format": 1, "sizes": {"a.pn',
        b"\xff\xfe",
        b"[]",
        b'{"format": 2, "sizes": {}}',
        b'{"format": 1}',
        b'{"format": 1, "sizes": []}',
        b'{"format": 1, "sizes": {"a.png": [1, 2, 3]}}',
        b'{"format": 1, "sizes": {"a.png": [1, 2, 3, "4"]}}',
        b'{"format": 1, "sizes": {"a.png": [1, 2, 3, 0]}}',
        b'{"format": 1, "sizes": {"a.png": [1, 2, 3.5, 4]}}',
        b'{"format": 1, "sizes": {"a.png": null}}',
    ],
)
def test_damaged_cache_is_reported_and_replaced(
    paths: list[Path], tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "sizes.json"
    cache.write_bytes(content)
    assert [size[0] for size in read_sizes(paths, cache)[0].values()] == [3, 5, 4]
    assert f"{cache} is not a valid cache of image sizes and is replaced" in caplog.text
    caplog.clear()
    assert len(json.loads(cache.read_text())["sizes"]) == 3
    read_sizes(paths, cache)
    assert not caplog.text


def test_unwritable_cache_is_reported(paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = paths[0] / "sizes.json"  # not possible: its parent is a file
    assert len(read_sizes(paths, cache)[0]) == 3
    assert f"{cache}: image sizes cannot be cached: " in caplog.text


def test_sizes_read_before_an_interruption_are_cached(
    paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def size_or_stop(path: Path) -> tuple[int, int]:
        if path == paths[2]:
            raise KeyboardInterrupt
        return 1, 1

    cache = tmp_path / "sizes.json"
    monkeypatch.setattr(sizes, "image_size", size_or_stop)
    with pytest.raises(KeyboardInterrupt):
        read_sizes(paths, cache)
    assert set(json.loads(cache.read_text())["sizes"]) == {str(path) for path in paths[:2]}
    assert not list(tmp_path.glob(".*"))


def test_many_files_report_their_progress(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int, int]] = []
    with on_progress(lambda *call: calls.append(call)):
        read_sizes(paths, None)
        assert not calls
    monkeypatch.setattr(sizes, "_BAR_THRESHOLD", 2)
    monkeypatch.setattr(sizes, "_QUEUE_SIZE", 2)
    with on_progress(lambda *call: calls.append(call)):
        assert [size[0] for size in read_sizes(paths, None)[0].values()] == [3, 5, 4]
    assert calls == [("image sizes", done, 3) for done in range(4)]


def test_cache_that_is_a_folder_is_reported(
    paths: list[Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert len(read_sizes(paths, tmp_path)[0]) == 3
    assert f"{tmp_path} is not a valid cache of image sizes" in caplog.text
    assert f"{tmp_path}: image sizes cannot be cached: Is a directory" in caplog.text


def test_files_of_killed_runs_are_deleted(paths: list[Path], tmp_path: Path) -> None:
    left, other = tmp_path / "cache" / ".sppnet-killed.part", tmp_path / "cache" / "vectors" / ".sppnet-open.part"
    for folder in (left, other):
        folder.mkdir(parents=True)
    read_sizes(paths, tmp_path / "cache" / "sizes.json")
    assert not left.exists()
    assert other.exists(), "another run could be writing it"


def test_names_that_are_not_utf8_are_cached(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff.png")
    try:
        write_image(path, 3, 4)
    except OSError:
        pytest.skip("the file system allows UTF-8 names only")
    cache = tmp_path / "sizes.json"
    read_sizes([path], cache)
    set_heights(cache, 99)
    assert read_sizes([path], cache)[0] == {path: (99, 4)}
