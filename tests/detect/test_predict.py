"""Tests of the result of a detector."""

import json
import sys

import pytest
import torch
from PIL import Image

from sppnet import Detector, DetectorConfig, create_backbone
from sppnet.detect.pictures import draw_detections
from sppnet.detect.predict import DetectionResult
from tests.helpers.detection_results import detections, pixels
from tests.helpers.window_cases import noise

CLASSES = ("cat", "dog", "owl")
FOUND = detections(((1, 2, 30, 40), 2, 0.75), ((5, 5, 9, 9), 0, 0.5))
RESULT = DetectionResult("a.jpg", (60, 80), FOUND, CLASSES)


def test_to_dict_has_the_objects_by_score() -> None:
    assert json.loads(json.dumps(RESULT.to_dict())) == {
        "source": "a.jpg",
        "size": [60, 80],
        "objects": [
            {"label": "owl", "score": 0.75, "box": [1, 2, 30, 40]},
            {"label": "cat", "score": 0.5, "box": [5, 5, 9, 9]},
        ],
    }
    assert RESULT.labels == ("owl", "cat")


def test_to_supervision_has_the_indices_and_names_of_classes() -> None:
    pytest.importorskip("supervision")
    found = RESULT.to_supervision()
    assert found.xyxy.tolist() == [[1, 2, 30, 40], [5, 5, 9, 9]]
    assert found.confidence.tolist() == [0.75, 0.5]
    assert [CLASSES[label] for label in found.class_id] == found.data["class_name"].tolist() == ["owl", "cat"]
    assert len(DetectionResult("a.jpg", (60, 80), detections(), CLASSES).to_supervision()) == 0


def test_to_supervision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "\.\[supervision\]"'):
        RESULT.to_supervision()


def test_draw_uses_the_colors_of_the_class_indices() -> None:
    image = Image.new("RGB", (80, 60), "grey")
    assert (pixels(RESULT.draw(image)) == pixels(draw_detections(image, FOUND, CLASSES))).all()


def test_repr_is_one_line() -> None:
    assert repr(RESULT) == "DetectionResult('a.jpg', 60 x 80: owl 0.75, cat 0.50)"
    many = detections(*(((0, 0, 9, 9), 1, 0.5) for _ in range(5)))
    text = "DetectionResult('a.jpg', 60 x 80: dog 0.50, dog 0.50, dog 0.50, 2 more)"
    assert repr(DetectionResult("a.jpg", (60, 80), many, CLASSES)) == text
    assert (
        repr(DetectionResult("a.jpg", (60, 80), detections(), CLASSES))
        == "DetectionResult('a.jpg', 60 x 80: no objects)"
    )


def test_detections_are_identical_for_any_number_of_threads() -> None:
    torch.manual_seed(0)
    config = DetectorConfig(
        ("cat", "dog"), backbone="zf5", levels=(2, 1), scales=(64,), max_side=200, proposals="grid", windows=40
    )
    model = Detector(config, create_backbone("zf5")).train()
    images = [noise(64 + 9 * number, 90, seed=number) for number in range(5)]
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append([result.to_dict() for result in model.predict(images, min_score=-9)])
    torch.set_num_threads(before)
    assert model.training
    assert found[0] == found[1]
    assert all(content["objects"] for content in found[0])
