from pathlib import Path

import pytest

from sppnet.data.formats.detection import detection_splits, read_detection
from tests.helpers.annotation_files import coco_document, write_image, write_json


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "."])
def test_reads_folder(tmp_path: Path, folder: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / folder / name)
    write_json(tmp_path / "annotations/instances_val2017.json", coco_document())
    write_json(tmp_path / "annotations/captions_val2017.json", {})
    assert detection_splits(tmp_path) == ("val2017",)
    data = read_detection(tmp_path, "val2017")
    assert data.classes == ("cat", "dog")
    assert data.problems == ()
    assert [sample.path for sample in data.samples] == [tmp_path / folder / "b.jpg", tmp_path / folder / "a.jpg"]
    first, second = data.samples
    assert first.boxes.tolist() == [[0, 2.5, 10, 22.5], [1, 1, 6, 6]]
    assert (first.labels.tolist(), first.difficult.tolist()) == ([1, 0], [False, True])
    assert second.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match=r"split: expected one of val2017 for .*, got 'val'; did you mean val2017"):
        read_detection(tmp_path, "val")


def test_reads_json_file(tmp_path: Path) -> None:
    write_image(tmp_path / "a.jpg")
    write_image(tmp_path / "images/b.jpg")
    file = write_json(tmp_path / "boxes.json", coco_document())
    data = read_detection(file, classes=("dog", "cat"))
    assert data.root == file
    assert data.samples[0].labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"split: expected none for .*boxes\.json, which has no splits, got 'train'"):
        read_detection(file, "train")
    with pytest.raises(
        ValueError,
        match=r"classes: expected all classes of .*, got 1 names that lack cat \(.*annotation 12 of b\.jpg \(cat\)\)$",
    ):
        read_detection(file, classes=["dog"])


def test_reports_duplicate_categories_and_bad_boxes(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    empty_box = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [3, 3, 0, 9]}
    large_box = {"id": 2, "image_id": 3, "category_id": 1, "bbox": [30, 3, 20, 9]}
    categories = [{"id": 2, "name": "cat"}, {"id": 1, "name": "cat"}]
    data = read_detection(
        write_json(tmp_path / "x.json", coco_document(annotations=[empty_box, large_box], categories=categories))
    )
    assert data.classes == ("cat",)
    assert data.samples[1].boxes.tolist() == [[30, 3, 40, 12]]
    duplicate, empty, clipped = data.problems
    assert duplicate.endswith("x.json, categories[1]: duplicate name 'cat'; merged into one class")
    assert empty.endswith("annotation 1 of a.jpg (cat): bbox (3, 3, 0, 9) (x, y, width, height) has no area; dropped")
    assert clipped.endswith("of 30 x 40 (height x width); clipped to (30, 3, 40, 12)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"x\.json is not a COCO file: it must be a JSON object with a list of objects under 'images'"),
        ({"images": []}, "a list of objects under 'annotations'"),
        (coco_document(categories=None), "a list of objects under 'categories'"),
        (coco_document(images=[], annotations=[]), r"x\.json: expected at least one image, got none"),
        (coco_document(images=[{"id": 1}]), r"images\[0\]: expected an id and a file_name, got {'id': 1}"),
        (coco_document(images=coco_document()["images"] * 2), r"\[2\]: expected a unique image id, got duplicate 7"),
        (
            coco_document(images=[{"id": key, "file_name": "b.jpg"} for key in (7, 3)], annotations=[]),
            r"expected each image of a split once, got duplicates of .*b\.jpg",
        ),
        (
            coco_document(annotations=[{"image_id": 9}]),
            r"annotations\[0\]: image_id: expected the id of an image, got 9",
        ),
        (
            coco_document(annotations=[{"image_id": 7}]),
            "annotation 0 of b.jpg: category_id: expected the id of a category, got None",
        ),
        (
            coco_document(annotations=[{"image_id": 7, "category_id": 2}]),
            "bbox: expected four finite numbers, got None",
        ),
        (
            coco_document(annotations=[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, float("inf")]}]),
            r"bbox: expected four finite numbers, got \[1, 2, 3, inf\]",
        ),
        (
            coco_document(annotations=[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 10**400]}]),
            "bbox: expected four finite numbers",
        ),
        (
            coco_document(annotations=[{"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 2}]),
            r"annotation 4 of b\.jpg \(cat\): iscrowd: expected 0 or 1, got 2",
        ),
        (coco_document(categories=[{"id": 1}]), r"categories\[0\]: expected an id and a name, got {'id': 1}"),
        (
            coco_document(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
            "expected a unique category id, got duplicate 1",
        ),
        (
            coco_document(images=[*coco_document()["images"], {"id": 1, "file_name": "c.jpg"}]),
            r"images named in .*x\.json are missing: c\.jpg; searched",
        ),
    ],
)
def test_rejects_malformed_files(tmp_path: Path, content: object, message: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        write_image(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_detection(write_json(tmp_path / "x.json", content))


def test_rejects_several_files_of_a_split(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations/train.json", coco_document())
    write_json(tmp_path / "annotations/instances_train.json", coco_document())
    with pytest.raises(
        ValueError, match=r"expected one annotation file for the split train, got instances_train\.json, train\.json"
    ):
        detection_splits(tmp_path)


def test_rejects_deeply_nested_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.json cannot be read as JSON"):
        read_detection(tmp_path / "x.json")
