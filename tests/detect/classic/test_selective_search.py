"""Tests of selective search against OpenCV's own modes and the authors' configuration."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sppnet.detect.classic.selective_search import SEARCHES, _Search, load_cv2, selective_search
from sppnet.evaluation.recall import recall
from tests.helpers.proposal_scene import OBJECTS, draw_scene, unique_rows


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    return draw_scene()


def search_at_once(image: Image.Image, configure: Callable[[Any, Any], None]) -> set[tuple[float, ...]]:
    """Return the edges of all rectangles that OpenCV finds in a single call."""
    cv2 = load_cv2()
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(np.asarray(image)[..., ::-1]))
    configure(cv2, search)
    return {tuple(map(float, (x, y, x + width, y + height))) for x, y, width, height in search.process().tolist()}


def test_parts_match_the_authors_configuration_in_one_call(scene: Image.Image) -> None:
    """HSV and Lab; k and minimum size 50 and 100; both groupings; no side below 20 pixels."""

    def configure(cv2: Any, search: Any) -> None:
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

    rectangles = search_at_once(scene, configure)
    expected = {box for box in rectangles if box[2] - box[0] >= 20 and box[3] - box[1] >= 20}
    boxes, complete = selective_search(scene, "selective-search", None)
    assert complete
    assert len(rectangles) > len(expected) > 10
    assert unique_rows(boxes) == expected
    assert recall([boxes], [OBJECTS]).fractions == (1, 1, 1)


@pytest.mark.parametrize(("name", "mode"), [("fast", "Fast"), ("quality", "Quality")])
def test_parts_match_opencv_modes_in_one_call(scene: Image.Image, name: str, mode: str) -> None:
    rectangles = search_at_once(scene, lambda _, search: getattr(search, f"switchToSelectiveSearch{mode}")())
    boxes, _ = selective_search(scene, f"selective-search-{name}", None)
    assert unique_rows(boxes) == rectangles


def test_large_image_is_searched_at_500_pixels() -> None:
    pixels = np.kron(np.random.default_rng(1).integers(0, 256, (3, 5, 3)), np.ones((100, 150, 1))).astype(np.uint8)
    large = Image.fromarray(pixels)  # 300 x 750
    boxes, _ = selective_search(large, "selective-search", None)
    small, _ = selective_search(large.resize((500, 200), Image.Resampling.BICUBIC), "selective-search", None)
    assert len(small) > 15
    torch.testing.assert_close(boxes, small * 1.5)


def test_deadline_stops_the_search_after_the_first_part(scene: Image.Image) -> None:
    boxes, complete = selective_search(scene, "selective-search", 0.0)  # a deadline in the past
    assert not complete
    all_boxes, _ = selective_search(scene, "selective-search", None)
    assert unique_rows(boxes) < unique_rows(all_boxes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            SEARCHES, "selective-search", _Search(("hsv",), ((50, 50),), SEARCHES["selective-search"].strategies, 20)
        )
        first, complete = selective_search(scene, "selective-search", 0.0)
    assert complete  # the search has only one part
    assert unique_rows(boxes) == unique_rows(first)


def test_missing_opencv_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        with pytest.raises(ModuleNotFoundError, match=r"searches for proposals need the package cv2, .* 'detect'"):
            load_cv2()
    monkeypatch.delattr(load_cv2(), "ximgproc")
    with pytest.raises(ModuleNotFoundError, match=r"contrib modules of OpenCV, .* lacks; install the extra 'detect'"):
        load_cv2()
