from pathlib import Path

import pytest
from PIL import Image

from sppnet.data.formats.class_folders import ClassificationData, read_classification


def write_files(root: Path, *names: str) -> Path:
    """Write small images, or text files for names ending in .txt."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("a note")
        else:
            Image.new("RGB", (3, 2)).save(path)
    return root


def labeled_names(data: ClassificationData, root: Path) -> list[tuple[str, str]]:
    return [(str(sample.path.relative_to(root)), data.classes[sample.label]) for sample in data.samples]


def test_reads_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "dog/2.jpg", "dog/1.PNG", "cat/deep/3.jpg", "cat/9.webp")
    write_files(tmp_path, "cat/notes.txt", "cat/.DS_Store.txt", ".cache/x.jpg", "README.txt", "stray.jpg")
    data = read_classification(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert [sample.label for sample in data.samples] == [0, 0, 1, 1]
    assert labeled_names(data, tmp_path) == [
        ("cat/9.webp", "cat"),
        ("cat/deep/3.jpg", "cat"),
        ("dog/1.PNG", "dog"),
        ("dog/2.jpg", "dog"),
    ]
    assert data.root == tmp_path
    assert data.skipped == (tmp_path / "stray.jpg", tmp_path / "cat/notes.txt")


def test_skips_class_folder_without_images(tmp_path: Path) -> None:
    write_files(tmp_path, "cat/1.jpg", "dog/2.jpg", "gnu/notes.txt", "owl/.hidden.jpg")
    data = read_classification(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.skipped == (tmp_path / "gnu/notes.txt", tmp_path / "gnu", tmp_path / "owl")
    data = read_classification(tmp_path, classes=("cat", "cow", "dog"))
    assert [sample.label for sample in data.samples] == [0, 2]


def test_follows_linked_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "store/a/1.jpg", "data/b/2.jpg")
    (tmp_path / "data/a").symlink_to(tmp_path / "store/a")
    assert labeled_names(read_classification(tmp_path / "data"), tmp_path) == [
        ("data/a/1.jpg", "a"),
        ("data/b/2.jpg", "b"),
    ]


def test_reads_splits(tmp_path: Path) -> None:
    write_files(tmp_path, "val/a/1.jpg", "val/b/2.jpg", "train/a/3.jpg", "train/b/4.jpg", ".git/c.jpg")
    data = read_classification(tmp_path, split="val")
    assert labeled_names(data, tmp_path) == [("val/a/1.jpg", "a"), ("val/b/2.jpg", "b")]
    assert data.root == tmp_path / "val"


def test_rejects_invalid_splits(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "plain/a/1.jpg", "train.txt")
    (tmp_path / "plain").rename(tmp_path.parent / f"{tmp_path.name}-plain")
    with pytest.raises(ValueError, match=r"split: expected one of train, test for .*, got None"):
        read_classification(tmp_path)
    with pytest.raises(ValueError, match=r"split: expected one of train, test for .* got 'tst'; did you mean test"):
        read_classification(tmp_path, split="tst")
    with pytest.raises(ValueError, match=r"split: expected none for .* no split folders, got 'train'"):
        read_classification(tmp_path.parent / f"{tmp_path.name}-plain", split="train")
    with pytest.raises(ValueError, match=r"split: expected none for .*, which is a file, got 'train'"):
        read_classification(tmp_path / "train.txt", split="train")


def test_labels_index_the_given_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "dog/1.jpg")
    data = read_classification(tmp_path, classes=["zebra", "dog", "cat"])
    assert data.classes == ("zebra", "dog", "cat")
    assert [sample.label for sample in data.samples] == [1]


def test_rejects_missing_and_duplicate_classes(tmp_path: Path) -> None:
    write_files(tmp_path, "dog/1.jpg")
    with pytest.raises(ValueError, match="expected at least two classes, got only dog"):
        read_classification(tmp_path)
    with pytest.raises(
        ValueError, match=r"classes: expected all classes of .*, got 2 names that lack dog; did you mean dogs"
    ):
        read_classification(tmp_path, classes=["dogs", "cat"])
    with pytest.raises(
        ValueError, match="classes: expected one or more distinct names, got 2 names, 1 of them distinct"
    ):
        read_classification(tmp_path, classes=["dog", "dog"])
    with pytest.raises(ValueError, match="classes: expected one or more distinct names, got 0 names"):
        read_classification(tmp_path, classes=[])


def test_rejects_other_layouts(tmp_path: Path) -> None:
    write_files(tmp_path, "flowers/1.jpg", "flowers/2.jpg", "flowers/.3.jpg", "pets/cat/1.jpg", "pets/dog/x.txt")
    (tmp_path / "pets/owl").mkdir()
    with pytest.raises(ValueError, match=r"no data set at .*flower: no such folder or file; did you mean flowers"):
        read_classification(tmp_path / "flower")
    with pytest.raises(ValueError, match=r"no data set at .*y: no such folder or file$"):
        read_classification(tmp_path / "x/y")
    with pytest.raises(ValueError, match=r"flowers: expected a folder of class folders, got 2 images and no folder$"):
        read_classification(tmp_path / "flowers")
    with pytest.raises(ValueError, match=r"pets: expected at least two classes, got only cat$"):
        read_classification(tmp_path / "pets")
    (tmp_path / "pets/cat/1.jpg").unlink()
    with pytest.raises(ValueError, match=r"pets: expected images in the class folders, got none in cat, dog, owl$"):
        read_classification(tmp_path / "pets", classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"root: expected a folder or a \.csv file, got .*x\.txt"):
        read_classification(tmp_path / "pets/dog/x.txt")


def test_reads_csv_file(tmp_path: Path) -> None:
    write_files(tmp_path, "in/b.jpg", "in/a.jpg")
    file = tmp_path / "data.csv"
    file.write_text("path,label\nin/b.jpg,kočka\nin/a.jpg,dog\n", encoding="utf-8")
    data = read_classification(file)
    assert data.classes == ("dog", "kočka")
    assert labeled_names(data, tmp_path) == [("in/b.jpg", "kočka"), ("in/a.jpg", "dog")]
    assert data.root == file
    data = read_classification(file, classes=("kočka", "x", "dog"))
    assert [sample.label for sample in data.samples] == [0, 2]
