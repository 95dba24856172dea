"""Roboflow's classification exports with a column for each class."""

from pathlib import Path

from sppnet.data.formats.roboflow_classes import find_splits, read
from sppnet.data.items import Problems
from tests.helpers.images import write_files


def test_reads_splits(tmp_path: Path) -> None:
    for split in ("valid", "train"):
        write_files(tmp_path / split, "a.jpg", "b.jpg")
        (tmp_path / split / "_classes.csv").write_text("filename, cat, dog\na.jpg, 1, 1\nb.jpg, 0, 1\n")
    write_files(tmp_path, "__MACOSX/train/a.jpg", "README.txt")
    splits = find_splits(tmp_path)
    assert list(splits) == ["train", "valid"]
    problems = Problems()
    part = read(tmp_path, "train", splits["train"], problems)
    assert [(item.path, item.labels) for item in part.items] == [
        (tmp_path / "train/a.jpg", ("cat", "dog")),
        (tmp_path / "train/b.jpg", ("dog",)),
    ]
    assert part.classes == ("cat", "dog")
    assert not problems
    assert find_splits(tmp_path / "train") == {None: tmp_path / "train/_classes.csv"}


def test_other_tables_are_not_the_format(tmp_path: Path) -> None:
    for name, text in {"masks": "Pixel Value, Class\n0, background\n", "other": "path,label\n", "empty": ""}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "_classes.csv").write_text(text)
    assert find_splits(tmp_path) == {}
    assert find_splits(tmp_path / "masks") == {}
    assert find_splits(tmp_path / "masks/_classes.csv") == {}
