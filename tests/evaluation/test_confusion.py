"""Confusion matrices and the scores of classes, counted by hand."""

from dataclasses import replace
from pathlib import Path

import torch

from sppnet.evaluation.confusion import (
    ClassQuality,
    class_qualities,
    confusion_matrix,
    detection_confusion,
    most_confused,
)
from tests.helpers.detection_results import detections, sample

LABELS = torch.tensor([0, 0, 0, 1, 1, 2])
PREDICTED = torch.tensor([0, 0, 1, 1, 0, 0])


def test_rows_are_true_classes() -> None:
    assert confusion_matrix(LABELS, PREDICTED, 4).tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert confusion_matrix(LABELS[:0], LABELS[:0], 2).tolist() == [[0, 0], [0, 0]]


def test_scores_of_classes() -> None:
    qualities = class_qualities(confusion_matrix(LABELS, PREDICTED, 4), "abcd")
    assert qualities == {
        "a": ClassQuality(2 / 4, 2 / 3, 4 / 7, 3),
        "b": ClassQuality(1 / 2, 1 / 2, 2 / 4, 2),
        "c": ClassQuality(None, 0.0, 0.0, 1),
        "d": ClassQuality(None, None, None, 0),
    }


def test_most_confused_pairs_come_first() -> None:
    table = torch.tensor([[9, 1, 0], [3, 9, 0], [1, 0, 9]])
    assert most_confused(table) == [(1, 0, 3), (0, 1, 1), (2, 0, 1)]
    assert most_confused(table, 1) == [(1, 0, 3)]


def test_detections_are_counted_by_the_class_of_their_object() -> None:
    left, middle, right = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (50.0, 0.0, 60.0, 10.0)
    annotated = sample(Path("x.jpg"), (left, 0), (middle, 1), (right, 1))
    found = detections((left, 0, 0.9), (left, 0, 0.8), (left, 1, 0.7), (middle, 0, 0.6))
    empty = sample(Path("y.jpg")), detections((left, 1, 0.5))
    table = detection_confusion([found, empty[1]], [annotated, empty[0]], 2)
    # A hit and its duplicate, a wrong class on an object that has a hit and on one that has none, and one missed.
    assert table.tolist() == [[1, 0, 0], [1, 0, 1], [1, 2, 0]]
    difficult = replace(annotated, difficult=torch.tensor([True, False, True]))
    assert detection_confusion([found], [difficult], 2).tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
