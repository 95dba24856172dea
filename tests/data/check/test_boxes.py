"""Boxes and lists of VOC and COCO data sets."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check.run import check_data
from tests.helpers.check_problems import kinds_by_path, reasons
from tests.helpers.detection_data import write_voc


def voc_object(name: str, *corners: float) -> str:
    edges = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    return f"<object><name>{name}</name><bndbox>{edges}</bndbox></object>"


def test_reports_problems_of_voc_boxes(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", 3, 2)  # images of 96 x 112 pixels
    annotations = root / "Annotations"
    boxes = [(5, 5, 5, 5), (1, 1, 113, 97), (100, 1, 120, 20), (113, 97, 150, 150), (1, 1, 112, 96)]
    size = "<size><width>96</width><height>112</height></size>"
    text = "".join(voc_object("disc", *corners) for corners in boxes)
    (annotations / "train0.xml").write_text(f"<annotation>{size}{text}</annotation>")
    (annotations / "train1.xml").write_text("<annotation>")
    (annotations / "test0.xml").write_text(f"<annotation>{voc_object('sqare', 1, 1, 9, 9)}</annotation>")
    (annotations / "test1.xml").unlink()
    (annotations / "spare.xml").write_text("<annotation/>")
    Image.new("RGB", (40, 40)).save(root / "JPEGImages/unused.png")
    (root / "ImageSets/Main/train.txt").write_text("train0\ntrain1\ntrain2\ntest0\ngone\n")
    (root / "ImageSets/Main/test.txt").write_text("test0\ntest1\ntest1\n")
    (root / "ImageSets/Main/trainval.txt").write_text("train0\ntrain1\ntrain2\ntest0\n")
    check = check_data(root)
    assert kinds_by_path(check) == [
        ("Annotations/spare.xml", "no-image"),
        ("Annotations/test1.xml", "missing"),
        ("Annotations/train0.xml", "box-outside"),
        ("Annotations/train0.xml", "box-outside"),
        ("Annotations/train0.xml", "stated-size"),
        ("Annotations/train0.xml", "zero-area-box"),
        ("Annotations/train1.xml", "bad-annotation"),
        ("ImageSets/Main/test.txt", "bad-annotation"),
        ("JPEGImages/gone", "missing"),
        ("JPEGImages/test0.png", "duplicate-across-splits"),
        ("JPEGImages/unused.png", "no-annotation"),
    ]
    assert reasons(check, "box-outside") == [
        "object 3 (disc): box with edges (99, 0, 120, 20) extends beyond the image of 96 x 112 (height x width);"
        " clipped to (99, 0, 112, 20)",
        "object 4 (disc): box with edges (112, 96, 150, 150) extends beyond the image of 96 x 112 (height x width);"
        " dropped",
    ]
    assert reasons(check, "zero-area-box")[0].startswith("object 1 (disc): corners (5, 5, 5, 5) enclose no area")
    assert reasons(check, "duplicate-across-splits") == ["listed in test, train, trainval"]


def test_reports_classes_without_training_images(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "voc", 3, 2)
    (root / "Annotations/test0.xml").write_text(f"<annotation>{voc_object('discs', 1, 1, 9, 9)}</annotation>")
    check = check_data(root)
    assert kinds_by_path(check) == [("Annotations/test0.xml", "untrained-class")]
    assert reasons(check, "untrained-class") == [
        "object 1 (discs): no training image has this class; did you mean disc?"
    ]
    shutil.copy(root / "JPEGImages/test0.png", root / "JPEGImages/free.png")
    shutil.copy(root / "Annotations/test0.xml", root / "Annotations/free.xml")
    check = check_data(root)
    assert ("JPEGImages", "unlisted") in kinds_by_path(check)
    assert reasons(check, "unlisted")[0].endswith("ImageSets/Main: free")


def write_coco(root: Path, **changes: Any) -> Path:
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    for name in ("a", "b"):
        noise = np.random.default_rng(ord(name)).integers(0, 256, (40, 60, 3), np.uint8)
        Image.fromarray(noise).save(root / f"train/{name}.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "height": 60, "width": 40}],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [],
    }
    (root / "annotations/instances_train.json").write_text(json.dumps(content | changes))
    return root


def test_reports_problems_of_coco_boxes(tmp_path: Path) -> None:
    boxes = [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [0, 0, 61, 41]},
        {"id": 2, "image_id": 1, "category_id": 8, "bbox": [0, 0, 6, 4]},
        {"id": 3, "image_id": 9, "category_id": 7, "bbox": [0, 0, 6, 4]},
        {"id": 4, "image_id": 1, "category_id": 7, "bbox": [5, 5, 0, 4]},
        {"id": 5, "image_id": 1, "category_id": 7, "bbox": [5, 5, 4]},
        {"id": 6, "image_id": 1, "category_id": 7, "bbox": [-2, 0, 6, 4]},
        {"id": 7, "image_id": 4, "category_id": 7, "bbox": [0, 0, 6, 4]},
    ]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "height": 60, "width": 40}]
    images += [{"id": 2, "file_name": "a.png"}, {"id": 3, "file_name": "b.png"}, {"id": 4, "file_name": "gone.png"}]
    check = check_data(write_coco(tmp_path, annotations=boxes, images=images))
    assert check.layout == "COCO boxes"
    file = "annotations/instances_train.json"
    assert kinds_by_path(check) == [
        (file, "bad-annotation"),
        (file, "bad-annotation"),
        (file, "bad-annotation"),
        (file, "bad-annotation"),
        (file, "box-outside"),
        (file, "missing"),
        (file, "stated-size"),
        (file, "unknown-class"),
        (file, "zero-area-box"),
    ]
    assert reasons(check, "unknown-class") == [
        "annotation 2 of a.png: category_id: expected the id of a category, got 8"
    ]
    assert reasons(check, "zero-area-box") == [
        "annotation 4 of a.png (cat): bbox (5, 5, 0, 4) (x, y, width, height) has no area; dropped"
    ]
    assert sorted(reasons(check, "bad-annotation")) == [
        "annotation 5 of a.png (cat): bbox: expected four finite numbers, got [5, 5, 4]",
        "annotations[2]: image_id: expected the id of an image, got 9",
        "image 3: expected each image once, got b.png, the file of another image",
        "images[2]: expected a unique image id, got duplicate 2",
    ]


@pytest.mark.parametrize("text", ["{", "[]", '{"images": []}', '{"images": [], "annotations": [1]}'])
def test_reports_json_files_that_are_not_coco(text: str, tmp_path: Path) -> None:
    (tmp_path / "boxes.json").write_text(text)
    assert kinds_by_path(check_data(tmp_path / "boxes.json")) == [("boxes.json", "bad-annotation")]
