"""Evaluation of detectors and of their proposals."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppnet.console import track
from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.model import Detector
from sppnet.detect.proposals import propose_all
from sppnet.errors import ImageError
from sppnet.evaluation.average_precision import DetectionScores, score_detections
from sppnet.evaluation.recall import Recall, recall
from sppnet.inference.results import Detections, Failure


@dataclass(frozen=True)
class DetectEvaluation:
    """Scores of a detector.

    Attributes:
        scores: average precision over the readable images.
        recall: recall of the proposals at overlaps of 0.5, 0.7 and 0.9, over objects that are not difficult.
        samples: readable images.
        found: detections of each image in `samples`.
        failures: errors of the unreadable images.
    """

    scores: DetectionScores
    recall: Recall
    samples: tuple[DetectionSample, ...]
    found: tuple[Detections, ...]
    failures: tuple[ImageError, ...]


def evaluate_detector(
    model: Detector, samples: Sequence[DetectionSample], classes: Sequence[str], cache: Path, workers: int = 2
) -> DetectEvaluation:
    """Run a detector on every image and score its detections.

    Args:
        model: detector whose classes are the first of `classes`.
        samples: images with their objects.
        classes: class names, in label order; objects of classes that the detector lacks count as missed.
        cache: folder for proposals.
        workers: images searched for proposals in parallel.

    Raises:
        ValueError: the readable images contain only difficult objects, or none.
    """
    config = model.config
    paths = [sample.path for sample in samples]
    limits = {"max_windows": config.windows, "seconds": config.proposal_seconds}
    results = propose_all(paths, config.proposals, cache, workers=workers, **limits)  # type: ignore[arg-type]
    readable, detections, failures, boxes = [], [], [], []
    pairs = zip(samples, results, strict=True)
    for sample, proposals in track(pairs, "detecting", len(samples)):
        if isinstance(proposals, Failure):
            failures.append(proposals.error)
            continue
        detections.append(model.detect(load_image(sample.path), proposals.boxes))
        readable.append(sample)
        boxes.append(proposals.boxes)
    truths = [sample.boxes[~sample.difficult] for sample in readable]
    if not any(len(objects) for objects in truths):
        errors = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected at least one object that is not difficult, got none in {len(readable)} readable images;"
            f" {len(failures)} images cannot be read{': ' * bool(errors)}{errors}"
        )
    scores = score_detections(detections, readable, classes)
    return DetectEvaluation(scores, recall(boxes, truths), tuple(readable), tuple(detections), tuple(failures))
