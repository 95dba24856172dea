"""Proposals: what OpenCV finds, where the grid's windows lie, recall, and what is kept on disk."""

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch import Tensor

import sppnet.detect.proposals
from sppnet.detect.classic.selective_search import SEARCHES, _Search, load_cv2, selective_search
from sppnet.detect.proposals import SOURCES, Proposals, proposals_of, propose
from sppnet.detect.window_grid import window_grid
from sppnet.evaluation.recall import recall
from sppnet.inference.results import Failure
from sppnet.io.files import read_tensors, save_tensors
from sppnet.ops.boxes import areas

OBJECTS = torch.tensor([[20.0, 30, 60, 80], [90, 20, 140, 100], [40, 85, 80, 115]])


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    """120 x 160 pixels: three ellipses on noise."""
    pixels = np.random.default_rng(0).normal((90, 120, 90), 6, (120, 160, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for box, colour in zip(OBJECTS.tolist(), [(220, 40, 40), (40, 60, 220), (230, 210, 60)], strict=True):
        draw.ellipse([box[0], box[1], box[2] - 1, box[3] - 1], fill=colour)
    return image


def rows(boxes: Tensor) -> set[tuple[float, ...]]:
    found = [tuple(box) for box in boxes.tolist()]
    assert len(set(found)) == len(found)
    return set(found)


def jointly(image: Image.Image, prepare: Callable[[Any, Any], None]) -> set[tuple[float, ...]]:
    """Edges of what OpenCV finds in one call."""
    cv2 = load_cv2()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    prepare(cv2, search)
    return {tuple(map(float, (x, y, x + width, y + height))) for x, y, width, height in search.process().tolist()}


def test_parts_find_what_the_authors_configuration_finds_in_one_call(scene: Image.Image) -> None:
    """HSV and Lab; k and least size 50 and 100; both groupings; no side below 20 pixels."""

    def prepare(cv2: Any, search: Any) -> None:
        module = cv2.ximgproc.segmentation
        rgb = np.asarray(scene)
        search.addImage(cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))
        search.addImage(cv2.cvtColor(rgb, cv2.COLOR_RGB2Lab))
        search.addGraphSegmentation(module.createGraphSegmentation(0.8, 50, 50))
        search.addGraphSegmentation(module.createGraphSegmentation(0.8, 100, 100))
        make = {
            name: f"createSelectiveSearchSegmentationStrategy{name}" for name in ("Color", "Fill", "Texture", "Size")
        }
        multiple = module.createSelectiveSearchSegmentationStrategyMultiple
        search.addStrategy(multiple(*(getattr(module, name)() for name in make.values())))
        search.addStrategy(multiple(*(getattr(module, make[name])() for name in ("Fill", "Texture", "Size"))))

    joint = jointly(scene, prepare)
    expected = {box for box in joint if box[2] - box[0] >= 20 and box[3] - box[1] >= 20}
    boxes, complete = selective_search(scene, "selective-search", None)
    assert complete
    assert len(joint) > len(expected) > 10
    assert rows(boxes) == expected
    assert recall([boxes], [OBJECTS]).fractions == (1, 1, 1)


@pytest.mark.parametrize(("name", "mode"), [("fast", "Fast"), ("quality", "Quality")])
def test_parts_find_what_opencv_finds_in_its_own_modes(scene: Image.Image, name: str, mode: str) -> None:
    joint = jointly(scene, lambda _, search: getattr(search, f"switchToSelectiveSearch{mode}")())
    boxes, _ = selective_search(scene, f"selective-search-{name}", None)
    assert rows(boxes) == joint


def test_a_large_image_is_searched_at_500_pixels() -> None:
    pixels = np.kron(np.random.default_rng(1).integers(0, 256, (3, 5, 3)), np.ones((100, 150, 1))).astype(np.uint8)
    large = Image.fromarray(pixels)  # 300 x 750
    boxes, _ = selective_search(large, "selective-search", None)
    small, _ = selective_search(large.resize((500, 200), Image.Resampling.BICUBIC), "selective-search", None)
    assert len(small) > 15
    torch.testing.assert_close(boxes, small * 1.5)


def test_the_clock_stops_a_search_between_two_parts_and_never_before_the_first(scene: Image.Image) -> None:
    boxes, complete = selective_search(scene, "selective-search", 0.0)  # long past
    assert not complete
    every, _ = selective_search(scene, "selective-search", None)
    assert rows(boxes) < rows(every)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            SEARCHES, "selective-search", _Search(("hsv",), ((50, 50),), SEARCHES["selective-search"].strategies, 20)
        )
        first, complete = selective_search(scene, "selective-search", 0.0)
    assert complete  # there was but one part
    assert rows(boxes) == rows(first)
    assert rows(propose(scene, "selective-search", seconds=1e-9)) == rows(boxes) | {(0, 0, 160, 120)}


