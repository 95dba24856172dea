"""Segmentation networks: backbone and head, from images of any size to logits."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.backbones.backbone import Backbone, FeatureMap
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.data.images import to_tensor
from sppnet.errors import check_choice, check_classes
from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import auto_rates
from sppnet.layers.names import Norm
from sppnet.layers.resample import Grid, resample
from sppnet.segment.heads import (
    HeadStyle,
    SegmentationHead,
    deeplabv2_head,
    deeplabv3_head,
    deeplabv3plus_head,
    pspnet_head,
)
from sppnet.segment.options import Context, HeadName

Upsample = Literal["aligned", "resize"]


@dataclass(frozen=True)
class SegmenterConfig:
    """Configuration of a segmenter: everything needed to rebuild it, except the weights.

    Attributes:
        classes: class names, in logit order.
        backbone: name of a convolutional timm network, see :func:`sppnet.backbones.backbone.create_backbone`.
        head: ``deeplabv3plus``, ``deeplabv3``, ``deeplabv2`` or ``pspnet``.
        context: context module of ``deeplabv3plus``: ``aspp``, ``ppm`` or ``none``.
        output_stride: stride of the backbone's feature map in image pixels: 8, 16 or 32.
        rates: dilation rates of ASPP; empty: the papers' rates for this output stride.
        width: number of channels inside the head; unused for ``deeplabv2``.
        norm: kind of normalization, see :func:`sppnet.layers.norms.create_norm`.
        separable: whether 3x3 convolutions of the head are depthwise separable; None: as in the papers, True in
            ``deeplabv3plus`` and False otherwise. Unused for ``deeplabv2``.
        image_level: whether ASPP has an image-level branch.
        extra_conv: whether ``deeplabv3`` has a 3x3 block before the classifier, as in torchvision but not in the paper.
        dropout: dropout probability, in [0, 1).
        upsample: upsampling of logits to pixels: ``aligned`` places cells at their positions in the image, ``resize``
            scales by the ratio of the sizes, as in torchvision.
        ignore: raw mask values that training ignores; empty: those of the layout.
        table: name, raw mask value and RGB color of each class, if training was given a class file.
        colours: RGB color of each class in pictures; empty: the colors of VOC.
    """

    task: ClassVar[str] = "segment"

    classes: tuple[str, ...]
    backbone: str = EMBEDDED_BACKBONE
    head: HeadName = "deeplabv3plus"
    context: Context = "aspp"
    output_stride: int = 16
    rates: tuple[int, ...] = ()
    width: int = 256
    norm: Norm = "safe"
    separable: bool | None = None
    image_level: bool = True
    extra_conv: bool = False
    dropout: float = 0.1
    upsample: Upsample = "aligned"
    ignore: tuple[int, ...] = ()
    table: tuple[tuple[str, int, tuple[int, int, int] | None], ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()


class SegmenterNetwork(nn.Module):
    """Backbone and segmentation head; maps images (N, 3, H, W) of any size >= 1 to logits (N, classes, H, W)."""

    def __init__(self, config: SegmenterConfig, backbone: Backbone) -> None:
        super().__init__()
        for name, value, choices in (
            ("head", config.head, get_args(HeadName)),
            ("context", config.context, get_args(Context)),
            ("upsample", config.upsample, get_args(Upsample)),
        ):
            check_choice(name, value, choices)
        check_classes(config.classes)
        if config.context != "aspp" and config.head != "deeplabv3plus":
            raise ValueError(
                f"context: expected 'aspp' for {config.head}, got {config.context!r}; or use deeplabv3plus"
            )
        if backbone.geometry.stride != (config.output_stride, config.output_stride):
            raise ValueError(
                f"output_stride: expected {backbone.geometry.stride[0]}, the stride of the last feature map of"
                f" {backbone.name}, got {config.output_stride}"
            )
        self.config = config
        self.backbone = backbone
        self.fine_stage = backbone.stage_within(4) if config.head == "deeplabv3plus" else None
        self.head = create_head(config, backbone, self.fine_stage)

    def forward(
        self, x: Float[Tensor, "n 3 h w"], context: Float[Tensor, "n c 1 1"] | None = None
    ) -> Float[Tensor, "n classes h w"]:
        """Compute the logits of each pixel.

        Args:
            x: RGB images in [0, 1], normalized with `backbone.mean` and `backbone.std`.
            context: global context of the tiles in `x`: the result of :meth:`context_of` for the whole image.
        """
        height, width = x.shape[2:]
        x = self._pad_small(x)
        logits = self.head(*self._maps(x), context)
        if self.config.upsample == "aligned":
            return resample(logits.data, Grid(logits.stride, logits.offset), (height, width))
        upsampled = F.interpolate(logits.data, size=x.shape[2:], mode="bilinear", align_corners=False)
        return upsampled[:, :, :height, :width]

    def context_of(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c 1 1"]:
        """Return the input of ASPP's image-level branch for a whole image, which may be a reduced copy."""
        self.require_image_level()
        return ASPP.context_of(self._maps(self._pad_small(x))[0].data)

    def require_image_level(self) -> None:
        """Check that the model has an image-level branch.

        Raises:
            ValueError: the model has none, so it does not support a global context.
        """
        if not isinstance(self.head.context, ASPP) or self.head.context.image is None:
            raise ValueError(
                "context: expected a model whose ASPP has an image-level branch, got the head"
                f" {self.config.head} with context={self.config.context!r}, image_level={self.config.image_level}"
            )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and the input."""
        return next(self.parameters()).dtype

    def pixels(self, image: Image.Image) -> Float[Tensor, "1 3 h w"]:
        """Convert an RGB image to a normalized batch of one, with the device and dtype of the weights."""
        return to_tensor(image, self.backbone.mean, self.backbone.std)[None].to(self.device, self.dtype)

    def _maps(self, x: Tensor) -> tuple[FeatureMap, FeatureMap | None]:
        # Convolutions are faster in this layout, on the CPU and in half precision on a GPU.
        x = x.contiguous(memory_format=torch.channels_last)
        if self.fine_stage is None:
            return self.backbone(x), None
        fine, last = self.backbone.maps(x, (self.fine_stage, self.backbone.stage))
        return last, fine

    def _pad_small(self, x: Tensor) -> Tensor:
        """Pad images smaller than the backbone's minimum size by repeating the last row and column."""
        minimum = self.backbone.geometry.smallest()
        bottom, right = (max(0, minimum[axis] - x.shape[axis + 2]) for axis in (0, 1))
        return F.pad(x, (0, right, 0, bottom), mode="replicate") if bottom or right else x


def create_head(config: SegmenterConfig, backbone: Backbone, fine_stage: int | None) -> SegmentationHead:
    """Create the head of a configuration for a backbone; `fine_stage` is the stage of DeepLab v3+'s finer map."""
    classes, channels = len(config.classes), backbone.channels
    rates = config.rates or auto_rates(config.output_stride, form="v2" if config.head == "deeplabv2" else "v3")
    separable = config.head == "deeplabv3plus" if config.separable is None else config.separable
    style = HeadStyle(config.width, config.norm, separable, config.image_level, config.dropout)
    if config.head == "deeplabv2":
        return deeplabv2_head(channels, classes, rates)
    if config.head == "pspnet":
        return pspnet_head(channels, classes, style)
    if config.head == "deeplabv3":
        return deeplabv3_head(channels, classes, rates, style, config.extra_conv)
    return deeplabv3plus_head(channels, backbone.stage_info(fine_stage).channels, classes, rates, style, config.context)
