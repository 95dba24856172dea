"""Tests of detector evaluation on a data set."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sppnet import Detector, DetectorConfig, ImageError
from sppnet.backbones.backbone import create_backbone
from sppnet.data.formats.detection import DetectionData, DetectionSample, read_detection
from sppnet.detect.evaluate import evaluate_detector
from tests.helpers.detection_data import CLASSES, write_voc


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    return read_detection(write_voc(tmp_path / "data", 4, 1), "train", CLASSES)


@pytest.fixture
def samples(data: DetectionData) -> tuple[DetectionSample, ...]:
    return data.samples


def disc_detector(proposals: str) -> Detector:
    """Create a detector that labels every window as a disc."""
    config = DetectorConfig(CLASSES, backbone="zf5", levels=(1,), scales=(64,), proposals=proposals, windows=50)
    model = Detector(config, create_backbone("zf5"))
    with torch.no_grad():
        model.score.weight.zero_()
        model.score.bias.copy_(torch.tensor([1.0, -9.0]))
    return model


def write_boxes(folder: Path, samples: tuple[DetectionSample, ...]) -> Path:
    """Write the true boxes to a file, without the last object of each image."""
    rows = [[sample.path.name, *map(str, box)] for sample in samples for box in sample.boxes[:-1].tolist()]
    (folder / "boxes.csv").write_text("\n".join(map(",".join, [["image", "x1", "y1", "x2", "y2"], *rows])))
    return folder / "boxes.csv"


def test_scores_detections_and_proposals(
    data: DetectionData, samples: tuple[DetectionSample, ...], tmp_path: Path
) -> None:
    report = evaluate_detector(disc_detector(str(write_boxes(tmp_path, samples))), data)
    objects = sum(len(sample.boxes) for sample in samples)
    proposed = sum(len(sample.boxes[:-1]) for sample in samples)
    assert report.recall.fractions == pytest.approx([proposed / objects] * 3)
    assert report.samples == samples
    assert [len(detections.boxes) for detections in report.found] == [1 + len(sample.boxes[:-1]) for sample in samples]
    assert (report.scores.per_class["disc"].ap50 or 0) > 0
    assert report.scores.per_class["square"].ap50 == 0
    content = json.loads(json.dumps(report.to_dict()))
    assert content.keys() == {
        "images",
        "ap50",
        "map",
        "voc07",
        "per_class",
        "ece",
        "proposal_recall",
        "recall_by_size",
        "failures",
    }
    assert content["proposal_recall"] == dict(zip(("0.5", "0.7", "0.9"), report.recall.fractions, strict=True))


def test_reads_the_test_split_of_a_path_and_caches_the_proposals(data: DetectionData, tmp_path: Path) -> None:
    (data.root / "ImageSets" / "Main" / "test.txt").write_text("train1\n")
    report = evaluate_detector(disc_detector("grid"), data.root, cache=tmp_path / "cache")
    assert [sample.path for sample in report.samples] == [data.samples[1].path]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    with pytest.raises(ValueError, match=r"split: expected one of train, test for .*, got 'val'"):
        evaluate_detector(disc_detector("grid"), data.root, split="val")


def test_objects_of_unknown_classes_count_as_missed(data: DetectionData, caplog: pytest.LogCaptureFixture) -> None:
    model = disc_detector("grid")
    model.config = replace(model.config, classes=CLASSES[:1])
    model.score = torch.nn.Linear(model.score.in_features, 1)
    with caplog.at_level(logging.WARNING):
        report = evaluate_detector(model, data)
    assert "classes unknown to the model, whose objects count as missed: square" in caplog.text
    assert report.scores.per_class["square"].ap50 == 0
    with pytest.raises(
        ValueError, match=r"data: expected the classes of the model first, \('disc',\), got \('square',"
    ):
        evaluate_detector(model, replace(data, classes=CLASSES[::-1]))


@pytest.mark.parametrize("source", ["grid", "file"])
@pytest.mark.parametrize("damage", ["header", "pixels"])
def test_unreadable_images_are_failures(
    source: str, damage: str, data: DetectionData, samples: tuple[DetectionSample, ...], tmp_path: Path
) -> None:
    path = samples[1].path
    path.write_bytes(b"not an image" if damage == "header" else path.read_bytes()[:400])
    model = disc_detector("grid" if source == "grid" else str(write_boxes(tmp_path, samples)))
    report = evaluate_detector(model, data, cache=tmp_path / "cache")
    assert [failure.path for failure in report.failures] == [str(path)]
    assert report.to_dict()["failures"][0].keys() == {"path", "reason"}
    assert [sample.path for sample in report.samples] == [samples[k].path for k in (0, 2, 3)]
    with pytest.raises(ImageError, match="train1"):
        evaluate_detector(model, data, on_error="raise")


def test_rejects_data_without_readable_objects(
    data: DetectionData, samples: tuple[DetectionSample, ...], tmp_path: Path
) -> None:
    samples[1].path.write_bytes(b"not an image")
    message = r"data: expected at least one object .* got none in 1 readable images; 1 images cannot be read: .*train1"
    with pytest.raises(ValueError, match=message):
        evaluate_detector(disc_detector("grid"), replace(data, samples=samples[:2]), cache=tmp_path / "cache")
    with pytest.raises(ValueError, match=r"data: expected at least one object that is not difficult in .*, got none"):
        evaluate_detector(disc_detector("grid"), replace(data, samples=samples[:1]))
