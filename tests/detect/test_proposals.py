"""Tests of proposals: sources and their limits, the cache, files of boxes."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import sppnet.detect.proposals
from sppnet.detect.classic.selective_search import selective_search
from sppnet.detect.proposals import SOURCES, Proposals, iter_proposals, propose
from sppnet.detect.window_grid import window_grid
from sppnet.inference.results import Failure
from sppnet.io.files import read_tensors, save_tensors
from tests.helpers.proposal_scene import draw_scene, unique_rows


def propose_all(*arguments: Any, **options: Any) -> list[Proposals | Failure]:
    return list(iter_proposals(*arguments, **options))


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return draw_scene()


@pytest.mark.parametrize("source", [*SOURCES, "selective-search+selective-search-fast", "selective-search, grid"])
@pytest.mark.parametrize("size", [(160, 120), (1, 1), (7, 300), (30, 3)])
def test_proposals_are_inside_the_image_and_include_all_of_it(source: str, size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    boxes = propose(image, source, max_windows=100)
    whole = (0, 0, *size)
    assert whole in unique_rows(boxes)
    assert len(boxes) <= 100
    assert boxes.dtype == torch.float32
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([*size, *size])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.tolist() == sorted(boxes.tolist())
    assert torch.equal(boxes, propose(image, source, max_windows=100))


def test_uniform_image_has_only_the_whole_image_as_proposal() -> None:
    white = Image.new("RGB", (160, 120), "white")
    assert propose(white, "selective-search").tolist() == [[0, 0, 160, 120]]


def test_surplus_windows_are_subsampled_by_seed(scene: Image.Image) -> None:
    all_boxes = unique_rows(propose(scene, "selective-search", max_windows=None))
    subset = unique_rows(propose(scene, "selective-search", max_windows=10))
    assert len(subset) == 10
    assert subset < all_boxes
    assert (0, 0, 160, 120) in subset
    assert subset != unique_rows(propose(scene, "selective-search", max_windows=10, seed=1))
    assert unique_rows(propose(scene, "selective-search", max_windows=1)) == {(0, 0, 160, 120)}
    assert unique_rows(propose(scene, "selective-search", max_windows=len(all_boxes))) == all_boxes


def test_sources_share_the_windows_and_a_grid_uses_the_rest(scene: Image.Image) -> None:
    searched = unique_rows(propose(scene, "selective-search", max_windows=None))
    both = unique_rows(propose(scene, "grid,selective-search", max_windows=40))
    assert len(both & searched) >= 20
    assert both - searched
    assert both == unique_rows(propose(scene, "selective-search+grid", max_windows=40))
    count = 2 * len(searched) + 50
    assert unique_rows(propose(scene, "selective-search,grid", max_windows=count)) == searched | unique_rows(
        window_grid((120, 160), count - len(searched) + 1)
    )
    assert unique_rows(propose(scene, "grid", max_windows=16)) == unique_rows(window_grid((120, 160), 16))


def test_time_limit_keeps_the_first_part_and_the_whole_image(scene: Image.Image) -> None:
    boxes, _ = selective_search(scene, "selective-search", 0.0)  # a deadline in the past
    limited = propose(scene, "selective-search", seconds=1e-9)
    assert unique_rows(limited) == unique_rows(boxes) | {(0, 0, 160, 120)}


def boxes_of(result: Proposals | Failure) -> Tensor:
    assert isinstance(result, Proposals)
    return result.boxes


def test_cache_is_keyed_by_content_and_settings(
    tmp_path: Path, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.save(tmp_path / "a.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    folder = tmp_path / "new" / "cache"
    (first,) = propose_all([tmp_path / "a.png"], "selective-search", folder)
    assert torch.equal(boxes_of(first), propose(scene, "selective-search"))
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return selective_search(*arguments)

    monkeypatch.setattr(sppnet.detect.proposals, "selective_search", counted)
    (cached,) = propose_all([tmp_path / "copy.png"], "selective-search", folder)
    assert torch.equal(boxes_of(cached), boxes_of(first))
    assert not calls
    for changed in ({"max_windows": 5}, {"seed": 1}, {"seconds": 60.0}, {"max_windows": None}):
        propose_all([tmp_path / "copy.png"], "selective-search", folder, **changed)
    assert len(calls) == 4
    assert len(list(folder.iterdir())) == 5


def test_equal_images_may_be_searched_concurrently(tmp_path: Path, scene: Image.Image) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for path in paths:
        scene.save(path)
    results = propose_all(paths, "grid", tmp_path / "cache", workers=8)
    assert all(torch.equal(boxes_of(result), propose(scene, "grid")) for result in results)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_cache_records_incomplete_searches(tmp_path: Path, scene: Image.Image) -> None:
    scene.save(tmp_path / "a.png")
    for _ in range(2):  # computed, then read from the cache
        (result,) = propose_all([tmp_path / "a.png"], "selective-search", tmp_path / "cache", seconds=1e-9)
        assert isinstance(result, Proposals)
        assert not result.complete
    (file,) = (tmp_path / "cache").iterdir()
    assert read_tensors(file)[1]["complete"] == "no"


def test_killed_run_loses_only_the_current_image(
    tmp_path: Path, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        scene.rotate(90 * number, expand=True).save(path)

    def killed(image: Image.Image, *arguments: Any) -> Any:
        if image.tobytes() == scene.rotate(180).tobytes():
            raise KeyboardInterrupt
        return selective_search(image, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sppnet.detect.proposals, "selective_search", killed)
        with pytest.raises(KeyboardInterrupt):
            propose_all(paths, "selective-search", tmp_path / "cache")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(before) >= 2
    results = propose_all(paths, "selective-search", tmp_path / "cache", workers=2)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
    assert len(after) == 4
    assert before.items() <= after.items()
    for path, result in zip(paths, results, strict=True):
        with Image.open(path) as image:
            assert torch.equal(boxes_of(result), propose(image, "selective-search"))


def test_files_of_killed_runs_are_deleted(tmp_path: Path, scene: Image.Image) -> None:
    scene.save(tmp_path / "a.png")
    left = tmp_path / "cache" / ".sppnet-killed.part"
    left.mkdir(parents=True)
    propose_all([tmp_path / "a.png"], "grid", tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".safetensors"]


def test_unreadable_images_give_failures_and_the_others_proposals(tmp_path: Path, scene: Image.Image) -> None:
    scene.save(tmp_path / "good.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    paths = [tmp_path / "missing.png", tmp_path / "truncated.png", tmp_path, tmp_path / "good.png"]
    missing, truncated, directory, good = propose_all(paths, "grid", tmp_path / "cache", workers=2)
    for result, path, reason in (
        (missing, paths[0], "no such file"),
        (truncated, paths[1], "file is "),
        (directory, tmp_path, "a folder"),
    ):
        assert isinstance(result, Failure)
        assert result.source == str(path)
        assert str(result.error).startswith(f"{path}: {reason}")
    assert torch.equal(boxes_of(good), propose(scene, "grid"))
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["truncated", "other tensors"])
def test_damaged_cache_file_is_named(tmp_path: Path, scene: Image.Image, damage: str) -> None:
    scene.save(tmp_path / "a.png")
    propose_all([tmp_path / "a.png"], "grid", tmp_path / "cache")
    (file,) = (tmp_path / "cache").iterdir()
    if damage == "truncated":
        os.truncate(file, 100)
    else:
        save_tensors({"vectors": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=rf"folder: .*{file.name} is damaged \(.*\); delete it to compute it again"):
        propose_all([tmp_path / "a.png"], "grid", tmp_path / "cache")
    file.unlink()
    (result,) = propose_all([tmp_path / "a.png"], "grid", tmp_path / "cache")
    assert torch.equal(boxes_of(result), propose(scene, "grid"))


def test_rejects_invalid_arguments(tmp_path: Path, scene: Image.Image) -> None:
    with pytest.raises(
        ValueError, match=r"source: expected one of selective-search, .*, grid, got 'gird'; did you mean 'grid'"
    ):
        propose(scene, "selective-search,gird")
    with pytest.raises(ValueError, match=r"max_windows: expected at least 1, got 0"):
        propose(scene, "grid", max_windows=0)
    with pytest.raises(ValueError, match=r"max_windows: expected a number with a grid, got None; the default is 2000"):
        propose(scene, "grid", max_windows=None)
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"seconds: expected a number above 0 or None \(no limit\), got"):
            propose(scene, "selective-search", seconds=seconds)
    with pytest.raises(ValueError, match=r"image: expected mode RGB, got mode L"):
        propose(scene.convert("L"), "grid")
    with pytest.raises(ValueError, match=r"workers: expected at least 1, got 0"):
        propose_all([], "grid", tmp_path, workers=0)


def test_only_selective_search_requires_opencv(
    tmp_path: Path, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ModuleNotFoundError, match=r"searches for proposals need the package cv2, .* 'detect'"):
        propose(scene, "selective-search")
    with pytest.raises(ModuleNotFoundError, match=r"searches for proposals need the package cv2, .* 'detect'"):
        propose_all([], "selective-search", tmp_path)
    assert len(propose(scene, "grid")) > 1


def test_box_file_lists_the_proposals(tmp_path: Path, scene: Image.Image, caplog: pytest.LogCaptureFixture) -> None:
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    for path in paths:
        scene.save(path)
    file = tmp_path / "boxes.csv"
    file.write_text("image,x1,y1,x2,y2\na.png,20,30,60,80\nelsewhere.png,1,2,3,4\n")
    listed, unlisted = propose_all(paths, str(file), None)
    assert boxes_of(listed).tolist() == [[0, 0, 160, 120], [20, 30, 60, 80]]
    assert boxes_of(unlisted).tolist() == [[0, 0, 160, 120]]
    assert "1 of 2 images have no box in" in caplog.text
    with pytest.raises(ValueError, match=r"proposals: expected boxes of the images, such as .*b\.png, got none in"):
        propose_all(paths[1:], str(file), None)
    with pytest.raises(ValueError, match=r"proposals: expected a file of boxes, got .*gone\.csv, which does not exist"):
        propose_all(paths, str(tmp_path / "gone.csv"), None)


def test_unreadable_images_of_a_box_file_are_failures(tmp_path: Path, scene: Image.Image) -> None:
    scene.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"not an image")
    file = tmp_path / "boxes.csv"
    file.write_text("image,x1,y1,x2,y2\na.png,20,30,60,80\nb.png,20,30,60,80\n")
    good, bad = propose_all([tmp_path / "a.png", tmp_path / "b.png"], str(file), None)
    assert len(boxes_of(good)) == 2
    assert isinstance(bad, Failure)
    (only,) = propose_all([tmp_path / "b.png"], str(file), None)
    assert isinstance(only, Failure)


def test_searches_only_a_few_images_ahead(scene: Image.Image) -> None:
    submitted = 0

    class Images(list[Image.Image]):
        def __iter__(self) -> Iterator[Image.Image]:
            nonlocal submitted
            for image in super().__iter__():
                submitted += 1
                yield image

    proposals = iter_proposals(Images([scene] * 50), "grid", None, workers=2)
    next(proposals)
    assert submitted == 5
    assert len(list(proposals)) == 49
    assert submitted == 50