@pytest.mark.parametrize("source", [*SOURCES, "selective-search+selective-search-fast", "selective-search, grid"])
@pytest.mark.parametrize("size", [(160, 120), (1, 1), (7, 300), (30, 3)])
def test_proposals_lie_in_the_image_and_hold_all_of_it(source: str, size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    boxes = propose(image, source, max_windows=100)
    whole = (0, 0, *size)
    assert whole in rows(boxes)
    assert len(boxes) <= 100
    assert boxes.dtype == torch.float32
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([*size, *size])).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.tolist() == sorted(boxes.tolist())
    assert torch.equal(boxes, propose(image, source, max_windows=100))


def test_a_plain_image_has_the_whole_image_as_its_one_segment() -> None:
    white = Image.new("RGB", (160, 120), "white")
    assert propose(white, "selective-search").tolist() == [[0, 0, 160, 120]]


def test_of_too_many_windows_some_are_drawn_by_the_seed(scene: Image.Image) -> None:
    every = rows(propose(scene, "selective-search", max_windows=None))
    some = rows(propose(scene, "selective-search", max_windows=10))
    assert len(some) == 10
    assert some < every
    assert (0, 0, 160, 120) in some
    assert some != rows(propose(scene, "selective-search", max_windows=10, seed=1))
    assert rows(propose(scene, "selective-search", max_windows=1)) == {(0, 0, 160, 120)}
    assert rows(propose(scene, "selective-search", max_windows=len(every))) == every


def test_sources_share_the_windows_and_a_grid_takes_what_is_left(scene: Image.Image) -> None:
    searched = rows(propose(scene, "selective-search", max_windows=None))
    both = rows(propose(scene, "grid,selective-search", max_windows=40))
    assert len(both & searched) >= 20
    assert both - searched
    assert both == rows(propose(scene, "selective-search+grid", max_windows=40))
    count = 2 * len(searched) + 50
    assert rows(propose(scene, "selective-search,grid", max_windows=count)) == searched | rows(
        window_grid((120, 160), count - len(searched) + 1)
    )


def test_a_grid_of_few_windows() -> None:
    """Two windows of 62.5 pixels would lie 0.6 of their side apart along 100, which is above 0.45: there are three."""
    assert window_grid((100, 100), 8).tolist() == [[0, 0, 100, 100]]
    boxes = window_grid((100, 100), 16)
    assert rows(propose(Image.new("RGB", (100, 100)), "grid", max_windows=16)) == rows(boxes)
    whole, tall, square = boxes[:1], boxes[1:4], boxes[-9:]
    assert whole.tolist() == [[0, 0, 100, 100]]
    assert tall.tolist() == [[0, 0, 62.5, 100], [18.75, 0, 81.25, 100], [37.5, 0, 100, 100]]
    assert sorted({x for x, *_ in square.tolist()}) == [0, 18.75, 37.5]
    assert len(boxes) == 1 + 3 + 3 + 9


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 3000))
def test_a_grid_reaches_the_edges_and_keeps_the_number(height: int, width: int, count: int) -> None:
    boxes = window_grid((height, width), count)
    assert 1 <= len(boxes) <= count
    assert [0, 0, width, height] in boxes.tolist()
    assert len(boxes.unique(dim=0)) == len(boxes)
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == width
    assert boxes[:, 3].max() == height
    others = boxes[areas(boxes) < height * width]
    sides = others[:, 2:] - others[:, :2]
    assert (sides.amax(1) <= 2.001 * sides.amin(1)).all()
    assert (sides >= min(16, height, width) - 1e-3).all()


