import re
import time
from pathlib import Path

import pytest

from sppnet.data.formats import yolo
from sppnet.data.formats.detection import detection_splits, read_detection
from sppnet.data.items import Problems
from tests.helpers.annotation_files import YOLO_CONFIG, write_image, write_yolo
from tests.helpers.verdicts import read_and_check

LINES = ("0 0.5 0.5 0.5 0.2", "1 0.1 0.1 0.4 0.1 0.4 0.5")


@pytest.mark.parametrize("names", ["names: [dog, cat]", "names:\n  0: dog\n  1: cat", "nc: 2\nnames: [dog, cat]"])
def test_reads_data_yaml(tmp_path: Path, names: str) -> None:
    config = f"train: images/train\nval: images/val\ntest:\n{names}\n"
    write_yolo(tmp_path, *LINES, config=config, splits=("train", "val"))
    (tmp_path / "labels/train/b.txt").unlink()
    assert detection_splits(tmp_path) == detection_splits(tmp_path / "data.yaml") == ("train", "val")
    for root in (tmp_path, tmp_path / "data.yaml"):
        data = read_and_check(root, "train")
        assert data is not None
        assert (data.root, data.classes) == (root, ("dog", "cat"))
        assert [sample.path.name for sample in data.samples] == ["a.jpg", "b.jpg"]
        assert data.samples[0].boxes.tolist() == [[10, 12, 30, 18], [4, 3, 16, 15]]
        assert data.samples[0].labels.tolist() == [0, 1]
        assert data.samples[1].boxes.shape == (0, 4)
        (problem,) = data.problems
        assert "1 of 2 images have no label file, and so no objects" in problem
    assert read_detection(tmp_path, "val").problems == ()


def test_reads_every_split_of_a_role(tmp_path: Path) -> None:
    config = "train: images/train\nval: images/val\nvalid: images/valid\nnames: [dog, cat]\n"
    write_yolo(tmp_path, *LINES, config=config, splits=("train", "val", "valid"))
    assert detection_splits(tmp_path) == ("train", "val", "valid")


def test_keeps_polygons(tmp_path: Path) -> None:
    write_yolo(tmp_path, *LINES)
    problems = Problems()
    part = yolo.read_polygons(tmp_path, "train", yolo.find_splits(tmp_path)["train"], problems)
    assert not problems
    kind, polygons = part.items[0].mask
    assert kind == "polygons"
    assert polygons == [("dog", [10, 12, 30, 12, 30, 18, 10, 18]), ("cat", pytest.approx([4, 3, 16, 3, 16, 15]))]
    assert part.items[1].mask is None


@pytest.mark.parametrize(
    "train",
    [
        "../images/train",
        "images\\train",
        "./images/train/",
        "[images/train]",
        "train.txt",
        "[lists/train.txt]",
        "images/train/a.jpg",
    ],
)
def test_finds_images_of_each_kind_of_path(tmp_path: Path, train: str) -> None:
    write_yolo(tmp_path, *LINES, config=f"path: ../elsewhere\ntrain: {train}\nnames: [dog, cat]")
    (tmp_path / "train.txt").write_text("\ufeff./images/train/a.jpg\r\n\r\nimages\\train\\b.jpg\r\n", encoding="utf-8")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("../images/train/a.jpg\nimages/train/b.jpg\n")
    if train.endswith(".jpg"):
        assert read_and_check(tmp_path, "train") is None
    else:
        data = read_and_check(tmp_path, "train")
        assert data is not None
        assert [len(sample.labels) for sample in data.samples] == [2, 0]
        assert re.search(r"data\.yaml: path: no folder '\.\./elsewhere'", data.problems[0])


def test_reads_folders_without_yaml(tmp_path: Path) -> None:
    write_yolo(tmp_path, *LINES, config=None, splits=("val", "train"))
    assert detection_splits(tmp_path) == ("train", "val")
    with pytest.raises(ValueError, match=r"expected class names in data\.yaml or classes\.txt, got no such file"):
        read_detection(tmp_path, "train")
    (tmp_path / "classes.txt").write_text("dog\r\ncat\r\n\r\n")
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert (data.classes, data.problems) == (("dog", "cat"), ())
    (tmp_path / "classes.txt").write_text("dog\n\ncat\n")
    with pytest.raises(ValueError, match=r"classes\.txt, line 2: expected a class name, got none"):
        read_detection(tmp_path, "train")


def test_reads_roboflow_folders(tmp_path: Path) -> None:
    write_image(tmp_path / "valid/images/a.jpg")
    write_image(tmp_path / "train/images/a.jpg")
    for split in ("train", "valid"):
        (tmp_path / split / "labels").mkdir()
        (tmp_path / split / "labels/a.txt").write_text(LINES[0])
    config = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 1\nnames: ['dog']\n"
    (tmp_path / "data.yaml").write_text(config + "roboflow:\n  version: 1\n")
    assert detection_splits(tmp_path) == ("train", "val", "test")
    assert len(read_detection(tmp_path, "val").samples[0].labels) == 1
    with pytest.raises(ValueError, match=r"data\.yaml: test: no such folder or file, '../test/images' in"):
        read_detection(tmp_path, "test")
    (tmp_path / "data.yaml").unlink()
    assert detection_splits(tmp_path) == ("train", "valid")


