from pathlib import Path

import pytest
import torch

from sppnet.data.formats.detection import detection_splits, read_detection
from tests.helpers.annotation_files import object_xml, write_annotation, write_image, write_list


def test_converts_corners_to_edges(tmp_path: Path) -> None:
    rest = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    write_annotation(
        tmp_path, "b", object_xml("dog", 1, 1, 40, 30), object_xml("cat", 3, 4.5, 10.5, 20, rest=rest), size=(30, 40)
    )
    write_annotation(tmp_path, "a", image=".PNG")
    write_list(tmp_path, "train", "b\n\na\n")
    data = read_detection(str(tmp_path), "train")
    assert data.root == tmp_path
    assert data.classes == ("cat", "dog")
    assert data.problems == ()
    assert [sample.path.name for sample in data.samples] == ["b.jpg", "a.PNG"]
    first, second = data.samples
    assert first.boxes.tolist() == [[0, 0, 40, 30], [2, 3.5, 10.5, 20]]
    assert (first.labels.tolist(), first.difficult.tolist()) == ([1, 0], [False, True])
    assert (second.boxes.shape, second.boxes.dtype) == ((0, 4), torch.float32)
    assert (second.labels.dtype, second.difficult.dtype) == (torch.int64, torch.bool)


def test_reads_lists_with_second_column_and_names_with_spaces(tmp_path: Path) -> None:
    for name in ("a", "b", "photo 1"):
        write_annotation(tmp_path, name)
    write_list(tmp_path, "train", "\ufeffa -1\r\nb  1\r\nphoto 1\r\n")
    samples = read_detection(tmp_path, "train").samples
    assert [sample.path.stem for sample in samples] == ["a", "b", "photo 1"]


def test_reads_all_annotations_without_lists(tmp_path: Path) -> None:
    write_annotation(tmp_path, "b", object_xml("cat", 1, 1, 5, 5))
    write_annotation(tmp_path, "in/a", object_xml("dog", 1, 1, 5, 5))
    write_image(tmp_path / "JPEGImages/c.jpg")
    data = read_detection(tmp_path)
    assert (data.classes, [sample.labels.tolist() for sample in data.samples]) == (("cat", "dog"), [[0], [1]])
    assert data.problems == ("images without an annotation: c; skipped",)
    with pytest.raises(ValueError, match=r"split: expected none for .*, which has no splits, got 'train'"):
        read_detection(tmp_path, "train")


@pytest.mark.parametrize("subfolder", ["VOC2007", "VOCdevkit/VOC2012"])
def test_finds_data_set_in_development_kit(tmp_path: Path, subfolder: str) -> None:
    write_annotation(tmp_path / subfolder, "a")
    write_list(tmp_path / subfolder, "val", "a")
    assert detection_splits(tmp_path) == ("val",)
    assert read_detection(tmp_path, "val").root == tmp_path / subfolder


def test_rejects_folder_with_several_data_sets(tmp_path: Path) -> None:
    write_annotation(tmp_path / "VOC2007", "a")
    write_annotation(tmp_path / "VOC2012", "a")
    with pytest.raises(ValueError, match=r"root: expected one of the data sets .*VOC2007, .*VOC2012, got"):
        read_detection(tmp_path)


def test_drops_and_reports_boxes_without_area(tmp_path: Path) -> None:
    write_annotation(
        tmp_path, "a", object_xml("cat", 7, 8, 7, 8), object_xml("cat", 9, 2, 5, 7), object_xml("cat", 2, 2, 3, 3)
    )
    data = read_detection(tmp_path)
    assert data.samples[0].boxes.tolist() == [[1, 1, 3, 3]]
    assert [problem.partition(".xml, ")[2] for problem in data.problems] == [
        "object 1 (cat): corners (7, 8, 7, 8) enclose no area; dropped",
        "object 2 (cat): corners (9, 2, 5, 7) enclose no area; dropped",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml cannot be read as XML: no element found"),
        ("", r"a\.xml cannot be read as XML"),
        ("<svg/>", r"a\.xml: expected the root element <annotation>, got <svg>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "has a document type declaration"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', r"a\.xml cannot be read as XML: "),
        ("<annotation><object/></annotation>", r"a\.xml, object 1: expected a name, got none"),
        (object_xml("cat", 1, 1, 5, "x"), r"a\.xml, object 1 \(cat\): ymax: expected a finite number, got 'x'"),
        (object_xml("cat", "nan", 1, 5, 5), r"xmin: expected a finite number, got 'nan'"),
        ("<object><name>cat</name></object>", r"xmin: expected a finite number, got ''"),
        (
            object_xml("cat", 1, 1, 5, 5, rest="<difficult>2</difficult>"),
            r"\(cat\): difficult: expected 0 or 1, got '2'",
        ),
    ],
)
def test_rejects_malformed_annotations(tmp_path: Path, text: str, message: str) -> None:
    write_annotation(tmp_path, "a")
    document = f"<annotation>{text}</annotation>" if text.startswith("<object") else text
    (tmp_path / "Annotations/a.xml").write_text(document)
    with pytest.raises(ValueError, match=message):
        read_detection(tmp_path)


def test_rejects_invalid_lists(tmp_path: Path) -> None:
    write_annotation(tmp_path, "photo1")
    write_annotation(tmp_path, "photo2", image="")
    write_image(tmp_path / "JPEGImages/photo3.jpg")
    for split, text in {"empty": "\n", "twice": "photo1\nphoto1 1", "train": "photo1\nphoto2", "val": "photo3"}.items():
        write_list(tmp_path, split, text)
    write_list(tmp_path, "many", "".join(f"x{i}\n" for i in range(12)))
    with pytest.raises(ValueError, match=r"empty\.txt: expected at least one image, got none"):
        read_detection(tmp_path, "empty")
    with pytest.raises(ValueError, match=r"expected each image of a split once, got duplicates of .*photo1\.jpg$"):
        read_detection(tmp_path, "twice")
    with pytest.raises(
        ValueError, match=r"images named in .*train\.txt are missing from .*JPEGImages: photo2; did you mean photo3 or"
    ):
        read_detection(tmp_path, "train")
    with pytest.raises(
        ValueError, match=r"\.xml files of images named in .*val\.txt are missing from .*Annotations: photo3$"
    ):
        read_detection(tmp_path, "val")
    with pytest.raises(ValueError, match=r"images named in .*many\.txt are missing from .*: x0, .*, x9 and 2 more$"):
        read_detection(tmp_path, "many")
    write_image(tmp_path / "JPEGImages/photo1.png")
    with pytest.raises(
        ValueError, match=r"expected one image for each name in .*twice\.txt, got .*photo1\.jpg, .*photo1\.png"
    ):
        read_detection(tmp_path, "twice")
    (tmp_path / "ImageSets/Main/val.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"val\.txt cannot be read as UTF-8 text"):
        read_detection(tmp_path, "val")
