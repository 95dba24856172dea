"""Assembly of the blocks that `blend_tiles` yields."""

from collections.abc import Callable

import torch
from torch import Tensor

from sppnet.inference.tiles import Span, blend_tiles

PredictTile = Callable[[Span, Span], Tensor]


def collect_blocks(down: list[Span], across: list[Span], predict: PredictTile, first: int = 0) -> Tensor:
    """Assemble the blocks of two classes, and check that no pixel is yielded twice; other pixels are NaN."""
    total = torch.full((2, down[-1][1], across[-1][1]), torch.nan)
    for block in blend_tiles(down, across, predict, first):
        region = total[:, slice(*block.rows), slice(*block.columns)]
        assert region.isnan().all(), "a pixel was yielded twice"
        region[:] = block.probabilities
    return total