def test_reads_labels_next_to_the_images(tmp_path: Path) -> None:
    write_image(tmp_path / "train/a.jpg")
    (tmp_path / "train/a.txt").write_text(LINES[0])
    (tmp_path / "coco.yml").write_text("train: train\nnc: 1\nnames: [dog]")
    (tmp_path / "hyperparameters.yaml").write_text("lr: 1")
    assert read_detection(tmp_path, "train").samples[0].boxes.tolist() == [[10, 12, 30, 18]]
    (tmp_path / "other.yaml").write_text("train: train\nnc: 1\nnames: [dog]")
    with pytest.raises(ValueError, match=r"root: expected one of .*coco\.yml, .*other\.yaml, got"):
        read_detection(tmp_path, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", r"a\.txt, line 2: expected a class id and x, y, width, height, .* got 4 columns"),
        ("0 0.5 0.5 0.2 0.2 0.9", "got 6 columns"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "got 8 columns"),
        ("0 0.5 0.5 x 0.2", r"a\.txt, line 2: expected numbers, got '0 0\.5 0\.5 x 0\.2'"),
        ("0,0.5,0.5,0.1,0.2", "got 1 columns"),
        ("0 nan 0.5 0.2 0.2", "expected finite numbers, got 'nan'"),
        ("inf 0.5 0.5 0.2 0.2", "expected finite numbers, got 'inf'"),
        ("0 20 10 5 5", r"expected fractions of the width and height .* got \(20, 10, 5, 5\); these may be pixels"),
        ("0.5 0.5 0.5 0.2 0.2", r"expected an integer as the class id, got '0\.5'"),
        ("2 0.5 0.5 0.2 0.2", r"a\.txt, line 2: expected a class id from 0 to 1, got '2'"),
        ("-1 0.5 0.5 0.2 0.2", "expected a class id from 0 to 1, got '-1'"),
        ("dog 0.5 0.5 0.2 0.2", "expected numbers"),
        ("\0", "got 1 columns"),
        ("\u20290", "got 1 columns"),
    ],
)
def test_rejects_malformed_labels(tmp_path: Path, line: str, message: str) -> None:
    write_yolo(tmp_path, LINES[0], line)
    with pytest.raises(ValueError, match=message):
        read_detection(tmp_path, "train")
    assert read_and_check(tmp_path, "train") is None


def test_clips_and_drops_boxes(tmp_path: Path) -> None:
    lines = (
        "0 0.1 0.5 0.24 0.2",  # 0.8 px to the left
        "1 0.1 0.5 0.4 0.2",  # 4 px to the left
        "0 1.5 0.5 0.2 0.2",
        "0 0.5 0.5 -0.2 0.2",
        "0 0.5 0.5 0 0.2",
        "0 0.1 0.1 0.4 0.1 0.2 0.1",  # a line
        "1.0 0.5 0.5 1 1",
    )
    data = read_and_check(write_yolo(tmp_path, *lines), "train")
    assert data is not None
    boxes = [edge for box in data.samples[0].boxes.tolist() for edge in box]
    assert boxes == pytest.approx([0, 12, 8.8, 18, 0, 12, 12, 18, 0, 0, 40, 30])
    texts = [problem.partition("a.txt, ")[2] for problem in data.problems]
    assert [text.partition(":")[0] for text in texts] == [
        "line 4 (dog)", "line 5 (dog)", "line 6 (dog)", "line 2 (cat)", "line 3 (dog)",
    ]  # fmt: skip
    assert "line 4 (dog): box (0.5, 0.5, -0.2, 0.2) has no area; dropped" in texts
    assert re.search(r"extends beyond the image of 30 x 40 .*; clipped to \(0, 12, 12, 18\)", texts[3])


def test_reports_labels_and_images_without_a_partner(tmp_path: Path) -> None:
    write_yolo(tmp_path, LINES[0])
    (tmp_path / "labels/train/spare.txt").write_text("")
    (tmp_path / "labels/train/._a.txt").write_bytes(b"\0")
    (tmp_path / "images/train/._a.jpg").write_bytes(b"\0")
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert data.problems == (
        f"{tmp_path}/labels/train/spare.txt: no image of this name in {tmp_path}/images/train; skipped",
    )
    for file in (tmp_path / "labels/train").iterdir():
        file.unlink()
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert re.search(r"none of the 2 images has a label file; expected in .*labels/train$", data.problems[0])


