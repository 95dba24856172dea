import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import ExifTags, Image

from sppnet.data.formats.detection import DetectionData, DetectionSample, detection_splits, read_detection

DATA = Path(__file__).parents[3] / "../shared/data"


def photo(path: Path, width: int = 40, height: int = 30, orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.new("RGB", (width, height)).save(path, exif=exif)
    return path


def thing(name: str, *corners: object, rest: str = "") -> str:
    pairs = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in pairs)
    return f"<object><name>{name}</name>{rest}<bndbox>{box}</bndbox></object>"


def voc(root: Path, name: str, *objects: str, size: tuple[object, object] | None = None, image: str = ".jpg") -> None:
    """An annotation, and its image of 30 x 40 pixels (height x width)."""
    if image:
        photo(root / "JPEGImages" / f"{name}{image}")
    sides = "" if size is None else f"<size><width>{size[1]}</width><height>{size[0]}</height></size>"
    file = root / "Annotations" / f"{name}.xml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>{sides}{''.join(objects)}</annotation>", encoding="utf-8")


def listed(root: Path, split: str, text: str) -> None:
    file = root / "ImageSets/Main" / f"{split}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def document(**changes: Any) -> dict[str, Any]:
    """A COCO file of two images, the second without an object."""
    return {
        "images": [
            {"id": 7, "file_name": "b.jpg", "height": 30, "width": 40},
            {"id": 3, "file_name": "a.jpg", "height": 30, "width": 40},
        ],
        "annotations": [
            {"id": 11, "image_id": 7, "category_id": 18, "bbox": [0, 2.5, 10, 20], "iscrowd": 0},
            {"id": 12, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 2, "name": "cat"}],
    } | changes


def coco(file: Path, content: object) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def boxes(sample: DetectionSample) -> list[list[float]]:
    return sample.boxes.tolist()


def names(data: DetectionData) -> list[list[str]]:
    return [[data.classes[label] for label in sample.labels.tolist()] for sample in data.samples]


def test_voc_corners_become_edges(tmp_path: Path) -> None:
    hard = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>9</xmin></bndbox></part>"
    voc(tmp_path, "b", thing("dog", 1, 1, 40, 30), thing("cat", 3, 4.5, 10.5, 20, rest=hard), size=(30, 40))
    voc(tmp_path, "a", image=".PNG")
    listed(tmp_path, "train", "b\n\na\n")
    data = read_detection(str(tmp_path), "train")
    assert data.root == tmp_path
    assert data.classes == ("cat", "dog")
    assert data.problems == ()
    assert [sample.path.name for sample in data.samples] == ["b.jpg", "a.PNG"]
    first, second = data.samples
    assert boxes(first) == [[0, 0, 40, 30], [2, 3.5, 10.5, 20]]
    assert (first.labels.tolist(), first.difficult.tolist()) == ([1, 0], [False, True])
    assert (second.boxes.shape, second.boxes.dtype) == ((0, 4), torch.float32)
    assert (second.labels.dtype, second.difficult.dtype) == (torch.int64, torch.bool)


def test_voc_splits(tmp_path: Path) -> None:
    for split in ("val", "trainval", "train", "cat_train", "my_set"):
        listed(tmp_path, split, "a  1\n")
    voc(tmp_path, "a", thing("cat", 1, 1, 5, 5))
    assert detection_splits(tmp_path) == ("train", "val", "my_set", "trainval")
    assert names(read_detection(tmp_path, "cat_train")) == [["cat"]]
    with pytest.raises(ValueError, match=r"split must be one of train, val, my_set, trainval for .*, got None$"):
        read_detection(tmp_path)
    with pytest.raises(ValueError, match=r"got 'trian'; did you mean train"):
        read_detection(tmp_path, "trian")
    assert detection_splits(tmp_path / "gone") == ()


