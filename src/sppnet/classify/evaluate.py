"""How often a classifier is right: in all, by class, by size and by aspect ratio."""

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
    """Shares of right answers, 0 to 1.

    Attributes:
        images: number of images that the shares are taken over.
        top1: the likeliest class is right.
        top5: the right class is among the five likeliest.
        mean_per_class_accuracy: top1 of each class that has images, averaged over these classes.
    """

    images: int
    top1: float
    top5: float
    mean_per_class_accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """Scores of one size policy, in all and by group.

    Attributes:
        resize: the size policy, or the views.
        scores: of all images.
        by_size, by_aspect: by the images' own shorter side and aspect ratio.
        failures: of the files that could not be read.
        outside: images that the network saw at a shorter side outside those of its training.
    """

    resize: str
    scores: Scores
    by_size: dict[str, Scores]
    by_aspect: dict[str, Scores]
    failures: tuple[ImageError, ...]
    outside: int


def scores_of(ranked: Int[Tensor, "n k"], labels: Int[Tensor, " n"]) -> Scores:
    """Scores of ranked answers.

    Args:
        ranked: classes, likeliest first; k is 5, or the number of classes where there are fewer.
        labels: the right classes.
    """
    if not len(labels):
        return Scores(0, 0.0, 0.0, 0.0)
    hits = ranked == labels[:, None]
    first = hits[:, 0].double()
    per_class = [first[labels == label].mean() for label in labels.unique()]
    return Scores(
        len(labels), float(first.mean()), float(hits.any(1).double().mean()), float(torch.stack(per_class).mean())
    )


def rank(logits: Float[Tensor, "n c"]) -> Int[Tensor, "n k"]:
    """The five likeliest classes, or all where there are fewer."""
    return logits.topk(min(5, logits.shape[1])).indices


def evaluate_classifier(
    model: Classifier, samples: Sequence[Sample], *, resize: Resize | str | None = None, views: str = "full"
) -> Evaluation:
    """Classify every sample and count.

    Args:
        model: its `config.classes` are what the labels index.
        samples: files and labels.
        resize: None for the model's own size policy.
        views: see :func:`sppnet.classify.views.view_probabilities`.
    """
    policy = size_policy(model, resize)
    paths = [sample.path for sample in samples]
    results = predict_images(model, paths, resize=policy if views == "full" else None, views=views)
    description = f"evaluating, {policy}" + ("" if views == "full" else f", {views} views")
    index = {name: number for number, name in enumerate(model.config.classes)}
    answers: list[tuple[Prediction, int]] = []
    failures: list[ImageError] = []
    for sample, result in zip(samples, track(results, description, len(paths)), strict=True):
        if isinstance(result, Failure):
            failures.append(result.error)
        else:
            answers.append((result, sample.label))
    k = min(5, len(index))
    ranked = torch.tensor([[index[name] for name, _ in answer.top] for answer, _ in answers]).reshape(-1, k)
    labels = torch.tensor([label for _, label in answers], dtype=torch.long)
    sides = [group_of(min(answer.size), SIDES) for answer, _ in answers]
    aspects = [group_of(answer.size[1] / answer.size[0], ASPECTS) for answer, _ in answers]
    return Evaluation(
        str(policy) if views == "full" else f"{views} views",
        scores_of(ranked, labels),
        _by_group(ranked, labels, sides, [name for _, name in SIDES]),
        _by_group(ranked, labels, aspects, [name for _, name in ASPECTS]),
        tuple(failures),
        count_outside(model.config, (answer for answer, _ in answers), views),
    )


def _by_group(
    ranked: Int[Tensor, "n k"], labels: Int[Tensor, " n"], groups: Sequence[str], names: Sequence[str]
) -> dict[str, Scores]:
    members = {name: torch.tensor([group == name for group in groups], dtype=torch.bool) for name in names}
    return {name: scores_of(ranked[mask], labels[mask]) for name, mask in members.items() if mask.any()}
