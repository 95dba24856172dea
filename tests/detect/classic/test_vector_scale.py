"""Tests of the scales of window vectors."""

import pytest
import torch

from sppnet.detect.classic.vector_scale import mean_norm_scale, mean_square_scale, spread_rows


def test_rows_are_spread_over_all_rows() -> None:
    assert spread_rows(5, 9).tolist() == [0, 1, 2, 3, 4]
    assert spread_rows(101, 3).tolist() == [0, 50, 100]
    assert spread_rows(0, 3).tolist() == []


def test_scaled_vectors_have_unit_mean_square() -> None:
    parts = [torch.randn(4, 6) * 7, torch.randn(3, 6).half()]
    scaled = torch.cat([part.float() * mean_square_scale(parts) for part in parts])
    assert scaled.square().mean().item() == pytest.approx(1, rel=1e-5)
    assert mean_square_scale([]) == mean_square_scale([torch.zeros(2, 3)]) == 1


def test_scaled_vectors_have_a_mean_norm_of_20() -> None:
    assert mean_norm_scale([torch.tensor([[3.0, 4]]), torch.tensor([[0.0, 10], [0, 15]])]) == 2
    assert mean_norm_scale([torch.zeros(2, 3)]) == 20 / 1e-12
