"""Classes of mask values: binary masks, and classes without a pixel."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check.run import check_data
from sppnet.data.formats.mask_labels import report_classes
from sppnet.data.formats.masks import LabelMap
from sppnet.data.formats.segmentation import read_segmentation
from sppnet.data.items import Problems
from tests.helpers.segmentation_data import class_indices, write_pair

BLACK_WHITE = "name,r,g,b\nbg,0,0,0\nfg,255,255,255\n"


def write_binary(root: Path, mode: str = "L", images: str = "images", masks: str = "masks") -> None:
    """Write two images, with the mask values 0 and 255, and 0 only."""
    for name, ids in (("a", [0, 255, 255]), ("b", [0, 0, 0])):
        write_pair(root, name, ids, images, masks)
        mask = Image.fromarray(np.array([ids], np.uint8))
        mask = mask.convert("RGB").quantize(2) if mode == "P" else mask.convert(mode)
        mask.save(root / masks / f"{name}.png")


@pytest.mark.parametrize(
    ("file", "text", "mode"),
    [
        *[("classes.txt", "bg\nfg\n", mode) for mode in ("L", "RGB", "1")],
        *[("class_dict.csv", BLACK_WHITE, mode) for mode in ("L", "P", "RGB", "1")],
        ("classes.csv", "name,id\nbg,0\nfg,255\n", "L"),
        ("labelmap.txt", "fg:255,255,255::\n", "L"),
    ],
)
def test_255_is_the_foreground_of_binary_masks(file: str, text: str, mode: str, tmp_path: Path) -> None:
    write_binary(tmp_path, mode)
    (tmp_path / file).write_text(text)
    data = read_segmentation(tmp_path)
    assert data.classes[1] == "fg"
    assert [class_indices(data, number) for number in (0, 1)] == [[0, 1, 1], [0, 0, 0]]
    assumed = file == "classes.txt" and mode != "1"
    assert ("assumed that 255 is the class fg" in str(data.problems)) == assumed
    assert "bad-annotation" not in check_data(tmp_path).counts


def test_other_splits_decide_whether_255_is_ignored(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_binary(tmp_path, images=f"{split}/images", masks=f"{split}/masks")
    (tmp_path / "classes.txt").write_text("bg\nfg\n")
    assert class_indices(read_segmentation(tmp_path, "train")) == [0, 1, 1]
    write_pair(tmp_path, "b", [0, 1, 255], "val/images", "val/masks")
    for split in ("train", "val"):
        assert class_indices(read_segmentation(tmp_path, split)) == [0, -1, -1]


@pytest.mark.parametrize("layout", ["voc", "three", "none"])
def test_refuses_binary_masks_without_a_foreground_class(layout: str, tmp_path: Path) -> None:
    folders = ("JPEGImages", "SegmentationClass") if layout == "voc" else ("images", "masks")
    write_binary(tmp_path, "L", *folders)
    if layout == "three":
        (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    with pytest.raises(
        ValueError, match=r"expected masks of at least two .*classes, got .*ids 0.* 255.* \.csv class file"
    ):
        read_segmentation(tmp_path)
    assert check_data(tmp_path).counts["bad-annotation"] >= 1
    if layout != "none":
        assert class_indices(read_segmentation(tmp_path, ignore=(255,))) == [0, -1, -1]


def test_names_classes_without_a_pixel() -> None:
    labels, problems = LabelMap(("a", "b", "c"), {0: 0, 1: 1, 2: 2}), Problems()
    report_classes(Path("train"), labels, [5, 0, 3], problems)
    report_classes(Path("val"), labels, [0, 2, 3], problems, trained=[5, 0, 3])
    report_classes(Path("test"), labels, [0, 0, 0], problems, trained=[5, 0, 3])
    report_classes(Path("val"), labels, [1, 0, 0], problems, trained=[5, 0, 3])
    assert [(problem.path.name, problem.kind) for problem in problems] == [
        ("train", "empty-class"),
        ("val", "untrained-class"),
        ("test", "bad-annotation"),
    ]
    assert problems[0].reason == "no pixel of b; training on this split cannot learn this class"
    assert problems[1].reason == "no training mask has the class b (2 pixels)"


def test_check_names_classes_without_a_training_pixel(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1, 1], "images/training", "annotations/training")
    write_pair(tmp_path, "b", [0, 2, 1], "images/validation", "annotations/validation")
    (tmp_path / "classes.txt").write_text("sky\nsea\nship\n")
    problems = {problem.kind: problem.reason for problem in check_data(tmp_path).problems}
    assert "no pixel of ship" in problems["empty-class"]
    assert "ship (1 pixels)" in problems["untrained-class"]


def test_validation_id_without_a_class_is_not_blamed_on_training(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1, 2], "images/training", "annotations/training")
    write_pair(tmp_path, "b", [0, 3, 1], "images/validation", "annotations/validation")
    unknown = [problem.path.name for problem in check_data(tmp_path).problems if problem.kind == "unknown-id"]
    assert unknown == ["b.png"]
