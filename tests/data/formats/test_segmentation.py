import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.class_tables import CAMVID, VOC, read_class_file
from sppnet.data.formats.masks import IGNORE, count_pixels, load_mask
from sppnet.data.formats.segmentation import (
    SegmentationData,
    choose_segmentation_split,
    read_segmentation,
    segmentation_splits,
)
from tests.helpers.segmentation_data import CLASSES, Layout, save_mask, write_shapes

DATA = Path(__file__).parents[3] / "../shared/data"


def pair(root: Path, name: str, ids: list[int], images: str = "images", masks: str = "masks", ending: str = "") -> None:
    """An image of one row and its mask."""
    for folder in (images, masks):
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (len(ids), 1)).save(root / images / f"{name}.jpg")
    save_mask(np.array([ids], np.uint8), root / masks / f"{name}{ending}.png")


def names(data: SegmentationData) -> list[tuple[str, str]]:
    """Files of the samples, relative to the root."""
    return [
        (sample.path.relative_to(data.root).as_posix(), sample.mask.relative_to(data.root).as_posix())
        for sample in data.samples
    ]


def indices(data: SegmentationData, number: int = 0) -> list[int]:
    row: list[int] = load_mask(data.samples[number].mask, data.labels)[0].tolist()
    return row


@pytest.mark.parametrize("layout", ["camvid", "voc", "pairs"])
def test_each_layout_is_read_split_by_split(layout: Layout, tmp_path: Path) -> None:
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
        assert (counts.pixels.sum() == count * 64 * 80) == (layout != "voc")  # the rim does not count
    with pytest.raises(
        ValueError, match=r"split must be one of train, val, test for .*, got 'tain'; did you mean train"
    ):
        read_segmentation(tmp_path, "tain")
    with pytest.raises(ValueError, match=r"split must be one of train, val, test for .*, got None"):
        read_segmentation(tmp_path)
    with pytest.raises(ValueError, match=r"split: .* has train, val, test; name one of them"):
        choose_segmentation_split(tmp_path, None, "training")


def test_folders_of_images_and_masks(tmp_path: Path) -> None:
    for place, (images, masks) in {
        "one": ("images", "masks"),
        "inner": ("images/train", "masks/train"),
        "outer": ("val/images", "val/labels"),
        "ade": ("images/training", "annotations/training"),
        "towns": ("images/bonn", "masks/bonn"),
    }.items():
        pair(tmp_path / place, "b", [0, 1], images, masks)
        pair(tmp_path / place, "a", [0, 2], images, masks, ending="_L")
    one = read_segmentation(tmp_path / "one")
    assert names(one) == [("images/a.jpg", "masks/a_L.png"), ("images/b.jpg", "masks/b.png")]
    assert names(read_segmentation(tmp_path / "inner", "train"))[0] == ("images/train/a.jpg", "masks/train/a_L.png")
    assert names(read_segmentation(tmp_path / "outer", "val"))[1] == ("val/images/b.jpg", "val/labels/b.png")
    ade = read_segmentation(tmp_path / "ade", "training")
    assert names(ade)[1] == ("images/training/b.jpg", "annotations/training/b.png")
    towns = read_segmentation(tmp_path / "towns")
    assert names(towns)[0] == ("images/bonn/a.jpg", "masks/bonn/a_L.png")
    splits = {path.name: segmentation_splits(path) for path in tmp_path.iterdir()}
    assert splits == {"one": (), "inner": ("train",), "outer": ("val",), "ade": ("training",), "towns": ()}
    with pytest.raises(ValueError, match=r"split must be left out for .*one, which has no splits, got 'train'"):
        read_segmentation(tmp_path / "one", "train")


