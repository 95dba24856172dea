"""Linear SVMs for detection, trained with hard negative mining over the background windows."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.detect.classic.vector_scale import MEAN_NORM, mean_norm_scale, spread_rows
from sppnet.detect.classic.windows import Windows
from sppnet.progress import track
from sppnet.training.svm import linear_svc

# As in the code of the R-CNN and SPP-net authors.
_C, _POSITIVE_WEIGHT, _BIAS_FEATURE = 1e-3, 2.0, 10.0
_HARD_MARGIN, _EASY_MARGIN = -1.0001, -1.2
_RETRAIN = 2000  # new hard negatives that trigger a fit
_NEGATIVE_OVERLAP = 0.3
_NORM_IMAGES, _NORM_WINDOWS = 200, 200


def fit_detection_svms(
    windows: Sequence[Windows],
    features: Callable[[int, Int[Tensor, " n"]], Float[Tensor, "n f"]],
    num_classes: int,
    seed: int = 0,
) -> nn.Linear:
    """Fit one linear SVM per class with liblinear and hard negative mining (SPP-net, section 4.1).

    The objects are the positives; windows that overlap every object of the class by less than 0.3 are the negatives.
    Training starts with all negatives of one image and makes one pass over the others, which adds negatives on the
    wrong side of the margin. After every 2,000 of them the SVM is fitted again and negatives that became easy are
    removed.

    Args:
        windows: windows of each training image.
        features: function from an image index and window indices to features.
        num_classes: number of classes; a class without objects scores below all others.
        seed: random seed of the order of images and of liblinear.

    Returns:
        Layer from features to margins; its weights include the scaling of the features to a mean norm of 20.

    Raises:
        ValueError: no image has an object.
    """
    scale = mean_norm_scale(
        features(image, spread_rows(len(windows[image].boxes), _NORM_WINDOWS))
        for image in spread_rows(len(windows), _NORM_IMAGES).tolist()
    )
    positives: list[list[Tensor]] = [[] for _ in range(num_classes)]
    for image, part in enumerate(windows):
        if part.objects:
            x = features(image, torch.arange(part.objects)) * scale
            labels = part.labels[: part.objects]
            for label in labels.unique().tolist():
                positives[label].append(x[labels == label])
    if not any(positives):
        raise ValueError(f"data: expected at least one object that is not difficult, got none in {len(windows)} images")
    width = next(parts[0].shape[1] for parts in positives if parts)
    svms = [_ClassSVM(torch.cat(parts) if parts else torch.empty(0, width), seed) for parts in positives]
    order = list(range(len(windows)))
    random.Random(f"negatives {seed}").shuffle(order)  # noqa: S311
    for image in track(order, "hard negatives", len(order)):
        part = windows[image]
        negative = part.counts[:, None] & (part.others < _NEGATIVE_OVERLAP)
        x = features(image, torch.arange(len(part.boxes))) * scale
        for label, svm in enumerate(svms):
            svm.add(x[negative[:, label]])
    layer = nn.Linear(width, num_classes)
    with torch.no_grad():
        for label, svm in enumerate(svms):
            weight, bias = svm.finish()
            layer.weight[label] = weight * scale
            layer.bias[label] = bias
    return layer


class _ClassSVM:
    """SVM of one class during hard negative mining."""

    def __init__(self, positives: Tensor, seed: int) -> None:
        self.positives, self.seed = positives, seed
        self.negatives = positives[:0]
        self.new: list[Tensor] = []
        self.weight, self.bias = torch.zeros(positives.shape[1]), -1.0
        self.fitted = False

    def add(self, x: Tensor) -> None:
        if not len(self.positives) or not len(x):
            return
        hard = x[self.margins(x) > _HARD_MARGIN] if self.fitted else x
        self.new.append(hard)
        if not self.fitted or sum(map(len, self.new)) > _RETRAIN:
            self.fit()

    def fit(self) -> None:
        self.negatives = torch.cat((self.negatives, *self.new))
        self.weight, self.bias = _fit(self.positives, self.negatives, self.seed)
        self.negatives = self.negatives[self.margins(self.negatives) >= _EASY_MARGIN]
        self.new, self.fitted = [], True

    def margins(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias

    def finish(self) -> tuple[Tensor, float]:
        if self.fitted and len(self.negatives) + sum(map(len, self.new)):
            self.fit()
        return self.weight, self.bias if self.fitted else -MEAN_NORM


def _fit(positives: Tensor, negatives: Tensor, seed: int) -> tuple[Tensor, float]:
    """Minimize |w|^2 / 2 + (b / 10)^2 / 2 + C (2 sum of positives' hinge losses + sum of negatives')."""
    x = torch.cat((positives, negatives)).numpy()
    y = np.repeat([1, -1], [len(positives), len(negatives)])
    svm = linear_svc()(
        C=_C,
        loss="hinge",
        dual=True,
        intercept_scaling=_BIAS_FEATURE,
        class_weight={1: _POSITIVE_WEIGHT, -1: 1.0},
        random_state=seed,
        max_iter=20_000,
    ).fit(x, y)
    return torch.from_numpy(svm.coef_[0]).float(), float(svm.intercept_[0])
