"""Tests of detector evaluation on a data set."""

from pathlib import Path

import pytest
import torch

from sppnet import Detector, DetectorConfig
from sppnet.backbones.backbone import create_backbone
from sppnet.data.formats.detection import DetectionSample, read_detection
from sppnet.detect.evaluate import evaluate_detector
from tests.helpers.detection_data import CLASSES, write_voc


@pytest.fixture
def samples(tmp_path: Path) -> tuple[DetectionSample, ...]:
    return read_detection(write_voc(tmp_path / "data", 4, 1), "train", CLASSES).samples


def disc_detector(proposals: str) -> Detector:
    """Create a detector that labels every window as a disc."""
    config = DetectorConfig(CLASSES, backbone="zf5", levels=(1,), scales=(64,), proposals=proposals, windows=50)
    model = Detector(config, create_backbone("zf5"))
    with torch.no_grad():
        model.score.weight.zero_()
        model.score.bias.copy_(torch.tensor([1.0, -9.0]))
    return model


def test_scores_detections_and_proposals(samples: tuple[DetectionSample, ...], tmp_path: Path) -> None:
    """The proposals are the true boxes, without the last object of each image."""
    rows = [[sample.path.name, *map(str, box)] for sample in samples for box in sample.boxes[:-1].tolist()]
    file = tmp_path / "boxes.csv"
    file.write_text("\n".join(map(",".join, [["image", "x1", "y1", "x2", "y2"], *rows])))
    evaluation = evaluate_detector(disc_detector(str(file)), samples, CLASSES, tmp_path / "cache")
    objects = sum(len(sample.boxes) for sample in samples)
    proposed = sum(len(sample.boxes[:-1]) for sample in samples)
    assert evaluation.recall.fractions == pytest.approx([proposed / objects] * 3)
    assert evaluation.samples == samples
    assert [len(detections.boxes) for detections in evaluation.found] == [
        1 + len(sample.boxes[:-1]) for sample in samples
    ]
    assert (evaluation.scores.per_class["disc"].ap50 or 0) > 0
    assert evaluation.scores.per_class["square"].ap50 == 0


def test_unreadable_images_are_failures(samples: tuple[DetectionSample, ...], tmp_path: Path) -> None:
    samples[1].path.write_bytes(b"not an image")
    evaluation = evaluate_detector(disc_detector("grid"), samples, CLASSES, tmp_path / "cache")
    assert [failure.path for failure in evaluation.failures] == [str(samples[1].path)]
    assert [sample.path for sample in evaluation.samples] == [samples[k].path for k in (0, 2, 3)]


def test_rejects_data_without_readable_objects(samples: tuple[DetectionSample, ...], tmp_path: Path) -> None:
    samples[1].path.write_bytes(b"not an image")
    message = r"data: expected at least one object .* got none in 1 readable images; 1 images cannot be read: .*train1"
    with pytest.raises(ValueError, match=message):
        evaluate_detector(disc_detector("grid"), samples[:2], CLASSES, tmp_path / "cache")
