from pathlib import Path

import pytest
from PIL import Image

from sppnet.data.formats.class_folders import ClassificationData, read_classification
from sppnet.data.splits import find_split, splits


def write(root: Path, *names: str) -> Path:
    """Writes small images, or text where the name ends in .txt."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("a note")
        else:
            Image.new("RGB", (3, 2)).save(path)
    return root


def table(root: Path, text: str, encoding: str = "utf-8") -> Path:
    (root / "data.csv").write_text(text, encoding=encoding)
    return root / "data.csv"


def named(data: ClassificationData, root: Path) -> list[tuple[str, str]]:
    return [(str(sample.path.relative_to(root)), data.classes[sample.label]) for sample in data.samples]


def test_folder_of_class_folders(tmp_path: Path) -> None:
    write(tmp_path, "dog/2.jpg", "dog/1.PNG", "cat/deep/3.jpg", "cat/9.webp")
    write(tmp_path, "cat/notes.txt", "cat/.DS_Store.txt", ".cache/x.jpg", "README.txt", "stray.jpg")
    data = read_classification(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert [sample.label for sample in data.samples] == [0, 0, 1, 1]
    assert named(data, tmp_path) == [
        ("cat/9.webp", "cat"),
        ("cat/deep/3.jpg", "cat"),
        ("dog/1.PNG", "dog"),
        ("dog/2.jpg", "dog"),
    ]
    assert data.root == tmp_path
    assert data.skipped == (tmp_path / "stray.jpg", tmp_path / "cat/notes.txt")


def test_a_class_folder_without_an_image_is_no_class(tmp_path: Path) -> None:
    write(tmp_path, "cat/1.jpg", "dog/2.jpg", "gnu/notes.txt", "owl/.hidden.jpg")
    data = read_classification(tmp_path)
    assert data.classes == ("cat", "dog")
    assert data.skipped == (tmp_path / "gnu/notes.txt", tmp_path / "gnu", tmp_path / "owl")
    given = read_classification(tmp_path, classes=("cat", "cow", "dog"))
    assert [sample.label for sample in given.samples] == [0, 2]


def test_linked_class_folders_are_followed(tmp_path: Path) -> None:
    write(tmp_path, "store/a/1.jpg", "data/b/2.jpg")
    (tmp_path / "data/a").symlink_to(tmp_path / "store/a")
    assert named(read_classification(tmp_path / "data"), tmp_path) == [
        ("data/a/1.jpg", "a"),
        ("data/b/2.jpg", "b"),
    ]


def test_splits(tmp_path: Path) -> None:
    write(tmp_path, "val/a/1.jpg", "val/b/2.jpg", "train/a/3.jpg", "train/b/4.jpg", ".git/c.jpg")
    assert splits(tmp_path) == ("train", "val")
    data = read_classification(tmp_path, split="val")
    assert named(data, tmp_path) == [("val/a/1.jpg", "a"), ("val/b/2.jpg", "b")]
    assert data.root == tmp_path / "val"


def test_what_is_no_folder_of_splits(tmp_path: Path) -> None:
    write(tmp_path, "one/val/1.jpg", "two/train/1.jpg", "two/plane/1.jpg", "three/Test/1.jpg")
    assert splits(tmp_path / "one") == ()
    assert splits(tmp_path / "two") == ()
    assert splits(tmp_path / "three") == ("Test",)
    assert splits(tmp_path / "gone") == ()
    assert splits(tmp_path / "one/val/1.jpg") == ()


def test_split_errors(tmp_path: Path) -> None:
    write(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "plain/a/1.jpg", "train.txt")
    (tmp_path / "plain").rename(tmp_path.parent / f"{tmp_path.name}-plain")
    with pytest.raises(ValueError, match=r"split must be one of train, test for .*, got None"):
        read_classification(tmp_path)
    with pytest.raises(ValueError, match=r"split must be one of train, test for .* got 'tst'; did you mean test"):
        read_classification(tmp_path, split="tst")
    with pytest.raises(ValueError, match=r"split must be left out for .* no split folders, got 'train'"):
        read_classification(tmp_path.parent / f"{tmp_path.name}-plain", split="train")
    with pytest.raises(ValueError, match=r"split must be left out for .*, which is a file, got 'train'"):
        read_classification(table(tmp_path, "path,label\n"), split="train")


def test_labels_index_the_given_classes(tmp_path: Path) -> None:
    write(tmp_path, "dog/1.jpg")
    data = read_classification(tmp_path, classes=["zebra", "dog", "cat"])
    assert data.classes == ("zebra", "dog", "cat")
    assert [sample.label for sample in data.samples] == [1]


def test_class_errors(tmp_path: Path) -> None:
    write(tmp_path, "dog/1.jpg")
    with pytest.raises(ValueError, match=r"training needs two classes or more; .* has only dog"):
        read_classification(tmp_path)
    with pytest.raises(ValueError, match="not among the 2 of classes: dog; did you mean dogs"):
        read_classification(tmp_path, classes=["dogs", "cat"])
    with pytest.raises(ValueError, match="classes must be one or more different names"):
        read_classification(tmp_path, classes=["dog", "dog"])
    with pytest.raises(ValueError, match=r"classes must be one or more different names, got \[\]"):
        read_classification(tmp_path, classes=[])


def test_folder_errors(tmp_path: Path) -> None:
    write(tmp_path, "flowers/1.jpg", "flowers/2.jpg", "flowers/.3.jpg", "pets/cat/1.jpg", "pets/dog/x.txt")
    (tmp_path / "pets/owl").mkdir()
    with pytest.raises(ValueError, match=r"no data set at .*flower: no such folder or file; did you mean flowers"):
        read_classification(tmp_path / "flower")
    with pytest.raises(ValueError, match=r"no data set at .*y: no such folder or file$"):
        read_classification(tmp_path / "x/y")
    with pytest.raises(ValueError, match=r"class folders was expected; found 2 images directly in .*flowers"):
        read_classification(tmp_path / "flowers")
    with pytest.raises(ValueError, match=r"training needs two classes or more; .*pets has only cat$"):
        read_classification(tmp_path / "pets")
    (tmp_path / "pets/cat/1.jpg").unlink()
    with pytest.raises(ValueError, match=r"the class folders of .*pets must hold images; none in cat, dog, owl$"):
        read_classification(tmp_path / "pets", classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"must be a folder or a \.csv file, got .*x\.txt"):
        read_classification(tmp_path / "pets/dog/x.txt")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_file(tmp_path: Path, encoding: str) -> None:
    write(tmp_path, "in/b.jpg", "in/a, b.jpg")
    text = 'path, label, taken\nin/b.jpg,kočka,2020\n"in/a, b.jpg", dog,\n'
    data = read_classification(table(tmp_path, text, encoding))
    assert data.classes == ("dog", "kočka")
    assert named(data, tmp_path) == [("in/b.jpg", "kočka"), ("in/a, b.jpg", "dog")]
    assert data.root == tmp_path / "data.csv"
    given = read_classification(tmp_path / "data.csv", classes=("kočka", "x", "dog"))
    assert [sample.label for sample in given.samples] == [0, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"data\.csv must begin with a header .* columns path and label once each, got ''"),
        ("a.jpg,cat\n", r"must begin with a header .* got 'a\.jpg,cat'"),
        ("path,label,path\n", "once each"),
        ("path,label\n", "names no image below its header"),
        ("path,label\na.jpg,cat\n\na.jpg,dog\n", r"data\.csv, line 3: the row is empty"),
        ("path,label\n,\n", "line 2: the row is empty"),
        ("path,label\na.jpg,\n", "line 2: the label is empty"),
        ("path,label\n,cat\n", "line 2: the path is empty"),
        ("path,label\na.jpg\n", "line 2: 1 values for 2 columns"),
        ("path,label\na.jpg,cat,7\n", "line 2: 3 values for 2 columns"),
        ('path,label\n"a.jpg,cat\n', "cannot be read as a CSV file in UTF-8"),
        ("path,label\nx.jpg,cat\na.jpg,cat\ny.jpg,dog\n", r"missing: x\.jpg \(line 2\), y\.jpg \(line 4\)$"),
    ],
)
def test_csv_errors(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "a.jpg")
    with pytest.raises(ValueError, match=message):
        read_classification(table(tmp_path, text))


def test_csv_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read as a CSV file in UTF-8"):
        read_classification(table(tmp_path, "path,label\na.jpg,käse\n", "latin-1"))


def test_many_missing_files_are_counted(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,cat\n" for i in range(25))
    with pytest.raises(ValueError, match=r"9\.jpg \(line 11\) and 15 more$"):
        read_classification(table(tmp_path, "path,label\n" + rows))


def test_splits_with_other_folders_beside_them_are_refused(tmp_path: Path) -> None:
    for name in ("train/a", "val/a", "annotations"):
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has splits \(train, val\) and other folders beside them \(annotations\)"):
        splits(tmp_path)


def test_a_split_is_found_in_either_case(tmp_path: Path) -> None:
    for name in ("Train/a", "Validation/a"):
        (tmp_path / name).mkdir(parents=True)
    assert find_split(tmp_path, "train") == "Train"
    assert find_split(tmp_path, "test", "val", "validation") == "Validation"
    assert find_split(tmp_path, "test") is None


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "tram"):
        (tmp_path / name).mkdir()
    assert splits(tmp_path) == ()
