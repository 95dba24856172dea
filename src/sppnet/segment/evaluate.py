"""How good a segmenter is: intersection over union of each class, and the share of right pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from sppnet.console import track
from sppnet.data.formats.masks import IGNORE, SegmentationSample, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.errors import ImageError
from sppnet.segment.model import Segmenter
from sppnet.segment.views import pixel_probabilities

# From an RGB image to the class of each pixel.
Answer = Callable[[Image.Image], Int[Tensor, "h w"]]


@dataclass(frozen=True)
class SegmentationScores:
    """Shares in [0, 1] over all pixels that count.

    Attributes:
        miou: mean of `per_class` over the classes that are there, in the masks or in the answers.
        pixel_accuracy: share of right pixels.
        mean_accuracy: share of right pixels of each class, averaged over the classes in the masks.
        per_class: intersection over union of each class; None where it is neither in masks nor in answers.
        pixels: how many pixels count, by class.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    per_class: dict[str, float | None]
    pixels: dict[str, int]


@dataclass(frozen=True)
class SegmentEvaluation:
    """Scores of a segmenter.

    Attributes:
        scores: over the images that could be read.
        by_image: mean intersection over union within each of these images, in order; None where no pixel counts.
        samples: these images.
        failures: images or masks that could not be used.
    """

    scores: SegmentationScores
    by_image: tuple[float | None, ...]
    samples: tuple[SegmentationSample, ...]
    failures: tuple[ImageError, ...]


def evaluate_segmenter(
    model: Segmenter, data: SegmentationData, answer: Answer | None = None, described: str = "evaluating"
) -> SegmentEvaluation:
    """Answer for every image and compare with its mask.

    Args:
        model: its classes are those of `data`; in evaluation mode while this runs.
        data: images and masks.
        answer: gives the classes of an image's pixels; None for one view of the whole image.
        described: in front of the progress bar.

    Raises:
        ValueError: no image could be read, or no pixel counts.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    look = answer or (lambda image: pixel_probabilities(model, image).argmax(0))
    training = model.training
    model.eval()
    total = MulticlassConfusionMatrix(len(data.classes), ignore_index=IGNORE, validate_args=False)
    samples, by_image, failures = [], [], []
    try:
        for sample in track(data.samples, described, len(data.samples)):
            try:
                image, mask = load_pair(sample, data.labels)
            except ImageError as error:
                failures.append(error)
                continue
            table = total(look(image)[None], torch.as_tensor(mask)[None].long())
            samples.append(sample)
            by_image.append(scores_of(table, data.classes).miou if table.sum() else None)
    finally:
        model.train(training)
    if not any(value is not None for value in by_image):
        named = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: no pixel that counts in the {len(samples)} images that can be read; {len(failures)} cannot be"
            f" used{': ' * bool(named)}{named}"
        )
    return SegmentEvaluation(scores_of(total.compute(), data.classes), tuple(by_image), tuple(samples), tuple(failures))


def scores_of(table: Int[Tensor, "c c"], classes: tuple[str, ...]) -> SegmentationScores:
    """Scores of a confusion matrix: a row for each true class, a column for each answer."""
    table = table.double().cpu()
    right, true, answered = table.diag(), table.sum(1), table.sum(0)
    union = true + answered - right
    there = union > 0
    iou = right / union
    return SegmentationScores(
        float(iou[there].mean()),
        float(right.sum() / table.sum()),
        float((right / true)[true > 0].mean()),
        {name: float(iou[index]) if there[index] else None for index, name in enumerate(classes)},
        {name: int(true[index]) for index, name in enumerate(classes)},
    )


def json_content(evaluation: SegmentEvaluation) -> dict[str, Any]:
    """What `sppnet evaluate --json` prints."""
    scores = evaluation.scores
    return {
        "miou": scores.miou,
        "pixel_accuracy": scores.pixel_accuracy,
        "mean_accuracy": scores.mean_accuracy,
        "per_class": scores.per_class,
        "pixels": scores.pixels,
        "images": len(evaluation.samples),
        "failures": [{"path": failure.path, "reason": failure.reason} for failure in evaluation.failures],
    }
