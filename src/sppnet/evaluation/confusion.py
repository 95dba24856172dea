"""Confusion matrices, and precision, recall and F1 of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sppnet.data.formats.detection import DetectionSample
from sppnet.errors import import_optional
from sppnet.evaluation.average_precision import match_detections
from sppnet.inference.results import Detections
from sppnet.ops.boxes import overlaps


@dataclass(frozen=True)
class ClassQuality:
    """Scores of one class, from 0 to 1.

    Attributes:
        precision: share of the predictions of the class that are correct; None without predictions.
        recall: share of the examples of the class that are predicted; None without examples.
        f1: harmonic mean of precision and recall; None without predictions and examples.
        support: number of examples.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


def confusion_matrix(labels: Int[Tensor, " n"], predicted: Int[Tensor, " n"], classes: int) -> Int[Tensor, "c c"]:
    """Count the predictions of each class, with a row per true class and a column per predicted class."""
    metrics = import_optional("torchmetrics.functional.classification", "confusion matrices")
    if not len(labels):
        return torch.zeros(classes, classes, dtype=torch.long)
    table: Tensor = metrics.multiclass_confusion_matrix(predicted, labels, classes)
    return table


def class_qualities(table: Int[Tensor, "c c"], classes: Sequence[str]) -> dict[str, ClassQuality]:
    """Compute the scores of each class, by name, from a confusion matrix; further rows and columns are not classes."""
    correct, examples, predictions = table.diag().tolist(), table.sum(1).tolist(), table.sum(0).tolist()
    counts = zip(classes, correct, examples, predictions, strict=False)
    return {
        name: ClassQuality(
            _ratio(right, predicted), _ratio(right, support), _ratio(2 * right, support + predicted), support
        )
        for name, right, support, predicted in counts
    }


def detection_confusion(
    found: Sequence[Detections], samples: Sequence[DetectionSample], classes: int
) -> Int[Tensor, "k k"]:
    """Count the objects that count of each class by the class of their detection.

    Hits are those of :func:`sppnet.evaluation.average_precision.match_detections`. Then each other detection that
    overlaps an object without a hit by 0.5 or more, of any class, is assigned to it, by descending score.

    Returns:
        A table with a row per true class and a column per detected class; the last row counts false detections, the
        last column missed objects.
    """
    table = torch.zeros(classes + 1, classes + 1, dtype=torch.long)
    matches = match_detections(found, samples)
    for image, (detections, sample) in enumerate(zip(found, samples, strict=True)):
        inside = np.flatnonzero(matches.image == image)
        open_objects = ~sample.difficult
        open_objects[matches.object[inside][matches.hit[inside]]] = False
        for label in sample.labels[~sample.difficult & ~open_objects].tolist():
            table[label, label] += 1
        shared = overlaps(detections.boxes, sample.boxes)
        for row in inside[~matches.hit[inside] & ~matches.ignored[inside]]:
            candidates = shared[int(matches.index[row])].masked_fill(~open_objects, 0)
            target = int(candidates.argmax()) if len(candidates) else -1
            taken = target >= 0 and bool(candidates[target] >= 0.5)
            if taken:
                open_objects[target] = False
            table[int(sample.labels[target]) if taken else classes, int(matches.label[row])] += 1
        for label in sample.labels[open_objects].tolist():
            table[label, classes] += 1
    return table


def most_confused(table: Int[Tensor, "c c"], count: int = 20) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, number) of the most frequent confusions, most frequent first."""
    errors = table.clone().fill_diagonal_(0)
    numbers, order = errors.flatten().sort(descending=True, stable=True)
    top = zip(order[:count].tolist(), numbers[:count].tolist(), strict=True)
    return [(*divmod(index, len(table)), number) for index, number in top if number]


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
