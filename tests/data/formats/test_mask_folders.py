"""Layouts of images and masks, and the mask of each image."""

import time
from pathlib import Path

import pytest

from sppnet.data.formats import mask_folders
from sppnet.data.formats.mask_folders import MaskSource, find_splits
from sppnet.data.items import Problems
from tests.helpers.segmentation_data import write_pair


def pairs(root: Path, split: str | None = None) -> tuple[dict[str, str | None], list[tuple[str, str]]]:
    """Return the mask of each image, and kind and file of each problem."""
    problems = Problems()
    part = mask_folders.read(root, split, find_splits(root)[split], problems)
    masks = {item.path.stem: item.mask.name if item.mask else None for item in part.items}
    return masks, [(problem.kind, problem.path.name) for problem in problems]


@pytest.mark.parametrize(
    ("images", "masks", "splits"),
    [
        ("images/training", "annotations/training", ("training",)),  # ADE20K
        ("img_dir/train", "ann_dir/train", ("train",)),  # mmsegmentation
        ("Training/images", "Training/masks", ("Training",)),
        ("img_dir", "ann_dir", (None,)),
        ("images/bonn", "masks/bonn", (None,)),
    ],
)
def test_finds_splits_of_folder_pairs(images: str, masks: str, splits: tuple[str | None, ...], tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1], images, masks)
    found = find_splits(tmp_path)
    assert tuple(found) == splits
    assert {source.layout for source in found.values()} == {"pairs"}
    assert list(pairs(tmp_path, splits[0])[0].values()) == ["a.png"]


@pytest.mark.parametrize(
    ("first", "second"), [("training", "validation"), ("train", "val"), ("Training", "Dev"), ("trainval", "test2017")]
)
def test_training_split_is_first(first: str, second: str, tmp_path: Path) -> None:
    for split in (second, first):
        write_pair(tmp_path, "a", [0, 1], f"images/{split}", f"annotations/{split}")
    assert list(find_splits(tmp_path)) == [first, second]


def test_ignores_files_of_operating_systems(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1], "train/images", "train/masks")
    write_pair(tmp_path, "._a", [0, 1], "train/images", "train/masks")
    write_pair(tmp_path, "a", [0, 1], "__MACOSX/images", "__MACOSX/masks")
    write_pair(tmp_path, "a", [0, 1], "train/images/@eaDir", "train/masks/@eaDir")
    assert list(find_splits(tmp_path)) == ["train"]
    assert pairs(tmp_path, "train") == ({"a": "a.png"}, [])


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        (["a", "a_mask"], ["a", "a_mask"], {"a": "a.png", "a_mask": "a_mask.png"}),
        (["a", "a_mask"], ["a_mask", "a_mask_mask"], {"a": "a_mask.png", "a_mask": "a_mask_mask.png"}),
        (["a", "b"], ["a_L", "b"], {"a": "a_L.png", "b": "b.png"}),
        (["a", "a_L", "b"], ["a", "a_L", "b_label"], {"a": "a.png", "a_L": "a_L.png", "b": "b_label.png"}),
    ],
)
def test_pairs_exact_names_first(images: list[str], masks: list[str], expected: dict[str, str], tmp_path: Path) -> None:
    for name in images:
        write_pair(tmp_path, name, [0, 1], masks="unused")
    for name in masks:
        write_pair(tmp_path, name, [0, 1], images="unused")
    assert pairs(tmp_path) == (expected, [])


def test_reports_ambiguous_masks(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", [0, 1])
    write_pair(tmp_path, "a", [0, 1], images="unused", suffix="_mask")
    write_pair(tmp_path, "b", [0, 1], masks="unused")
    write_pair(tmp_path, "b_mask", [0, 1])  # of b or b_mask
    assert pairs(tmp_path)[1] == [("bad-annotation", "a.jpg"), ("bad-annotation", "b.jpg")]


def test_reports_all_problems_of_a_list(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_pair(tmp_path, name, [0, 1], "JPEGImages", "SegmentationClass")
    (tmp_path / "SegmentationClass/b.png").unlink()
    (tmp_path / "JPEGImages/c.png").write_bytes((tmp_path / "SegmentationClass/c.png").read_bytes())
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nx\nb\na\nc\ny\n")
    (lists / "._val.txt").write_text("a\n")
    masks, problems = pairs(tmp_path, "train")
    assert masks == {"a": "a.png", "b": None, "c": "c.png"}
    assert sorted(problems) == [
        ("bad-annotation", "c.png"),
        ("bad-annotation", "train.txt"),
        ("missing", "x"),
        ("missing", "y"),
        ("no-mask", "b.jpg"),
    ]
    (lists / "train.txt").write_bytes(b"\xff\xfe")
    assert pairs(tmp_path, "train")[1][0] == ("bad-annotation", "train.txt")


def test_single_list_of_cvat_is_no_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_pair(tmp_path, name, [0, 1], "JPEGImages", "SegmentationClass")
    (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
    (tmp_path / "ImageSets/Segmentation/default.txt").write_text("b\n")
    assert list(find_splits(tmp_path)) == [None]
    assert pairs(tmp_path) == ({"b": "b.png"}, [])


def test_finds_roboflow_masks(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write_pair(tmp_path, "a", [0, 1], split, split, suffix="_mask")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")
    found = find_splits(tmp_path)
    assert found["valid"] == MaskSource("Roboflow", tmp_path, tmp_path / "valid", tmp_path / "valid")
    assert list(found) == ["train", "valid"]
    assert pairs(tmp_path, "train") == ({"a": "a_mask.png"}, [])
    (tmp_path / "train/_classes.csv").write_text("filename, cat\na.jpg, 1\n")  # classes of images, not of masks
    assert list(find_splits(tmp_path)) == ["valid"]


def test_reports_training_split_without_masks(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        write_pair(tmp_path, "a", [0, 1], f"{split}/images", f"{split}/masks")
    for split in ("train", "test"):
        (tmp_path / split / "masks/a.png").unlink()
    assert list(find_splits(tmp_path)) == ["train", "val"]  # test images often have no masks
    assert pairs(tmp_path, "train")[1] == [("no-mask", "a.jpg"), ("bad-annotation", "masks")]
    (tmp_path / "train/masks/a.txt").touch()  # not a folder of masks
    assert list(find_splits(tmp_path)) == ["val"]


@pytest.mark.slow
def test_time_is_linear_in_the_files(tmp_path: Path) -> None:
    seconds = []
    for images in (25_000, 50_000):  # and four masks for each five images
        for folder, suffix in (("images", ".jpg"), ("masks", ".png")):
            (tmp_path / folder).mkdir(exist_ok=True)
            for number in range(images - 25_000, images):
                if number % 5 or folder == "images":
                    (tmp_path / folder / f"{number}{suffix}").touch()
        started = time.process_time()
        masks, problems = pairs(tmp_path)
        seconds.append(time.process_time() - started)
        assert (len(masks), len(problems)) == (images, images // 5)
    assert seconds[1] < 3 * seconds[0]