def test_reads_boxes_of_upright_images(tmp_path: Path) -> None:
    write_yolo(tmp_path, LINES[0])
    write_image(tmp_path / "images/train/a.jpg", orientation=6)  # upright 40 x 30
    (tmp_path / "images/train/b.jpg").write_bytes(b"")
    (tmp_path / "labels/train/b.txt").write_text(LINES[0])
    samples = read_detection(tmp_path, "train").samples
    assert samples[0].boxes.tolist() == [[7.5, 16, 22.5, 24]]
    assert len(samples) == 2


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "expected a mapping with train, val and names, got None"),
        ("train: [", "cannot be read as UTF-8 YAML: .*line 2"),
        ("train: \0", "cannot be read as UTF-8 YAML"),
        ("train: &a images/train\nnames: [dog, cat]", "line 1: expected a YAML file without anchors and aliases"),
        ("train: images/train\nnames: *a", "line 2: expected a YAML file without anchors|cannot be read"),
        ("train: x\nnames: " + "[" * 12 + "]" * 12, "line 2: expected at most 8 nested levels"),
        ("names: " + "[" * 500_000, "cannot be read as UTF-8 YAML: .*nest"),
        ("#" * (1 << 20) + "\ntrain: x", r"expected at most 1048576 bytes, got 10485\d\d"),
        ("names: [dog, cat]", "expected train, val or test, got none"),
        ("train: images/train", r"names: expected a list of class names, got None"),
        ("train: images/train\nnames: []", r"names: expected a list of class names, got \[\]"),
        ("train: images/train\nnames: [dog, '']", "names: expected a list of class names"),
        ("train: images/train\nnames: [dog, [cat]]", r"names: expected a list of class names, got \[\['cat'\]\]"),
        ("train: images/train\nnames: dog", "names: expected a list of class names, got 'dog'"),
        ("train: images/train\nnames: {0: dog, 2: cat}", "names: expected the ids 0 to 1, got 2"),
        ("train: images/train\nnames: {0: dog, 0: cat}", "line 2: expected each key once, got '0' again"),
        ("train: images/train\nnc: 3\nnames: [dog, cat]", "nc: expected 2, the number of names, got '3'"),
        ("train: images/train\nnc: x\nnames: [dog, cat]", "nc: expected 2, the number of names, got 'x'"),
        ("train: {a: b}\nnames: [dog, cat]", "train: expected a folder, a list file or a list of them, got {'a': 'b'}"),
        ("train: images/trian\nnames: [dog, cat]", "train: no such folder or file, 'images/trian' in"),
        ("train: [images/train, images/train]\nnames: [dog, cat]", "expected each image once, got repeated names: .*a"),
        ("path: [a]\ntrain: images/train\nnames: [dog, cat]", r"path: expected a folder, got \['a'\]"),
        ("train: list.txt\nnames: [dog, cat]", r"list\.txt, line 2: no such image, 'gone\.jpg'"),
        ("train: latin.txt\nnames: [dog, cat]", r"latin\.txt cannot be read as UTF-8 text"),
        ("train: labels\nnames: [dog, cat]", "data.yaml: expected at least one image, got none"),
        (f"train: {'x' * 5000}\nnames: [dog, cat]", "train: no such folder or file, 'xxx"),
    ],
)
def test_rejects_malformed_yaml(tmp_path: Path, config: str, message: str) -> None:
    write_yolo(tmp_path, *LINES, config=config)
    (tmp_path / "list.txt").write_text("images/train/a.jpg\ngone.jpg\n")
    (tmp_path / "latin.txt").write_bytes(b"\xff")
    for root in (tmp_path / "data.yaml", tmp_path):
        if root.is_dir() and config in ("", "names: [dog, cat]", "train: images/train"):
            continue  # the folders are YOLO data without a YAML file
        (split,) = yolo.find_splits(root)
        with pytest.raises(ValueError, match=message):
            read_detection(root, split)
        assert read_and_check(root, split) is None


def test_class_names_are_texts(tmp_path: Path) -> None:
    write_yolo(tmp_path, *LINES, config="train: images/train\nnames: [no, 1.0]")
    assert read_detection(tmp_path, "train").classes == ("no", "1.0")
    write_yolo(tmp_path, *LINES, config="train: images/train\nnames: [dog, 'dog ']")
    data = read_and_check(tmp_path, "train")
    assert data is not None
    assert data.samples[0].labels.tolist() == [0, 0]
    assert "duplicate name 'dog' of the ids 0 and 1; merged into one class" in data.problems[0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["label", "list", "names"])
def test_time_is_linear(tmp_path: Path, kind: str) -> None:
    def seconds(rows: int) -> float:
        config = YOLO_CONFIG
        lines = [LINES[0]] * rows if kind == "label" else LINES[:1]
        if kind == "names":
            config = "train: images/train\nnames: [" + ", ".join(f"c{number}" for number in range(rows)) + "]"
        elif kind == "list":
            config = "train: list.txt\nnames: [dog]"
            (tmp_path / "list.txt").write_text("".join(f"gone{number}.jpg\n" for number in range(rows)))
        write_yolo(tmp_path, *lines, config=config)
        best = float("inf")
        for _ in range(3):
            started = time.perf_counter()
            yolo.read(tmp_path, "train", yolo.find_splits(tmp_path)["train"], Problems())
            best = min(best, time.perf_counter() - started)
        return best

    assert seconds(100_000) / seconds(50_000) < 3
