"""Evaluation of classifiers: accuracy overall, by class, by image size and by aspect ratio, and calibration."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.classify.model import Classifier
from sppnet.classify.predict import ClassificationResult, predict_images, size_policy
from sppnet.classify.trained_sides import count_outside
from sppnet.data.formats.classification import (
    ClassificationData,
    Sample,
    choose_classification_split,
    read_classification,
)
from sppnet.data.resize import Resize
from sppnet.data.sizes import ASPECTS, SIDES, group_of
from sppnet.errors import ImageError, list_some
from sppnet.evaluation.calibration import calibration_error
from sppnet.evaluation.confusion import ClassQuality, class_qualities, confusion_matrix
from sppnet.inference.results import OnError
from sppnet.progress import track


@dataclass(frozen=True)
class Scores:
    """Accuracies, from 0 to 1.

    Attributes:
        images: number of scored images.
        top1: fraction of images whose most probable class is correct.
        top5: fraction of images whose correct class is among the five most probable.
        mean_per_class_accuracy: mean of the top-1 accuracies of the classes that have images.
    """

    images: int
    top1: float
    top5: float
    mean_per_class_accuracy: float


@dataclass(frozen=True)
class ClassifiedImage:
    """Prediction for one labeled image.

    Attributes:
        path: path of the image.
        label, predicted: indices of the correct and of the most probable class.
        score: probability of the most probable class.
    """

    path: Path
    label: int
    predicted: int
    score: float


@dataclass(frozen=True)
class ClassificationReport:
    """Scores with one resize policy, overall, by group, by class and by image.

    Attributes:
        resize: resize policy or views, as text.
        classes: class names, in label order.
        scores: scores of all images.
        outside: number of images classified at a shorter side outside `ClassifierConfig.trained_sides`, see
            :func:`sppnet.classify.trained_sides.count_outside`.
        by_size, by_aspect: scores by the original shorter side and aspect ratio.
        failures: errors of the images that could not be used.
        images: predictions for the images that could be used.
        problems: files of the data set that were skipped.
    """

    resize: str
    classes: tuple[str, ...]
    scores: Scores
    outside: int
    by_size: dict[str, Scores]
    by_aspect: dict[str, Scores]
    failures: tuple[ImageError, ...]
    images: tuple[ClassifiedImage, ...]
    problems: tuple[str, ...] = ()

    @property
    def confidence(self) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
        """Probability of the most probable class of each image, and whether this class is correct."""
        scores = torch.tensor([image.score for image in self.images], dtype=torch.float64)
        return scores, torch.tensor([image.predicted == image.label for image in self.images], dtype=torch.bool)

    @property
    def ece(self) -> float:
        """Calibration error, see :func:`sppnet.evaluation.calibration.calibration_error`."""
        return calibration_error(*self.confidence)

    @property
    def confusion(self) -> Int[Tensor, "c c"]:
        """Number of images by correct class (rows) and most probable class (columns)."""
        pairs = torch.tensor([(image.label, image.predicted) for image in self.images], dtype=torch.long).reshape(-1, 2)
        return confusion_matrix(pairs[:, 0], pairs[:, 1], len(self.classes))

    @property
    def per_class(self) -> dict[str, ClassQuality]:
        """Precision, recall and F1 of each class, by name."""
        return class_qualities(self.confusion, self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores and failures as JSON types."""
        return {
            "resize": self.resize,
            **asdict(self.scores),
            "ece": self.ece,
            "outside": self.outside,
            "by_size": {name: asdict(scores) for name, scores in self.by_size.items()},
            "by_aspect": {name: asdict(scores) for name, scores in self.by_aspect.items()},
            "failures": [{"path": error.path, "reason": error.reason} for error in self.failures],
        }