def test_voc_lists_may_have_a_second_column_and_names_with_spaces(tmp_path: Path) -> None:
    for name in ("a", "b", "photo 1"):
        voc(tmp_path, name)
    listed(tmp_path, "train", "\ufeffa -1\r\nb  1\r\nphoto 1\r\n")
    samples = read_detection(tmp_path, "train").samples
    assert [sample.path.stem for sample in samples] == ["a", "b", "photo 1"]


def test_voc_without_lists_reads_every_annotation(tmp_path: Path) -> None:
    voc(tmp_path, "b", thing("cat", 1, 1, 5, 5))
    voc(tmp_path, "in/a", thing("dog", 1, 1, 5, 5))
    photo(tmp_path / "JPEGImages/c.jpg")
    data = read_detection(tmp_path)
    assert names(data) == [["cat"], ["dog"]]
    assert data.problems == ("images without an annotation: c; left out",)
    with pytest.raises(ValueError, match=r"split must be left out for .* which has no splits, got 'train'"):
        read_detection(tmp_path, "train")


@pytest.mark.parametrize("below", ["VOC2007", "VOCdevkit/VOC2012"])
def test_voc_in_its_development_kit(tmp_path: Path, below: str) -> None:
    voc(tmp_path / below, "a")
    listed(tmp_path / below, "val", "a")
    assert detection_splits(tmp_path) == ("val",)
    assert read_detection(tmp_path, "val").root == tmp_path / below


def test_several_voc_sets_are_not_chosen_from(tmp_path: Path) -> None:
    voc(tmp_path / "VOC2007", "a")
    voc(tmp_path / "VOC2012", "a")
    with pytest.raises(ValueError, match=r"root must be one of the data sets .*VOC2007, .*VOC2012, got"):
        read_detection(tmp_path)


def test_boxes_are_cut_at_the_image_and_named(tmp_path: Path) -> None:
    voc(tmp_path, "a", thing("cat", 0, 1, 41, 30), thing("dog", -5, 10, 50, 20), thing("cow", 41, 1, 50, 9))
    data = read_detection(tmp_path)
    assert boxes(data.samples[0]) == [[0, 0, 40, 30], [0, 9, 40, 20]]
    one, two = data.problems
    text = (
        r"a\.xml, object 2 \(dog\): the box with edges \(-6, 9, 50, 20\) leaves the image of 30 x 40 \(height x width\)"
    )
    assert re.search(rf"{text}; cut to \(0, 9, 40, 20\)$", one)
    assert re.search(r"a\.xml, object 3 \(cow\): the box with edges \(40, 0, 50, 9\) leaves .*; left out$", two)


def test_boxes_without_area_are_left_out_and_named(tmp_path: Path) -> None:
    voc(tmp_path, "a", thing("cat", 7, 8, 7, 8), thing("cat", 9, 2, 5, 7), thing("cat", 2, 2, 3, 3))
    data = read_detection(tmp_path)
    assert boxes(data.samples[0]) == [[1, 1, 3, 3]]
    assert [problem.partition(".xml, ")[2] for problem in data.problems] == [
        "object 1 (cat): the corners (7, 8, 7, 8) enclose no area; left out",
        "object 2 (cat): the corners (9, 2, 5, 7) enclose no area; left out",
    ]


@pytest.mark.parametrize("size", [None, (0, 0), ("", 40), ("?", "?")])
def test_a_size_that_is_not_given_is_that_of_the_header(tmp_path: Path, size: tuple[object, object] | None) -> None:
    voc(tmp_path, "a", thing("cat", 1, 1, 99, 99), size=size)
    data = read_detection(tmp_path)
    assert boxes(data.samples[0]) == [[0, 0, 40, 30]]
    assert len(data.problems) == 1


