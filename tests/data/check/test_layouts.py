"""Layouts, and the images, classes and masks collected from them."""

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.check.run import check_data
from sppnet.data.formats.segmentation import read_segmentation
from sppnet.data.formats.table import FORMATS
from sppnet.data.items import Part, Problems
from tests.helpers.check_problems import kinds_by_path, reasons
from tests.helpers.detection_data import write_voc
from tests.helpers.images import write_classes
from tests.helpers.segmentation_data import save_mask, write_shapes


def test_recognizes_layouts(tmp_path: Path) -> None:
    for split in ("train", "val"):
        write_classes(tmp_path / "splits" / split, 1 if split == "val" else 2)
    (tmp_path / "table.csv").write_text("path,label\nsplits/val/red/0.png,red\nsplits/val/blue/0.png,blue\n")
    (tmp_path / "flat").mkdir()
    shutil.copy(tmp_path / "splits/val/red/0.png", tmp_path / "flat")
    write_voc(tmp_path / "voc", 2, 2)
    layouts = {"splits": "splits of class folders", "splits/train": "class folders", "table.csv": "CSV file"}
    layouts |= {"flat": "images", "voc": "VOC boxes"}
    for name in ("camvid", "voc", "pairs"):
        write_shapes(tmp_path / f"masks-{name}", name, 2)
    layouts |= {"masks-camvid": "CamVid masks", "masks-voc": "VOC masks", "masks-pairs": "folders of images and masks"}
    for name, layout in layouts.items():
        check = check_data(tmp_path / name)
        assert check.layout == layout
        assert not check.problems, check.problems
    shutil.copytree(tmp_path / "masks-voc/SegmentationClass", tmp_path / "voc/SegmentationClass")
    assert check_data(tmp_path / "voc").layout == "VOC boxes and VOC masks"


def test_reports_problems_of_csv_files(tmp_path: Path) -> None:
    write_classes(tmp_path, 1)
    rows = ["path,label", "red/0.png,red", "blue/0.png,blue", "red/1.png,red", "red/0.png,blue", "blue/0.png,blue"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    check = check_data(tmp_path / "table.csv")
    assert kinds_by_path(check) == [
        ("blue/0.png", "duplicate"),
        ("red/0.png", "duplicate-across-classes"),
        ("red/1.png", "missing"),
    ]
    (reason,) = reasons(check, "duplicate-across-classes")
    assert reason.endswith("table.csv, line 5 repeats the file of line 2, which has the class red instead of blue")
    (tmp_path / "table.csv").write_text("path,label\nred/0.png\n")
    assert kinds_by_path(check_data(tmp_path / "table.csv")) == [("table.csv", "bad-annotation")]


def test_reports_problems_of_masks(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "set", "camvid", {"train": 6, "val": 2}, (40, 50))
    masks = root / "trainannot"
    save_mask(np.zeros((50, 40), np.uint8), masks / "train_0.png")
    ids = np.zeros((40, 50), np.uint8)
    ids[:2, :3] = 9
    save_mask(ids, masks / "train_1.png")
    (masks / "train_2.png").unlink()
    (masks / "train_3.png").write_bytes(b"")
    Image.new("L", (50, 40)).save(masks / "train_4.png", "JPEG")
    save_mask(np.zeros((40, 50), np.uint8), masks / "spare.png")
    (root / "val/val_0.png").write_bytes(b"<html>")
    check = check_data(root)
    assert kinds_by_path(check) == [
        ("train/train_2.png", "no-mask"),
        ("trainannot/spare.png", "no-image"),
        ("trainannot/train_0.png", "mask-size"),
        ("trainannot/train_1.png", "unknown-id"),
        ("trainannot/train_3.png", "empty-file"),
        ("trainannot/train_4.png", "unreadable"),
        ("val/val_0.png", "not-an-image"),
    ]
    assert reasons(check, "unknown-id")[0].startswith("ids without a class: 9 (6 pixels)")
    assert reasons(check, "mask-size")[0].endswith("got 50 x 40")


def test_reports_validation_masks_with_ids_unknown_from_training(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "set", "pairs", 4, (40, 50), class_file=False)
    save_mask(np.full((40, 50), 3, np.uint8), root / "val/masks/val_0_mask.png")
    assert kinds_by_path(check_data(root)) == [("val/masks/val_0_mask.png", "unknown-id")]


def test_files_and_folders_that_vanish_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count, split in enumerate(("test", "val", "train")):
        write_classes(tmp_path / split, count + 1)
    known = next(known for known in FORMATS if known.name == "class-folders")

    def read_and_delete(root: Path, split: str | None, source: Path, problems: Problems) -> Part:
        if split == "val":
            shutil.rmtree(source / "red")
        part = known.read(root, split, source, problems)
        if split == "train":
            (source / "red/0.png").unlink()
            shutil.rmtree(root / "test")
        return part

    changed = known._replace(read=read_and_delete)
    monkeypatch.setattr(
        "sppnet.data.check.layouts.find_formats", lambda root, **_: [(changed, known.find_splits(root))]
    )
    check = check_data(tmp_path)
    assert kinds_by_path(check) == [("test", "missing"), ("train/red/0.png", "missing")]
    assert check.images == 9 + 4


def test_reports_unreadable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_classes(tmp_path, 1)
    known = next(known for known in FORMATS if known.name == "class-folders")

    def refuse(root: Path, split: str | None, source: Path, problems: Problems) -> Part:
        raise PermissionError(13, "Permission denied", str(source / "red"))

    changed = known._replace(read=refuse)
    monkeypatch.setattr(
        "sppnet.data.check.layouts.find_formats", lambda root, **_: [(changed, known.find_splits(root))]
    )
    check = check_data(tmp_path)
    assert kinds_by_path(check) == [("red", "unreadable")]
    assert reasons(check, "unreadable") == ["cannot be read: Permission denied"]


def test_reports_two_formats_of_one_task(tmp_path: Path) -> None:
    write_shapes(tmp_path / "set", "camvid", 2)
    write_shapes(tmp_path / "set", "voc", 2)
    with pytest.raises(ValueError, match="format: expected one of the formats"):
        read_segmentation(tmp_path / "set", "train")
    assert (".", "bad-annotation") in kinds_by_path(check_data(tmp_path / "set"))


def test_classes_with_spaces_and_unicode_forms_are_one_class(tmp_path: Path) -> None:
    write_classes(tmp_path / "train", 2)
    (tmp_path / "train/red").rename(tmp_path / "train/b\u00e4r")
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    for path in (tmp_path / "val").rglob("*.png"):
        Image.open(path).rotate(90, expand=True).save(path)
    (tmp_path / "val/b\u00e4r").rename(tmp_path / "val/ba\u0308r")
    (tmp_path / "val/blue").rename(tmp_path / "val/Blue")
    check = check_data(tmp_path)
    assert kinds_by_path(check) == [("val/Blue", "unknown-class")]
    assert reasons(check, "unknown-class") == ["no class Blue in train; did you mean blue?"]


def test_60000_classes_take_seconds(tmp_path: Path) -> None:
    root = write_shapes(tmp_path / "set", "pairs", 2, (40, 50))
    names = "\n".join(f"class {number}" for number in range(60_000))
    next(root.glob("*class*")).unlink()
    (root / "classes.txt").write_text(names)
    started = time.perf_counter()
    check = check_data(root)
    assert len(check.classes) == 60_000 * len({count.split for count in check.classes})
    assert time.perf_counter() - started < 20
