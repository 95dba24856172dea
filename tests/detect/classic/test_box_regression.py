"""Tests of box regression: whitening, both forms of ridge regression, and the layer against a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet.detect.classic.box_regression import fit_box_regression, ridge, whitening
from sppnet.ops.boxes import decode


def random_offsets(count: int) -> Tensor:
    """Draw correlated offsets with a nonzero mean and different variances."""
    mixing = torch.tensor([[0.3, 0.1, 0, 0], [0, 0.05, 0, 0.2], [0, 0, 1, 0], [0.1, 0, 0, 1e-4]], dtype=torch.float64)
    return torch.randn(count, 4, dtype=torch.float64) @ mixing + torch.tensor([0.1, -0.2, 0, 3])


def slow_layer(vectors: Tensor, offsets: Tensor, scale: float, penalty: float) -> tuple[Tensor, Tensor]:
    """Fit one class in float64, one whitened offset at a time."""
    x = torch.cat((vectors.double() * scale, torch.ones(len(vectors), 1, dtype=torch.float64)), dim=1)
    y = offsets.double()
    mean = y.mean(0)
    covariance = sum(torch.outer(row - mean, row - mean) for row in y) / len(y)
    values, directions = torch.linalg.eigh(covariance)
    whiten = directions @ torch.diag(1 / (values + 0.001).sqrt()) @ directions.T
    columns = []
    for column in ((y - mean) @ whiten).T:
        gram = x.T @ x + penalty * torch.eye(x.shape[1], dtype=torch.float64)
        columns.append(torch.linalg.solve(gram, x.T @ column))
    weights = torch.stack(columns, dim=1) @ torch.linalg.inv(whiten)
    return weights[:-1].T * scale, weights[-1] + mean


@settings(deadline=None)  # the first example includes imports
@given(st.integers(1, 30), st.integers(0, 1 << 30))
def test_unwhitening_inverts_whitening(count: int, seed: int) -> None:
    torch.manual_seed(seed)
    offsets = random_offsets(count)
    mean, whiten, unwhiten = whitening(offsets)
    torch.testing.assert_close((offsets - mean) @ whiten @ unwhiten + mean, offsets, rtol=0, atol=1e-12)
    torch.testing.assert_close(whiten @ unwhiten, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-12)
    assert torch.equal(whiten, whiten.T) or torch.allclose(whiten, whiten.T, rtol=1e-12)


def test_whitened_offsets_have_unit_covariance_where_they_vary() -> None:
    offsets = random_offsets(4000) * 100
    mean, whiten, _ = whitening(offsets)
    white = (offsets - mean) @ whiten
    torch.testing.assert_close(white.T @ white / 4000, torch.eye(4, dtype=torch.float64), rtol=0, atol=2e-2)


def test_whitening_adds_a_floor_to_the_variances() -> None:
    """The variances are 0.01, 0, 0, 0, and the floor is 0.001."""
    mean, whiten, unwhiten = whitening(torch.tensor([[0.4, 1, 2, 3], [0.6, 1, 2, 3]]).double())
    torch.testing.assert_close(mean, torch.tensor([0.5, 1, 2, 3]).double(), rtol=1e-6, atol=0)
    spread = torch.tensor([0.011, 0.001, 0.001, 0.001]).double().sqrt()
    torch.testing.assert_close(whiten, (1 / spread).diag(), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(unwhiten, spread.diag(), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("count", "width"), [(5, 12), (11, 12), (12, 12), (40, 12), (1, 3)])
def test_ridge_has_zero_gradient(count: int, width: int) -> None:
    x, y = torch.randn(count, width).double(), torch.randn(count, 4).double()
    weights = ridge(x, y, 2.5).requires_grad_()
    (((x @ weights - y) ** 2).sum() + 2.5 * (weights**2).sum()).backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-11


def test_primal_and_dual_ridge_agree() -> None:
    """Rows of zeros select the primal form without changing the solution."""
    x, y = torch.randn(7, 9).double(), torch.randn(7, 2).double()
    dual = ridge(x, y, 3.0)
    primal = ridge(torch.cat((x, torch.zeros(5, 9).double())), torch.cat((y, torch.randn(5, 2).double())), 3.0)
    torch.testing.assert_close(primal, dual, rtol=1e-10, atol=1e-12)


def test_layer_has_hand_computed_weights() -> None:
    """Vectors 10 and 30, with a mean norm of 20, have horizontal shifts 0.1 below and above the mean."""
    offsets = torch.tensor([[0.4, 1, 0, 0], [0.6, 1, 0, 0]])
    layer = fit_box_regression(torch.tensor([[10.0], [30.0]]), torch.tensor([0, 0]), offsets, 1, 1000.0)
    determinant = 2000 * 1002 - 40 * 40
    assert layer.weight[:, 0].tolist() == pytest.approx([2 * 1002 / determinant, 0, 0, 0], abs=1e-9)
    assert layer.bias.tolist() == pytest.approx([0.5 - 2 * 40 / determinant, 1, 0, 0], abs=1e-7)


@pytest.mark.parametrize("penalty", [1.0, 1000.0])
@pytest.mark.parametrize("factor", [1.0, 0.01])
def test_layer_matches_the_slow_reference(penalty: float, factor: float) -> None:
    """One class has fewer vectors than dimensions, the other more."""
    vectors = torch.randn(70, 24).relu() * factor
    labels = torch.tensor([2] * 10 + [0] * 60)[torch.randperm(70)]
    offsets = random_offsets(70).float()
    before = vectors.clone()
    layer = fit_box_regression(vectors, labels, offsets, 3, penalty)
    assert torch.equal(vectors, before)
    assert layer.weight.shape == (12, 24)
    scale = 20 / float(vectors.double().norm(dim=1).mean())
    for label in (0, 2):
        weight, bias = slow_layer(vectors[labels == label], offsets[labels == label], scale, penalty)
        rows = slice(4 * label, 4 * label + 4)
        torch.testing.assert_close(layer.weight[rows].double(), weight, rtol=1e-3, atol=2e-4 * scale / 20)
        torch.testing.assert_close(layer.bias[rows].double(), bias, rtol=1e-3, atol=1e-4)


def test_default_penalty_is_1000() -> None:
    arguments = (torch.randn(9, 4), torch.zeros(9, dtype=torch.long), random_offsets(9).float(), 1)
    assert torch.equal(fit_box_regression(*arguments).weight, fit_box_regression(*arguments, 1000.0).weight)
    assert not torch.equal(fit_box_regression(*arguments).weight, fit_box_regression(*arguments, 4000.0).weight)


def test_class_without_windows_has_zero_offsets() -> None:
    vectors, labels = torch.randn(12, 6), torch.ones(12, dtype=torch.long)
    layer = fit_box_regression(vectors, labels, random_offsets(12).float(), 3)
    predicted = layer(vectors).unflatten(1, (3, 4))
    boxes = torch.tensor([[5.0, 7, 30, 20]]).expand(12, -1)
    assert torch.equal(decode(boxes, predicted[:, 0]), boxes)
    assert torch.equal(decode(boxes, predicted[:, 2]), boxes)
    assert not torch.equal(decode(boxes, predicted[:, 1]), boxes)


def test_accepts_no_windows_and_zero_vectors() -> None:
    empty = fit_box_regression(torch.empty(0, 5), torch.empty(0, dtype=torch.long), torch.empty(0, 4), 2)
    assert not empty.weight.any()
    assert not empty.bias.any()
    zeros = fit_box_regression(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long), torch.full((3, 4), 0.25), 2)
    assert not zeros.weight.any()
    assert zeros.bias.tolist() == [0.25] * 4 + [0] * 4


def test_learns_linear_offsets_from_float16_vectors() -> None:
    vectors = torch.randn(400, 16)
    offsets = vectors[:, :4] * torch.tensor([0.1, 0.2, 0.05, 0.3]) + 0.1
    layer = fit_box_regression(vectors.half(), torch.zeros(400, dtype=torch.long), offsets, 1)
    assert (layer(vectors) - offsets).norm() < 0.15 * (offsets - offsets.mean(0)).norm()
