"""The ridge head against scikit-learn, and its margins of held-out samples."""

import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.training.ridge import fit_ridge
from tests.helpers.linear_heads import clusters, logits_of


def expected_logits(vectors: Tensor, labels: Tensor, penalty: float, weights: Tensor | None = None) -> Tensor:
    """Fit scikit-learn's regression to unit vectors with an additional coordinate of 1 for the bias."""
    x = F.pad(F.normalize(vectors, dim=1), (0, 1), value=1).double().numpy()
    ridge = Ridge(alpha=penalty, fit_intercept=False, solver="cholesky")
    ridge.fit(x, (2 * F.one_hot(labels) - 1).numpy(), None if weights is None else weights.numpy())
    return torch.from_numpy(ridge.predict(x)).float()


@pytest.mark.parametrize(("classes", "each", "width"), [(5, 12, 300), (5, 60, 20), (2, 10, 100)])
def test_margins_match_scikit_learn(classes: int, each: int, width: int) -> None:
    vectors, labels = clusters(classes, each, width)
    logits = logits_of(fit_ridge(vectors, labels, classes, 0.3).layer, vectors)
    torch.testing.assert_close(logits, expected_logits(vectors, labels, 0.3), rtol=1e-3, atol=1e-3)


def test_balanced_weights_are_inverse_numbers_of_samples() -> None:
    vectors, labels = clusters(3, 40, 200)
    vectors, labels = vectors[30:], labels[30:]
    weights = torch.tensor([90 / 30, 90 / 120, 90 / 120])[labels]
    logits = logits_of(fit_ridge(vectors, labels, 3, balanced=True).layer, vectors)
    torch.testing.assert_close(logits, expected_logits(vectors, labels, 0.1, weights), rtol=1e-3, atol=1e-3)


def test_margins_of_held_out_samples_are_those_of_a_fit_without_them() -> None:
    vectors, labels = clusters(4, 10, 100)
    fit = fit_ridge(vectors, labels, 4)
    assert torch.equal(fit.labels, labels)
    first = torch.arange(40) % 10 < 2
    other: nn.Linear = fit_ridge(vectors[~first], labels[~first], 4).layer
    torch.testing.assert_close(fit.margins[first], logits_of(other, vectors[first]), rtol=1e-3, atol=1e-3)
