"""Factors that bring window vectors to a common scale, so that the same training options suit all backbones."""

import math
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor

MEAN_NORM = 20.0  # as in the code of the R-CNN and SPP-net authors


def spread_rows(count: int, limit: int) -> Int[Tensor, " n"]:
    """Return up to `limit` evenly spaced indices from 0 to count - 1."""
    return torch.linspace(0, count - 1, min(count, limit)).long()


def mean_square_scale(parts: Iterable[Float[Tensor, "_ d"]]) -> float:
    """Return the factor that scales vectors, given in parts, to unit mean square; 1 for zeros or no vectors."""
    squares = [part.float().square().mean(1) for part in parts]
    mean = float(torch.cat(squares).mean()) if squares else 0.0
    return 1 / math.sqrt(mean) if mean else 1.0


def mean_norm_scale(parts: Iterable[Float[Tensor, "_ d"]]) -> float:
    """Return the factor that scales vectors, given in parts, to a mean norm of 20."""
    norms = torch.cat([part.float().norm(dim=1) for part in parts])
    return MEAN_NORM / max(float(norms.mean()), 1e-12)
