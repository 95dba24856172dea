"""Predictions written as annotation files, read back by the package's own readers."""

import csv
import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from PIL import Image

from sppnet.cli.main import run
from sppnet.data.formats.boxes import read_boxes
from sppnet.data.formats.detection import read_detection
from sppnet.detect.predict import DetectionResult
from sppnet.detect.writers import Format, write_predictions
from tests.helpers.detection_results import detections

CLASSES = ("red cell", "no", "Köpfe & <Füße>")
FOUND = {
    "a b.png": detections(((1.25, 2.5, 30.75, 40), 2, 0.75), ((0, 0, 80, 60), 0, -0.25)),
    "leer.png": detections(),
    "日本, é.png": detections(((5, 5.125, 9, 29), 1, 0.5)),
}


def write_images(folder: Path) -> list[DetectionResult]:
    folder.mkdir(parents=True)
    for name in FOUND:
        Image.new("RGB", (80, 60)).save(folder / name)
    return [DetectionResult(str(folder / name), (60, 80), found, CLASSES) for name, found in FOUND.items()]


@pytest.mark.parametrize(
    ("format", "images", "tolerance"), [("coco", "images", 2e-3), ("yolo", "images", 2e-3), ("voc", "JPEGImages", 0.51)]
)
def test_data_sets_are_read_back(format: Format, images: str, tolerance: float, tmp_path: Path) -> None:
    write_predictions(write_images(tmp_path / images), tmp_path, format, CLASSES)
    for file in tmp_path.glob("labels/*.txt"):  # data sets have no scores
        lines = file.read_text(encoding="utf-8").splitlines()
        file.write_text("".join(line.rpartition(" ")[0] + "\n" for line in lines), encoding="utf-8")
    root = tmp_path / "predictions.json" if format == "coco" else tmp_path
    data = read_detection(root, "val" if format == "yolo" else None, CLASSES if format == "voc" else None)
    assert not data.problems
    assert tuple(data.classes) == CLASSES
    assert {sample.path.name for sample in data.samples} == FOUND.keys()
    for sample in data.samples:
        found = FOUND[sample.path.name]
        assert sample.labels.tolist() == found.labels.tolist()
        torch.testing.assert_close(sample.boxes, found.boxes, atol=tolerance, rtol=0)


def test_csv_is_read_back_as_a_box_file(tmp_path: Path) -> None:
    write_predictions(write_images(tmp_path / "images"), tmp_path / "new" / "out", "csv", CLASSES)
    file = tmp_path / "new" / "out" / "predictions.csv"
    boxes = {Path(image.path).name: image.boxes for image in read_boxes(file, tmp_path / "images").images}
    assert boxes.keys() == FOUND.keys() - {"leer.png"}
    for name, edges in boxes.items():
        torch.testing.assert_close(edges, FOUND[name].boxes, atol=1e-3, rtol=0)
    with file.open(encoding="utf-8", newline="") as stream:
        rows = [(row["label"], float(row["score"])) for row in csv.DictReader(stream)]
    assert rows == [(CLASSES[2], 0.75), (CLASSES[0], -0.25), (CLASSES[1], 0.5)]


def test_every_format_has_the_scores(tmp_path: Path) -> None:
    results = write_images(tmp_path / "images")
    for format in ("coco", "yolo", "voc"):
        write_predictions(results, tmp_path, format, CLASSES)
    (first, *_) = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))["annotations"]
    assert first == {
        "id": 1, "image_id": 1, "category_id": 3, "bbox": [1.25, 2.5, 29.5, 37.5],
        "score": 0.75, "area": 1106.25, "iscrowd": 0,
    }  # fmt: skip
    line = (tmp_path / "labels" / "a b.txt").read_text(encoding="utf-8").splitlines()[0]
    assert line == "2 0.2000000000 0.3541666667 0.3687500000 0.6250000000 0.75"
    assert (tmp_path / "labels" / "leer.txt").read_bytes() == b""
    assert "<score>0.75</score>" in (tmp_path / "Annotations" / "a b.xml").read_text(encoding="utf-8")


def test_repeated_names_are_numbered(tmp_path: Path) -> None:
    sources = ("x/0.png", "y/0.png", "y/0.png", "y/0-2.jpg", "x/c.d.png", "y/c.d.png")
    results = [DetectionResult(source, (60, 80), detections(), CLASSES) for source in sources]
    for format in ("coco", "yolo", "voc"):
        write_predictions(results, tmp_path, format, CLASSES)
    images = json.loads((tmp_path / "predictions.json").read_text(encoding="utf-8"))["images"]
    assert [image["file_name"] for image in images] == ["x/0.png", "y/0.png", "y/0-2.png", *sources[3:]]
    for folder in ("labels", "Annotations"):
        assert {path.stem for path in (tmp_path / folder).iterdir()} == {"0", "0-2", "0-3", "0-2-2", "c.d", "c.d-2"}


@pytest.mark.parametrize(("format", "name"), [("yolo", "labels"), ("yolo", "data.yaml"), ("voc", "Annotations")])
def test_existing_annotations_are_kept(format: Format, name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name} already exists"):
        write_predictions([], tmp_path, format, CLASSES)


def test_rejects_results_of_other_classes(tmp_path: Path) -> None:
    results = write_images(tmp_path / "images")
    with pytest.raises(ValueError, match="classes: expected all classes of the results, got 2 names without Köpfe"):
        write_predictions(results, tmp_path, "coco", CLASSES[:2])


def test_predict_writes_what_it_prints(detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_images(tmp_path / "images")
    command = ["predict", str(detector_run), str(tmp_path / "images"), "--min-score", "0", "--json"]
    printed = []
    for format in get_args(Format):
        assert run([*command, "--out", str(tmp_path / format), "--format", format]) == 0
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert not list((tmp_path / format).glob("*.jpg"))
    with (tmp_path / "csv" / "predictions.csv").open(encoding="utf-8", newline="") as stream:
        labels = [row["label"] for row in csv.DictReader(stream)]
    assert labels
    assert labels == [entry["label"] for result in printed for entry in result["objects"]]
    annotations = json.loads((tmp_path / "coco" / "predictions.json").read_text(encoding="utf-8"))["annotations"]
    assert len(annotations) == len(labels)
    assert len(list((tmp_path / "yolo" / "labels").iterdir())) == len(FOUND)
    assert len(list((tmp_path / "voc" / "Annotations").iterdir())) == len(FOUND)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--format", "coco"], "out: expected a folder with --format, got none"),
        (["--format", "coco", "--engine", "ray", "--out", "x"], "format: expected no value with --engine ray"),
    ],
)
def test_predict_rejects_illegal_combinations(
    words: list[str], expected: str, detector_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["predict", str(detector_run), str(tmp_path), *words]) == 2
    assert expected in capsys.readouterr().err


def test_predict_rejects_formats_for_classifiers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["predict", "imagenet", str(tmp_path), "--format", "csv"]) == 2
    assert "format: expected a detector, got a classifier" in capsys.readouterr().err
