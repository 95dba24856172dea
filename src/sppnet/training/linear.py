"""Linear heads that are fitted to the vectors of all images at once, with margins of held-out images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

_ABSENT = -2.0  # margin of classes without samples
_FOLDS = 5
_JITTER = 1e-4  # rounding makes eigenvalues of dependent unit vectors negative, by about 1e-6

Solver = Callable[[Float[Tensor, "n k"], Int[Tensor, " n"]], tuple[Float[Tensor, "p k"], Float[Tensor, " p"]]]


@dataclass(frozen=True)
class LinearFit:
    """A linear layer, and the margins of samples by layers that were fitted without them.

    Attributes:
        layer: layer for vectors of unit mean square, as normalized by the ``linear`` head; its outputs are margins.
        margins: margins of held-out samples.
        labels: class indices of these samples.
    """

    layer: nn.Linear
    margins: Float[Tensor, "k c"]
    labels: Int[Tensor, " k"]


def fit_linear(
    vectors: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_classes: int, solve: Solver, enough: int | None = None
) -> LinearFit:
    """Fit a linear layer to l2-normalized vectors.

    For calibration, the samples are divided into five folds, and layers are fitted to the samples outside each fold.
    The only sample of a class is never held out.

    Args:
        vectors: pyramid vectors.
        labels: class indices 0..num_classes - 1; classes without samples get a constant low margin.
        num_classes: number of outputs of the layer, >= 2.
        solve: function that returns the weights and biases of the p classes with samples, in ascending order, for unit
            vectors in k coordinates.
        enough: number of held-out samples after which no further fold is held out; None for all folds.

    Raises:
        ValueError: fewer than two classes have samples.
    """
    present = labels.unique()
    if len(present) < 2:
        raise ValueError(f"labels: expected samples of at least 2 classes, got {len(present)}")
    unit = nn.functional.normalize(vectors.float(), dim=1)
    # With fewer vectors than dimensions, use coordinates in an orthonormal basis of their span. Inner products, and
    # therefore the fit, stay the same.
    lower, coordinates = None, unit
    if len(unit) < unit.shape[1]:
        gram = (unit @ unit.T).double()
        gram.diagonal().add_(_JITTER)
        lower = torch.linalg.cholesky(gram)
        coordinates = lower.float()
    folds, held_out = _folds(labels), torch.zeros(len(labels), dtype=torch.bool)
    margins = torch.full((len(labels), num_classes), _ABSENT)
    for fold in range(_FOLDS):
        inside = folds == fold
        if inside.any() and (enough is None or held_out.sum() < enough):
            weight, bias = solve(coordinates[~inside], labels[~inside])
            margins[inside.nonzero(), present] = coordinates[inside] @ weight.T + bias
            held_out |= inside
    weight, bias = solve(coordinates, labels)
    if lower is not None:
        weight = torch.linalg.solve_triangular(lower.T, weight.T.double(), upper=True).T.float() @ unit
    layer = nn.Linear(vectors.shape[1], num_classes)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(_ABSENT)
        # A vector of unit mean square is sqrt(d) times the unit vector.
        layer.weight[present] = weight / vectors.shape[1] ** 0.5
        layer.bias[present] = bias
    return LinearFit(layer, margins[held_out], labels[held_out])


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
