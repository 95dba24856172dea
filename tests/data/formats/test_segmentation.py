import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.class_tables import CAMVID, VOC
from sppnet.data.formats.masks import IGNORE, count_pixels
from sppnet.data.formats.segmentation import (
    SegmentationData,
    choose_segmentation_split,
    read_segmentation,
    segmentation_splits,
)
from tests.helpers.segmentation_data import CLASSES, Layout, class_indices, write_pair, write_shapes

DATA = Path(__file__).parents[3] / "../shared/data"


def names(data: SegmentationData) -> list[tuple[str, str]]:
    """Return the files of the samples, relative to the root."""
    return [
        (sample.path.relative_to(data.root).as_posix(), Path(str(sample.mask)).relative_to(data.root).as_posix())
        for sample in data.samples
    ]


@pytest.mark.parametrize("layout", ["camvid", "voc", "pairs"])
def test_reads_splits_of_each_layout(layout: Layout, tmp_path: Path) -> None:
    write_shapes(tmp_path, layout, {"test": 2, "val": 1, "train": 3})
    assert segmentation_splits(tmp_path) == ("train", "val", "test")
    assert choose_segmentation_split(tmp_path, None, "training", "train") == "train"
    for split, count in (("train", 3), ("val", 1), ("test", 2)):
        data = read_segmentation(str(tmp_path), split)
        assert (data.root, data.classes, data.problems) == (tmp_path, CLASSES, ())
        assert [sample.path.stem for sample in data.samples] == [f"{split}_{number}" for number in range(count)]
        counts = count_pixels(data.samples, data.labels)
        assert counts.failures == []
        assert (counts.pixels > 0).tolist().count(True) >= 2
        assert (counts.pixels.sum() == count * 64 * 80) == (layout != "voc")  # the rim is ignored
    with pytest.raises(
        ValueError, match=r"split: expected one of train, val, test for .*, got 'tain'; did you mean train"
    ):
        read_segmentation(tmp_path, "tain")
    with pytest.raises(ValueError, match=r"split: expected one of train, val, test for .*, got None"):
        read_segmentation(tmp_path)
    with pytest.raises(ValueError, match=r"split: expected one of train, val, test for .*, got none"):
        choose_segmentation_split(tmp_path, None, "holdout")


def test_chooses_usual_splits_in_any_case(tmp_path: Path) -> None:
    write_shapes(tmp_path, "pairs", {"Train": 1, "VAL": 1})
    assert choose_segmentation_split(tmp_path, None, "test", "val") == "VAL"
    assert choose_segmentation_split(tmp_path, "other", "test", "val") == "other"


def test_reads_folders_of_images_and_masks(tmp_path: Path) -> None:
    for layout, (images, masks) in {
        "flat": ("images", "masks"),
        "inner": ("images/train", "masks/train"),
        "outer": ("val/images", "val/labels"),
        "ade": ("images/training", "annotations/training"),
        "towns": ("images/bonn", "masks/bonn"),
    }.items():
        write_pair(tmp_path / layout, "b", [0, 1], images, masks)
        write_pair(tmp_path / layout, "a", [0, 2], images, masks, suffix="_L")
    flat = read_segmentation(tmp_path / "flat")
    assert names(flat) == [("images/a.jpg", "masks/a_L.png"), ("images/b.jpg", "masks/b.png")]
    assert names(read_segmentation(tmp_path / "inner", "train"))[0] == ("images/train/a.jpg", "masks/train/a_L.png")
    assert names(read_segmentation(tmp_path / "outer", "val"))[1] == ("val/images/b.jpg", "val/labels/b.png")
    ade = read_segmentation(tmp_path / "ade", "training")
    assert names(ade)[1] == ("images/training/b.jpg", "annotations/training/b.png")
    towns = read_segmentation(tmp_path / "towns")
    assert names(towns)[0] == ("images/bonn/a.jpg", "masks/bonn/a_L.png")
    splits = {path.name: segmentation_splits(path) for path in tmp_path.iterdir()}
    assert splits == {"flat": (), "inner": ("train",), "outer": ("val",), "ade": ("training",), "towns": ()}
    with pytest.raises(ValueError, match=r"split: expected none for .*flat, which has no splits, got 'train'"):
        read_segmentation(tmp_path / "flat", "train")


