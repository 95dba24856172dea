"""Accuracy of a classifier: overall, per class, by image size and by aspect ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.classify.model import Classifier
from sppnet.classify.predict import Prediction, predict_images, size_policy
from sppnet.classify.trained_sides import count_outside
from sppnet.console import track
from sppnet.data.formats.class_folders import Sample
from sppnet.data.resize import Resize
from sppnet.data.sizes import ASPECTS, SIDES, group_of
from sppnet.errors import ImageError
from sppnet.inference.results import Failure


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
class Evaluation:
    """Scores with one resize policy, overall and by group.

    Attributes:
        resize: resize policy or views, as text.
        scores: scores of all images.
        by_size, by_aspect: scores by the original shorter side and aspect ratio.
        failures: errors of the unreadable files.
        outside: number of images classified at a shorter side outside `ClassifierConfig.trained_sides`.
    """

    resize: str
    scores: Scores
    by_size: dict[str, Scores]
    by_aspect: dict[str, Scores]
    failures: tuple[ImageError, ...]
    outside: int


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
    model: Classifier, samples: Sequence[Sample], *, resize: Resize | str | None = None, views: str = "full"
) -> Evaluation:
    """Classify all samples and compute the scores.

    Args:
        model: classifier.
        samples: image files and labels, which are indices into `model.config.classes`.
        resize: resize policy; None for the model's default.
        views: views to average, see :func:`sppnet.classify.views.view_probabilities`.
    """
    policy = size_policy(model, resize)
    paths = [sample.path for sample in samples]
    results = predict_images(model, paths, resize=policy if views == "full" else None, views=views)
    description = f"evaluating, {policy}" + ("" if views == "full" else f", {views} views")
    index = {name: number for number, name in enumerate(model.config.classes)}
    predictions: list[Prediction] = []
    targets: list[int] = []
    failures: list[ImageError] = []
    for sample, result in zip(samples, track(results, description, len(paths)), strict=True):
        if isinstance(result, Failure):
            failures.append(result.error)
        else:
            predictions.append(result)
            targets.append(sample.label)
    k = min(5, len(index))
    ranked = torch.tensor([[index[name] for name, _ in prediction.top] for prediction in predictions]).reshape(-1, k)
    labels = torch.tensor(targets, dtype=torch.long)
    sides = [group_of(min(prediction.size), SIDES) for prediction in predictions]
    aspects = [group_of(prediction.size[1] / prediction.size[0], ASPECTS) for prediction in predictions]
    return Evaluation(
        str(policy) if views == "full" else f"{views} views",
        scores_of(ranked, labels),
        _by_group(ranked, labels, sides, [name for _, name in SIDES]),
        _by_group(ranked, labels, aspects, [name for _, name in ASPECTS]),
        tuple(failures),
        count_outside(model.config, predictions, views),
    )


def _by_group(
    ranked: Int[Tensor, "n k"], labels: Int[Tensor, " n"], groups: Sequence[str], names: Sequence[str]
) -> dict[str, Scores]:
    members = {name: torch.tensor([group == name for group in groups], dtype=torch.bool) for name in names}
    return {name: scores_of(ranked[mask], labels[mask]) for name, mask in members.items() if mask.any()}
