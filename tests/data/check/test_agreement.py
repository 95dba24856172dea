"""Classification data: `check` has an error that stops training exactly if training stops."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from sppnet.data.check.run import check_data
from sppnet.data.formats.classification import choose_classification_split, read_classification
from sppnet.data.items import FATAL
from tests.helpers.images import write_files

HEADERS = (
    *("path,label", "label,path", "path,label,note", "filename,label", "path,cat,dog", "filename, cat, dog", "path"),
    *("", "a.jpg,cat", "path,label,path", "path,path", "path,cat,cat", "Path,Label", "path;label", "path,label,"),
)
NAMES = (
    "a.jpg",
    "b.jpg",
    "in/c.jpg",
    "in\\c.jpg",
    "b\u00e4r.jpg",
    "gone.jpg",
    "",
    " ",
    "a.jpg ",
    "in",
    "../x.jpg",
    "a\0b",
)
LABELS = ("cat", "dog", "dog ", "Dog", "cat|dog", "cat;", "", " ", "0", "1", "2", "b\u00e4r", "ba\u0308r", '"', "x\0")
CHANGES: tuple[Callable[[bytes], bytes], ...] = (
    lambda data: data,
    lambda data: b"\xef\xbb\xbf" + data,
    lambda data: data.replace(b"\n", b"\r\n"),
    lambda data: data.replace(b",", b";"),
    lambda data: data[: len(data) // 2],
    lambda data: data[:-3],
    lambda data: data + b"\n",
    lambda data: data.replace(b"a", b"\xe4", 1),
    lambda data: data.replace(b"a", b'"', 1),
    lambda data: data.replace(b",", b",,", 1),
    lambda data: data.decode().encode("utf-16"),
    lambda data: data[:0],
)


def training_refuses(root: Path) -> bool:
    """Read the data as `train classify` does."""
    try:
        split = choose_classification_split(root, None, "train")
        train = read_classification(root, split)
        val = choose_classification_split(root, None, "val")
        if val is not None:
            read_classification(root, val, train.classes)
    except ValueError:
        return True
    return False


def check_refuses(root: Path) -> bool:
    try:
        check = check_data(root)
    except ValueError:
        return True
    return any(problem.kind in FATAL for problem in check.problems) or check.layout == "images"


def test_csv_files(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg", "in/c.jpg", "ba\u0308r.jpg")
    verdicts = []
    for seed in range(400):
        rng = random.Random(seed)
        usual = seed % 2 == 0
        header = rng.choice(HEADERS[:6] if usual else HEADERS)
        names, labels = (NAMES[:5], LABELS[:4]) if usual else (NAMES, LABELS)
        rows = [header]
        for number in range(rng.randrange(2, 6)):
            values = [rng.choice("01") if "cat" in header else rng.choice(labels) for _ in header.split(",")]
            values[max(header.find("path"), 0) and 1] = names[number % 4] if usual else rng.choice(names)
            rows.append(",".join(values))
        file = tmp_path / "data.csv"
        file.write_bytes(rng.choice(CHANGES[: 3 if usual else None])("\n".join(rows).encode()))
        refused = training_refuses(file)
        assert check_refuses(file) == refused, file.read_bytes()
        verdicts.append(refused)
    assert 40 < sum(verdicts) < 360


def test_folders(tmp_path: Path) -> None:
    pieces = (
        *("train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "val/b/1.jpg", "test/a/1.jpg", "training/a/1.jpg"),
        *("validation/c/1.jpg", "dev/a/1.jpg", "val/a/x.txt", "val/A/1.jpg", "a/1.jpg", "b/1.jpg", "a/x.txt", "1.jpg"),
        *("__MACOSX/a/1.jpg", "@eaDir/1.jpg", ".git/1.jpg", "train/1.jpg", "train/c/x.txt", "train/b\u00e4r/1.jpg"),
        *("val/ba\u0308r/1.jpg", "train2017/a/1.jpg", "Train/b/2.jpg"),
    )
    verdicts = []
    for seed in range(200):
        rng = random.Random(seed)
        root = tmp_path / str(seed)
        write_files(root, *(pieces[:2] if seed % 2 else ()), *rng.sample(pieces, rng.randrange(1, 6)))
        refused = training_refuses(root)
        assert check_refuses(root) == refused, sorted(root.rglob("*"))
        verdicts.append(refused)
    assert 20 < sum(verdicts) < 180


@pytest.mark.parametrize("split", ["train", "valid"])
def test_roboflow_exports(tmp_path: Path, split: str) -> None:
    texts = ("a.jpg, 1, 0\nb.jpg, 0, 1\n", "a.jpg, 1, 1\nb.jpg, 0, 1\n", "a.jpg, 0, 0\nb.jpg, 0, 0\n", "", "a.jpg, 1\n")
    verdicts = []
    for text in texts:
        for other in ("train", "valid"):
            write_files(tmp_path / other, "a.jpg", "b.jpg")
            rows = text if other == split else texts[0]
            (tmp_path / other / "_classes.csv").write_text("filename, cat, dog\n" + rows)
        refused = training_refuses(tmp_path)
        assert check_refuses(tmp_path) == refused, text
        verdicts.append(refused)
    assert verdicts[:2] == [False, True]
