"""Calibration of scores: its error, and the fits that turn scores into probabilities."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import import_optional

BINS = 15
_LOWEST, _HIGHEST = math.log(1e-3), math.log(1e3)  # logarithms of the limits of 1 / temperature
_PRIOR = 0.1  # weight of the additional sample; on 50 to 900 photographs, 1 gave scores that were too low


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions with scores in one interval.

    Attributes:
        low, high: limits of the scores.
        count: number of predictions.
        score: mean score.
        correct: share of correct predictions.
    """

    low: float
    high: float
    count: int
    score: float
    correct: float


def calibration_error(scores: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = BINS) -> float:
    """Compute the expected calibration error: mean difference of score and share of correct predictions, by bin.

    This is the only definition of the package. Classifiers and segmenters score their most probable class; a detection
    is correct if it matches an object at an overlap of 0.5.

    Args:
        scores: score of each prediction, in [0, 1].
        correct: whether each prediction is correct.
        bins: number of bins of equal width.

    Returns:
        The error; 0 without predictions.
    """
    metrics = import_optional("torchmetrics.functional.classification", "calibration errors")
    if not len(scores):
        return 0.0
    scores = scores.double().clamp(0, 1)  # torchmetrics takes scores above 1, even by rounding, for logits
    return float(metrics.binary_calibration_error(scores, correct.long(), n_bins=bins))


def reliability(
    scores: Float[Tensor, " n"], correct: Bool[Tensor, " n"], bins: int = BINS
) -> tuple[ReliabilityBin, ...]:
    """Return the bins of :func:`calibration_error` that have predictions, by ascending score."""
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    index = (torch.bucketize(scores.double(), edges, right=True) - 1).clamp(0, bins - 1)
    rows = []
    for number in index.unique().tolist():
        inside = index == number
        mean = float(scores[inside].double().mean()), float(correct[inside].double().mean())
        rows.append(ReliabilityBin(number / bins, (number + 1) / bins, int(inside.sum()), *mean))
    return tuple(rows)


def fit_temperature(logits: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    """Fit the temperature that minimizes the cross entropy of ``logits / temperature`` (Guo et al., 2017).

    A tenth of a sample with a uniform label is added, so that the temperature is not 0 if all predictions are correct.
    A temperature does not change the order of the classes.

    Args:
        logits: logits of samples that were not used in training; -inf excludes a class.
        labels: class indices.

    Returns:
        The temperature, from 0.001 to 1,000; 1 without samples.
    """
    if not len(labels):
        return 1.0
    logits = logits.double() - logits.double().amax(1, keepdim=True)
    finite = logits.isfinite()
    values = torch.where(finite, logits, 0.0)
    target = values.gather(1, labels[:, None]).sum() + _PRIOR * (values.sum(1) / finite.sum(1)).mean()
    weights = torch.full((len(labels),), 1 + _PRIOR / len(labels), dtype=torch.float64)
    low, high = _LOWEST, _HIGHEST
    for _ in range(50):  # the loss is convex in 1 / temperature: bisect its derivative
        middle = (low + high) / 2
        expected = (F.softmax(logits * math.exp(middle), 1) * values).sum(1)
        low, high = (low, middle) if weights @ expected > target else (middle, high)
    return math.exp(-(low + high) / 2)


def fit_platt(margins: Float[Tensor, " n"], correct: Bool[Tensor, " n"]) -> tuple[float, float] | None:
    """Fit a and b of ``sigmoid(a * margin + b)``, the probability that a prediction is correct (Platt, 1999).

    Args:
        margins: unbounded scores of predictions that were not used in training.
        correct: whether each prediction is correct.

    Returns:
        (a, b) with a > 0, which keeps the order of the margins; None if there is no such fit.
    """
    right, wrong = int(correct.sum()), int((~correct).sum())
    if not right or not wrong:
        return None
    # Platt's targets; with 0 and 1, separable margins would have no finite fit.
    target = torch.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2)).double()
    mean, scale = margins.double().mean(), margins.double().std().clamp(min=1e-12)
    x = torch.stack(((margins.double() - mean) / scale, torch.ones_like(target)), 1)
    weights = torch.tensor([0.0, math.log((right + 1) / (wrong + 1))], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.binary_cross_entropy_with_logits(x @ weights, target)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    slope, offset = (weights.detach() / torch.stack((scale, torch.ones_like(scale)))).tolist()
    return (slope, offset - slope * float(mean)) if slope > 0 else None


def best_threshold(scores: Float[Tensor, " n"], correct: Bool[Tensor, " n"], positives: int) -> float | None:
    """Return the score above which accepting predictions has the highest F1.

    Args:
        scores: score of each prediction.
        correct: whether each prediction is correct.
        positives: number of predictions to be accepted, or of objects to be found.

    Returns:
        The highest of the best thresholds, halfway to the next score below; None without a correct prediction.
    """
    if not correct.any():
        return None
    order = scores.argsort(descending=True)
    ranked = scores[order].double()
    hits = correct[order].double().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(ranked) + 1) + positives)
    f1[:-1][ranked[:-1] == ranked[1:]] = -1  # equal scores are accepted together
    best = int(f1.argmax())
    below = ranked[best + 1] if best + 1 < len(ranked) else ranked[best]
    return float((ranked[best] + below) / 2)


def apply_temperature(parameters: Iterable[nn.Parameter], temperature: float) -> None:
    """Divide the weights and biases of the last layers, and thereby the logits, by a temperature."""
    with torch.no_grad():
        for parameter in parameters:
            parameter.div_(temperature)


class Subsample:
    """Evenly spaced rows of a long sequence of tensors, such as the pixels of all images.

    Args:
        limit: largest number of rows that are kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.step, self.seen = limit, 1, 0
        self.parts: list[Tensor] = []

    def add(self, rows: Tensor) -> None:
        """Add every n-th row; n doubles whenever there are too many."""
        self.parts.append(rows[-self.seen % self.step :: self.step].clone())
        self.seen += len(rows)
        while sum(map(len, self.parts)) > self.limit:
            self.step *= 2
            self.parts = [torch.cat(self.parts)[::2]]

    def rows(self) -> Tensor | None:
        """Return all rows that were kept; None if nothing was added."""
        return torch.cat(self.parts) if self.parts else None