def test_boxes_are_of_the_image_as_exif_turns_it(tmp_path: Path) -> None:
    voc(tmp_path, "a", thing("cat", 1, 1, 30, 40), size=(30, 40))
    photo(tmp_path / "JPEGImages/a.jpg", orientation=6)
    data = read_detection(tmp_path)
    assert boxes(data.samples[0]) == [[0, 0, 30, 40]]
    text = r"a\.xml: the size is given as 30 x 40 \(height x width\), but .*a\.jpg has 40 x 30, with its EXIF"
    assert re.search(text, data.problems[0])


def test_an_image_without_header_has_the_size_that_is_given(tmp_path: Path) -> None:
    voc(tmp_path, "a", thing("cat", 1, 1, 99, 99), size=(20, 10))
    (tmp_path / "JPEGImages/a.jpg").write_bytes(b"")
    data = read_detection(tmp_path)
    assert boxes(data.samples[0]) == [[0, 0, 10, 20]]
    assert re.search(r"a\.jpg: file is empty; its size is taken from .*a\.xml$", data.problems[0])
    voc(tmp_path, "a", thing("cat", 1, 1, 99, 99), image="")
    assert boxes(read_detection(tmp_path).samples[0]) == [[0, 0, 99, 99]]  # whoever reads the image tells of it


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", r"a\.xml cannot be read as XML: no element found"),
        ("", r"a\.xml cannot be read as XML"),
        ("<svg/>", r"a\.xml must have the root element <annotation>, got <svg>"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "has a document type declaration"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', r"a\.xml cannot be read as XML: "),
        ("<annotation><object/></annotation>", r"a\.xml, object 1: a name was expected, got none"),
        (thing("cat", 1, 1, 5, "x"), r"a\.xml, object 1 \(cat\): ymax must be a finite number, got 'x'"),
        (thing("cat", "nan", 1, 5, 5), r"xmin must be a finite number, got 'nan'"),
        ("<object><name>cat</name></object>", r"xmin must be a finite number, got ''"),
        (thing("cat", 1, 1, 5, 5, rest="<difficult>2</difficult>"), r"\(cat\): difficult must be 0 or 1, got '2'"),
    ],
)
def test_voc_annotation_errors(tmp_path: Path, text: str, message: str) -> None:
    voc(tmp_path, "a")
    whole = f"<annotation>{text}</annotation>" if text.startswith("<object") else text
    (tmp_path / "Annotations/a.xml").write_text(whole)
    with pytest.raises(ValueError, match=message):
        read_detection(tmp_path)


def test_voc_list_errors(tmp_path: Path) -> None:
    voc(tmp_path, "photo1")
    voc(tmp_path, "photo2", image="")
    photo(tmp_path / "JPEGImages/photo3.jpg")
    for split, text in {"empty": "\n", "twice": "photo1\nphoto1 1", "train": "photo1\nphoto2", "val": "photo3"}.items():
        listed(tmp_path, split, text)
    listed(tmp_path, "many", "".join(f"x{i}\n" for i in range(12)))
    with pytest.raises(ValueError, match=r"empty\.txt must name an image or more, got none"):
        read_detection(tmp_path, "empty")
    with pytest.raises(ValueError, match=r"name each image of a split once; these come again: .*photo1\.jpg$"):
        read_detection(tmp_path, "twice")
    with pytest.raises(ValueError, match=r"JPEGImages lacks images of .*train\.txt: photo2; did you mean photo3 or"):
        read_detection(tmp_path, "train")
    with pytest.raises(ValueError, match=r"Annotations lacks \.xml files of .*val\.txt: photo3$"):
        read_detection(tmp_path, "val")
    with pytest.raises(ValueError, match=r"lacks images of .*many\.txt: x0, .*, x9 and 2 more$"):
        read_detection(tmp_path, "many")
    photo(tmp_path / "JPEGImages/photo1.png")
    with pytest.raises(ValueError, match=r"one image for each name of .*twice.txt, got .*photo1\.jpg, .*photo1\.png"):
        read_detection(tmp_path, "twice")
    (tmp_path / "ImageSets/Main/val.txt").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"val\.txt must be text in UTF-8"):
        read_detection(tmp_path, "val")


