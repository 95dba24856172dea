import re
from pathlib import Path

import numpy as np
import pytest

from sppnet.data.check.run import check_data
from sppnet.data.formats.detection import DetectionData, detection_splits, read_detection
from sppnet.data.formats.masks import SegmentationSample, orient_mask
from tests.helpers.annotation_files import (
    coco_document,
    object_xml,
    write_annotation,
    write_image,
    write_json,
    write_list,
)

DATA = Path(__file__).parents[3] / "../shared/data"


def names(data: DetectionData) -> list[list[str]]:
    return [[data.classes[label] for label in sample.labels.tolist()] for sample in data.samples]


def test_lists_and_selects_splits(tmp_path: Path) -> None:
    for split in ("val", "trainval", "train", "cat_train", "my_set"):
        write_list(tmp_path, split, "a  1\n")
    write_annotation(tmp_path, "a", object_xml("cat", 1, 1, 5, 5))
    assert detection_splits(tmp_path) == ("train", "trainval", "val", "my_set")
    assert names(read_detection(tmp_path, "cat_train")) == [["cat"]]
    with pytest.raises(ValueError, match=r"split: expected one of train, trainval, val, my_set for .*, got None$"):
        read_detection(tmp_path)
    with pytest.raises(ValueError, match=r"got 'trian'; did you mean train"):
        read_detection(tmp_path, "trian")
    assert detection_splits(tmp_path / "gone") == ()


def test_clips_and_reports_boxes_beyond_the_image(tmp_path: Path) -> None:
    write_annotation(
        tmp_path,
        "a",
        object_xml("cat", 0, 1, 41, 30),
        object_xml("dog", -5, 10, 50, 20),
        object_xml("cow", 41, 1, 50, 9),
    )
    data = read_detection(tmp_path)
    assert data.samples[0].boxes.tolist() == [[0, 0, 40, 30], [0, 9, 40, 20]]
    clipped, dropped = data.problems
    text = r"a\.xml, object 2 \(dog\): box with edges \(-6, 9, 50, 20\) extends beyond the image of 30 x 40 \(height"
    assert re.search(rf"{text} x width\); clipped to \(0, 9, 40, 20\)$", clipped)
    assert re.search(r"a\.xml, object 3 \(cow\): box with edges \(40, 0, 50, 9\) extends beyond .*; dropped$", dropped)


@pytest.mark.parametrize("size", [None, (0, 0), ("", 40), ("?", "?")])
def test_uses_header_size_without_valid_stated_size(tmp_path: Path, size: tuple[object, object] | None) -> None:
    write_annotation(tmp_path, "a", object_xml("cat", 1, 1, 99, 99), size=size)
    data = read_detection(tmp_path)
    assert data.samples[0].boxes.tolist() == [[0, 0, 40, 30]]
    assert len(data.problems) == 1


@pytest.mark.parametrize("size", [None, (40, 30), (9, 9)])
def test_boxes_refer_to_the_exif_oriented_image(tmp_path: Path, size: tuple[int, int] | None) -> None:
    write_annotation(tmp_path, "a", object_xml("cat", 1, 1, 30, 40), size=size)
    write_image(tmp_path / "JPEGImages/a.jpg", orientation=6)
    data = read_detection(tmp_path)
    assert data.samples[0].boxes.tolist() == [[0, 0, 30, 40]]
    text = r"a\.xml: the stated size is 9 x 9 \(height x width\), but .*a\.jpg has 40 x 30 with its EXIF"
    assert len(data.problems) == (size == (9, 9))
    assert all(re.search(text, problem) for problem in data.problems)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_on_stored_pixels_are_turned_like_masks(tmp_path: Path, orientation: int) -> None:
    write_annotation(tmp_path, "a", object_xml("cat", 3, 5, 10, 25), size=(30, 40))
    image = write_image(tmp_path / "JPEGImages/a.jpg", orientation=orientation)
    data = read_detection(tmp_path)
    stored = np.zeros((30, 40), np.int16)
    stored[4:25, 2:10] = 1
    mask = orient_mask(stored, SegmentationSample(image, image), (40, 30))
    (box,) = data.samples[0].boxes.int().tolist()
    filled = np.zeros((40, 30), np.int16)
    filled[box[1] : box[3], box[0] : box[2]] = 1
    assert np.array_equal(filled, mask)
    (problem,) = data.problems
    assert re.search(r"a\.xml: the stated size 30 x 40 .* is that of .*a\.jpg before its EXIF orientation", problem)
    assert [problem.kind for problem in check_data(tmp_path).problems] == ["exif-turned", "exif-turned"]


