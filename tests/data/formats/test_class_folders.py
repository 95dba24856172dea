"""Class folders, with and without splits."""

import time
from pathlib import Path

import pytest

from sppnet.data.formats.class_folders import find_splits, read
from sppnet.data.items import Part, Problems
from tests.helpers.images import write_files


def read_all(root: Path, split: str | None = None) -> tuple[Part, Problems]:
    problems = Problems()
    return read(root, split, find_splits(root)[split], problems), problems


def labeled_names(part: Part, root: Path) -> list[tuple[str, tuple[str, ...]]]:
    return [(item.path.relative_to(root).as_posix(), item.labels) for item in part.items]


def test_reads_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "dog/2.jpg", "dog/1.PNG", "cat/deep/3.jpg", "cat/9.webp")
    write_files(tmp_path, "cat/notes.txt", "cat/.DS_Store.txt", ".cache/x.jpg", "README.txt", "stray.jpg")
    part, problems = read_all(tmp_path)
    assert labeled_names(part, tmp_path) == [
        ("cat/9.webp", ("cat",)),
        ("cat/deep/3.jpg", ("cat",)),
        ("dog/1.PNG", ("dog",)),
        ("dog/2.jpg", ("dog",)),
    ]
    assert problems.lines() == (
        f"{tmp_path}/stray.jpg: skipped, image outside the class folders",
        f"{tmp_path}/cat/notes.txt: skipped, not an image by its extension",
    )


def test_reports_class_folders_without_images(tmp_path: Path) -> None:
    write_files(tmp_path, "cat/1.jpg", "dog/2.jpg", "gnu/notes.txt", "owl/.hidden.jpg")
    part, problems = read_all(tmp_path)
    assert [item.labels for item in part.items] == [("cat",), ("dog",)]
    reported = {(problem.path.name, problem.kind) for problem in problems}
    assert reported == {("gnu", "empty-class"), ("owl", "empty-class"), ("notes.txt", "passed-over")}


def test_follows_linked_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "store/a/1.jpg", "data/b/2.jpg")
    (tmp_path / "data/a").symlink_to(tmp_path / "store/a")
    part, _ = read_all(tmp_path / "data")
    assert labeled_names(part, tmp_path) == [("data/a/1.jpg", ("a",)), ("data/b/2.jpg", ("b",))]


@pytest.mark.parametrize(
    ("train", "val"), [("training", "validation"), ("train", "dev"), ("train2017", "val2017"), ("Train", "VALID")]
)
def test_reads_splits_of_any_usual_name(tmp_path: Path, train: str, val: str) -> None:
    write_files(tmp_path, f"{val}/a/1.jpg", f"{val}/b/2.jpg", f"{train}/a/3.jpg", f"{train}/b/4.jpg", ".git/c/c.jpg")
    write_files(tmp_path, "__MACOSX/train/a/._3.jpg", f"{train}/@eaDir/3.jpg", f"{train}/a/@eaDir/3.jpg")
    assert list(find_splits(tmp_path)) == [train, val]
    part, problems = read_all(tmp_path, train)
    assert labeled_names(part, tmp_path) == [(f"{train}/a/3.jpg", ("a",)), (f"{train}/b/4.jpg", ("b",))]
    assert not problems


def test_other_folders_are_not_class_folders(tmp_path: Path) -> None:
    write_files(tmp_path, "flowers/1.jpg", "flowers/2.jpg", "texts/a/x.txt")
    assert find_splits(tmp_path / "flowers") == {}
    assert find_splits(tmp_path / "texts") == {}
    assert find_splits(tmp_path / "flowers/1.jpg") == {}


def test_reports_a_split_without_images(tmp_path: Path) -> None:
    write_files(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "val/a/x.txt")
    (tmp_path / "test").mkdir()
    for split, reason in (("val", "expected images in class folders, got none in a"), ("test", "got no folder")):
        _, problems = read_all(tmp_path, split)
        with pytest.raises(ValueError, match=reason):
            problems.raise_errors()


@pytest.mark.slow
def test_time_is_linear_in_the_files(tmp_path: Path) -> None:
    seconds = []
    for files in (50_000, 100_000):
        for number in range(files - 50_000, files):
            folder = tmp_path / f"class {number // 50}"
            folder.mkdir(exist_ok=True)
            (folder / f"{number}{'.jpg' if number % 5 else '.txt'}").touch()
        started = time.process_time()
        assert find_splits(tmp_path) == {None: tmp_path}
        part, _ = read_all(tmp_path)
        seconds.append(time.process_time() - started)
        assert len(part.items) == files * 4 // 5
    assert seconds[1] < 3 * seconds[0]
