"""Linear support vector machines on pyramid vectors, as one linear layer."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.errors import import_optional
from sppnet.training.linear import LinearFit, fit_linear

_ENOUGH = 500  # held-out samples; on 2,910 photographs, more did not improve the calibration


def fit_linear_svm(
    vectors: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    num_classes: int,
    c: float = 1.0,
    seed: int = 0,
    *,
    balanced: bool = False,
) -> LinearFit:
    """Fit one-versus-rest linear SVMs to l2-normalized vectors with liblinear (SPP-net, section 3.2).

    As many folds are held out for calibration as have 500 samples, see :func:`sppnet.training.linear.fit_linear`.

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
    options = {"C": c, "random_state": seed, "max_iter": 10_000, "class_weight": "balanced" if balanced else None}

    def solve(x: Float[Tensor, "n k"], labels: Int[Tensor, " n"]) -> tuple[Tensor, Tensor]:
        svm = linear_svc()(**options).fit(x.numpy(), labels.numpy())
        weight, bias = torch.from_numpy(svm.coef_).float(), torch.from_numpy(svm.intercept_).float()
        if len(svm.classes_) == 2:
            weight, bias = torch.cat((-weight, weight)), torch.cat((-bias, bias))
        return weight, bias

    return fit_linear(vectors, labels, num_classes, solve, _ENOUGH)


def linear_svc() -> Any:
    """Return scikit-learn's LinearSVC; call this before long computations to detect a missing installation early.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    return import_optional("sklearn.svm", "SVMs").LinearSVC
