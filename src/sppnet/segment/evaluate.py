"""Evaluation of segmenters: IoU per class, pixel accuracy, mean accuracy and calibration."""

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Integer
from PIL import Image
from torch import Tensor

from sppnet.data.formats.class_tables import ClassRow
from sppnet.data.formats.masks import IGNORE, Mask, SegmentationSample, load_pair
from sppnet.data.formats.segmentation import SegmentationData, choose_segmentation_split, read_segmentation
from sppnet.errors import ImageError, import_optional
from sppnet.evaluation.calibration import Subsample, calibration_error
from sppnet.evaluation.confusion import ClassQuality, class_qualities
from sppnet.progress import track
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.views import map_images, segment_scored

_PIXELS = 200_000  # pixels of which the calibration is measured


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
class SegmentationReport:
    """Result of an evaluation.

    Attributes:
        scores: scores over all samples that could be read.
        by_image: mean IoU of each of `samples`; None if all pixels of its mask are ignored.
        accuracies: share of correct pixels of each of `samples`; None if all pixels of its mask are ignored.
        samples: samples that could be read.
        confusion: number of pixels by true class (rows) and predicted class (columns).
        confidence: probability of the predicted class, and 1 if it is correct or else 0, of up to 200,000 evenly
            spaced pixels; None if all images were split into tiles, which have no probabilities.
        failures: errors of images or masks that could not be used.
        problems: files of the data set that were skipped, with the reasons.
    """

    scores: SegmentationScores
    by_image: tuple[float | None, ...]
    accuracies: tuple[float | None, ...]
    samples: tuple[SegmentationSample, ...]
    confusion: Int[Tensor, "c c"] = field(compare=False, repr=False)
    confidence: Float[Tensor, "k 2"] | None = field(compare=False, repr=False)
    failures: tuple[ImageError, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def ece(self) -> float | None:
        """Calibration error of the pixels, see :func:`sppnet.evaluation.calibration.calibration_error`."""
        return None if self.confidence is None else calibration_error(self.confidence[:, 0], self.confidence[:, 1] > 0)

    @property
    def quality(self) -> dict[str, ClassQuality]:
        """Precision, recall and F1 of the pixels of each class, by name."""
        return class_qualities(self.confusion, tuple(self.scores.per_class))

    def to_dict(self) -> dict[str, Any]:
        """Return the scores, the number of images and the failures as JSON types."""
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        return {**dataclasses.asdict(self.scores), "ece": self.ece, "images": len(self.samples), "failures": failures}


def read_evaluation_data(
    model: SegmenterNetwork,
    data: str | Path,
    split: str | None = None,
    ignore: Sequence[int] | None = None,
    class_file: str | Path | None = None,
    format: str | None = None,
) -> SegmentationData:
    """Read images and masks with the classes of a model; the arguments are those of :func:`evaluate_segmenter`."""
    split = choose_segmentation_split(data, split, "test", "val", format=format)
    ignore = model.config.ignore or None if ignore is None else ignore
    table = [ClassRow(*row) for row in model.config.table]
    classes = model.config.classes
    return read_segmentation(data, split, classes, ignore, class_file=class_file, table=table, format=format)


def evaluate_segmenter(
    model: SegmenterNetwork,
    data: SegmentationData | str | Path,
    *,
    split: str | None = None,
    view: View | None = None,
    ignore: Sequence[int] | None = None,
    class_file: str | Path | None = None,
    format: str | None = None,
    on_error: Literal["raise", "skip"] = "skip",
    description: str = "evaluating",
) -> SegmentationReport:
    """Compare the predictions for all images with their masks.

    Args:
        model: segmenter; it is in evaluation mode during the call.
        data: data set, see :func:`sppnet.data.formats.segmentation.read_segmentation`, or the images and masks that it
            returned, with the classes of the model. `split`, `ignore`, `class_file` and `format` only apply
            to a path.
        split: split to score; None for ``test``, or ``val`` if there is no test split.
        view: scales, mirror images, memory limit and tiles; None for a single pass over each image.
        ignore: raw mask values to ignore; None for those of the training.
        class_file: path of a table of mask values and classes; None for that of the data set, else of the training.
        format: name of the format of the data set; None to detect it.
        on_error: ``skip`` images and masks that cannot be used, or ``raise`` the first error.
        description: label of the progress bar.

    Raises:
        ValueError: the data set is invalid, no image could be read, or all pixels are ignored.
        sppnet.ImageError: an image or mask cannot be used, and `on_error` is ``raise``.
    """
    metrics = import_optional("torchmetrics.classification", "scores of segmenters")
    if not isinstance(data, SegmentationData):
        data = read_evaluation_data(model, data, split, ignore, class_file, format)
    if data.classes != model.config.classes:
        raise ValueError(f"data: expected the classes of the model, {model.config.classes}, got {data.classes}")
    # In a training with several processes, only the first one validates.
    settings = {"ignore_index": IGNORE, "validate_args": False, "sync_on_compute": False}
    total = metrics.MulticlassConfusionMatrix(len(data.classes), **settings)
    samples, by_image, accuracies, failures, pixels = [], [], [], [], Subsample(_PIXELS)

    def load(sample: SegmentationSample, _view: View) -> tuple[Image.Image, Mask] | ImageError:
        try:
            return load_pair(sample, data.labels)
        except ImageError as error:
            return error

    def run(
        pair: tuple[Image.Image, Mask] | ImageError, view: View
    ) -> tuple[Int[Tensor, "h w"], Integer[Tensor, "h w"], Float[Tensor, "h w"] | None] | ImageError:
        if isinstance(pair, ImageError):
            return pair
        return torch.as_tensor(pair[1]).long(), *segment_scored(model, pair[0], view)

    with closing(map_images(model, load, run, data.samples, attrgetter("path"), view or View())) as outcomes:
        for sample, outcome in zip(data.samples, track(outcomes, description, len(data.samples)), strict=True):
            if isinstance(outcome, ImageError):
                if on_error == "raise":
                    raise outcome
                failures.append(outcome)
                continue
            truth, labels, confidence = outcome
            matrix = total(labels[None], truth[None])
            samples.append(sample)
            scores = scores_of(matrix, data.classes) if matrix.sum() else None
            by_image.append(scores.miou if scores else None)
            accuracies.append(scores.pixel_accuracy if scores else None)
            if confidence is not None:
                pixels.add(torch.stack((confidence, labels == truth), -1)[truth != IGNORE])
    if not any(value is not None for value in by_image):
        reasons = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected labeled pixels, got none in {len(samples)} readable images; {len(failures)} cannot be used"
            f"{': ' * bool(reasons)}{reasons}"
        )
    table = total.compute()
    return SegmentationReport(
        scores_of(table, data.classes),
        tuple(by_image),
        tuple(accuracies),
        tuple(samples),
        table,
        pixels.rows(),
        tuple(failures),
        data.problems,
    )


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
