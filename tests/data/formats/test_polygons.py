import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sppnet.data.check.run import check_data
from sppnet.data.formats.masks import load_mask, load_pair
from sppnet.data.formats.polygons import PolygonMask, Shape, decode_counts, parse_segmentation, rasterize
from sppnet.data.formats.segmentation import read_segmentation, segmentation_splits
from sppnet.data.formats.table import find_formats
from sppnet.errors import ImageError
from tests.helpers.annotation_files import coco_document, write_image, write_json, write_yolo

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]
RING = np.zeros((5, 7), np.int32)
RING[1:4, 2:6] = 1
RING[2, 3:5] = 0


def run_lengths(mask: np.ndarray) -> list[int]:
    counts, current = [0], 0
    for value in mask.T.ravel().tolist():
        if value != current:
            counts.append(0)
            current = value
        counts[-1] += 1
    return counts


def compress(counts: list[int]) -> str:
    text = ""
    for position, count in enumerate(counts):
        value = count - (counts[position - 2] if position > 2 else 0)
        while True:
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
            if not more:
                break
    return text


def polygon(index: int, *points: float) -> Shape:
    return Shape(index, (array("d", points),))


def test_polygon_covers_exactly_its_pixels() -> None:
    expected = np.zeros((5, 7), np.int32)
    expected[1:4, 2:6] = 3
    for points in (SQUARE, [2, 4, 6, 4, 6, 1, 2, 1], [*SQUARE, 2, 1]):
        assert np.array_equal(rasterize((5, 7), [parse_segmentation([points], (5, 7), 3)]), expected)
    whole = rasterize((5, 7), [polygon(1, -9, -9, 90, -9, 90, 90, -9, 90)])
    assert whole.all()
    assert not rasterize((5, 7), [polygon(1, 8, 8, 9, 8, 9, 9), polygon(1, -3, 0, -1, 0, -1, 5)]).any()
    assert not rasterize((5, 7), [polygon(1, 1, 1, 5, 1, 3, 1)]).any()


def test_polygons_match_a_test_of_each_pixel_center() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        points = generator.uniform(-3, 15, (7, 2))
        expected = np.zeros((11, 13), bool)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            for row in range(11):
                if (y0 <= row + 0.5) != (y1 <= row + 0.5):
                    crossing = x0 + (row + 0.5 - y0) / (y1 - y0) * (x1 - x0)
                    expected[row] ^= np.arange(13) + 0.5 >= crossing
        assert np.array_equal(rasterize((11, 13), [polygon(1, *points.ravel())]) == 1, expected)


def test_both_forms_of_run_lengths_decode_with_holes() -> None:
    counts = run_lengths(RING)
    for form in (counts, compress(counts)):
        shape = parse_segmentation({"size": [5, 7], "counts": form}, (5, 7), 1)
        assert np.array_equal(rasterize((5, 7), [shape]), RING)
    large = [0, 100_000, 3, 70_000, 99_999, 1]
    assert decode_counts(compress(large)) == large
    assert decode_counts("") == []
    assert decode_counts("52203") == [5, 2, 2, 2, 5]  # the fourth and fifth are differences


def test_later_objects_cover_earlier_ones() -> None:
    below, above = polygon(1, 0, 0, 4, 0, 4, 2, 0, 2), polygon(2, 2, 0, 6, 0, 6, 2, 2, 2)
    assert rasterize((1, 6), [below, above]).tolist() == [[1, 1, 2, 2, 2, 2]]
    assert rasterize((1, 6), [above, below]).tolist() == [[1, 1, 1, 1, 2, 2]]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([[1, 2, 3, 4]], "at least 3 points, got 2"),
        ([[1, 2, 3, 4, 5, 6, 7]], "an even number of coordinates, got 7"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite numbers"),
        ([[1, 2, 3, 4, 5, float("-inf")]], "finite numbers"),
        ([[1, 2, 3, 4, 5, 10**400]], "finite numbers"),
        ([[1, 2, 3, 4, 5, "6"]], "finite numbers"),
        ([[1, 2, 3, 4, 5, True]], "finite numbers"),
        ([1, 2, 3, 4, 5, 6], "list of polygons"),
        ("text", "list of polygons"),
        (7, "list of polygons"),
        ({"size": [40, 30], "counts": [1200]}, r"size: expected the size of the image, \[30, 40\]"),
        ({"counts": [1200]}, "size: expected"),
        ({"size": [30, 40]}, "counts: expected a string or a list"),
        ({"size": [30, 40], "counts": [1201, -1]}, "counts: expected a string or a list"),
        ({"size": [30, 40], "counts": [1200.0]}, "counts: expected a string or a list"),
        ({"size": [30, 40], "counts": [10**400]}, "expected the sum 1200"),
        ({"size": [30, 40], "counts": []}, "expected the sum 1200"),
        ({"size": [30, 40], "counts": ""}, "expected the sum 1200"),
        ({"size": [30, 40], "counts": "\n"}, "expected a compressed"),
        ({"size": [30, 40], "counts": "é"}, "expected a compressed"),
        ({"size": [30, 40], "counts": "o" * 100}, "expected a compressed"),
        ({"size": [30, 40], "counts": "5o"}, "expected a complete"),
        ({"size": [30, 40], "counts": "N"}, "counts: expected a string or a list"),
    ],
)
def test_malformed_segmentations_are_named(tmp_path: Path, value: Any, reason: str) -> None:
    write_coco(tmp_path, value, [SQUARE])
    with pytest.raises(ValueError, match=rf"train\.json, annotation 11 of b\.jpg: segmentation: .*{reason}"):
        read_segmentation(tmp_path, "train", format="coco-masks")
    check = check_data(tmp_path, format="coco-masks")
    assert check.counts["bad-annotation"] >= 1