def scores_of(ranked: Int[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Scores:
    """Compute the scores of ranked predictions.

    Args:
        ranked: class indices, most probable first; k is 5, or the number of classes if smaller.
        labels: correct class indices.
    """
    if not len(labels):
        return Scores(0, 0.0, 0.0, 0.0)
    hits = ranked == labels[:, None]
    first = hits[:, 0].double()
    per_class = [first[labels == label].mean() for label in labels.unique()]
    return Scores(
        len(labels), float(first.mean()), float(hits.any(1).double().mean()), float(torch.stack(per_class).mean())
    )


def top_classes(logits: Float[Tensor, "n c"]) -> Int[Tensor, "n k"]:
    """Return the indices of the five most probable classes (all classes if there are fewer), in descending order."""
    return logits.topk(min(5, logits.shape[1])).indices


def evaluate_classifier(
    model: Classifier,
    data: str | Path | ClassificationData | Sequence[Sample],
    *,
    split: str | None = None,
    resize: Resize | str | None = None,
    views: str = "full",
    on_error: OnError = "skip",
    format: str | None = None,
) -> ClassificationReport:
    """Classify labeled images and compute the scores.

    Args:
        model: classifier.
        data: path of a data set, see :func:`sppnet.data.formats.classification.read_classification`; or a data set or
            samples whose labels are indices into `model.config.classes`.
        split: split to read from a path; None for ``test``, or else ``val``, if there are splits.
        resize: resize policy; None for the model's default.
        views: views to average, see :func:`sppnet.classify.views.view_probabilities`.
        on_error: ``skip`` images that cannot be used, or ``raise`` the first error.
        format: format of a path, see :func:`sppnet.data.formats.classification.read_classification`; None to detect it.

    Raises:
        ValueError: the data set is invalid, or its classes are not those of the model.
    """
    classes = model.config.classes
    policy = size_policy(model, resize)
    if isinstance(data, str | Path):
        data = read_labeled(data, split, classes, format)
    if isinstance(data, ClassificationData) and data.classes != classes:
        raise ValueError(
            f"data: expected the classes of the model, {list_some(classes)}, got {list_some(data.classes)}; read the"
            " data with the classes of the model"
        )
    samples = data.samples if isinstance(data, ClassificationData) else data
    paths = [sample.path for sample in samples]
    resize = policy if views == "full" else None
    results = predict_images(model, paths, resize=resize, views=views, on_error=on_error)
    name = str(policy) if views == "full" else f"{views} views"
    scored: list[ClassificationResult] = []
    used: list[Sample] = []
    failures: list[ImageError] = []
    for sample, result in zip(samples, track(results, f"evaluating, {name}", len(paths)), strict=True):
        if isinstance(result, ClassificationResult):
            scored.append(result)
            used.append(sample)
        else:
            failures.append(result.error)
    index = {name: number for number, name in enumerate(classes)}
    ranked = torch.tensor([[index[label] for label, _ in result.top] for result in scored])
    ranked = ranked.reshape(-1, min(5, len(classes)))
    labels = torch.tensor([sample.label for sample in used], dtype=torch.long)
    outcomes = zip(used, scored, strict=True)
    return ClassificationReport(
        name,
        classes,
        scores_of(ranked, labels),
        count_outside(model.config, scored, views),
        _by_group(ranked, labels, [min(result.size) for result in scored], SIDES),
        _by_group(ranked, labels, [result.size[1] / result.size[0] for result in scored], ASPECTS),
        tuple(failures),
        tuple(ClassifiedImage(sample.path, sample.label, index[top.top[0][0]], top.score) for sample, top in outcomes),
        data.problems if isinstance(data, ClassificationData) else (),
    )


def read_labeled(
    root: str | Path, split: str | None, classes: Sequence[str], format: str | None = None
) -> ClassificationData:
    """Read the images to evaluate; without a split those of ``test``, or else ``val``, if there are splits."""
    split = choose_classification_split(root, split, "test", "val", format=format)
    return read_classification(root, split, classes, format=format)


def _by_group(
    ranked: Int[Tensor, "n k"], labels: Int[Tensor, " n"], values: Sequence[float], bounds: Sequence[tuple[float, str]]
) -> dict[str, Scores]:
    """Compute the scores of each group of images that is not empty."""
    groups = [group_of(value, bounds) for value in values]
    members = {name: torch.tensor([group == name for group in groups], dtype=torch.bool) for _, name in bounds}
    return {name: scores_of(ranked[mask], labels[mask]) for name, mask in members.items() if mask.any()}
