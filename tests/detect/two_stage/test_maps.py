"""Cached feature maps of image files."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sppnet.data.images import load_image
from sppnet.detect.two_stage.maps import CachedMaps, cache_maps
from sppnet.errors import ImageError
from sppnet.training.cache import GIGABYTE
from tests.helpers.annotation_files import write_image
from tests.helpers.two_stage import tiny_detector

MODEL = tiny_detector()


class Cache:
    """Calls of `cache_maps` for a folder, which count the passes of the network."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.passes = folder, 0

    def load(self, path: Path, mirrored: bool) -> Tensor:
        x = MODEL.pad(MODEL.prepare(load_image(path)))
        return x.flip(3) if mirrored else x

    def maps(self, x: Tensor) -> Sequence[Tensor]:
        self.passes += 1
        return MODEL.maps(x)

    def open(self, paths: list[Path], **values: Any) -> AbstractContextManager[CachedMaps]:
        arguments: dict[str, Any] = {"settings": {"side": 64}, "limit": GIGABYTE} | values
        cpu = torch.device("cpu")
        return cache_maps(MODEL.backbone, self.load, self.maps, paths, self.folder, device=cpu, **arguments)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    for name, size in (("a", (64, 64)), ("b", (50, 80))):
        write_image(tmp_path / f"{name}.png", *size)
    return [tmp_path / "a.png", tmp_path / "b.png"]


def test_cached_maps_equal_computed_ones_in_half_precision(cache: Cache, paths: list[Path]) -> None:
    with cache.open([*paths, paths[0]]) as cached:
        assert cache.passes == 4, "two images and their mirror images"
        for path in paths:
            for mirrored in (False, True):
                with torch.inference_mode():
                    expected = MODEL.eval().maps(cache.load(path, mirrored))
                found = cached.read(path, mirrored)
                assert len(found) == 3
                for data, other in zip(found, expected, strict=True):
                    assert data.dtype == torch.float32
                    assert torch.equal(data, other[0].half().float())


def test_maps_are_computed_once_for_equal_settings(cache: Cache, paths: list[Path]) -> None:
    with cache.open(paths[:1], mirrored=False):
        assert cache.passes == 1
    with cache.open(paths):
        assert cache.passes == 1 + 4, "both views of both images"
    with cache.open(paths, mirrored=False):
        assert cache.passes == 5
    with cache.open(paths, settings={"side": 65}):
        assert cache.passes == 9


def test_renamed_images_have_the_maps_of_their_content(cache: Cache, paths: list[Path]) -> None:
    with cache.open(paths):
        pass
    renamed = paths[0].rename(paths[0].with_name("c.png"))
    with cache.open([renamed]) as cached:
        assert cache.passes == 4
        assert len(cached.read(renamed)) == 3


@pytest.mark.parametrize("damage", ["truncated", "deleted"])
def test_damaged_files_are_named_and_computed_by_the_next_run(cache: Cache, paths: list[Path], damage: str) -> None:
    with cache.open(paths) as cached:
        file = cached.cache.file(cached.digests[paths[1]])
        expected = cached.read(paths[1])
        if damage == "deleted":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:100])
        text = r"cache: the maps of .*b.png in .* are missing or damaged; train again"
        with pytest.raises(ValueError, match=text):
            cached.read(paths[1])
    with cache.open(paths) as cached:
        assert all(map(torch.equal, cached.read(paths[1]), expected))


def test_unreadable_images_are_failures(cache: Cache, paths: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(paths[0].read_bytes()[:60])
    bad = [tmp_path / "bad.png", tmp_path / "missing.png"]
    with cache.open([*bad, *paths]) as cached:
        assert [failure.path for failure in cached.failures] == [str(path) for path in bad]
        assert cached.digests.keys() == set(paths)
        for path in bad:
            with pytest.raises(ImageError, match=path.name):
                cached.read(path)


@pytest.mark.parametrize("first", ["readable", "unreadable"])
def test_maps_beyond_the_limit_are_an_error(cache: Cache, paths: list[Path], tmp_path: Path, first: str) -> None:
    if first == "unreadable":
        (tmp_path / "bad.png").write_bytes(b"no image")
        paths = [tmp_path / "bad.png", *paths]
    with (
        pytest.raises(ValueError, match=r"cache: expected room for about .* got .* a limit of 10.0 kB"),
        cache.open(paths, limit=10_000),
    ):
        pass


def test_values_beyond_half_precision_are_clamped(cache: Cache, paths: list[Path]) -> None:
    network = nn.Identity().train()
    with cache_maps(
        network, cache.load, lambda x: [x[:, :1] * 0 + 1e6, x[:, :1] * 0 - 1e6], paths[:1], cache.folder, {},
        GIGABYTE, torch.device("cpu"),
    ) as cached:  # fmt: skip
        assert [float(data.max()) for data in cached.read(paths[0])] == [65504, -65504]
    assert network.training


def test_computed_maps_are_logged(cache: Cache, paths: list[Path], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with cache.open(paths):
        assert f"computed the feature maps of 2 of 2 images; the cache {cache.folder} has " in caplog.text
    caplog.clear()
    with cache.open(paths):
        assert not caplog.messages