def write_coco(root: Path, *values: Any) -> None:
    entries = [
        {"id": 11 + number, "image_id": 7, "category_id": (18, 2)[number % 2], "bbox": [1, 1, 5, 5]}
        | ({} if value is None else {"segmentation": value})
        for number, value in enumerate(values)
    ]
    write_json(root / "annotations/train.json", coco_document(annotations=entries))
    write_image(root / "train/a.jpg")
    write_image(root / "train/b.jpg")


def test_reads_masks_of_coco(tmp_path: Path) -> None:
    inside = np.zeros((30, 40), np.int32)
    inside[3, 5] = 1
    write_coco(
        tmp_path, [SQUARE, [10, 10, 12, 10, 12, 12, 10, 12]], {"size": [30, 40], "counts": run_lengths(inside)}, None
    )
    assert segmentation_splits(tmp_path) == ("train",)
    data = read_segmentation(tmp_path, "train")
    assert data.classes == ("background", "cat", "dog")
    assert [sample.path.name for sample in data.samples] == ["b.jpg", "a.jpg"]
    expected = np.zeros((30, 40), np.int16)
    expected[1:4, 2:6] = expected[10:12, 10:12] = 2
    expected[3, 5] = 1
    image, mask = load_pair(data.samples[0], data.labels)
    assert image.size == (40, 30)
    assert np.array_equal(mask, expected)
    assert not load_pair(data.samples[1], data.labels)[1].any()
    assert [line for line in data.problems if "annotation 13 of b.jpg: no segmentation; skipped" in line]


def test_reads_masks_of_yolo(tmp_path: Path) -> None:
    write_yolo(tmp_path, "0 0.25 0.1 0.5 0.1 0.5 0.2 0.25 0.2", "1 0.5 0.5 0.1 0.2")
    data = read_segmentation(tmp_path, "train")
    assert data.classes == ("background", "dog", "cat")
    expected = np.zeros((30, 40), np.int16)
    expected[3:6, 10:20] = 1
    expected[12:18, 18:22] = 2
    masks = [load_pair(sample, data.labels)[1] for sample in data.samples]
    assert np.array_equal(masks[0], expected)
    assert not masks[1].any()


@pytest.mark.parametrize("line", ["0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "0 0.1 0.1 0.2 0.2 0.3 nan"])
def test_malformed_polygons_of_yolo_are_named(tmp_path: Path, line: str) -> None:
    write_yolo(tmp_path, "0 0.25 0.1 0.5 0.1 0.5 0.2", line)
    with pytest.raises(ValueError, match=r"a\.txt, line 2: expected"):
        read_segmentation(tmp_path, "train")


def test_polygons_are_masks_only_for_segmentation(tmp_path: Path) -> None:
    write_coco(tmp_path / "coco", [SQUARE])
    write_yolo(tmp_path / "yolo", "0 0.25 0.1 0.5 0.1 0.5 0.2 0.25 0.2")
    for name in ("coco", "yolo"):
        root = tmp_path / name
        for task, expected in ((None, name), ("detect", name), ("segment", f"{name}-masks")):
            assert [known.name for known, _ in find_formats(root, task)] == [expected]  # type: ignore[arg-type]
        assert "bad-annotation" not in check_data(root).counts
        check = check_data(root, format=f"{name}-masks")
        assert "bad-annotation" not in check.counts
        assert {row.name for row in check.classes} == {"background", "dog", "cat"}
    write_coco(tmp_path / "boxes", [], None)
    assert find_formats(tmp_path / "boxes", "segment") == []
    write_yolo(tmp_path / "lines", "0 0.5 0.5 0.1 0.2", "1 0.5 0.5 0.1 0.2")
    assert find_formats(tmp_path / "lines", "segment") == []


def test_sizes_are_limited_and_must_match(tmp_path: Path) -> None:
    write_coco(tmp_path, [SQUARE])
    labels = read_segmentation(tmp_path, "train").labels
    with pytest.raises(ImageError, match=r"a\.json, image 3: mask size: expected at most"):
        load_mask(PolygonMask(Path("a.json"), (10**8, 10**8), (), "image 3"), labels)
    file = tmp_path / "annotations/train.json"
    file.write_text(
        json.dumps(
            json.loads(file.read_text()) | {"images": [{"id": 7, "file_name": "b.jpg", "height": 9, "width": 9}]}
        )
    )
    data = read_segmentation(tmp_path, "train")
    with pytest.raises(ImageError, match="image 7: mask size: expected 30 x 40"):
        load_pair(data.samples[0], data.labels)
