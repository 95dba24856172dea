"""How good a detector is on a data set, and how good its proposals can let it be."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sppnet.console import track
from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.model import Detector
from sppnet.detect.proposals import proposals_of
from sppnet.errors import ImageError
from sppnet.evaluation.average_precision import DetectionScores, score_detections
from sppnet.evaluation.recall import Recall, recall
from sppnet.inference.results import Detections, Failure


@dataclass(frozen=True)
class DetectEvaluation:
    """Scores of a detector.

    Attributes:
        scores: over the images that could be read.
        recall: of the proposals, at overlaps of 0.5, 0.7 and 0.9; of objects that are not difficult.
        samples: the images that could be read.
        found: the detections in each.
        failures: the images that could not be read.
    """

    scores: DetectionScores
    recall: Recall
    samples: tuple[DetectionSample, ...]
    found: tuple[Detections, ...]
    failures: tuple[ImageError, ...]


def evaluate_detector(
    model: Detector, samples: Sequence[DetectionSample], classes: Sequence[str], cache: Path, workers: int = 2
) -> DetectEvaluation:
    """Detect in every image and score what is found.

    Args:
        model: its classes are the first of `classes`.
        samples: images and their objects.
        classes: what the labels index; objects of classes that the model does not know count as missed.
        cache: folder where proposals are kept.
        workers: images that are searched for proposals at a time.
    """
    config = model.config
    paths = [sample.path for sample in samples]
    limits = {"max_windows": config.windows, "seconds": config.proposal_seconds}
    proposals = proposals_of(paths, config.proposals, cache, workers=workers, **limits)  # type: ignore[arg-type]
    good, found, failures, boxes = [], [], [], []
    pairs = zip(samples, proposals, strict=True)
    for sample, one in track(pairs, "detecting", len(samples)):
        if isinstance(one, Failure):
            failures.append(one.error)
            continue
        found.append(model.detect(load_image(sample.path), one.boxes))
        good.append(sample)
        boxes.append(one.boxes)
    truths = [sample.boxes[~sample.difficult] for sample in good]
    if not any(len(part) for part in truths):
        named = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: no object that is not difficult in the {len(good)} images that can be read, so there is nothing to"
            f" score against; {len(failures)} cannot be read{': ' * bool(named)}{named}"
        )
    covered = recall(boxes, truths)
    return DetectEvaluation(score_detections(found, good, classes), covered, tuple(good), tuple(found), tuple(failures))
