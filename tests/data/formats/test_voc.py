import time
from pathlib import Path

import pytest
import torch

from sppnet.data.formats import voc
from sppnet.data.formats.detection import detection_splits, read_detection
from sppnet.data.items import Problems
from tests.helpers.annotation_files import object_xml, write_annotation, write_image, write_list
from tests.helpers.verdicts import read_and_check


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
    (problem,) = data.problems
    assert problem.endswith(f"c.jpg: no annotation file {tmp_path / 'Annotations/c.xml'}; skipped")
    with pytest.raises(ValueError, match=r"split: expected none for .*, which has no splits, got 'train'"):
        read_detection(tmp_path, "train")


@pytest.mark.parametrize(
    "subfolder",
    [
        "VOC2007",
        "VOCdevkit/VOC2012",
        "TrainVal/VOCdevkit/VOC2011",
        "VOCtrainval_11-May-2012/VOCdevkit/VOC2012",
        "VOC2012_train_val/VOC2012_train_val",
    ],
)
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
    with pytest.raises(ValueError, match=r"twice\.txt: expected each image once, got repeated names: photo1$"):
        read_detection(tmp_path, "twice")
    with pytest.raises(
        ValueError, match=r"JPEGImages/photo2: no image of this name, but .*train\.txt lists it; did you mean photo3 or"
    ):
        read_detection(tmp_path, "train")
    with pytest.raises(ValueError, match=r"Annotations/photo3\.xml: no such file, but .*val\.txt lists it"):
        read_detection(tmp_path, "val")
    with pytest.raises(
        ValueError, match=r"JPEGImages/x0: no image .*/x9: no image .* lists it; and 2 more; `sppnet check` lists"
    ):
        read_detection(tmp_path, "many")
    write_image(tmp_path / "JPEGImages/photo1.png")
    with pytest.raises(ValueError, match=r"photo1\.jpg: ambiguous name in .*twice\.txt: it also matches .*photo1\.png"):
        read_detection(tmp_path, "twice")
    (tmp_path / "ImageSets/Main/val.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"val\.txt cannot be read as UTF-8 text"):
        read_detection(tmp_path, "val")


def test_hidden_files_are_neither_splits_nor_images(tmp_path: Path) -> None:
    write_annotation(tmp_path, "a", object_xml("cat", 1, 1, 5, 5))
    write_list(tmp_path, "train", "a")
    for name in ("ImageSets/Main/._val.txt", "JPEGImages/._a.jpg", "Annotations/._a.xml", "__MACOSX/x.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    assert detection_splits(tmp_path) == ("train",)
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert data.problems == ()


def test_reports_similar_names_and_unlisted_images(tmp_path: Path) -> None:
    for name in "abc":
        write_annotation(tmp_path, name, object_xml("cat" if name == "a" else "Cat", 1, 1, 5, 5))
    write_list(tmp_path, "train", "a\nb")
    write_list(tmp_path, "val", "b")
    data = read_and_check(tmp_path, "train")
    assert data is not None
    unlisted, similar = data.problems
    assert unlisted.endswith(f"JPEGImages: 1 annotated images are in none of the lists in {tmp_path}/ImageSets/Main: c")
    assert similar.endswith("got 'cat', 'Cat'; read as 2 classes")
    assert read_detection(tmp_path, "val").problems == ()


def test_check_and_training_refuse_the_same_lists(tmp_path: Path) -> None:
    write_annotation(tmp_path, "a")
    write_annotation(tmp_path, "b", image="")
    for text in ("", "a\na", "a\nb", "gone", "a\0", "a" * 5000):
        write_list(tmp_path, "train", text)
        assert read_and_check(tmp_path, "train") is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["objects", "list"])
def test_time_is_linear(tmp_path: Path, kind: str) -> None:
    def seconds(rows: int) -> float:
        objects = [object_xml("cat", 1, 1, 5, 5 + number % 2) for number in range(rows if kind == "objects" else 1)]
        write_annotation(tmp_path, "a", *objects)
        write_list(tmp_path, "train", "a\n" + "".join(f"x{number}\n" for number in range(rows * (kind == "list"))))
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            voc.read(tmp_path, "train", voc.find_splits(tmp_path)["train"], Problems())
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(100_000) / seconds(50_000) < 3
