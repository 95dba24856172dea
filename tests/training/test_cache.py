import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sppnet.io.remote import atomic_write
from sppnet.training.cache import (
    GIGABYTE,
    SETTINGS,
    TensorCache,
    clear_cache,
    content_digest,
    format_size,
    list_caches,
    open_cache,
)

DIGEST = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[TensorCache]:
    with open_cache(tmp_path, {"backbone": "a", "levels": [2, 1]}, GIGABYTE) as cache:
        yield cache


def test_tensors_are_read_back_and_missing_or_damaged_files_are_none(cache: TensorCache) -> None:
    assert cache.read(DIGEST) is None
    cache.write(DIGEST, {"x": torch.arange(6).half()})
    found = cache.read(DIGEST)
    assert found is not None
    assert found["x"].tolist() == list(range(6))
    cache.file(DIGEST).write_bytes(b"damaged")
    assert cache.read(DIGEST) is None


def test_settings_name_the_folder_and_are_stored(cache: TensorCache, tmp_path: Path) -> None:
    with open_cache(tmp_path, {"levels": [2, 1], "backbone": "a"}, GIGABYTE) as same:
        assert same.folder == cache.folder
    with open_cache(tmp_path, {"levels": [2, 1], "backbone": "b"}, GIGABYTE) as other:
        assert other.folder != cache.folder
        other.write(DIGEST, {"x": torch.ones(4)})
    cache.write(DIGEST, {"x": torch.ones(4)})
    assert {part.settings["backbone"] for part in list_caches(tmp_path)} == {"a", "b"}


def test_digests_depend_on_the_content_only(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jpg", tmp_path / "b.jpg"
    first.write_bytes(b"content")
    second.write_bytes(b"content")
    assert content_digest(first) == content_digest(second) != None  # noqa: E711
    second.write_bytes(b"other")
    assert content_digest(first) != content_digest(second)
    assert content_digest(tmp_path) is None
    assert content_digest(tmp_path / "missing") is None


def test_refuses_more_than_the_limit_with_figures(tmp_path: Path) -> None:
    with open_cache(tmp_path, {}, 10_000) as cache:
        cache.write(DIGEST, {"x": torch.zeros(1000, dtype=torch.uint8)})
        cache.reserve(8, {"x": torch.zeros(1000, dtype=torch.uint8)})
        with pytest.raises(
            ValueError, match=r"^cache: expected room for about 9.0 kB \(9 images of 1.0 kB\), got "
        ) as error:
            cache.reserve(9, {"x": torch.zeros(1000, dtype=torch.uint8)})
    assert "a limit of 10.0 kB, of which 1.1 kB are used" in str(error.value)
    with open_cache(tmp_path, {}, 1e30) as cache, pytest.raises(ValueError, match=r"expected room for about .* TB"):
        cache.reserve(10**15, {"x": torch.zeros(1000)})


def test_files_of_killed_runs_are_deleted_unless_another_run_is_open(tmp_path: Path) -> None:
    program = """
        import os, sys, torch
        from pathlib import Path
        from sppnet.training.cache import open_cache
        Path.replace = lambda *_: os._exit(9)
        with open_cache(Path(sys.argv[1]), {"a": 1}, 1e9) as cache:
            cache.write("ab" * 32, {"x": torch.ones(3)})
    """
    with open_cache(tmp_path, {"a": 1}, GIGABYTE) as first:
        run = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)])
        assert run.returncode == 9
        left = list(first.file(DIGEST).parent.iterdir())
        assert len(left) == 1
        with open_cache(tmp_path, {"a": 1}, GIGABYTE):
            assert left[0].exists(), "the first run could be writing it"
    with open_cache(tmp_path, {"a": 1}, GIGABYTE):
        assert not left[0].exists()


def test_clearing_keeps_other_files(cache: TensorCache, tmp_path: Path) -> None:
    cache.write(DIGEST, {"x": torch.ones(3)})
    for name in ("proposals/" + "0" * 64, "maps-1/" + "0" * 24 + "-mirrored", "model", "crops-1/last"):
        file = tmp_path / f"{name}.safetensors"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"12345")
    parts = {part.folder.name: (part.files, part.settings) for part in list_caches(tmp_path)}
    settings = {"backbone": "a", "levels": [2, 1]}
    assert parts == {"proposals": (1, {}), "maps-1": (1, {}), cache.folder.name: (1, settings)}
    clear_cache(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "crops-1",
        "crops-1/last.safetensors",
        "model.safetensors",
    ]
    assert not list_caches(tmp_path)


def test_unfinished_files_are_not_listed(cache: TensorCache, tmp_path: Path) -> None:
    with atomic_write(cache.folder / f"{DIGEST}.safetensors") as part:
        part.write_bytes(b"1234")
        assert not list_caches(tmp_path)
    assert (cache.folder / SETTINGS).exists()


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2.55e9, "2.5 GB"), (3e16, "30000.0 TB")]
)
def test_sizes_are_shown_with_units(size: float, text: str) -> None:
    assert format_size(size) == text
