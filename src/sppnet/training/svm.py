"""Linear support vector machines on pyramid vectors, as one linear layer."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.errors import import_optional

_ABSENT = -2.0  # margin of classes without samples
_FOLDS = 5
_ENOUGH = 500  # held-out samples; on 2,910 photographs, more did not improve the calibration


@dataclass(frozen=True)
class SvmFit:
    """Linear SVMs, and the margins of samples by SVMs that were fitted without them.

    Attributes:
        layer: layer for vectors of unit mean square, as normalized by the ``linear`` head; its outputs are margins.
        margins: margins of held-out samples.
        labels: class indices of these samples.
    """

    layer: nn.Linear
    margins: Float[Tensor, "k c"]
    labels: Int[Tensor, " k"]


def fit_linear_svm(
    vectors: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    c: float = 1.0,
    seed: int = 0,
    *,
    balanced: bool = False,
) -> SvmFit:
    """Fit one-versus-rest linear SVMs to l2-normalized vectors with liblinear (SPP-net, section 3.2).

    For calibration, the samples are divided into five folds, and SVMs are fitted to the samples outside a fold, for as
    many folds as are needed to hold out 500 samples. The only sample of a class is never held out.

    Args:
        vectors: pyramid vectors.
        labels: class indices 0..num_classes - 1; classes without samples get a constant low margin.
        num_classes: number of outputs of the layer, >= 2.
        c: penalty of the squared hinge loss, > 0; smaller values regularize more.
        seed: random seed of liblinear.
        balanced: whether to weight each sample inversely proportionally to the number of samples of its class.

    Raises:
        ValueError: `c` is not positive, or fewer than two classes have samples.
    """
    if c <= 0:
        raise ValueError(f"svm_c: expected a penalty above 0, got {c}")
    present = labels.unique()
    if len(present) < 2:
        raise ValueError(f"labels: expected samples of at least 2 classes, got {len(present)}")
    unit = nn.functional.normalize(vectors.float(), dim=1)
    # With fewer vectors than dimensions, use coordinates in an orthonormal basis of their span. Inner products, and
    # therefore the SVM, stay the same.
    basis, coordinates = None, unit
    if len(unit) < unit.shape[1]:
        basis, upper = torch.linalg.qr(unit.T)
        coordinates = upper.T.contiguous()
    folds, held_out = _folds(labels), torch.zeros(len(labels), dtype=torch.bool)
    margins = torch.full((len(labels), num_classes), _ABSENT)
    for fold in range(_FOLDS):
        inside = folds == fold
        if inside.any() and held_out.sum() < _ENOUGH:
            weight, bias = _fit(coordinates[~inside], labels[~inside], c, seed, balanced)
            margins[inside.nonzero(), present] = coordinates[inside] @ weight.T + bias
            held_out |= inside
    weight, bias = _fit(coordinates, labels, c, seed, balanced)
    layer = nn.Linear(vectors.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(_ABSENT)
        # A vector of unit mean square is sqrt(d) times the unit vector.
        full_weight = weight if basis is None else weight @ basis.T
        layer.weight[present] = full_weight / vectors.shape[1] ** 0.5
        layer.bias[present] = bias
    return SvmFit(layer, margins[held_out], labels[held_out])


def linear_svc() -> Any:
    """Return scikit-learn's LinearSVC; call this before long computations to detect a missing installation early.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    return import_optional("sklearn.svm", "SVMs").LinearSVC


def _fit(
    x: Float[Tensor, "n k"], labels: Int[Tensor, " n"], c: float, seed: int, balanced: bool
) -> tuple[Tensor, Tensor]:
    weights = "balanced" if balanced else None
    svm = linear_svc()(C=c, random_state=seed, max_iter=10_000, class_weight=weights).fit(x.numpy(), labels.numpy())
    weight, bias = torch.from_numpy(svm.coef_).float(), torch.from_numpy(svm.intercept_).float()
    if len(svm.classes_) == 2:
        weight, bias = torch.cat((-weight, weight)), torch.cat((-bias, bias))
    return weight, bias


def _folds(labels: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return the fold of each sample, -1 for the only sample of a class.

    The folds of a class are runs of consecutive samples, because similar images often follow each other.
    """
    folds = torch.full_like(labels, -1)
    for label in labels.unique():
        samples = (labels == label).nonzero()[:, 0]
        if len(samples) > 1:
            folds[samples] = torch.arange(len(samples)) * _FOLDS // max(len(samples), _FOLDS)
    return folds
