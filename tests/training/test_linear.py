"""Linear heads with held-out margins: folds, classes without samples, and equal samples."""

import pytest
import torch
from torch import Tensor

from sppnet.training.linear import LinearFit, fit_linear
from sppnet.training.ridge import fit_ridge
from tests.helpers.linear_heads import clusters, logits_of


@pytest.mark.parametrize(("enough", "folds"), [(None, 5), (30, 3), (24, 2)])
def test_folds_are_held_out_until_there_are_enough_samples(enough: int | None, folds: int) -> None:
    vectors, labels = clusters(3, 20, 50)
    sizes: list[int] = []

    def solve(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(x))
        return torch.zeros(3, x.shape[1]), torch.zeros(3)

    fit: LinearFit = fit_linear(vectors, labels, 3, solve, enough)
    assert sizes == [48] * folds + [60]
    assert len(fit.margins) == len(fit.labels) == 12 * folds


def test_only_sample_of_a_class_is_not_held_out() -> None:
    vectors, labels = clusters(3, 5, 30)
    keep = torch.tensor([0, 5, 6, 7, 10, 11])
    fit = fit_ridge(vectors[keep], labels[keep], 4)
    assert fit.labels.tolist() == [1, 1, 1, 2, 2]
    assert (fit.margins[:, 3] == -2).all()
    assert not len(fit_ridge(vectors[::5], labels[::5], 3).labels)


def test_class_without_samples_is_never_predicted() -> None:
    vectors, labels = clusters(3, 20, 50)
    labels[labels == 1] = 2
    assert not (logits_of(fit_ridge(vectors, labels, 4).layer, vectors).argmax(1) % 2).any()


def test_equal_vectors_are_fitted() -> None:
    vectors, labels = clusters(3, 4, 90)
    twice = logits_of(fit_ridge(vectors.repeat(2, 1), labels.repeat(2), 3).layer, vectors)
    torch.testing.assert_close(
        twice, logits_of(fit_ridge(vectors, labels, 3, 0.05).layer, vectors), rtol=0.01, atol=1e-3
    )


def test_dependent_vectors_are_fitted() -> None:
    vectors, labels = clusters(3, 100, 8)
    vectors = vectors @ torch.rand(8, 1000)
    assert (logits_of(fit_ridge(vectors, labels, 3).layer, vectors).argmax(1) == labels).float().mean() > 0.9


def test_rejects_samples_of_one_class() -> None:
    vectors, labels = clusters(2, 5, 10)
    with pytest.raises(ValueError, match="at least 2 classes, got 1"):
        fit_ridge(vectors, torch.zeros_like(labels), 2)
