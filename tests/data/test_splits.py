"""Names of splits: detection of split folders, order, and selection."""

import random
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import pytest

from sppnet.data.splits import default_split, first_split, hold_out, is_system_file, role_of, sort_splits, split_folders


def make_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


def test_split_folders_are_listed_training_first(tmp_path: Path) -> None:
    assert split_folders(make_folders(tmp_path / "lower", "val/a", "train/a", ".git")) == ("train", "val")
    assert split_folders(make_folders(tmp_path / "upper", "Test/a")) == ("Test",)
    assert split_folders(make_folders(tmp_path / "validation", "val/a")) == ("val",)


def test_other_folders_have_no_splits(tmp_path: Path) -> None:
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
    with pytest.raises(
        ValueError, match="split: expected a training split in data, got only val, test; name the split"
    ):
        default_split("data", ["val", "test"], None, "train")
    with pytest.raises(ValueError, match="split: expected one of train, extra for data, got none"):
        default_split("data", ["train", "extra"], None, "test", "val")


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


@dataclass(frozen=True)
class Labeled:
    path: Path
    label: int


def labeled_files(root: str, counts: tuple[int, ...]) -> list[Labeled]:
    return [Labeled(Path(f"{root}/{label}/{n}.jpg"), label) for label, count in enumerate(counts) for n in range(count)]


def test_holds_out_a_tenth_of_each_class(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sppnet")
    samples = labeled_files("data", (35, 9, 10))
    training, validation = hold_out(samples, 0, attrgetter("label"))
    assert [[sample.label for sample in validation].count(label) for label in range(3)] == [3, 0, 1]
    assert sorted(training + validation, key=samples.index) == samples
    assert list(training) == sorted(training, key=samples.index)
    text = (
        "no validation split: validating on 4 of 54 images, chosen with seed 0; use --val none to train on all images"
    )
    assert caplog.messages == [text]
    assert len(hold_out(samples, 0)[1]) == 5, "without labels, a tenth of all images"


def test_held_out_images_depend_on_the_seed_and_the_paths_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    samples = labeled_files("data", (40, 40))
    expected = {sample.path.as_posix() for sample in hold_out(samples, 3, attrgetter("label"))[1]}
    shuffled = random.Random(5).sample(samples, len(samples))
    assert {sample.path.as_posix() for sample in hold_out(shuffled, 3, attrgetter("label"))[1]} == expected
    absolute = labeled_files(str(tmp_path / "data"), (40, 40))
    validation = hold_out(absolute, 3, attrgetter("label"))[1]
    assert {sample.path.relative_to(tmp_path).as_posix() for sample in validation} == expected
    assert {sample.path.as_posix() for sample in hold_out(samples, 4, attrgetter("label"))[1]} != expected


def test_an_image_that_is_listed_twice_is_not_in_both_parts() -> None:
    samples = [sample for sample in labeled_files("data", (20,)) for _ in range(2)]
    samples += [Labeled(sample.path, 1) for sample in samples]
    for seed in range(20):
        training, validation = hold_out(samples, seed, attrgetter("label"))
        assert not {sample.path for sample in training} & {sample.path for sample in validation}


def test_nothing_is_held_out_of_few_or_unusable_images(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "sppnet")
    samples = labeled_files("data", (9, 9))
    assert hold_out(samples, 0, attrgetter("label")) == (tuple(samples), ())
    samples = labeled_files("data", (30,))
    rest = {sample.path for sample in hold_out(samples, 0)[0]}
    assert hold_out(samples, 0, usable=lambda part: part[0].path in rest) == (tuple(samples), ())
    text = "no validation: there is no validation split, and there are too few images to choose some"
    assert [message for message in caplog.messages if "--val none" not in message] == [text, text]
