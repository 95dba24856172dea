"""Linear support vector machines on pyramid vectors, as one linear layer."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.errors import import_optional

_SCALES = torch.logspace(-1, 2, 121)


def fit_linear_svm(
    vectors: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_classes: int, c: float = 1.0, seed: int = 0
) -> nn.Linear:
    """Fit one-versus-rest linear SVMs to l2-normalized vectors with liblinear (SPP-net, section 3.2).

    Margins are scaled to maximize the log-likelihood of their softmax on a held-out fifth of the samples. This keeps
    the ranking and makes the scores usable as probabilities.

    Args:
        vectors: pyramid vectors.
        labels: class indices 0..num_classes - 1; classes without samples get a constant low margin.
        num_classes: number of outputs of the layer, >= 2.
        c: penalty of the squared hinge loss, > 0; smaller values regularize more.
        seed: random seed of liblinear.

    Returns:
        A layer for vectors of unit mean square, as normalized by the ``linear`` head.

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
    held_out = _every_fifth(labels)
    scale = 1.0
    if held_out.any() and len(labels[~held_out].unique()) == len(present):
        weight, bias = _fit(coordinates[~held_out], labels[~held_out], c, seed)
        scale = _best_scale(coordinates[held_out] @ weight.T + bias, torch.searchsorted(present, labels[held_out]))
    weight, bias = _fit(coordinates, labels, c, seed)
    layer = nn.Linear(vectors.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(-2.0 * scale)
        # A vector of unit mean square is sqrt(d) times the unit vector.
        full_weight = weight if basis is None else weight @ basis.T
        layer.weight[present] = full_weight * (scale / vectors.shape[1] ** 0.5)
        layer.bias[present] = bias * scale
    return layer


def linear_svc() -> Any:
    """Return scikit-learn's LinearSVC; call this before long computations to detect a missing installation early.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    return import_optional("sklearn.svm", "SVMs").LinearSVC


def _fit(x: Float[Tensor, "n k"], labels: Int[Tensor, " n"], c: float, seed: int) -> tuple[Tensor, Tensor]:
    svm = linear_svc()(C=c, random_state=seed, max_iter=10_000).fit(x.numpy(), labels.numpy())
    weight, bias = torch.from_numpy(svm.coef_).float(), torch.from_numpy(svm.intercept_).float()
    if len(svm.classes_) == 2:
        weight, bias = torch.cat((-weight, weight)), torch.cat((-bias, bias))
    return weight, bias


def _every_fifth(labels: Int[Tensor, " n"]) -> Tensor:
    """Return a mask of every fifth sample of each class."""
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        mask[torch.nonzero(labels == label)[4::5, 0]] = True
    return mask


def _best_scale(margins: Float[Tensor, "n c"], labels: Int[Tensor, " n"]) -> float:
    losses = torch.stack([nn.functional.cross_entropy(margins * scale, labels) for scale in _SCALES])
    return float(_SCALES[losses.argmin()])
