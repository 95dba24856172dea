"""Linear SVMs for detection: few objects, very many windows of background, of which only the hard ones are kept."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.console import track
from sppnet.detect.classic.windows import Windows
from sppnet.training.svm import linear_svc

# As in R-CNN's and the SPP-net authors' code.
_C, _POSITIVE_WEIGHT, _BIAS_FEATURE = 1e-3, 2.0, 10.0
_HARD, _EASY = -1.0001, -1.2
_RETRAIN = 2000
_NEGATIVE_OVERLAP = 0.3
_NORM_IMAGES, _NORM_WINDOWS = 200, 200
NORM = 20.0


def fit_detection_svms(
    windows: Sequence[Windows],
    features: Callable[[int, Int[Tensor, " n"]], Float[Tensor, "n f"]],
    num_classes: int,
    seed: int = 0,
) -> nn.Linear:
    """One SVM a class by liblinear, objects against the background's hard negatives (SPP-net, section 4.1).

    Positives are the objects themselves; negatives are windows that overlap no object of the class by 0.3 or more. One
    pass over the images adds, to all negatives of the first of them, those on the wrong side of the margin, trains anew
    after every 2,000 and lets go of those that have become easy.

    Args:
        windows: of each training image.
        features: for an image and some of its windows, by their numbers, what is scored.
        num_classes: a class without objects gets a score below every other's.
        seed: of the order of images and of liblinear's.

    Returns:
        A layer from features to margins; the scaling of the features to a mean norm of 20 is in its weights.

    Raises:
        ValueError: no image has an object.
    """
    scale = NORM / max(_mean_norm(windows, features), 1e-12)
    positives: list[list[Tensor]] = [[] for _ in range(num_classes)]
    for image, one in enumerate(windows):
        if one.objects:
            x = features(image, torch.arange(one.objects)) * scale
            for label in one.labels[: one.objects].unique().tolist():
                positives[label].append(x[one.labels[: one.objects] == label])
    if not any(positives):
        raise ValueError("data: no training image has an object that is not difficult; an SVM needs some")
    width = next(part[0].shape[1] for part in positives if part)
    classes = [_Class(torch.cat(part) if part else torch.empty(0, width), seed) for part in positives]
    order = list(range(len(windows)))
    random.Random(f"negatives {seed}").shuffle(order)  # noqa: S311
    for image in track(order, "hard negatives", len(order)):
        one = windows[image]
        negative = one.counts[:, None] & (one.others < _NEGATIVE_OVERLAP)
        x = features(image, torch.arange(len(one.boxes))) * scale
        for label, svm in enumerate(classes):
            svm.add(x[negative[:, label]])
    layer = nn.Linear(width, num_classes)
    with torch.no_grad():
        for label, svm in enumerate(classes):
            weight, bias = svm.finish()
            layer.weight[label] = weight * scale
            layer.bias[label] = bias
    return layer


class _Class:
    """The SVM of one class while negatives come in."""

    def __init__(self, positives: Tensor, seed: int) -> None:
        self.positives, self.seed = positives, seed
        self.negatives = positives[:0]
        self.new: list[Tensor] = []
        self.weight, self.bias = torch.zeros(positives.shape[1]), -1.0
        self.fitted = False

    def add(self, x: Tensor) -> None:
        if not len(self.positives) or not len(x):
            return
        hard = x[self.margins(x) > _HARD] if self.fitted else x
        self.new.append(hard)
        if not self.fitted or sum(map(len, self.new)) > _RETRAIN:
            self.fit()

    def fit(self) -> None:
        self.negatives = torch.cat((self.negatives, *self.new))
        self.weight, self.bias = _fit(self.positives, self.negatives, self.seed)
        self.negatives = self.negatives[self.margins(self.negatives) >= _EASY]
        self.new, self.fitted = [], True

    def margins(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def finish(self) -> tuple[Tensor, float]:
        if self.fitted and len(self.negatives) + sum(map(len, self.new)):
            self.fit()
        return self.weight, self.bias if self.fitted else -NORM


def _fit(positives: Tensor, negatives: Tensor, seed: int) -> tuple[Tensor, float]:
    """Minimise |w|^2 / 2 + (b / 10)^2 / 2 + C (2 sum of positives' hinge losses + sum of negatives')."""
    x = torch.cat((positives, negatives)).numpy()
    y = np.repeat([1, -1], [len(positives), len(negatives)])
    svm = linear_svc("detect")(
        C=_C,
        loss="hinge",
        dual=True,
        intercept_scaling=_BIAS_FEATURE,
        class_weight={1: _POSITIVE_WEIGHT, -1: 1.0},
        random_state=seed,
        max_iter=20_000,
    ).fit(x, y)
    return torch.from_numpy(svm.coef_[0]).float(), float(svm.intercept_[0])


def _mean_norm(windows: Sequence[Windows], features: Callable[[int, Int[Tensor, " n"]], Float[Tensor, "n f"]]) -> float:
    norms = []
    for image in torch.linspace(0, len(windows) - 1, min(len(windows), _NORM_IMAGES)).long().tolist():
        count = len(windows[image].boxes)
        rows = torch.linspace(0, count - 1, min(count, _NORM_WINDOWS)).long()
        norms.append(features(image, rows).norm(dim=1))
    return float(torch.cat(norms).mean())
