"""What turns feature maps into logits for each cell: the heads of DeepLab v2, v3, v3+ and of PSPNet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.backbone import FeatureMap
from sppnet.layers.aspp import ASPP
from sppnet.layers.norms import Norm, conv_block
from sppnet.layers.ppm import PyramidPoolingModule
from sppnet.layers.resample import Grid, resample

HeadName = Literal["deeplabv2", "deeplabv3", "deeplabv3plus", "pspnet"]
Context = Literal["aspp", "ppm", "none"]
_FINE_CHANNELS = 48  # DeepLab v3+, table 1


@dataclass(frozen=True)
class HeadStyle:
    """What heads have in common.

    Attributes:
        width: channels inside the head.
        norm: see :func:`sppnet.layers.norms.create_norm`.
        separable: depthwise separable 3x3 convolutions.
        image_level: whether ASPP has its image-level branch.
        dropout: share of channels that training drops.
    """

    width: int = 256
    norm: Norm = "safe"
    separable: bool = False
    image_level: bool = True
    dropout: float = 0.1


class SegmentationHead(nn.Module):
    """A module that sees the context of each cell, and a classifier of cells.

    Attributes:
        context: ASPP, a pyramid pooling module with its bottleneck, or a plain 1x1 block.
        fine: for DeepLab v3+, the 1x1 block that narrows the finer map.
        classify: the layers after them.
    """

    def __init__(self, context: nn.Module, classify: nn.Module, fine: nn.Module | None = None) -> None:
        super().__init__()
        self.context = context
        self.fine = fine
        self.classify = classify

    def forward(
        self, features: FeatureMap, finer: FeatureMap | None, context: Float[Tensor, "n c 1 1"] | None = None
    ) -> FeatureMap:
        """Logits of cells: those of `features`, or of `finer` for DeepLab v3+.

        Args:
            features: the backbone's map.
            finer: its finer map, for DeepLab v3+.
            context: for ASPP's image-level branch, see :meth:`sppnet.layers.aspp.ASPP.forward`.
        """
        x = self.context(features.data) if context is None else self.context(features.data, context)
        out = replace(features, data=x)
        if self.fine is not None and finer is not None:
            size = (finer.data.shape[2], finer.data.shape[3])
            spread = resample(out.data, Grid(out.stride, out.offset), size, Grid(finer.stride, finer.offset))
            out = replace(finer, data=torch.cat([spread, self.fine(finer.data)], 1))
        return replace(out, data=self.classify(out.data))


def deeplabv2_head(channels: int, classes: int, rates: Sequence[int]) -> SegmentationHead:
    """DeepLab v2, ResNet form: a sum of atrous convolutions, straight to the classes."""
    return SegmentationHead(ASPP(channels, classes, rates, form="v2"), nn.Identity())


def deeplabv3_head(
    channels: int, classes: int, rates: Sequence[int], style: HeadStyle, extra_conv: bool = False
) -> SegmentationHead:
    """DeepLab v3: ASPP, 1x1 to the classes; with `extra_conv` a 3x3 block between them, as torchvision has it."""
    between = [conv_block(style.width, style.width, 3, style.norm)] if extra_conv else []
    return SegmentationHead(_aspp(channels, rates, style), nn.Sequential(*between, nn.Conv2d(style.width, classes, 1)))


def deeplabv3plus_head(
    channels: int, fine_channels: int, classes: int, rates: Sequence[int], style: HeadStyle, context: Context = "aspp"
) -> SegmentationHead:
    """DeepLab v3+ (section 3): ASPP, joined with a finer map of 48 channels, two 3x3 blocks, 1x1 to the classes.

    With `context` ``ppm`` a pyramid pooling module and its 3x3 bottleneck stand in the place of ASPP, with ``none`` a
    1x1 block, so that the three can be compared.
    """
    if context == "aspp":
        module: nn.Module = _aspp(channels, rates, style)
    elif context == "ppm":
        module = _pyramid(channels, style)
    else:
        module = conv_block(channels, style.width, 1, style.norm).append(nn.Dropout(style.dropout))
    decoder = nn.Sequential(
        conv_block(style.width + _FINE_CHANNELS, style.width, 3, style.norm, separable=style.separable),
        conv_block(style.width, style.width, 3, style.norm, separable=style.separable),
        nn.Conv2d(style.width, classes, 1),
    )
    return SegmentationHead(module, decoder, conv_block(fine_channels, _FINE_CHANNELS, 1, style.norm))


def pspnet_head(channels: int, classes: int, style: HeadStyle) -> SegmentationHead:
    """PSPNet (section 3.2): pyramid pooling module, a 3x3 block, 1x1 to the classes."""
    return SegmentationHead(_pyramid(channels, style), nn.Conv2d(style.width, classes, 1))


def _aspp(channels: int, rates: Sequence[int], style: HeadStyle) -> ASPP:
    return ASPP(
        channels,
        style.width,
        rates,
        norm=style.norm,
        separable=style.separable,
        image_level=style.image_level,
        dropout=style.dropout,
    )


def _pyramid(channels: int, style: HeadStyle) -> nn.Sequential:
    pool = PyramidPoolingModule(channels, norm=style.norm)
    bottleneck = conv_block(pool.out_channels, style.width, 3, style.norm, separable=style.separable)
    return nn.Sequential(pool, bottleneck, nn.Dropout(style.dropout))
