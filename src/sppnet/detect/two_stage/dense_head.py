"""Dense head: proposals from the maps of several strides."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.layers.norms import SafeBatchNorm2d, conv_block

_PRIOR = 0.01  # initial probability of an object (RetinaNet, section 4.1)
_FIRST_SIDE = 6.0  # initial distance from a center to each edge of its box, in cells


class DenseOutput(NamedTuple):
    """Predictions of the dense head for every cell of the finest map, in row-major order.

    Attributes:
        fused: fused map of the finest stride.
        logits: logits of the probability that there is an object, whatever its class.
        boxes: xyxy edges in pixels of the input.
        centers: (x, y) of the centers of the cells.
    """

    fused: Float[Tensor, "n width rows columns"]
    logits: Float[Tensor, "n cells"]
    boxes: Float[Tensor, "n cells 4"]
    centers: Float[Tensor, "cells 2"]


class DenseHead(nn.Module):
    """Fuses maps from the coarsest to the finest, and predicts a score and a box for each cell of the finest.

    The score does not depend on the class, so that few examples of many classes are enough.

    Each map is reduced to `width` channels; a coarser map is upsampled and added to the next finer one. The maps must
    come from an input whose sides are multiples of the largest stride.

    Args:
        channels: channels of each map, from fine to coarse.
        strides: strides of the maps in pixels, each a multiple of the previous one.
        width: channels of the head.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int = 64) -> None:
        super().__init__()
        self.strides, self.width = tuple(strides), width
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(count, width, 1, bias=False), SafeBatchNorm2d(width)) for count in channels
        )
        self.context = _block(width) if len(channels) > 1 else nn.Identity()
        self.shared = _block(width)
        self.score_tower, self.box_tower = _block(width), _block(width)
        self.score = nn.Conv2d(width, 1, 1)
        self.distances = nn.Conv2d(width, 4, 1)
        for layer, bias in ((self.score, -math.log(1 / _PRIOR - 1)), (self.distances, math.log(_FIRST_SIDE))):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.constant_(layer.bias, bias)  # type: ignore[arg-type]

    def forward(self, *maps: Float[Tensor, "n _ _ _"]) -> DenseOutput:
        """Predict scores and boxes.

        Args:
            maps: maps in the order of `channels`.
        """
        fused = self.fuse(maps)
        stride = self.strides[0]
        rows, columns = fused.shape[2:]
        y, x = ((torch.arange(count, device=fused.device) + 0.5) * stride for count in (rows, columns))
        centers = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=2).flatten(0, 1)
        logits = self.score(self.score_tower(fused)).float().flatten(1)
        distances = self.distances(self.box_tower(fused)).float().clamp(-4, 6).exp() * stride
        left_top, right_bottom = distances.flatten(2).transpose(1, 2).split(2, dim=2)
        return DenseOutput(fused, logits, torch.cat((centers - left_top, centers + right_bottom), dim=2), centers)

    def fuse(self, maps: Sequence[Tensor]) -> Float[Tensor, "n width rows columns"]:
        """Fuse the maps into one of the finest stride."""
        fused = self.lateral[-1](maps[-1])
        for index in reversed(range(len(maps) - 1)):
            if index == 0:
                fused = self.context(F.leaky_relu(fused, 0.1))
            lateral = self.lateral[index](maps[index])
            fused = F.interpolate(fused, size=lateral.shape[2:]) + lateral
        return self.shared(F.leaky_relu(fused, 0.1))  # type: ignore[no-any-return]


def _block(width: int) -> nn.Sequential:
    # ReLU can die in the score tower when positives are rare.
    return conv_block(width, width, 3, activation=lambda: nn.LeakyReLU(0.1))
