"""Calibration errors compared with torchmetrics, and fits of known parameters."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from sppnet.evaluation.calibration import (
    Subsample,
    best_threshold,
    calibration_error,
    fit_platt,
    fit_temperature,
    reliability,
)


def scored(count: int = 2000, classes: int = 7) -> tuple[Tensor, Tensor]:
    """Return logits of known temperature 1, and labels drawn from their softmax."""
    logits = 3 * torch.randn(count, classes)
    return logits, logits.softmax(1).multinomial(1)[:, 0]


def test_error_is_the_top_label_error_of_torchmetrics() -> None:
    logits, labels = scored()
    probabilities = (2 * logits).softmax(1)
    scores, predicted = probabilities.max(1)
    expected = multiclass_calibration_error(probabilities, labels, 7, n_bins=15)
    error = calibration_error(scores, predicted == labels)
    assert error == pytest.approx(float(expected), abs=1e-5)
    assert error > 0.05


def test_reliability_bins_give_the_error() -> None:
    logits, labels = scored()
    scores, predicted = (2 * logits).softmax(1).max(1)
    bins = reliability(scores, predicted == labels)
    assert sum(part.count for part in bins) == 2000
    assert all(part.low <= part.score <= part.high for part in bins)
    error = sum(part.count * abs(part.correct - part.score) for part in bins) / 2000
    assert error == pytest.approx(calibration_error(scores, predicted == labels), abs=1e-6)


def test_scores_rounded_above_one_are_no_logits() -> None:
    assert calibration_error(torch.tensor([1.0000001, 1.0]), torch.tensor([True, True])) == pytest.approx(0, abs=1e-6)
    assert calibration_error(torch.empty(0), torch.empty(0, dtype=torch.bool)) == 0
    assert reliability(torch.tensor([1.0, 1.0]), torch.tensor([True, False]))[0].high == 1


@pytest.mark.parametrize("temperature", [0.2, 1.0, 5.0])
def test_temperature_is_recovered_and_minimizes_the_cross_entropy(temperature: float) -> None:
    logits, labels = scored()
    fitted = fit_temperature(temperature * logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.08)
    losses = [F.cross_entropy(temperature * logits / (fitted * factor), labels) for factor in (0.97, 1, 1.03)]
    assert losses[1] < min(losses[0], losses[2])


def test_temperature_is_defined_for_separable_excluded_and_missing_samples() -> None:
    labels = torch.arange(3).repeat(10)
    fitted = fit_temperature(F.one_hot(labels, 3).float(), labels)
    assert 0.05 < fitted < 0.5
    assert fit_temperature(-F.one_hot(labels, 3).float(), labels) == pytest.approx(1000)  # always wrong
    logits, labels = scored()
    excluded = torch.cat((logits, torch.full((len(logits), 1), -math.inf)), 1)
    assert fit_temperature(excluded, labels) == pytest.approx(fit_temperature(logits, labels), rel=1e-3)
    assert fit_temperature(torch.empty(0, 3), torch.empty(0, dtype=torch.long)) == 1


def test_platt_recovers_a_logistic_curve() -> None:
    margins = 2 * torch.randn(20_000)
    correct = torch.rand(20_000) < torch.sigmoid(3 * margins - 1)
    slope, offset = fit_platt(margins, correct) or (0, 0)
    assert slope == pytest.approx(3, rel=0.05)
    assert offset == pytest.approx(-1, abs=0.1)
    shifted = fit_platt(1000 + 0.001 * margins, correct) or (0, 0)
    assert shifted == pytest.approx((3000, -1 - 3_000_000), rel=0.05)


def test_platt_refuses_curves_that_would_reorder_scores() -> None:
    margins = torch.linspace(-1, 1, 50)
    assert fit_platt(margins, margins < 0) is None
    assert fit_platt(margins, torch.ones(50, dtype=torch.bool)) is None
    assert fit_platt(torch.zeros(50), margins > 0) is None
    slope, _ = fit_platt(margins, margins > 0) or (0, 0)  # separable
    assert 0 < slope < 1000


def test_threshold_has_the_highest_f1() -> None:
    scores = torch.tensor([0.9, 0.8, 0.8, 0.6, 0.3, 0.1])
    correct = torch.tensor([True, True, False, True, False, False])
    assert best_threshold(scores, correct, 3) == pytest.approx(0.45)
    late = torch.tensor([True, False, False, False, False, True])
    assert best_threshold(scores, late, 1) == pytest.approx(0.85)
    assert best_threshold(scores, late, 20) == pytest.approx(0.1)
    assert best_threshold(scores[:1], correct[:1], 1) == pytest.approx(0.9)
    assert best_threshold(scores, torch.zeros(6, dtype=torch.bool), 3) is None


def test_threshold_does_not_divide_equal_scores() -> None:
    scores = torch.tensor([0.5, 0.5, 0.5, 0.2])
    assert best_threshold(scores, torch.tensor([True, False, False, True]), 2) in (0.2, pytest.approx(0.2))


def test_subsample_is_evenly_spaced_and_bounded() -> None:
    sample = Subsample(100)
    for start in range(0, 1000, 50):
        sample.add(torch.arange(start, start + 50)[:, None])
    rows = sample.rows()
    assert rows is not None
    assert 50 <= len(rows) <= 100
    assert (rows[:, 0] == torch.arange(0, 1000, 16)).all()
    assert Subsample(5).rows() is None