def test_a_finer_grid_covers_more() -> None:
    generator = torch.Generator().manual_seed(0)
    side = 40 * 6 ** torch.rand(300, 1, generator=generator)
    sides = torch.cat((side, side * (0.7 + 0.7 * torch.rand(300, 1, generator=generator))), 1)
    low = torch.rand(300, 2, generator=generator) * (torch.tensor([640.0, 480]) - sides).clamp(min=0)
    objects = torch.cat((low, low + sides), 1)
    covered = [recall([window_grid((480, 640), count)], [objects]).fractions[0] for count in (100, 1000, 4000)]
    assert covered[0] < covered[1] < covered[2]
    assert covered[2] > 0.99


def test_recall_counts_the_true_boxes_that_are_covered() -> None:
    """10 x 10 boxes shifted by 0, by 10/3 (overlap 1/2) and by a lot, and one in an image without proposals."""
    truths = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60]]), torch.tensor([[0.0, 0, 5, 5]])]
    proposals = [torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 5], [90, 0, 95, 5]]), torch.empty(0, 4)]
    result = recall(proposals, truths, (0.5, 0.51, 1.0))
    assert result.fractions == (0.5, 0.25, 0.25)
    assert result.mean_best == pytest.approx((1 + 0.5) / 4)


def test_an_overlap_of_exactly_the_threshold_counts() -> None:
    assert recall([torch.tensor([[0.0, 0, 7, 1]])], [torch.tensor([[0.0, 0, 10, 1]])], (0.7,)).fractions == (1,)


def test_recall_refuses_what_has_no_answer() -> None:
    with pytest.raises(ValueError, match=r"truths: expected those of 2 images, as proposals has; got 1"):
        recall([torch.empty(0, 4)] * 2, [torch.empty(0, 4)])
    with pytest.raises(ValueError, match=r"truths: expected at least one box in all images together; got none"):
        recall([torch.ones(1, 4)], [torch.empty(0, 4)])


def boxes_of(answer: Proposals | Failure) -> Tensor:
    assert isinstance(answer, Proposals)
    return answer.boxes


def test_proposals_are_kept_by_content(tmp_path: Path, scene: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.save(tmp_path / "a.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    folder = tmp_path / "made" / "here"
    (first,) = proposals_of([tmp_path / "a.png"], "selective-search", folder)
    assert torch.equal(boxes_of(first), propose(scene, "selective-search"))
    calls = []

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return selective_search(*arguments)

    monkeypatch.setattr(sppnet.detect.proposals, "selective_search", counted)
    (again,) = proposals_of([tmp_path / "copy.png"], "selective-search", folder)
    assert torch.equal(boxes_of(again), boxes_of(first))
    assert not calls
    for changed in ({"max_windows": 5}, {"seed": 1}, {"seconds": 60.0}, {"max_windows": None}):
        proposals_of([tmp_path / "copy.png"], "selective-search", folder, **changed)
    assert len(calls) == 4
    assert len(list(folder.iterdir())) == 5


def test_equal_images_may_be_under_way_at_once(tmp_path: Path, scene: Image.Image) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(8)]
    for path in paths:
        scene.save(path)
    answers = proposals_of(paths, "grid", tmp_path / "kept", workers=8)
    assert all(torch.equal(boxes_of(answer), propose(scene, "grid")) for answer in answers)
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_what_the_clock_cut_says_so(tmp_path: Path, scene: Image.Image) -> None:
    scene.save(tmp_path / "a.png")
    for _ in range(2):  # made, and read
        (answer,) = proposals_of([tmp_path / "a.png"], "selective-search", tmp_path / "kept", seconds=1e-9)
        assert isinstance(answer, Proposals)
        assert not answer.complete
    (file,) = (tmp_path / "kept").iterdir()
    assert read_tensors(file)[1]["complete"] == "no"


def test_a_killed_run_loses_nothing_but_the_image_under_way(
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
            proposals_of(paths, "selective-search", tmp_path / "kept")
    before = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert len(before) >= 2
    answers = proposals_of(paths, "selective-search", tmp_path / "kept", workers=2)
    after = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "kept").iterdir()}
    assert len(after) == 4
    assert before.items() <= after.items()
    for path, answer in zip(paths, answers, strict=True):
        with Image.open(path) as image:
            assert torch.equal(boxes_of(answer), propose(image, "selective-search"))


