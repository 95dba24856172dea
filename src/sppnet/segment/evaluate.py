"""Evaluation of segmenters: IoU per class, pixel accuracy and mean accuracy."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from sppnet.backbones.modes import evaluation_mode
from sppnet.data.formats.class_tables import ClassRow
from sppnet.data.formats.masks import IGNORE, SegmentationSample, load_pair
from sppnet.data.formats.segmentation import SegmentationData, choose_segmentation_split, read_segmentation
from sppnet.errors import ImageError, import_optional
from sppnet.progress import track
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.views import segment_image


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
        samples: samples that could be read.
        failures: errors of images or masks that could not be used.
        problems: files of the data set that were skipped, with the reasons.
    """

    scores: SegmentationScores
    by_image: tuple[float | None, ...]
    samples: tuple[SegmentationSample, ...]
    failures: tuple[ImageError, ...] = ()
    problems: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the scores, the number of images and the failures as JSON types."""
        failures = [{"path": failure.path, "reason": failure.reason} for failure in self.failures]
        return {**dataclasses.asdict(self.scores), "images": len(self.samples), "failures": failures}


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
    total = metrics.MulticlassConfusionMatrix(len(data.classes), ignore_index=IGNORE, validate_args=False)
    samples, by_image, failures = [], [], []
    with evaluation_mode(model):
        for sample in track(data.samples, description, len(data.samples)):
            try:
                image, mask = load_pair(sample, data.labels)
            except ImageError as error:
                if on_error == "raise":
                    raise
                failures.append(error)
                continue
            labels = segment_image(model, image, view or View())
            matrix = total(labels[None], torch.as_tensor(mask)[None].long())
            samples.append(sample)
            by_image.append(scores_of(matrix, data.classes).miou if matrix.sum() else None)
    if not any(value is not None for value in by_image):
        reasons = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected labeled pixels, got none in {len(samples)} readable images; {len(failures)} cannot be used"
            f"{': ' * bool(reasons)}{reasons}"
        )
    scores = scores_of(total.compute(), data.classes)
    return SegmentationReport(scores, tuple(by_image), tuple(samples), tuple(failures), data.problems)


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
