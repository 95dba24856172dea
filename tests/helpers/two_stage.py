"""Small two-stage detectors, and plain-Python arithmetic of boxes."""

from dataclasses import dataclass
from typing import Any

import pytest

import sppnet
from sppnet.detect.two_stage.model import TwoStageDetector
from sppnet.detect.two_stage.network import TwoStageConfig
from sppnet.detect.two_stage.options import TwoStageOptions
from tests.helpers.detection_data import CLASSES

TINY: dict[str, Any] = {"backbone": "test_resnet", "levels": (2, 1), "side": 64, "max_side": 96}

Box = list[float]


@dataclass(frozen=True)
class ShortTraining(TwoStageOptions):
    """Options of a training of one epoch on small images."""

    side: int = 64
    max_side: int = 96
    epochs: int = 1


def shorten_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let comparisons of detectors use small images and few steps."""
    monkeypatch.setattr("sppnet.studies.detectors.PAPER_SCALES", (64, 96))
    monkeypatch.setattr("sppnet.studies.two_stage.TwoStageOptions", ShortTraining)
    monkeypatch.setattr("sppnet.detect.two_stage.batches._STEPS", 1)


def tiny_detector(**values: Any) -> TwoStageDetector:
    """Create an untrained detector with maps of the strides 8, 16 and 32."""
    model = sppnet.create_detector(TwoStageConfig(CLASSES, **TINY | values), "none")
    assert isinstance(model, TwoStageDetector)
    return model


def iou(a: Box, b: Box) -> float:
    """Return the intersection over union of two boxes with an area."""
    width, height = (min(a[axis + 2], b[axis + 2]) - max(a[axis], b[axis]) for axis in (0, 1))
    shared = max(width, 0) * max(height, 0)
    return shared / (area(a) + area(b) - shared)


def generalized_iou(a: Box, b: Box) -> float:
    """Return the generalized IoU of two boxes with an area (Rezatofighi et al., 2019)."""
    hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
    value = iou(a, b)
    union = (area(a) + area(b)) / (1 + value)
    return value - (hull - union) / hull


def area(box: Box) -> float:
    """Return width times height."""
    return (box[2] - box[0]) * (box[3] - box[1])


def is_inside(center: list[float], box: Box) -> bool:
    """Return whether a point is inside a box."""
    return box[0] < center[0] < box[2] and box[1] < center[1] < box[3]
