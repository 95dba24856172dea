"""Functions as networks, run on padded batches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sppnet.backbones.padded.mode import PaddedBatch

Area = tuple[int, int]
Function = Callable[[Any], Any]
CHANNELS = 4


class Layer(nn.Module):
    """A function as a network."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def canvas(sizes: list[Area], fill: float = 0.0, spare: int = 0) -> Tensor:
    rows, columns = (max(area[axis] for area in sizes) + spare for axis in (0, 1))
    x = torch.full((len(sizes), CHANNELS, rows, columns), fill, dtype=torch.float64)
    for place, (height, width) in zip(x, sizes, strict=True):
        place[:, :height, :width] = torch.randn(CHANNELS, height, width)
    return x


def run(network: nn.Module, x: Tensor, sizes: list[Area], same: bool = False) -> tuple[Tensor, tuple[Area, ...]]:
    with PaddedBatch(network, same) as batch:
        out = network(batch.enter(x, sizes))
        return out, batch.areas(out)
