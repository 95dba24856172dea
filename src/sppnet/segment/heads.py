"""Segmentation heads of DeepLab v2, v3, v3+ and PSPNet, from feature maps to logits for each cell."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sppnet.backbones.backbone import FeatureMap
from sppnet.layers.aspp import ASPP
from sppnet.layers.names import Norm
from sppnet.layers.norms import conv_block
from sppnet.layers.ppm import PyramidPoolingModule
from sppnet.layers.resample import Grid, resample
from sppnet.segment.options import Context

_FINE_CHANNELS = 48  # DeepLab v3+, table 1


@dataclass(frozen=True)
class HeadStyle:
    """Settings shared by the heads.

    Attributes:
        width: number of channels inside the head.
        norm: kind of normalization, see :func:`sppnet.layers.norms.create_norm`.
        separable: whether 3x3 convolutions are depthwise separable.
        image_level: whether ASPP has an image-level branch.
        dropout: dropout probability, in [0, 1).
    """

    width: int = 256
    norm: Norm = "safe"
    separable: bool = False
    image_level: bool = True
    dropout: float = 0.1


class SegmentationHead(nn.Module):
    """A context module, and the layers that classify each cell.

    Attributes:
        context: ASPP, a pyramid pooling module with its bottleneck, or a plain 1x1 block.
        fine: 1x1 block that reduces the channels of the finer map; DeepLab v3+ only.
        classify: layers from the outputs of `context` and `fine` to the logits.
    """

    def __init__(self, context: nn.Module, classify: nn.Module, fine: nn.Module | None = None) -> None:
        super().__init__()
        self.context = context
        self.fine = fine
        self.classify = classify

    def forward(
        self, features: FeatureMap, finer: FeatureMap | None, context: Float[Tensor, "n c 1 1"] | None = None
    ) -> FeatureMap:
        """Compute the logits of the cells of `features`, or of `finer` for DeepLab v3+.

        Args:
            features: last feature map of the backbone.
            finer: finer feature map of the backbone, for DeepLab v3+.
            context: input of ASPP's image-level branch, see :meth:`sppnet.layers.aspp.ASPP.forward`.
        """
        x = self.context(features.data) if context is None else self.context(features.data, context)
        out = replace(features, data=x)
        if self.fine is not None and finer is not None:
            size = (finer.data.shape[2], finer.data.shape[3])
            upsampled = resample(out.data, Grid(out.stride, out.offset), size, Grid(finer.stride, finer.offset))
            out = replace(finer, data=torch.cat([upsampled, self.fine(finer.data)], 1))
        return replace(out, data=self.classify(out.data))


def deeplabv2_head(channels: int, classes: int, rates: Sequence[int]) -> SegmentationHead:
    """Create the head of DeepLab v2 (ResNet variant): the sum of atrous convolutions with one output per class."""
    return SegmentationHead(ASPP(channels, classes, rates, form="v2"), nn.Identity())


def deeplabv3_head(
    channels: int, classes: int, rates: Sequence[int], style: HeadStyle, extra_conv: bool = False
) -> SegmentationHead:
    """Create the head of DeepLab v3: ASPP, a 3x3 block if `extra_conv` (as in torchvision), and a 1x1 classifier."""
    extra = [conv_block(style.width, style.width, 3, style.norm)] if extra_conv else []
    return SegmentationHead(_aspp(channels, rates, style), nn.Sequential(*extra, nn.Conv2d(style.width, classes, 1)))


def deeplabv3plus_head(
    channels: int, fine_channels: int, classes: int, rates: Sequence[int], style: HeadStyle, context: Context = "aspp"
) -> SegmentationHead:
    """Create the head of DeepLab v3+ (section 3).

    The output of ASPP and the finer map, reduced to 48 channels, are concatenated and followed by two 3x3 blocks and a
    1x1 classifier. For comparisons, `context` replaces ASPP by a pyramid pooling module with a 3x3 bottleneck
    (``ppm``) or by a 1x1 block (``none``).
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
    """Create the head of PSPNet (section 3.2): a pyramid pooling module, a 3x3 block and a 1x1 classifier."""
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