def test_uses_stated_size_for_unreadable_image(tmp_path: Path) -> None:
    write_annotation(tmp_path, "a", object_xml("cat", 1, 1, 99, 99), size=(20, 10))
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"")
    data = read_detection(tmp_path)
    assert data.samples[0].boxes.tolist() == [[0, 0, 10, 20]]
    assert re.search(r"a\.jpg: file is empty; using the size stated in .*a\.xml$", data.problems[0])
    write_annotation(tmp_path, "a", object_xml("cat", 1, 1, 99, 99), image="")
    assert read_detection(tmp_path).samples[0].boxes.tolist() == [[0, 0, 99, 99]]  # not clipped


def test_labels_index_the_given_classes(tmp_path: Path) -> None:
    write_annotation(tmp_path, "a", object_xml("dog", 1, 1, 5, 5))
    data = read_detection(tmp_path, classes=["zebra", "dog"])
    assert data.classes == ("zebra", "dog")
    assert data.samples[0].labels.tolist() == [1]
    with pytest.raises(
        ValueError,
        match=r"expected all classes of .*, got 2 names that lack dog \(.*a\.xml, object 1 \(dog\)\); did you mean do",
    ):
        read_detection(tmp_path, classes=["dogs", "cat"])
    with pytest.raises(ValueError, match="classes: expected one or more unique names"):
        read_detection(tmp_path, classes=["dog", "dog"])


def test_rejects_paths_without_detection_data(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(ValueError, match=r"no data set at .*cell: no such folder or file; did you mean cells"):
        read_detection(tmp_path / "cell")
    for name in ("cells", "note.txt"):
        text = (
            rf"root: expected a data set in one of the formats voc, coco, yolo, got .*{name}, a (folder of|file with)"
        )
        with pytest.raises(ValueError, match=text):
            read_detection(tmp_path / name)
    write_annotation(tmp_path, "a")
    write_json(tmp_path / "annotations/train.json", coco_document())
    with pytest.raises(
        ValueError, match=r"format: expected one of the formats found in .*, voc, coco, got none; use --f"
    ):
        read_detection(tmp_path)
    assert len(read_detection(tmp_path, format="voc").samples) == 1
    assert detection_splits(tmp_path, "coco") == ("train",)


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason="needs ../shared/data/bccd")
def test_reads_bccd() -> None:
    assert detection_splits(DATA / "bccd") == ("train", "val")
    train = read_detection(DATA / "bccd", "train")
    val = read_detection(DATA / "bccd", "val", train.classes)
    assert (len(train.samples), len(val.samples)) == (205, 87)
    assert train.classes == ("Platelets", "RBC", "WBC")
    assert [len(data.problems) for data in (train, val)] == [1, 1]
    assert "BloodImage_00343.xml, object 4 (RBC)" in train.problems[0]
    assert "BloodImage_00338.xml, object 13 (RBC)" in val.problems[0]


@pytest.mark.skipif(not (DATA / "coco20").is_dir(), reason="needs ../shared/data/coco20")
def test_reads_coco20() -> None:
    train = read_detection(DATA / "coco20", "train")
    val = read_detection(DATA / "coco20", "val", train.classes)
    assert (len(train.samples), len(val.samples), len(train.classes)) == (130, 40, 19)
    assert sum(int(sample.difficult.sum()) for sample in train.samples) == 89
    assert min(len(sample.labels) for sample in train.samples) == 0
