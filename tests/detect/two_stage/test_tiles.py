"""Detections in overlapping tiles, merged."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sppnet.detect.two_stage.tiles import Tiling, _is_covered, _is_cut, detect_tiles
from sppnet.inference.results import Detections

Found = tuple[Detections, Tensor, Tensor | None]


def draw(objects: list[tuple[int, int, int, int]], width: int, height: int) -> Image.Image:
    """Draw the boxes, each with its own gray value, from 1."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for value, (x1, y1, x2, y2) in enumerate(objects, 1):
        pixels[y1:y2, x1:x2] = value
    return Image.fromarray(pixels)


def find(tile: Image.Image) -> Found:
    """Detect each gray value, with a score that a larger part does not have: parts of 60 % are the most certain."""
    pixels = np.asarray(tile)[:, :, 0]
    boxes, scores, vectors = [], [], []
    for value in np.unique(pixels[pixels > 0]):
        rows, columns = (pixels == value).nonzero()
        boxes.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        scores.append(0.9 if boxes[-1][2] - boxes[-1][0] < 20 else 0.5 + value / 1000)
        vectors.append([float(value)])
    found = torch.tensor(np.array(boxes, np.float32).reshape(-1, 4))
    detections = Detections(found, torch.tensor(scores, dtype=torch.float32), torch.zeros(len(boxes)).long())
    return detections, found, torch.tensor(vectors).reshape(-1, 1)


def random_objects(count: int) -> list[tuple[int, int, int, int]]:
    """Return boxes of 20 to 27 pixels a side in cells of a grid, so that they do not overlap."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(8 * 6)[:count]
    corners = [(cell % 8 * 40 + rng.integers(8), cell // 8 * 40 + rng.integers(8)) for cell in cells]
    return [(int(x), int(y), int(x + rng.integers(20, 28)), int(y + rng.integers(20, 28))) for x, y in corners]


@pytest.mark.parametrize(("side", "overlap"), [(128, None), (100, 33), (64, 31), (400, None)])
def test_objects_within_the_overlap_are_found_as_in_the_whole_image(side: int, overlap: int | None) -> None:
    image = draw(random_objects(30), 330, 250)
    found, proposals, vectors = detect_tiles(image, Tiling(side, overlap), find)
    expected = find(image)
    order = found.boxes.sum(1).argsort()
    assert torch.equal(found.boxes[order], expected[0].boxes[expected[0].boxes.sum(1).argsort()])
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert vectors is not None
    assert expected[2] is not None
    by_box = dict(zip(map(tuple, expected[0].boxes.tolist()), expected[2].tolist(), strict=True))
    assert [by_box[tuple(box)] for box in found.boxes.tolist()] == vectors.tolist()
    boxes = set(map(tuple, proposals.tolist()))
    assert boxes >= by_box.keys(), "proposals are in pixels of the image"


def test_whole_box_replaces_a_part_of_a_higher_score() -> None:
    """The border between the tiles leaves 56 % of the object in the first one."""
    parts = iter([[[75.0, 10, 100, 40]], [[5.0, 10, 50, 40]]])
    scores = iter([0.9, 0.6])

    def detect(_: Image.Image) -> Found:
        boxes = torch.tensor(next(parts))
        return Detections(boxes, torch.tensor([next(scores)]), torch.tensor([1])), boxes, None

    image = Image.new("RGB", (170, 64))
    found, _, vectors = detect_tiles(image, Tiling(100, 30), detect)
    assert found.boxes.tolist() == [[75, 10, 120, 40]]
    assert found.scores.tolist() == pytest.approx([0.6])
    assert vectors is None


def test_image_without_detections_gives_none() -> None:
    found, proposals, vectors = detect_tiles(draw([], 200, 130), Tiling(64), find)
    assert found.boxes.shape == proposals.shape == (0, 4)
    assert vectors is not None
    assert len(vectors) == 0


def test_boxes_at_the_borders_of_tiles_are_cut_but_not_those_at_the_borders_of_the_image() -> None:
    boxes = torch.tensor([[0.0, 20, 30, 40], [70, 20, 100, 40], [40, 20, 97, 40], [40, 61, 50, 80], [40, 0, 50, 100]])
    first = _is_cut(boxes, (0, 100), (0, 100), (150, 150))
    assert first.tolist() == [False, True, False, False, True]
    last = _is_cut(boxes + 50, (50, 150), (50, 150), (150, 150))
    assert last.tolist() == [True, False, False, False, True]
    assert not _is_cut(boxes, (0, 100), (0, 100), (100, 100)).any()


@pytest.mark.parametrize(
    ("change", "covered"),
    [
        ({}, True),
        ({"label": 1}, False),  # of another class
        ({"tile": 0}, False),  # of the same tile
        ({"cut": False}, False),  # not cut
        ({"box": [6.0, 0, 40, 10]}, False),  # covers 40 %
        ({"box": [0.0, 0, 9, 10]}, False),  # smaller
    ],
)
def test_cut_boxes_are_covered_by_larger_boxes_of_their_class(change: dict[str, object], covered: bool) -> None:
    case = {"label": 0, "tile": 1, "cut": True, "box": [2.0, 0, 40, 10]} | change
    boxes = torch.tensor([[0.0, 0, 10, 10], case["box"]])
    labels, tiles = torch.tensor([0, case["label"]]), torch.tensor([0, case["tile"]])
    assert _is_covered(boxes, labels, tiles, torch.tensor([case["cut"], False])).tolist() == [covered, False]


def test_many_cut_boxes_are_compared_with_all_others() -> None:
    corners = torch.rand(700, 2) * 100
    boxes = torch.cat((corners, corners + torch.rand(700, 2) * 60 + 1), 1)
    labels, tiles, cut = torch.randint(2, (700,)), torch.randint(4, (700,)), torch.rand(700) < 0.8
    sides = boxes[:, 2:] - boxes[:, :2]
    low = torch.maximum(boxes[:, None, :2], boxes[:, :2])
    shared = (torch.minimum(boxes[:, None, 2:], boxes[:, 2:]) - low).clamp(min=0).prod(2)
    area = sides.prod(1)
    rivals = (labels[:, None] == labels) & (tiles[:, None] != tiles) & (area > area[:, None])
    expected = cut & (rivals & (shared > area[:, None] / 2)).any(1)
    assert torch.equal(_is_covered(boxes, labels, tiles, cut), expected)


@pytest.mark.parametrize(
    ("side", "overlap", "text"),
    [
        (63, None, "tile: expected a side of at least 64 pixels, got 63"),
        (100, 50, "overlap: expected 0 to 49, less than half a tile, got 50"),
        (100, -1, "overlap: expected 0 to 49, less than half a tile, got -1"),
    ],
)
def test_rejects_small_tiles_and_large_overlaps(side: int, overlap: int | None, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Tiling(side, overlap)
