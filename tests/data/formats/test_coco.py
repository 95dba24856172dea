import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from sppnet.data.formats import coco
from sppnet.data.formats.detection import detection_splits, read_detection
from sppnet.data.items import Problems
from tests.helpers.annotation_files import coco_document, write_image, write_json
from tests.helpers.verdicts import read_and_check


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
    assert duplicate.endswith("x.json, categories[1]: duplicate name 'cat' of categories[0]; merged into one class")
    assert empty.endswith("annotation 1 of a.jpg (cat): bbox (3, 3, 0, 9) (x, y, width, height) has no area; dropped")
    assert clipped.endswith("of 30 x 40 (height x width); clipped to (30, 3, 40, 12)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"x\.json is not a COCO file: expected a JSON object with a list of objects under 'images'"),
        ({"images": []}, "a list of objects under 'annotations'"),
        (coco_document(categories=None), "a list of objects under 'categories'"),
        (coco_document(images=[], annotations=[]), r"x\.json: expected at least one image, got none"),
        (coco_document(images=[{"id": 1}]), r"images\[0\]: expected an id and a file_name, got {'id': 1}"),
        (coco_document(images=coco_document()["images"] * 2), r"\[2\]: expected a unique image id, got duplicate 7"),
        (
            coco_document(images=[{"id": key, "file_name": "b.jpg"} for key in (7, 3)], annotations=[]),
            r"image 3: expected each image once, got b\.jpg, the file of another image",
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
            r"x\.json, image 1: 'c\.jpg' is missing; searched",
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


def write_coco(root: Path, **changes: Any) -> Path:
    for name in ("a.jpg", "b.jpg"):
        write_image(root / "images" / name)
    return write_json(root / "annotations/train.json", coco_document(**changes))


@pytest.mark.parametrize("flag", [2, -1, "0", "", None, [], {}, 0.5, float("nan")])
def test_check_and_training_refuse_other_crowd_flags(tmp_path: Path, flag: object) -> None:
    box = {"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": flag}
    write_coco(tmp_path, annotations=[box])
    assert read_and_check(tmp_path, "train") is None
    with pytest.raises(ValueError, match=r"annotation 4 of b\.jpg \(cat\): iscrowd: expected 0 or 1, got "):
        read_detection(tmp_path, "train")


@pytest.mark.parametrize("name", ["", " ", "\n", None, 3])
def test_check_and_training_refuse_blank_categories(tmp_path: Path, name: object) -> None:
    write_coco(tmp_path, categories=[{"id": 18, "name": "dog"}, {"id": 2, "name": name}])
    assert read_and_check(tmp_path, "train") is None
    with pytest.raises(ValueError, match=r"train\.json, categories\[1\]: expected an id and a name, got {'id': 2"):
        read_detection(tmp_path, "train")


@pytest.mark.parametrize("name", ["dog", "dog ", "Dog"])
def test_check_and_training_report_similar_categories(tmp_path: Path, name: str) -> None:
    write_coco(tmp_path, categories=[{"id": 18, "name": "dog"}, {"id": 2, "name": name}])
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert data.classes == (("Dog", "dog") if name == "Dog" else ("dog",))
    (problem,) = data.problems
    assert ("expected clearly distinct class names" if name == "Dog" else "merged into one class") in problem


def test_boxes_without_area_in_single_precision_are_dropped(tmp_path: Path) -> None:
    write_coco(tmp_path, annotations=[{"id": 5, "image_id": 7, "category_id": 2, "bbox": [33, 10, 1e-6, 5]}])
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert len(data.samples[0].boxes) == 0
    assert data.problems[0].endswith("(33, 10, 1e-06, 5) (x, y, width, height) has no area; dropped")


@pytest.mark.parametrize("name", ["images\\b.jpg", "train\\..\\images\\b.jpg", "b.jpg"])
def test_backslashes_separate_folders(tmp_path: Path, name: str) -> None:
    write_coco(tmp_path, images=[{"id": 7, "file_name": name}])
    (tmp_path / "train").mkdir()
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert data.samples[0].path.resolve() == (tmp_path / "images/b.jpg").resolve()


@pytest.mark.parametrize("stored", ["NFC", "NFD"])
def test_finds_names_in_the_other_unicode_form(tmp_path: Path, stored: Any) -> None:
    write_image(tmp_path / "images" / unicodedata.normalize(stored, "b\u00e4r.jpg"))
    other = unicodedata.normalize("NFD" if stored == "NFC" else "NFC", "b\u00e4r.jpg")
    write_json(tmp_path / "annotations/train.json", coco_document(images=[{"id": 7, "file_name": other}]))
    assert read_and_check(tmp_path, "train") is not None


def test_hidden_files_are_no_splits(tmp_path: Path) -> None:
    write_coco(tmp_path)
    (tmp_path / "annotations/._train.json").write_bytes(b"\0")
    (tmp_path / "annotations/._val.json").write_bytes(b"\0")
    assert detection_splits(tmp_path) == ("train",)


def test_ids_may_have_gaps_and_start_at_0(tmp_path: Path) -> None:
    categories = [{"id": 90, "name": "a"}, {"id": 0, "name": "b"}, {"id": 7, "name": "c"}]
    boxes = [{"image_id": 7, "category_id": key, "bbox": [1, 1, 5, 5]} for key in (90, 7)]
    data = read_detection(write_coco(tmp_path, categories=categories, annotations=boxes))
    assert data.classes == ("b", "c", "a")
    assert data.samples[0].labels.tolist() == [2, 1]


@pytest.mark.parametrize("used", [False, True])
def test_reads_roboflow_exports(tmp_path: Path, used: bool) -> None:
    categories = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "dog", "supercategory": "pets"},
        {"id": 2, "name": "cat", "supercategory": "pets"},
    ]
    for split in ("test", "train", "valid"):
        for name in ("a.jpg", "b.jpg"):
            write_image(tmp_path / split / name)
        boxes = [{"image_id": 7, "category_id": 0 if used else 2, "bbox": [1, 1, 5, 5]}]
        document = coco_document(annotations=boxes, categories=categories)
        write_json(tmp_path / split / "_annotations.coco.json", document)
    assert detection_splits(tmp_path) == ("train", "valid", "test")
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert data.classes == (("pets", "dog", "cat") if used else ("dog", "cat"))
    assert len(data.problems) == (not used)
    assert len(read_detection(tmp_path / "train").samples) == 2


@pytest.mark.slow
@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_time_is_linear(tmp_path: Path, part: str) -> None:
    entries: dict[str, Any] = {
        "images": lambda number: {"id": number, "file_name": f"{number}.jpg"},
        "annotations": lambda number: {"image_id": 7, "category_id": 2, "bbox": [number, 0, number % 2, 1]},
        "categories": lambda number: {"id": number, "name": f"c{number}"},
    }

    def seconds(rows: int) -> float:
        more = [entries[part](number) for number in range(1000, 1000 + rows)]
        file = write_coco(tmp_path, **{part: [*coco_document()[part], *more]})
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            coco.read(tmp_path, "train", file, Problems())
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(100_000) / seconds(50_000) < 3
