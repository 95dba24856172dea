"""Names of splits: detection of split folders, order, and selection."""

from pathlib import Path

import pytest

from sppnet.data.splits import default_split, first_split, is_system_file, role_of, sort_splits, split_folders


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


def test_first_split_ignores_case(tmp_path: Path) -> None:
    make_folders(tmp_path, "Train/a", "Validation/a")
    assert first_split(split_folders(tmp_path), "train") == "Train"
    assert first_split(split_folders(tmp_path), "test", "val", "validation") == "Validation"
    assert first_split(split_folders(tmp_path), "test") is None


def test_sort_splits() -> None:
    names = ["extra", "test2017", "val2017", "train2017", "trainval"]
    assert sort_splits(names) == ("train2017", "trainval", "val2017", "test2017", "extra")
    assert sort_splits(["validation", "Training", "dev", "train"]) == ("train", "Training", "validation", "dev")


def test_usual_split() -> None:
    assert default_split("data", ["val", "test"], None, "train", "val") == "val"
    assert default_split("data", ["val", "test"], "test", "val") == "test"
    assert default_split("data", [], None, "train") is None
    with pytest.raises(ValueError, match="split: expected one of val, test for data, got none"):
        default_split("data", ["val", "test"], None, "train")


@pytest.mark.parametrize(
    ("folders", "splits"),
    [
        (("validation/a", "training/a"), ("training", "validation")),
        (("dev/a", "train/a"), ("train", "dev")),
        (("val2017/a", "train2017/a"), ("train2017", "val2017")),
        (("VALID/a", "Train/a", "TEST/a"), ("Train", "VALID", "TEST")),
        (("train/a", "val/a", "__MACOSX/a", "@eaDir", "lost+found", ".cache"), ("train", "val")),
    ],
)
def test_names_of_public_data_sets_are_splits(
    tmp_path: Path, folders: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    assert split_folders(make_folders(tmp_path, *folders)) == splits
    assert first_split(split_folders(tmp_path), "train") == splits[0]
    assert first_split(split_folders(tmp_path), "val") == splits[1]


def test_rejects_two_folders_of_one_role(tmp_path: Path) -> None:
    make_folders(tmp_path, "train/a", "training/a", "val/a")
    with pytest.raises(ValueError, match="expected one folder named train, training, trainval, got train, training"):
        split_folders(tmp_path)


def test_splits_are_found_by_their_role() -> None:
    assert default_split("data", ["training", "validation"], None, "train") == "training"
    assert default_split("data", ["training", "validation"], "val") == "validation"
    assert default_split("data", ["train", "trainval"], "train") == "train"
    assert default_split("data", ["training"], "trian") == "trian"  # refused by the reader, with a suggestion


def test_roles_and_system_files() -> None:
    assert [role_of(name) for name in ("Train2017", "eval", "testing", "plane")] == ["train", "val", "test", None]
    for name in (".DS_Store", "._train.json", "__MACOSX", "@eaDir", "Thumbs.db", "lost+found"):
        assert is_system_file(name)
    assert not is_system_file("a.jpg")
