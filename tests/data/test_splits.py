"""Names of splits: detection of split folders, order, and selection."""

from pathlib import Path

import pytest

from sppnet.data.splits import default_split, find_split, sort_splits, split_folders


def make_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_split_folders_are_listed_training_first(tmp_path: Path) -> None:
    assert split_folders(make_folders(tmp_path / "lower", "val/a", "train/a", ".git")) == ("train", "val")
    assert split_folders(make_folders(tmp_path / "upper", "Test/a")) == ("Test",)


def test_other_folders_have_no_splits(tmp_path: Path) -> None:
    assert split_folders(make_folders(tmp_path / "one", "val")) == ()
    assert split_folders(make_folders(tmp_path / "two", "train", "plane")) == ()
    assert split_folders(tmp_path / "gone") == ()
    (tmp_path / "file").touch()
    assert split_folders(tmp_path / "file") == ()


def test_rejects_split_folders_next_to_other_folders(tmp_path: Path) -> None:
    make_folders(tmp_path, "train/a", "val/a", "annotations")
    with pytest.raises(ValueError, match=r"contains split folders \(train, val\) and other folders \(annotations\)"):
        split_folders(tmp_path)


def test_find_split_ignores_case(tmp_path: Path) -> None:
    make_folders(tmp_path, "Train/a", "Validation/a")
    assert find_split(tmp_path, "train") == "Train"
    assert find_split(tmp_path, "test", "val", "validation") == "Validation"
    assert find_split(tmp_path, "test") is None


def test_sort_splits() -> None:
    names = ["extra", "test2017", "val2017", "train2017", "trainval"]
    assert sort_splits(names) == ("train2017", "val2017", "test2017", "extra", "trainval")


def test_usual_split() -> None:
    assert default_split("data", ["val", "test"], None, "train", "val") == "val"
    assert default_split("data", ["val", "test"], "test", "val") == "test"
    assert default_split("data", [], None, "train") is None
    with pytest.raises(ValueError, match="split: expected one of val, test for data, got none"):
        default_split("data", ["val", "test"], None, "train")
