"""Evaluation of detectors and of their proposals."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.data.formats.detection import DetectionData, DetectionSample, choose_split, read_detection
from sppnet.detect.model import AnyDetector, DetectorConfig
from sppnet.detect.predict import DetectionResult
from sppnet.detect.two_stage.network import TwoStageConfig
from sppnet.errors import ImageError
from sppnet.evaluation.average_precision import DetectionScores, match_detections, score_detections
from sppnet.evaluation.calibration import calibration_error
from sppnet.evaluation.confusion import ClassQuality, class_qualities, detection_confusion
from sppnet.evaluation.recall import Recall, recall
from sppnet.inference.results import Detections, Failure, filter_by_score
from sppnet.ops.boxes import areas

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectionReport:
    """Scores of a detector on a data set.

    Attributes:
        scores: average precision over the readable images.
        recall: recall of the proposals at overlaps of 0.5, 0.7 and 0.9, over objects that are not difficult.
        threshold: lowest score that the detector reports by default.
        probabilities: whether the scores of the detector are probabilities.
        samples: readable images.
        found: detections of each image in `samples`.
        failures: errors of the unreadable images.
        problems: problems of the data set.
    """

    scores: DetectionScores
    recall: Recall
    threshold: float
    probabilities: bool
    samples: tuple[DetectionSample, ...]
    found: tuple[Detections, ...]
    failures: tuple[ImageError, ...]
    problems: tuple[str, ...]

    @property
    def confidence(self) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """Score of each detection, and whether it matches an object at an overlap of 0.5; without ignored ones."""
        matches = match_detections(self.found, self.samples)
        return torch.from_numpy(matches.score[~matches.ignored]), torch.from_numpy(matches.hit[~matches.ignored])

    @property
    def ece(self) -> float | None:
        """Calibration error, see :func:`sppnet.evaluation.calibration.calibration_error`; None for SVM margins."""
        return calibration_error(*self.confidence) if self.probabilities else None

    @property
    def accepted(self) -> tuple[Detections, ...]:
        """Detections of each image with a score of at least `threshold`."""
        return tuple(filter_by_score(detections, self.threshold) for detections in self.found)

    @property
    def recall_by_size(self) -> dict[str, tuple[int, float]]:
        """Number of objects of each size that has some, and the share of them found by detections from `threshold`.

        As in COCO, objects have an area of up to 32 x 32 pixels, up to 96 x 96, or more.
        """
        matches = match_detections(self.accepted, self.samples)
        found = set(zip(matches.image[matches.hit].tolist(), matches.object[matches.hit].tolist(), strict=True))
        parts: dict[str, list[bool]] = {name: [] for name in ("small", "medium", "large")}
        for image, sample in enumerate(self.samples):
            sizes = torch.bucketize(areas(sample.boxes), torch.tensor([32.0**2, 96.0**2])).tolist()
            for index, (size, difficult) in enumerate(zip(sizes, sample.difficult.tolist(), strict=True)):
                if not difficult:
                    list(parts.values())[size].append((image, index) in found)
        return {name: (len(hits), sum(hits) / len(hits)) for name, hits in parts.items() if hits}

    @property
    def confusion(self) -> Int[Tensor, "k k"]:
        """Objects by class, of the detections from `threshold`, see :func:`detection_confusion`."""
        return detection_confusion(self.accepted, self.samples, len(self.scores.per_class))

    @property
    def quality(self) -> dict[str, ClassQuality]:
        """Precision, recall and F1 of each class, of the detections from `threshold`."""
        return class_qualities(self.confusion, tuple(self.scores.per_class))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores and failures as JSON types."""
        return self.scores.to_dict() | {
            "ece": self.ece,
            "proposal_recall": dict(zip(("0.5", "0.7", "0.9"), self.recall.fractions, strict=True)),
            "recall_by_size": {name: share for name, (_, share) in self.recall_by_size.items()},
            "failures": [{"path": failure.path, "reason": failure.reason} for failure in self.failures],
        }


def evaluate_detector(
    model: AnyDetector,
    data: str | Path | DetectionData,
    *,
    split: str | None = None,
    on_error: Literal["raise", "skip"] = "skip",
    format: str | None = None,
    **options: Any,
) -> DetectionReport:
    """Run a detector on every image of a data set and score its detections.

    Args:
        model: detector.
        data: data set, see :func:`sppnet.data.formats.detection.read_detection`, or the data that it returned for the
            classes of the model. Objects of classes that the detector lacks count as missed.
        split: split of the data; None for ``test``, ``val``, or for data without splits.
        on_error: ``skip`` to collect the errors of unreadable images, or ``raise``.
        format: format of a path, such as ``coco``; None to detect it.
        options: further arguments of the model's `predict`, such as `cache` and `workers` of a window-based detector,
            or `tiling` of a two-stage detector.

    Raises:
        ImageError: an image cannot be read, and `on_error` is ``raise``.
        ValueError: invalid data set, or the readable images contain only difficult objects, or none.
    """
    if not isinstance(data, DetectionData):
        split = choose_split(data, split, "test", "val", format=format)
        data = read_detection(data, split, model.config.classes, more_classes=True, format=format)
    known = len(model.config.classes)
    if data.classes[:known] != model.config.classes:
        raise ValueError(f"data: expected the classes of the model first, {model.config.classes}, got {data.classes}")
    if not any((~sample.difficult).any() for sample in data.samples):
        raise ValueError(f"data: expected at least one object that is not difficult in {data.root}, got none")
    warn_of_unknown(data.classes[known:])
    paths = [sample.path for sample in data.samples]
    results = model.iter_predictions(paths, min_score=-math.inf, on_error=on_error, **options)
    return report_detections(data, list(results), model.config)


def warn_of_unknown(classes: Sequence[str]) -> None:
    """Log the names of the classes that a model lacks, if there are any."""
    if classes:
        _logger.warning(f"classes unknown to the model, whose objects count as missed: {', '.join(classes)}")


def report_detections(
    data: DetectionData, results: Sequence[DetectionResult | Failure], config: DetectorConfig | TwoStageConfig
) -> DetectionReport:
    """Score the detections in the images of a data set.

    Args:
        data: images and objects.
        results: result for each image, with detections of any score.
        config: configuration of the detector.

    Raises:
        ValueError: the readable images contain only difficult objects, or none.
    """
    pairs = list(zip(data.samples, results, strict=True))
    read = [(sample, result) for sample, result in pairs if isinstance(result, DetectionResult)]
    samples, found = tuple(sample for sample, _ in read), tuple(result.detections for _, result in read)
    failures = tuple(result.error for result in results if isinstance(result, Failure))
    truths = [sample.boxes[~sample.difficult] for sample in samples]
    if not any(len(objects) for objects in truths):
        errors = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected at least one object that is not difficult, got none in {len(samples)} readable images;"
            f" {len(failures)} images cannot be read{': ' * bool(errors)}{errors}"
        )
    scores = score_detections(found, samples, data.classes)
    covered = recall([result.proposals for _, result in read], truths)
    return DetectionReport(
        scores, covered, config.min_score, config.probabilities, samples, found, failures, data.problems
    )