def test_images_that_cannot_be_read_are_named_and_the_others_done(tmp_path: Path, scene: Image.Image) -> None:
    scene.save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:3000])
    paths = [tmp_path / "missing.png", tmp_path / "cut.png", tmp_path, tmp_path / "good.png"]
    missing, cut, place, good = proposals_of(paths, "grid", tmp_path / "kept", workers=2)
    for answer, path, reason in (
        (missing, paths[0], "no such file"),
        (cut, paths[1], "file is "),
        (place, tmp_path, "a folder"),
    ):
        assert isinstance(answer, Failure)
        assert answer.source == str(path)
        assert str(answer.error).startswith(f"{path}: {reason}")
    assert torch.equal(boxes_of(good), propose(scene, "grid"))
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_file_is_named(tmp_path: Path, scene: Image.Image, damage: str) -> None:
    scene.save(tmp_path / "a.png")
    proposals_of([tmp_path / "a.png"], "grid", tmp_path / "kept")
    (file,) = (tmp_path / "kept").iterdir()
    if damage == "cut":
        os.truncate(file, 100)
    else:
        save_tensors({"vectors": torch.ones(3)}, file)
    with pytest.raises(ValueError, match=rf"folder: .*{file.name} is damaged \(.*\); delete it, and it is made anew"):
        proposals_of([tmp_path / "a.png"], "grid", tmp_path / "kept")
    file.unlink()
    (answer,) = proposals_of([tmp_path / "a.png"], "grid", tmp_path / "kept")
    assert torch.equal(boxes_of(answer), propose(scene, "grid"))


def test_wrong_arguments_are_named(tmp_path: Path, scene: Image.Image) -> None:
    with pytest.raises(
        ValueError, match=r"source: expected one of selective-search, .*, grid; got 'gird'; did you mean 'grid'"
    ):
        propose(scene, "selective-search,gird")
    with pytest.raises(ValueError, match=r"max_windows: expected at least 1, for the whole image; got 0"):
        propose(scene, "grid", max_windows=0)
    with pytest.raises(ValueError, match=r"max_windows: a grid needs a number of windows, such as 2000; got None"):
        propose(scene, "grid", max_windows=None)
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"seconds: expected a number above 0, or None for no limit; got"):
            propose(scene, "selective-search", seconds=seconds)
    with pytest.raises(ValueError, match=r"image: expected mode RGB, as load_image gives it; got mode L"):
        propose(scene.convert("L"), "grid")
    with pytest.raises(ValueError, match=r"workers: expected at least 1; got 0"):
        proposals_of([], "grid", tmp_path, workers=0)


def test_selective_search_without_opencv_says_what_to_install(
    tmp_path: Path, scene: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    hint = r'selective search needs OpenCV with its contrib modules: pip install "sppnet\[detect\]"'
    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", missing)
        with pytest.raises(ModuleNotFoundError, match=hint):
            propose(scene, "selective-search")
        with pytest.raises(ModuleNotFoundError, match=hint):
            proposals_of([], "selective-search", tmp_path)
        assert len(propose(scene, "grid")) > 1
    cv2 = load_cv2()
    monkeypatch.delattr(cv2, "ximgproc")
    with pytest.raises(ModuleNotFoundError, match=hint + r"; the OpenCV that is installed, .*, has none"):
        propose(scene, "selective-search")