def test_what_lacks_its_other_half_is_a_problem(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        pair(tmp_path, name, [0, 1])
    (tmp_path / "images/b.jpg").unlink()
    (tmp_path / "masks/c.png").unlink()
    data = read_segmentation(tmp_path)
    assert names(data) == [("images/a.jpg", "masks/a.png")]
    assert data.problems == (
        f"{tmp_path}/images: images without a mask in {tmp_path}/masks: c; left out",
        f"{tmp_path}/masks: masks without an image in {tmp_path}/images: {tmp_path}/masks/b.png; left out",
    )
    (tmp_path / "images/a.jpg").rename(tmp_path / "images/d.jpg")
    with pytest.raises(
        ValueError, match=r"masks has no mask for any of the 2 images of .*images; a mask must have its"
    ):
        read_segmentation(tmp_path)


def test_one_image_and_one_mask_of_a_name(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 1])
    shutil.copy(tmp_path / "masks/a.png", tmp_path / "masks/a_mask.png")
    with pytest.raises(ValueError, match=r"one mask for the image .*images/a\.jpg, got .*a\.png, .*a_mask\.png"):
        read_segmentation(tmp_path)
    (tmp_path / "masks/a_mask.png").unlink()
    Image.new("RGB", (2, 1)).save(tmp_path / "images/a.png")
    with pytest.raises(ValueError, match=r"images must have one image for each name .*a\.jpg, .*a\.png"):
        read_segmentation(tmp_path)


def test_voc_takes_its_own_lists_first(tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit/VOC2012"
    for name, ids in {"a": [0, 255], "b": [20, 3], "c": [0, 0]}.items():
        pair(root, name, ids, "JPEGImages", "SegmentationClass")
    (root / "SegmentationClass/c.png").unlink()
    everything = read_segmentation(tmp_path)
    assert (everything.root, segmentation_splits(tmp_path)) == (root, ())
    assert [sample.path.stem for sample in everything.samples] == ["a", "b"]
    main, own = root / "ImageSets/Main", root / "ImageSets/Segmentation"
    main.mkdir(parents=True)
    (main / "train.txt").write_text("c\nb\na\n")
    (main / "cat_train.txt").write_text("b -1\na 1\n")
    assert segmentation_splits(tmp_path) == ("train",)
    data = read_segmentation(tmp_path, "train")
    assert [sample.path.stem for sample in data.samples] == ["b", "a"]
    assert data.problems == (f"{root}/JPEGImages: images without a mask in {root}/SegmentationClass: c; left out",)
    assert (data.classes, data.labels.ignore) == (VOC, (255,))
    assert [indices(data, number) for number in (0, 1)] == [[20, 3], [0, IGNORE]]
    own.mkdir()
    (own / "val.txt").write_text("a\n")
    assert segmentation_splits(tmp_path) == ("val",)
    (own / "val.txt").write_text("a\nx\n")
    with pytest.raises(ValueError, match=r"JPEGImages lacks images of .*val\.txt: x"):
        read_segmentation(tmp_path, "val")
    (own / "val.txt").write_text("a\nb\na\n")
    with pytest.raises(ValueError, match=r"val\.txt must name each image of a split once; these come again: a"):
        read_segmentation(tmp_path, "val")


def test_camvid_is_known_by_its_greatest_id(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 10, 11, 255], "train", "trainannot")
    data = read_segmentation(tmp_path, "train")
    assert (data.classes, data.labels.ignore) == (CAMVID, (11, 255))
    assert indices(data) == [0, 10, IGNORE, IGNORE]
    for greatest in (3, 12):  # another data set in folders of the same names
        pair(tmp_path, "a", [0, greatest, 255], "train", "trainannot")
        data = read_segmentation(tmp_path, "train")
        assert data.classes == tuple(f"class {value}" for value in range(greatest + 1))
        assert data.labels.ignore == (255,)
    # Names of CamVid are taken at their word.
    pair(tmp_path, "a", [0, 3, 11], "train", "trainannot")
    turned = read_segmentation(tmp_path, "train", CAMVID[::-1])
    assert indices(turned) == [10, 7, IGNORE]
    (tmp_path / "classes.txt").write_text("\n".join("abcdefghijkl"))
    assert indices(read_segmentation(tmp_path, "train")) == [0, 3, 11]


def test_ids_without_names_are_numbered(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 4, 255])
    pair(tmp_path, "b", [1, 2, 2])
    data = read_segmentation(tmp_path)
    assert data.classes == ("class 0", "class 1", "class 2", "class 3", "class 4")
    assert indices(data) == [0, 4, IGNORE]
    ignored = read_segmentation(tmp_path, ignore=(0, 4, 255))
    assert ignored.classes == ("class 1", "class 2")
    assert [indices(ignored, number) for number in (0, 1)] == [[IGNORE] * 3, [0, 1, 1]]
    # The names of a network that was trained so find their ids again.
    again = read_segmentation(tmp_path, classes=ignored.classes, ignore=(0, 4, 255))
    assert again.labels == ignored.labels


