"""The pyramid pooling module of PSPNet."""

from collections.abc import Sequence
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import check_choice
from sppnet.layers.names import Norm
from sppnet.layers.norms import conv_block
from sppnet.ops.levels import Level, Reduce, parse_levels
from sppnet.ops.pyramid import pyramid_pool


class PyramidPoolingModule(nn.Module):
    """Pyramid pooling module of PSPNet (section 3.2).

    Each level is pooled to n x n bins, passed through a 1x1 convolution with normalization and ReLU, upsampled
    bilinearly with aligned corners, and concatenated to the input: (N, C, H, W) becomes (N, C + levels * out_channels,
    H, W).

    Args:
        in_channels: number of input channels.
        levels: n for n x n bins, or (rows, columns), each >= 1.
        out_channels: number of channels per level; None for ``in_channels // len(levels)``.
        reduce: ``avg`` as in PSPNet, or ``max``.
        norm: kind of normalization, see :func:`sppnet.layers.norms.create_norm`; the default allows batch size 1.

    Raises:
        ValueError: more levels than channels and no `out_channels`.
    """

    def __init__(
        self,
        in_channels: int,
        levels: Sequence[Level] = (1, 2, 3, 6),
        out_channels: int | None = None,
        reduce: Reduce = "avg",
        norm: Norm = "safe",
    ) -> None:
        super().__init__()
        check_choice("reduce", reduce, get_args(Reduce))
        self.grids = parse_levels(levels)
        width = in_channels // len(self.grids) if out_channels is None else out_channels
        if width < 1:
            raise ValueError(f"out_channels: expected at least 1, got {width}; default: in_channels // len(levels)")
        self.reduce: Reduce = reduce
        self.out_channels = in_channels + width * len(self.grids)
        self.branches = nn.ModuleList(conv_block(in_channels, width, 1, norm) for _ in self.grids)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Concatenate the input and its upsampled levels."""
        vectors = pyramid_pool(x, self.grids, reduce=self.reduce)
        sizes = [x.shape[1] * rows * columns for rows, columns in self.grids]
        parts = [x]
        for branch, vector, grid in zip(self.branches, vectors.split(sizes, 1), self.grids, strict=True):
            bins = branch(vector.reshape(x.shape[0], x.shape[1], *grid))
            parts.append(F.interpolate(bins, size=x.shape[2:], mode="bilinear", align_corners=True))
        return torch.cat(parts, 1)

    def extra_repr(self) -> str:
        """Return the levels and the reduction for ``print(module)``."""
        return f"levels={self.grids}, reduce={self.reduce!r}"
