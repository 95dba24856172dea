"""Evaluation of segmenters: IoU per class, pixel accuracy and mean accuracy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from sppnet.backbones.modes import evaluation_mode
from sppnet.console import track
from sppnet.data.formats.masks import IGNORE, SegmentationSample, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.errors import ImageError
from sppnet.segment.model import Segmenter
from sppnet.segment.views import pixel_probabilities

# Function from an RGB image to the class index of each pixel.
Answer = Callable[[Image.Image], Int[Tensor, "h w"]]


@dataclass(frozen=True)
class SegmentationScores:
    """Scores in [0, 1] over all pixels that are not ignored.

    Attributes:
        miou: mean IoU over the classes that occur in the masks or in the predictions.
        pixel_accuracy: share of correct pixels.
        mean_accuracy: share of correct pixels per class, averaged over the classes in the masks.
        per_class: IoU of each class; None if it occurs neither in the masks nor in the predictions.
        pixels: number of pixels in the masks, by class.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    per_class: dict[str, float | None]
    pixels: dict[str, int]


@dataclass(frozen=True)
class SegmentEvaluation:
    """Result of an evaluation.

    Attributes:
        scores: scores over all samples that could be read.
        by_image: mean IoU of each of `samples`; None if all pixels of its mask are ignored.
        samples: samples that could be read.
        failures: errors of images or masks that could not be used.
    """

    scores: SegmentationScores
    by_image: tuple[float | None, ...]
    samples: tuple[SegmentationSample, ...]
    failures: tuple[ImageError, ...]


def evaluate_segmenter(
    model: Segmenter, data: SegmentationData, answer: Answer | None = None, described: str = "evaluating"
) -> SegmentEvaluation:
    """Compare the predictions for all images with their masks.

    Args:
        model: segmenter with the classes of `data`; it is in evaluation mode during the call.
        data: images and masks.
        answer: function that predicts the class of each pixel; None for a single pass over the whole image.
        described: label of the progress bar.

    Raises:
        ValueError: no image could be read, or all pixels are ignored.
    """
    from torchmetrics.classification import MulticlassConfusionMatrix

    predict = answer or (lambda image: pixel_probabilities(model, image).argmax(0))
    total = MulticlassConfusionMatrix(len(data.classes), ignore_index=IGNORE, validate_args=False)
    samples, by_image, failures = [], [], []
    with evaluation_mode(model):
        for sample in track(data.samples, described, len(data.samples)):
            try:
                image, mask = load_pair(sample, data.labels)
            except ImageError as error:
                failures.append(error)
                continue
            matrix = total(predict(image)[None], torch.as_tensor(mask)[None].long())
            samples.append(sample)
            by_image.append(scores_of(matrix, data.classes).miou if matrix.sum() else None)
    if not any(value is not None for value in by_image):
        reasons = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected labeled pixels, got none in {len(samples)} readable images; {len(failures)} cannot be used"
            f"{': ' * bool(reasons)}{reasons}"
        )
    return SegmentEvaluation(scores_of(total.compute(), data.classes), tuple(by_image), tuple(samples), tuple(failures))


def scores_of(table: Int[Tensor, "c c"], classes: tuple[str, ...]) -> SegmentationScores:
    """Compute the scores of a confusion matrix with a row per true class and a column per predicted class."""
    table = table.double().cpu()
    correct, true, predicted = table.diag(), table.sum(1), table.sum(0)
    union = true + predicted - correct
    present = union > 0
    iou = correct / union
    return SegmentationScores(
        float(iou[present].mean()),
        float(correct.sum() / table.sum()),
        float((correct / true)[true > 0].mean()),
        {name: float(iou[index]) if present[index] else None for index, name in enumerate(classes)},
        {name: int(true[index]) for index, name in enumerate(classes)},
    )


def json_content(evaluation: SegmentEvaluation) -> dict[str, Any]:
    """Return the content that `sppnet evaluate --json` prints."""
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