def test_masks_of_one_class_only_need_a_class_file(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 255, 255])
    message = (
        "masks must show two classes or more; those of .* have the ids 0, 255, of which 255 is ignored; a class file"
        " .csv with the columns name,id names classes of any ids"
    )
    with pytest.raises(ValueError, match=message):
        read_segmentation(tmp_path)
    (tmp_path / "classes.csv").write_text("name,id\nnothing,0\ncell,255\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, data.labels.ignore, indices(data)) == (("nothing", "cell"), (), [0, 1, 1])
    data = read_segmentation(tmp_path, ignore=(255,))
    assert (data.classes, indices(data)) == (("nothing",), [0, IGNORE, IGNORE])


def test_masks_without_ids_or_with_too_many_are_refused(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 1])
    Image.fromarray(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8)).save(tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match=r"the ids none, .*; the first of 1 that cannot be read: .* in colours"):
        read_segmentation(tmp_path)
    Image.fromarray(np.array([[26_001, 7]], np.uint16)).save(tmp_path / "masks/a.png")
    with pytest.raises(ValueError, match=r"ids without names must be below 1000; .* the ids 7, 26001; give a class"):
        read_segmentation(tmp_path)


def test_class_files(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 2, 255])
    (tmp_path / "classes.txt").write_text("wall\ndoor \nwindow\n\n", encoding="utf-8-sig")
    data = read_segmentation(tmp_path)
    assert (data.classes, indices(data)) == (("wall", "door", "window"), [0, 2, IGNORE])
    file = tmp_path / "my.csv"
    file.write_text("Name, id, supercategory\ndoor, 2, x\nwall, 0, x\n\n")
    for data in (read_segmentation(tmp_path, classes=str(file)), read_segmentation(tmp_path, class_file=file)):
        assert (data.classes, indices(data)) == (("wall", "door"), [0, 1, IGNORE])
    both = read_segmentation(tmp_path, classes=["a", "door", "wall"], class_file=file)
    assert (both.classes, indices(both)) == (("a", "door", "wall"), [2, 1, IGNORE])
    with pytest.raises(ValueError, match=r"classes must be names where class_file is given, got the file x\.txt"):
        read_segmentation(tmp_path, classes="x.txt", class_file=file)
    (tmp_path / "classes.csv").write_text("name\na\n")
    with pytest.raises(ValueError, match=r"must have one class file, got .*classes\.txt, .*classes\.csv"):
        read_segmentation(tmp_path)