def test_skips_and_reports_images_and_masks_without_counterpart(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name, [0, 1])
    (tmp_path / "images/b.jpg").unlink()
    (tmp_path / "masks/c.png").unlink()
    data = read_segmentation(tmp_path)
    assert names(data) == [("images/a.jpg", "masks/a.png")]
    assert data.problems == (
        f"{tmp_path}/images/c.jpg: no mask of this name in {tmp_path}/masks; skipped",
        f"{tmp_path}/masks/b.png: no image of this name in {tmp_path}/images; skipped",
    )
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/d.jpg")
    with pytest.raises(ValueError, match=r"masks: expected masks of the 2 images of .*images, got none; name a mask"):
        read_segmentation(tmp_path)


def test_rejects_ambiguous_images_and_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1])
    shutil.copy(tmp_path / "masks/a.png", tmp_path / "masks/a_mask.png")
    with pytest.raises(
        ValueError, match=r"images/a\.jpg: expected one mask for this image, got .*a\.png, .*a_mask\.png"
    ):
        read_segmentation(tmp_path)
    (tmp_path / "masks/a_mask.png").unlink()
    Image.new("RGB", (2, 1)).save(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected one image for each name, got this file and .*a\.jpg"):
        read_segmentation(tmp_path)


def test_prefers_segmentation_lists_of_voc(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    for name, ids in {"a": [0, 255], "b": [20, 3], "c": [0, 0]}.items():
        write_pair(root, name, ids, "JPEGImages", "SegmentationClass")
    (root / "SegmentationClass/c.png").unlink()
    without_lists = read_segmentation(tmp_path)
    assert (without_lists.root, segmentation_splits(tmp_path)) == (root, ())
    assert [sample.path.stem for sample in without_lists.samples] == ["a", "b"]
    main, segmentation = root / "ImageSets/Main", root / "ImageSets/Segmentation"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("c\nb\na\n")
    (main / "cat_train.txt").write_text("b -1\na 1\n")
    assert segmentation_splits(tmp_path) == ("train",)
    data = read_segmentation(tmp_path, "train")
    assert [sample.path.stem for sample in data.samples] == ["b", "a"]
    assert data.problems == (f"{root}/JPEGImages/c.jpg: no mask of this name in {root}/SegmentationClass; skipped",)
    assert (data.classes, data.labels.ignore) == (VOC, (255,))
    assert [class_indices(data, number) for number in (0, 1)] == [[20, 3], [0, IGNORE]]
    segmentation.mkdir()
    (segmentation / "val.txt").write_text("a\n")
    assert segmentation_splits(tmp_path) == ("val",)
    (segmentation / "val.txt").write_text("a\nx\n")
    with pytest.raises(ValueError, match=r"JPEGImages/x: no image of this name, but .*val\.txt lists it"):
        read_segmentation(tmp_path, "val")
    (segmentation / "val.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"val\.txt: expected each image once, got a again"):
        read_segmentation(tmp_path, "val")


def test_detects_camvid_by_its_largest_id(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 10, 11, 255], "train", "trainannot")
    data = read_segmentation(tmp_path, "train")
    assert (data.classes, data.labels.ignore) == (CAMVID, (11, 255))
    assert class_indices(data) == [0, 10, IGNORE, IGNORE]
    for largest in (3, 12):  # other data sets with the folder names of CamVid
        write_pair(tmp_path, "a", [0, largest, 255], "train", "trainannot")
        data = read_segmentation(tmp_path, "train")
        assert data.classes == tuple(f"class {value}" for value in range(largest + 1))
        assert data.labels.ignore == (255,)
    # With the names of CamVid given, the ids are not checked.
    write_pair(tmp_path, "a", [0, 3, 11], "train", "trainannot")
    reversed_order = read_segmentation(tmp_path, "train", CAMVID[::-1])
    assert class_indices(reversed_order) == [10, 7, IGNORE]
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghijkl"))
    assert class_indices(read_segmentation(tmp_path, "train")) == [0, 3, 11]


def test_numbers_classes_without_names(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 4, 255])
    write_pair(tmp_path, "b", [1, 2, 2])
    data = read_segmentation(tmp_path)
    assert data.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert class_indices(data) == [0, 4, IGNORE]
    ignored = read_segmentation(tmp_path, ignore=(0, 4, 255))
    assert ignored.classes == ("class 1", "class 2")
    assert [class_indices(ignored, number) for number in (0, 1)] == [[IGNORE] * 3, [0, 1, 1]]
    # The names of a network trained on these classes are mapped back to the ids.
    reread = read_segmentation(tmp_path, classes=ignored.classes, ignore=(0, 4, 255))
    assert reread.labels == ignored.labels


def test_requires_class_file_for_masks_of_one_class(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 255, 255])
    message = r"expected masks of at least two classes, got ids 0, 255 \(ignored: 255\); give a \.csv class file"
    with pytest.raises(ValueError, match=message):
        read_segmentation(tmp_path)
    (tmp_path / "classes.csv").write_text("name,id\nnothing,0\ncell,255\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, data.labels.ignore, class_indices(data)) == (("nothing", "cell"), (), [0, 1, 1])
    data = read_segmentation(tmp_path, ignore=(255,))
    assert (data.classes, class_indices(data)) == (("nothing",), [0, IGNORE, IGNORE])


def test_rejects_color_masks_and_large_ids_without_class_file(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1])
    Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8)).save(tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match=r"got ids none .*; the first of 1 unreadable masks: .* has colors"):
        read_segmentation(tmp_path)
    Image.fromarray(np.array([[26_001, 7]], np.uint16)).save(tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match=r"expected mask ids below 1000, got 7, 26001; give a class file"):
        read_segmentation(tmp_path)


