"""`check` has a problem that stops training exactly if training stops, for all forms of splits and class lists."""

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sppnet.data.check.run import check_data
from sppnet.data.formats.classification import choose_classification_split, read_classification
from sppnet.data.formats.detection import choose_split, read_detection
from sppnet.data.formats.segmentation import choose_segmentation_split, read_segmentation
from sppnet.data.formats.table import Task, find_validation
from sppnet.data.items import FATAL
from tests.helpers.annotation_files import coco_document, write_annotation, write_image, write_json, write_yolo
from tests.helpers.check_problems import reasons
from tests.helpers.images import write_files
from tests.helpers.segmentation_data import write_pair, write_shapes

READERS: dict[Task, tuple[Callable[..., Any], Callable[..., Any], dict[str, Any]]] = {
    "classify": (choose_classification_split, read_classification, {}),
    "detect": (choose_split, read_detection, {"more_classes": True}),
    "segment": (choose_segmentation_split, read_segmentation, {}),
}
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


def training_refuses(root: Path, task: Task = "classify") -> str:
    """Read the data as training does, and return the error, or an empty text."""
    choose, read, options = READERS[task]
    try:
        split = choose(root, None, "train")
        train = read(root, split)
        if source := find_validation(root, split, None, task, None):
            read(*source, train.classes, **options)
    except ValueError as error:
        return str(error)
    return ""


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
        refused = bool(training_refuses(file))
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
        refused = bool(training_refuses(root))
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
        refused = bool(training_refuses(tmp_path))
        assert check_refuses(tmp_path) == refused, text
        verdicts.append(refused)
    assert verdicts[:2] == [False, True]


def write_split(root: Path, task: Task, split: str) -> None:
    if task == "classify":
        write_files(root, f"{split}/a/1.jpg", f"{split}/b/1.jpg")
    elif task == "detect":
        write_image(root / "images/a.jpg")
        write_image(root / "images/b.jpg")
        write_json(root / f"annotations/{split}.json", coco_document())
    else:
        write_shapes(root, "camvid", {split: 2})


@pytest.mark.parametrize("splits", [("val",), ("test",), ("val", "test"), ("train", "val"), ("valid", "Training")])
@pytest.mark.parametrize("task", ["classify", "detect", "segment"])
def test_data_without_a_training_split_can_only_be_evaluated(
    task: Task, splits: tuple[str, ...], tmp_path: Path
) -> None:
    for split in splits:
        write_split(tmp_path, task, split)
    check = check_data(tmp_path)
    texts = reasons(check, "no-training-split")
    error = training_refuses(tmp_path, task)
    if len(splits) == 2 and "test" not in splits:
        assert (texts, error) == ([], "")
    else:
        assert error.startswith(f"split: expected a training split in {tmp_path}, got only {', '.join(splits)}; ")
        assert [text.partition(", ")[2] for text in texts] == [f"only {', '.join(splits)}; training needs --split"]
        assert check.images > 0
    choose, read, options = READERS[task]
    classes = ("background", "disc", "square") if task == "segment" else ("a", "b", "cat", "dog")
    assert read(tmp_path, choose(tmp_path, None, "test", "val"), classes, **options).samples


def two_roles(root: Path) -> None:
    write_files(root, *(f"{split}/{name}/1.jpg" for split in ("train", "val", "valid") for name in "ab"))


def other_folders(root: Path) -> None:
    write_files(root, "train/a/1.jpg", "train/b/1.jpg", "val/a/1.jpg", "drafts/1.jpg")


def two_coco_files(root: Path) -> None:
    write_split(root, "detect", "train")
    write_json(root / "annotations/instances_train.json", coco_document())


def two_configs(root: Path) -> None:
    write_yolo(root, "0 0.5 0.5 0.5 0.2", config=None)
    for name in ("a.yaml", "b.yaml"):
        (root / name).write_text("train: images/train\nnames: [dog, cat]\n")


def two_voc_folders(root: Path) -> None:
    write_annotation(root / "VOC2007", "a")
    write_annotation(root / "VOC2012", "a")


def two_mask_folders(root: Path) -> None:
    write_pair(root, "a", [0, 1])
    write_pair(root, "a", [0, 1], masks="labels")


@pytest.mark.parametrize(
    ("write", "task", "message"),
    [
        (two_roles, "classify", "expected one folder named val, valid, validation, dev, eval, got val, valid"),
        (other_folders, "classify", r"contains split folders \(train, val\) and other folders \(drafts\); pass the"),
        (two_coco_files, "detect", "expected one annotation file for the split train, got instances_train.json, "),
        (two_configs, "detect", r"expected one of .*a\.yaml, .*b\.yaml, got "),
        (two_voc_folders, "detect", r"expected one of the data sets .*VOC2007, .*VOC2012, got "),
        (two_mask_folders, "segment", r"expected one folder of masks, got .*masks, .*labels"),
    ],
)
def test_contradictions_are_listed_with_the_text_of_training(
    write: Callable[[Path], None], task: Task, message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    check = check_data(tmp_path)
    (reason,) = reasons(check, "bad-annotation")
    assert re.match(message, reason)
    assert reason in training_refuses(tmp_path, task)
    assert not reason.startswith((str(tmp_path), "root"))
    assert [problem.path.name for problem in check.problems if problem.kind == "not-an-image"] == ["broken.jpg"]


def test_contradictions_are_listed_if_the_format_is_given(tmp_path: Path) -> None:
    two_coco_files(tmp_path)
    assert len(reasons(check_data(tmp_path, format="coco"), "bad-annotation")) == 1
    with pytest.raises(ValueError, match=r"format: expected the format of .*, got yolo"):
        check_data(tmp_path, format="yolo")


@pytest.mark.parametrize("format", ["coco", "yolo"])
def test_polygons_are_mentioned(format: str, tmp_path: Path) -> None:
    polygon = [1.0, 1.0, 9.0, 1.0, 9.0, 9.0]
    document = coco_document()
    for has_polygon in (False, True):
        if format == "coco":
            document["annotations"][0]["segmentation"] = [polygon] if has_polygon else []
            write_split(tmp_path, "detect", "train")
            write_json(tmp_path / "annotations/train.json", document)
        else:
            write_yolo(tmp_path, "0 0.5 0.5 0.5 0.2", *["1 0.1 0.1 0.4 0.1 0.4 0.5"] * has_polygon)
        texts = reasons(check_data(tmp_path), "passed-over")
        assert texts == [f"polygons are checked as masks with --format {format}-masks"] * has_polygon
    assert not reasons(check_data(tmp_path, format=format), "passed-over")