def test_colours_of_a_class_file(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 0, 0])
    pixels = np.array([[[64, 0, 128], [0, 0, 0], [64, 0, 129]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "masks/a.png")
    rows = "name,r,g,b\nSky,64,0,129\nCar,64,0,128\n"
    (tmp_path / "class_dict.csv").write_text(rows + "Void,0,0,0\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, indices(data)) == (("Sky", "Car", "Void"), [1, 2, 0])
    data = read_segmentation(tmp_path, ignore=(2,))
    assert (data.classes, indices(data)) == (("Sky", "Car"), [1, IGNORE, 0])
    turned = read_segmentation(tmp_path, classes=["Car", "Sky"], ignore=(2,))
    assert indices(turned) == [0, IGNORE, 1]
    (tmp_path / "class_dict.csv").write_text("name,id,r,g,b\nSky,0,64,0,129\nCar,1,64,0,128\nvoid,-1,0,0,0\n")
    data = read_segmentation(tmp_path)
    assert (data.classes, indices(data)) == (("Sky", "Car"), [1, IGNORE, 0])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.json", "{}", r"a class file must be \.txt or \.csv, got .*c\.json"),
        ("c.txt", "", r"c\.txt must name a class or more, got none"),
        ("c.txt", "a\n\nb\n", r"c\.txt must have a name in every line, for its number is the id; empty: 2"),
        ("c.txt", "a\nb\na\n", r"c\.txt must have each name once, a comes again"),
        ("c.csv", "label\na\n", r"header of name and perhaps id and r, g, b, each once, got 'label'"),
        ("c.csv", "name,r,g\na,1,2\n", "header of name and perhaps id and r, g, b, each once, got 'name,r,g'"),
        ("c.csv", "name,id\na,1,2\n", r"c\.csv, line 2: 3 values for 2 columns"),
        ("c.csv", "name,id\n,1\n", r"c\.csv, line 2: the name is empty"),
        ("c.csv", "name,id\na,x\n", r"c\.csv, line 2: id must be a whole number of -1 to 65535, got 'x'"),
        ("c.csv", "name,id\na,65536\n", "id must be a whole number of -1 to 65535, got '65536'"),
        ("c.csv", "name,r,g,b\na,1,256,1\n", "g must be a whole number of 0 to 255, got '256'"),
        ("c.csv", "name,id\na,1\nb,1\n", r"c\.csv must have each id once, 1 comes again"),
        ("c.csv", "name,r,g,b\na,1,2,3\nb,1,2,3\n", r"must have each colour once, \(1, 2, 3\) comes again"),
        ("c.csv", 'name\n"a', r"c\.csv cannot be read as text in UTF-8"),
    ],
)
def test_a_class_file_with_a_mistake_is_refused(name: str, text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_class_file(tmp_path / name)


def test_names_of_a_network_find_the_classes(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 2, 1])
    assert indices(read_segmentation(tmp_path, classes=["a", "b", "c"])) == [0, 2, 1]
    (tmp_path / "classes.txt").write_text("wall\ndoor\nwindow\n")
    network = ["window", "roof", "wall", "door"]
    data = read_segmentation(tmp_path, classes=network)
    assert (data.classes, indices(data)) == (tuple(network), [2, 0, 3])
    message = "has classes that are not among the 3 of classes: window; did you mean windows"
    with pytest.raises(ValueError, match=message):
        read_segmentation(tmp_path, classes=["wall", "door", "windows"])


def test_voc_names_find_the_classes(tmp_path: Path) -> None:
    pair(tmp_path, "a", [0, 20, 255], "JPEGImages", "SegmentationClass")
    assert indices(read_segmentation(tmp_path, classes=["x", *VOC[::-1]])) == [21, 1, IGNORE]
    with pytest.raises(ValueError, match=r"classes that are not among the 2 of classes: aeroplane, bicycle, .* more"):
        read_segmentation(tmp_path, classes=["background", "cell"])


def test_what_is_no_segmentation_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "segm").mkdir()
    with pytest.raises(ValueError, match=r"no data set at .*seg: no such folder or file; did you mean segm"):
        read_segmentation(tmp_path / "seg")
    # COCO: a folder named annotations, without masks.
    (tmp_path / "images").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be a folder with SPLIT and SPLITannot .* masks, annotations or labels"):
        read_segmentation(tmp_path)
    assert segmentation_splits(tmp_path) == segmentation_splits(tmp_path / "none") == ()
    pair(tmp_path, "a", [0, 1])
    pair(tmp_path, "a", [0, 1], masks="labels")
    with pytest.raises(ValueError, match=r"must have one folder of masks, got .*masks, .*labels"):
        read_segmentation(tmp_path)
    shutil.rmtree(tmp_path / "labels")
    pair(tmp_path, "a", [0, 1], "val", "valannot")
    with pytest.raises(ValueError, match=r"root must have one layout of segmentation data, got masks in .*valannot, "):
        read_segmentation(tmp_path)
    with pytest.raises(
        ValueError, match=r"classes must be a class file, or one or more different names, got \['a', 'a'\]"
    ):
        read_segmentation(tmp_path, classes=["a", "a"])
    with pytest.raises(ValueError, match=r"ignore must be ids of 0 to 65535, got \[-1\]"):
        read_segmentation(tmp_path, ignore=[-1])


@pytest.mark.skipif(not (DATA / "camvid").is_dir(), reason="needs ../shared/data")
def test_camvid_as_it_is() -> None:
    data = read_segmentation(DATA / "camvid", "val")
    assert (len(data.samples), data.classes) == (101, CAMVID)
    (told,) = data.problems
    assert "taken for CamVid, since no id of the masks is above 11: 11 does not count" in told
    counts = count_pixels(data.samples, data.labels)
    assert counts.failures == []
    assert counts.pixels.sum() < 101 * 360 * 480
    assert counts.pixels.min() > 90_000


@pytest.mark.skipif(not (DATA / "coco20").is_dir(), reason="needs ../shared/data")
def test_voc_as_it_is() -> None:
    data = read_segmentation(DATA / "coco20", "val")
    assert (len(data.samples), data.classes, len(data.problems)) == (34, VOC, 1)
    counts = count_pixels(data.samples, data.labels)
    assert counts.failures == []
    assert data.classes[int(counts.pixels[1:].argmax()) + 1] == "person"