def test_maps_classes_by_given_names(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 2, 1])
    assert class_indices(read_segmentation(tmp_path, classes=["a", "b", "c"])) == [0, 2, 1]
    (tmp_path / "classes.txt").write_text("wall\ndoor\nwindow\n")
    model_classes = ["window", "roof", "wall", "door"]
    data = read_segmentation(tmp_path, classes=model_classes)
    assert (data.classes, class_indices(data)) == (tuple(model_classes), [2, 0, 3])
    message = "classes: expected all classes of .*, got 3 names that lack window; did you mean windows"
    with pytest.raises(ValueError, match=message):
        read_segmentation(tmp_path, classes=["wall", "door", "windows"])


def test_maps_voc_classes_by_given_names(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 20, 255], "JPEGImages", "SegmentationClass")
    assert class_indices(read_segmentation(tmp_path, classes=["x", *VOC[::-1]])) == [21, 1, IGNORE]
    with pytest.raises(ValueError, match=r"classes: expected all .*, got 2 names that lack aeroplane, .* more"):
        read_segmentation(tmp_path, classes=["background", "cell"])


def test_rejects_other_layouts_and_invalid_arguments(tmp_path: Path) -> None:
    (tmp_path / "segm").mkdir()
    with pytest.raises(ValueError, match=r"no data set at .*seg: no such folder or file; did you mean segm"):
        read_segmentation(tmp_path / "seg")
    # The annotations folder of COCO contains no masks.
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text("{}")
    with pytest.raises(ValueError, match=r"root: expected a data set in one of the formats camvid, voc-masks, .*"):
        read_segmentation(tmp_path)
    assert segmentation_splits(tmp_path) == segmentation_splits(tmp_path / "none") == ()
    write_pair(tmp_path, "a", [0, 1])
    write_pair(tmp_path, "a", [0, 1], masks="labels")
    with pytest.raises(ValueError, match=r"expected one folder of masks, got .*masks, .*labels"):
        read_segmentation(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    write_pair(tmp_path, "a", [0, 1], "val", "valannot")
    with pytest.raises(ValueError, match=r"expected one of the formats found in .*, camvid, mask-folders, got none"):
        read_segmentation(tmp_path)
    assert read_segmentation(tmp_path, format="mask-folders").classes == ("class 0", "class 1")
    with pytest.raises(ValueError, match="classes: expected one or more distinct names, got 2 names, 1 of them"):
        read_segmentation(tmp_path, classes=["a", "a"])
    with pytest.raises(ValueError, match=r"ignore: expected ids from 0 to 65535, got \[-1\]"):
        read_segmentation(tmp_path, ignore=[-1])


@pytest.mark.skipif(not (DATA / "camvid").is_dir(), reason="needs ../shared/data")
def test_reads_camvid() -> None:
    data = read_segmentation(DATA / "camvid", "val")
    assert (len(data.samples), data.classes) == (101, CAMVID)
    (problem,) = data.problems
    assert "assumed to be CamVid, since no mask id is above 11; id 11 is ignored" in problem
    counts = count_pixels(data.samples, data.labels)
    assert counts.failures == []
    assert counts.pixels.sum() < 101 * 360 * 480
    assert counts.pixels.min() > 90_000


@pytest.mark.skipif(not (DATA / "coco20").is_dir(), reason="needs ../shared/data")
def test_reads_coco20() -> None:
    data = read_segmentation(DATA / "coco20", "val")
    assert (len(data.samples), data.classes) == (34, VOC)
    assert all("no mask of this name" in problem for problem in data.problems)
    counts = count_pixels(data.samples, data.labels)
    assert counts.failures == []
    assert data.classes[int(counts.pixels[1:].argmax()) + 1] == "person"
