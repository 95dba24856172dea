"""Tests of the result of a detector."""

import json

from PIL import Image

from sppnet.detect.pictures import draw_detections
from sppnet.detect.predict import DetectionResult
from tests.helpers.detection_results import detections, pixels

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