def test_labels_index_the_given_classes(tmp_path: Path) -> None:
    voc(tmp_path, "a", thing("dog", 1, 1, 5, 5))
    data = read_detection(tmp_path, classes=["zebra", "dog"])
    assert data.classes == ("zebra", "dog")
    assert data.samples[0].labels.tolist() == [1]
    with pytest.raises(
        ValueError, match=r"not among the 2 of classes: dog \(.*a\.xml, object 1 \(dog\)\); did you mean do"
    ):
        read_detection(tmp_path, classes=["dogs", "cat"])
    with pytest.raises(ValueError, match="classes must be one or more different names"):
        read_detection(tmp_path, classes=["dog", "dog"])


def test_what_is_no_detection_set(tmp_path: Path) -> None:
    (tmp_path / "cells").mkdir()
    (tmp_path / "note.txt").write_text("")
    with pytest.raises(ValueError, match=r"no data set at .*cell: no such folder or file; did you mean cells"):
        read_detection(tmp_path / "cell")
    for name in ("cells", "note.txt"):
        with pytest.raises(ValueError, match=rf"folder with JPEGImages and Annotations \(VOC\) .* got .*{name}$"):
            read_detection(tmp_path / name)
    voc(tmp_path, "a")
    coco(tmp_path / "annotations/train.json", document())
    with pytest.raises(ValueError, match=r"must be .* not both, or a \.json file"):
        read_detection(tmp_path)


@pytest.mark.parametrize("folder", ["val2017", "images/val2017", "images", "."])
def test_coco_folder(tmp_path: Path, folder: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / folder / name)
    coco(tmp_path / "annotations/instances_val2017.json", document())
    coco(tmp_path / "annotations/captions_val2017.json", {})
    assert detection_splits(tmp_path) == ("val2017",)
    data = read_detection(tmp_path, "val2017")
    assert data.classes == ("cat", "dog")
    assert data.problems == ()
    assert [sample.path for sample in data.samples] == [tmp_path / folder / "b.jpg", tmp_path / folder / "a.jpg"]
    first, second = data.samples
    assert boxes(first) == [[0, 2.5, 10, 22.5], [1, 1, 6, 6]]
    assert (first.labels.tolist(), first.difficult.tolist()) == ([1, 0], [False, True])
    assert second.boxes.shape == (0, 4)
    with pytest.raises(ValueError, match=r"split must be one of val2017 for .*, got 'val'; did you mean val2017"):
        read_detection(tmp_path, "val")


def test_coco_file(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "images/b.jpg")
    file = coco(tmp_path / "boxes.json", document())
    data = read_detection(file, classes=("dog", "cat"))
    assert data.root == file
    assert data.samples[0].labels.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"split must be left out for .*boxes\.json, which has no splits, got 'train'"):
        read_detection(file, "train")
    with pytest.raises(ValueError, match=r"not among the 1 of classes: cat \(.*annotation 12 of b\.jpg \(cat\)\)$"):
        read_detection(file, classes=["dog"])


