from pathlib import Path

import pytest

from sppnet.data.formats.table import FORMATS, choose_format, find_formats, find_validation
from sppnet.data.items import Problems
from tests.helpers.annotation_files import coco_document, write_annotation, write_image, write_json, write_yolo
from tests.helpers.images import write_classes
from tests.helpers.segmentation_data import Layout, write_shapes


def names(root: Path) -> list[str]:
    return [known.name for known, _ in find_formats(root)]


def test_names_are_unique_and_tasks_are_known() -> None:
    assert len({known.name for known in FORMATS}) == len(FORMATS)
    assert {known.task for known in FORMATS} == {"classify", "detect", "segment"}


def test_box_data_are_not_class_folders(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for name in ("a.jpg", "b.jpg"):
            write_image(tmp_path / "coco" / split / name)
        write_json(tmp_path / "coco" / split / "_annotations.coco.json", coco_document())
    assert names(tmp_path / "coco") == ["coco"]
    write_yolo(tmp_path / "yolo", "0 0.5 0.5 0.5 0.2", splits=("train", "val"))
    assert names(tmp_path / "yolo") == ["yolo"]
    assert names(write_yolo(tmp_path / "folders", "0 0.5 0.5 0.5 0.2", config=None)) == ["yolo"]
    write_annotation(tmp_path / "voc", "a")
    assert names(tmp_path / "voc") == ["voc"]
    assert names(tmp_path / "gone") == []


def test_class_folders_and_masks_are_not_boxes(tmp_path: Path) -> None:
    write_classes(tmp_path / "classes", 1)
    assert names(tmp_path / "classes") == ["class-folders"]
    layouts: dict[Layout, str] = {"camvid": "camvid", "voc": "voc-masks", "pairs": "mask-folders"}
    for layout, name in layouts.items():
        write_shapes(tmp_path / layout, layout, 1)
        assert names(tmp_path / layout) == [name]


def test_explains_what_was_found(tmp_path: Path) -> None:
    write_classes(tmp_path / "classes", 1)
    with pytest.raises(
        ValueError,
        match=r"root: expected a data set in one of the formats voc, coco, yolo, got .*classes, which is class-folders"
        r" \(class folders\); use sppnet train classify$",
    ):
        choose_format(tmp_path / "classes", "detect")
    with pytest.raises(ValueError, match=r"format: expected the format of .*classes, got coco, which is class-folders"):
        choose_format(tmp_path / "classes", "detect", "coco")
    with pytest.raises(ValueError, match=r"format: expected one of voc, coco, yolo, got 'jolo'; did you mean 'yolo'"):
        choose_format(tmp_path / "classes", "detect", "jolo")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"a folder of \d+ images, \d+ other files and \d+ folders"):
        choose_format(tmp_path / "empty", "segment")
    write_yolo(tmp_path, "0 0.5 0.5 0.5 0.2")
    write_json(tmp_path / "annotations/train.json", coco_document())
    with pytest.raises(ValueError, match=r"expected one of the formats found in .*, coco, yolo, got none; use --f"):
        choose_format(tmp_path, "detect")
    assert choose_format(tmp_path, "detect", "yolo")[0].title == "YOLO boxes"


def test_validation_data_are_a_split_or_another_data_set(tmp_path: Path) -> None:
    root, other = tmp_path / "data", tmp_path / "other"
    for split in ("training", "dev", "test"):
        write_classes(root / split, 1)
    write_classes(other / "train", 1)
    write_classes(other / "test", 1)

    def find(val: str | Path | None, split: str = "training") -> tuple[str | Path, str | None] | None:
        return find_validation(root, split, val, "classify", None)

    assert find(None) == (root, "dev")
    assert find(None, "dev") is None
    assert find("none") is None
    assert find("test") == (root, "test")
    assert find("val") == (root, "dev")
    assert find(other) == (other, "test")
    assert find(root / "test") == (root / "test", None)
    assert find_validation(other, "train", None, "classify", None) is None
    with pytest.raises(ValueError, match=r"split: expected one of train for .*only, got none"):
        find(write_classes(tmp_path / "only/train", 1).parent)


def test_contradictions_of_a_format_are_reported(tmp_path: Path) -> None:
    write_json(tmp_path / "annotations/train.json", coco_document())
    write_json(tmp_path / "annotations/instances_train.json", coco_document())
    write_shapes(tmp_path, "camvid", 1)
    problems = Problems()
    assert [known.name for known, _ in find_formats(tmp_path, problems=problems)] == ["camvid"]
    text = "expected one annotation file for the split train, got instances_train.json, train.json"
    assert problems == [(tmp_path, "bad-annotation", text)]
    with pytest.raises(ValueError, match=f"^{tmp_path}: {text}$"):
        find_formats(tmp_path)
