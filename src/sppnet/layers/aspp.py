"""Atrous spatial pyramid pooling (DeepLab v2 and v3)."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.errors import check_choice
from sppnet.layers.atrous import (
    LiveTaps,
    atrous_conv,
    auto_rates,
    is_plain,
    live_taps,
    parse_rates,
    warn_of_dead_taps,
)
from sppnet.layers.names import Norm
from sppnet.layers.norms import conv_block
from sppnet.ops.sliding_max import in_graph


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: parallel 3x3 convolutions at several rates that keep the map size.

    Args:
        in_channels: number of input channels.
        out_channels: number of output channels; the number of classes for ``v2``.
        rates: dilation rates in cells, each >= 1, one per atrous branch; ``auto`` for those of the papers, see
            :func:`sppnet.layers.atrous.auto_rates`.
        form: ``v3`` (DeepLab v3, section 3.3): a 1x1 branch, the atrous branches and the image-level branch, each with
            normalization and ReLU, are concatenated in this order and projected by a 1x1 convolution. ``v2`` (DeepLab
            v2, section 3.3, ResNet variant): the sum of atrous convolutions with bias, and nothing else.
        output_stride: image pixels per cell, for ``auto``.
        map_size: typical (rows, columns) of the feature map, to which ``auto`` fits the rates.
        norm: kind of normalization, see :func:`sppnet.layers.norms.create_norm`; the default allows batch size 1.
        separable: use depthwise separable atrous branches (DeepLab v3+, section 3.1).
        image_level: include the image-level branch (``v3`` only).
        dropout: dropout probability after the projection, in [0, 1).

    Raises:
        ValueError: no rates, a rate below 1, or an option that ``v2`` does not support.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        rates: Sequence[int] | Literal["auto"] = "auto",
        *,
        form: Literal["v3", "v2"] = "v3",
        output_stride: int = 16,
        map_size: Sequence[int] | None = None,
        norm: Norm = "safe",
        separable: bool = False,
        image_level: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("form", form, ("v3", "v2"))
        if isinstance(rates, str):
            check_choice("rates", rates, ("auto",))
            rates = auto_rates(output_stride, map_size, form)
        check_choice("norm", norm, get_args(Norm))
        self.rates = parse_rates(rates)
        self.image: nn.Sequential | None = None
        self.project: nn.Sequential | None = None
        if form == "v2":
            if separable or dropout:
                raise ValueError("form: expected 'v3' for separable or dropout, got 'v2'")
            self.branches = nn.ModuleList(_v2_branch(in_channels, out_channels, rate) for rate in self.rates)
            return
        atrous = [conv_block(in_channels, out_channels, 3, norm, rate=r, separable=separable) for r in self.rates]
        self.branches = nn.ModuleList([conv_block(in_channels, out_channels, 1, norm), *atrous])
        if image_level:
            self.image = conv_block(in_channels, out_channels, 1, norm)
        concatenated = out_channels * (len(self.branches) + image_level)
        self.project = conv_block(concatenated, out_channels, 1, norm).append(nn.Dropout(dropout))

    def forward(
        self, x: Float[Tensor, "n c h w"], context: Float[Tensor, "n c 1 1"] | None = None
    ) -> Float[Tensor, "n out h w"]:
        """Run all branches and combine them.

        Args:
            x: feature map.
            context: input of the image-level branch, the channel means of `x` by default. For a tile, pass
                :meth:`context_of` of the whole image's feature map.
        """
        if context is not None and self.image is None:
            raise ValueError("context: expected None for a module without an image-level branch, got a tensor")
        if context is not None and context.shape != (*x.shape[:2], 1, 1):
            raise ValueError(f"context: expected shape {(*x.shape[:2], 1, 1)} to match x, got {tuple(context.shape)}")
        if self.training and not in_graph():
            warn_of_dead_taps(self.rates, x.shape[2:])
        maps = [_run_branch(branch, x) for branch in self.branches]
        if self.project is None:
            return torch.stack(maps).sum(0)
        conv, *rest = self.project
        joined = torch.cat(maps, 1)
        if self.image is None:
            out: Tensor = conv(joined)
        elif not is_plain(conv):
            image = self.image(self.context_of(x) if context is None else context)
            out = conv(torch.cat([joined, image.expand(-1, -1, *x.shape[2:])], 1))
        else:
            # The image-level branch is constant over the map: project it once instead of at every cell.
            image = self.image(self.context_of(x) if context is None else context)
            weight, image_weight = conv.weight.split((joined.shape[1], image.shape[1]), 1)  # type: ignore[operator]
            out = F.conv2d(joined, weight) + F.conv2d(image, image_weight)
        for layer in rest:
            out = layer(out)
        return out

    @staticmethod
    def context_of(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c 1 1"]:
        """Compute the input of the image-level branch: the mean of each channel."""
        return x.mean((2, 3), keepdim=True)

    def explain(self, size: Sequence[int]) -> tuple[LiveTaps, ...]:
        """Count the live taps of each atrous branch on a map of (rows, columns) cells.

        Warns, as training does, if a branch has a share of live taps below :data:`sppnet.layers.atrous.MIN_LIVE_SHARE`.
        """
        warn_of_dead_taps(self.rates, size)
        return tuple(live_taps(rate, size) for rate in self.rates)

    def extra_repr(self) -> str:
        """Return the rates for ``print(module)``."""
        return f"rates={self.rates}"


def _v2_branch(in_channels: int, out_channels: int, rate: int) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=rate, dilation=rate)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _run_branch(branch: nn.Module, x: Tensor) -> Tensor:
    """Run a branch, skipping the dead taps of its first convolution."""
    if isinstance(branch, nn.Conv2d):
        return atrous_conv(branch, x)
    conv, *rest = branch.children()
    out = atrous_conv(conv, x)  # type: ignore[arg-type]
    for layer in rest:
        out = layer(out)
    return out
