"""Classification data in any format, as training and evaluation read them."""

from pathlib import Path

import pytest

from sppnet.data.formats.classification import (
    ClassificationData,
    choose_classification_split,
    find_classes,
    read_classification,
    report_unknown,
)
from sppnet.data.items import Item, Part, Problems
from tests.helpers.images import write_files


def labeled_names(data: ClassificationData, root: Path) -> list[tuple[str, str]]:
    return [(str(sample.path.relative_to(root)), data.classes[sample.label]) for sample in data.samples]


def write_csv(root: Path, text: str) -> Path:
    (root / "data.csv").write_text(text, encoding="utf-8")
    return root / "data.csv"


def test_reads_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "dog/2.jpg", "cat/deep/3.jpg", "cat/notes.txt", "gnu/.hidden.jpg")
    data = read_classification(str(tmp_path))
    assert data.classes == ("cat", "dog")
    assert labeled_names(data, tmp_path) == [("cat/deep/3.jpg", "cat"), ("dog/2.jpg", "dog")]
    assert data.root == tmp_path
    assert data.problems == (
        f"{tmp_path}/cat/notes.txt: skipped, not an image by its extension",
        f"{tmp_path}/gnu: class folder without images, not used as a class",
    )
    data = read_classification(tmp_path, classes=("cat", "cow", "dog"))
    assert [sample.label for sample in data.samples] == [0, 2]


def test_reads_splits(tmp_path: Path) -> None:
    write_files(tmp_path, "val/a/1.jpg", "val/b/2.jpg", "train/a/3.jpg", "train/b/4.jpg", ".git/c.jpg")
    data = read_classification(tmp_path, split="val")
    assert labeled_names(data, tmp_path) == [("val/a/1.jpg", "a"), ("val/b/2.jpg", "b")]
    assert data.root == tmp_path / "val"


def test_chooses_splits_by_role(tmp_path: Path) -> None:
    write_files(tmp_path, "Training/a/1.jpg", "Training/b/1.jpg", "dev/a/1.jpg")
    assert choose_classification_split(tmp_path, None, "train") == "Training"
    assert choose_classification_split(tmp_path, "val") == "dev"
    with pytest.raises(ValueError, match=r"split: expected one of Training, dev for .*, got none"):
        choose_classification_split(tmp_path, None, "test")
    assert choose_classification_split(tmp_path / "Training", None, "train") is None


def test_rejects_invalid_splits(tmp_path: Path) -> None:
    write_files(
        tmp_path, "all/train/a/1.jpg", "all/train/b/1.jpg", "all/test/a/1.jpg", "plain/a/1.jpg", "plain/b/1.jpg"
    )
    file = write_csv(tmp_path, "path,label\nplain/a/1.jpg,a\n")
    root = tmp_path / "all"
    with pytest.raises(ValueError, match=r"split: expected one of train, test for .*, got None"):
        read_classification(root)
    with pytest.raises(ValueError, match=r"split: expected one of train, test for .* got 'tst'; did you mean test"):
        read_classification(root, split="tst")
    with pytest.raises(ValueError, match=r"split: expected none for .* no split folders, got 'train'"):
        read_classification(tmp_path / "plain", split="train")
    with pytest.raises(ValueError, match=r"split: expected none for .*, which is a file, got 'train'"):
        read_classification(file, split="train")


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
    with pytest.raises(ValueError, match=r"no data set at .*flower: no such folder or file; did you mean flowers"):
        read_classification(tmp_path / "flower")
    with pytest.raises(ValueError, match=r"no data set at .*y: no such folder or file$"):
        read_classification(tmp_path / "x/y")
    with pytest.raises(
        ValueError, match=r"expected a data set in one of the formats csv, .*class-folders, got .*flowers"
    ):
        read_classification(tmp_path / "flowers")
    with pytest.raises(ValueError, match=r"pets: expected at least two classes, got only cat$"):
        read_classification(tmp_path / "pets")
    with pytest.raises(ValueError, match=r"expected a data set in one of the formats .*, got .*x\.txt"):
        read_classification(tmp_path / "pets/dog/x.txt")
    with pytest.raises(ValueError, match=r"format: expected the format of .*, got csv"):
        read_classification(tmp_path / "pets", format="csv")