def test_what_coco_files_have_wrong_and_is_named(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    flat = {"id": 1, "image_id": 3, "category_id": 1, "bbox": [3, 3, 0, 9]}
    beyond = {"id": 2, "image_id": 3, "category_id": 1, "bbox": [30, 3, 20, 9]}
    again = [{"id": 2, "name": "cat"}, {"id": 1, "name": "cat"}]
    data = read_detection(coco(tmp_path / "x.json", document(annotations=[flat, beyond], categories=again)))
    assert data.classes == ("cat",)
    assert boxes(data.samples[1]) == [[30, 3, 40, 12]]
    twice, empty, cut = data.problems
    assert twice.endswith("x.json, categories[1]: the name 'cat' comes again; both are one class")
    assert empty.endswith(
        "annotation 1 of a.jpg (cat): the bbox (3, 3, 0, 9) (x, y, width, height) has no area; left out"
    )
    assert cut.endswith("of 30 x 40 (height x width); cut to (30, 3, 40, 12)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], r"x\.json must be a COCO file, a JSON object with a list of objects under 'images'"),
        ({"images": []}, "a list of objects under 'annotations'"),
        (document(categories=None), "a list of objects under 'categories'"),
        (document(images=[], annotations=[]), r"x\.json must name an image or more, got none"),
        (document(images=[{"id": 1}]), r"images\[0\]: an image must have an id and a file_name, got {'id': 1}"),
        (document(images=document()["images"] * 2), r"images\[2\]: the id 7 is that of another image too"),
        (
            document(images=[{"id": key, "file_name": "b.jpg"} for key in (7, 3)], annotations=[]),
            r"these come again: .*b\.jpg",
        ),
        (document(annotations=[{"image_id": 9}]), r"annotations\[0\]: image_id must be the id of an image, got 9"),
        (document(annotations=[{"image_id": 7}]), "annotation 0 of b.jpg: category_id must be .* got None"),
        (document(annotations=[{"image_id": 7, "category_id": 2}]), "bbox must be four finite numbers, got None"),
        (
            document(annotations=[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, float("inf")]}]),
            r"bbox must be four finite numbers, got \[1, 2, 3, inf\]",
        ),
        (
            document(annotations=[{"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 10**400]}]),
            "bbox must be four finite numbers",
        ),
        (
            document(annotations=[{"id": 4, "image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "iscrowd": 2}]),
            r"annotation 4 of b\.jpg \(cat\): iscrowd must be 0 or 1, got 2",
        ),
        (document(categories=[{"id": 1}]), r"categories\[0\]: a category must have an id and a name, got {'id': 1}"),
        (document(categories=[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]), "the id 1 is that of another category"),
        (
            document(images=[*document()["images"], {"id": 1, "file_name": "c.jpg"}]),
            r"images of .*x\.json are missing: c\.jpg; looked in",
        ),
    ],
)
def test_coco_errors(tmp_path: Path, content: object, message: str) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        read_detection(coco(tmp_path / "x.json", content))


def test_coco_files_of_one_split(tmp_path: Path) -> None:
    coco(tmp_path / "annotations/train.json", document())
    coco(tmp_path / "annotations/instances_train.json", document())
    with pytest.raises(ValueError, match=r"one file for the split train, got instances_train\.json, train\.json"):
        detection_splits(tmp_path)


def test_what_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"x\.json cannot be read as JSON"):
        read_detection(tmp_path / "x.json")


@pytest.mark.skipif(not (DATA / "bccd").is_dir(), reason="needs ../shared/data/bccd")
def test_blood_cells() -> None:
    assert detection_splits(DATA / "bccd") == ("train", "val")
    train = read_detection(DATA / "bccd", "train")
    val = read_detection(DATA / "bccd", "val", train.classes)
    assert (len(train.samples), len(val.samples)) == (205, 87)
    assert train.classes == ("Platelets", "RBC", "WBC")
    assert [len(data.problems) for data in (train, val)] == [1, 1]
    assert "BloodImage_00343.xml, object 4 (RBC)" in train.problems[0]
    assert "BloodImage_00338.xml, object 13 (RBC)" in val.problems[0]


@pytest.mark.skipif(not (DATA / "coco20").is_dir(), reason="needs ../shared/data/coco20")
def test_photographs_of_coco() -> None:
    train = read_detection(DATA / "coco20", "train")
    val = read_detection(DATA / "coco20", "val", train.classes)
    assert (len(train.samples), len(val.samples), len(train.classes)) == (130, 40, 19)
    assert sum(int(sample.difficult.sum()) for sample in train.samples) == 89
    assert min(len(sample.labels) for sample in train.samples) == 0