def test_reads_csv_file(tmp_path: Path) -> None:
    write_files(tmp_path, "in/b.jpg", "in/a.jpg")
    file = write_csv(tmp_path, "path,label\nin/b.jpg,kočka\nin/a.jpg,dog\n")
    data = read_classification(file)
    assert data.classes == ("dog", "kočka")
    assert labeled_names(data, tmp_path) == [("in/b.jpg", "kočka"), ("in/a.jpg", "dog")]
    assert data.root == file
    data = read_classification(file, classes=("kočka", "x", "dog"), format="csv")
    assert [sample.label for sample in data.samples] == [0, 2]


def test_labels_with_spaces_and_in_other_unicode_forms_are_one_class(tmp_path: Path) -> None:
    write_files(tmp_path, *(f"{number}.jpg" for number in range(5)))
    labels = ["x ", "x", "b\u00e4r", "ba\u0308r", "y"]
    rows = "".join(f"{number}.jpg,{label}\n" for number, label in enumerate(labels))
    data = read_classification(write_csv(tmp_path, "path,label\n" + rows))
    assert data.classes == ("b\u00e4r", "x", "y")
    assert [sample.label for sample in data.samples] == [1, 1, 0, 0, 2]
    assert [problem.partition("data.csv: ")[2] for problem in data.problems] == [
        "expected one form of the class x, got 'x ', 'x'; read as one class",
        "expected one form of the class b\u00e4r, got 'b\\xe4r', 'ba\\u0308r'; read as one class",
    ]
    given = read_classification(tmp_path / "data.csv", classes=("ba\u0308r", "y", "x"))
    assert given.classes == ("ba\u0308r", "y", "x")
    assert [sample.label for sample in given.samples] == [2, 2, 0, 0, 1]


def test_folders_in_two_unicode_forms_are_one_class(tmp_path: Path) -> None:
    write_files(tmp_path, "b\u00e4r/1.jpg", "ba\u0308r/2.jpg", "cat/3.jpg")
    data = read_classification(tmp_path)
    assert data.classes == ("b\u00e4r", "cat")
    assert [sample.label for sample in data.samples] == [0, 0, 1]
    assert len(data.problems) == 1


def test_reports_classes_that_differ_in_letter_case(tmp_path: Path) -> None:
    write_files(tmp_path, "Cat/1.jpg", "cat/2.jpg", "dog/3.jpg")
    data = read_classification(tmp_path)
    assert data.classes == ("Cat", "cat", "dog")
    assert len(data.problems) == 1
    assert "'Cat', 'cat'" in data.problems[0]


def test_refuses_several_labels_of_an_image(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    file = write_csv(tmp_path, "path,label\na.jpg,cat\nb.jpg,cat|dog\nc.jpg,dog\n")
    with pytest.raises(
        ValueError, match=r"data\.csv: 1 images have several classes, .* line 3: cat, dog; .*not available"
    ):
        read_classification(file)


def test_reads_one_class_in_a_column_for_each(tmp_path: Path) -> None:
    write_files(tmp_path / "train", "a.jpg", "b.jpg", "c.jpg")
    text = "filename, cat, dog, gnu\na.jpg, 1, 0, 0\nb.jpg, 0, 1, 0\nc.jpg, 0, 0, 0\n"
    (tmp_path / "train/_classes.csv").write_text(text)
    data = read_classification(tmp_path, "train")
    assert data.classes == ("cat", "dog")
    assert [sample.path.name for sample in data.samples] == ["a.jpg", "b.jpg"]
    assert len(data.problems) == 2
    assert data.problems[0].endswith("no image has the class gnu; not used as a class")
    assert "c.jpg: no class in" in data.problems[1]


def test_finds_60000_classes_quickly() -> None:
    names = [f"class {number}" for number in range(60_000)]
    part = Part([Item(Path(name), (name,)) for name in names], tuple(names))
    problems = Problems()
    found = find_classes(Path("data"), part, problems)
    assert len(found) == 60_000
    report_unknown(Path("data"), [f"other {number}" for number in range(1000)], found, problems, "train")
    assert [problem.kind for problem in problems] == ["unknown-class"] * 1000
