"""Semantic segmentation: an image of any size in, logits for each of its pixels out."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.backbones.backbone import Backbone, FeatureMap, create_backbone
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.data.images import to_tensor
from sppnet.errors import choose
from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import auto_rates
from sppnet.layers.norms import Norm
from sppnet.layers.resample import Grid, resample
from sppnet.segment.heads import (
    Context,
    HeadName,
    HeadStyle,
    SegmentationHead,
    deeplabv2_head,
    deeplabv3_head,
    deeplabv3plus_head,
    pspnet_head,
)

Upsample = Literal["aligned", "resize"]


@dataclass(frozen=True)
class SegmenterConfig:
    """All that rebuilds a segmenter, its weights apart.

    Attributes:
        classes: names, in the order of the logits.
        backbone: any convolutional network of timm, see :func:`sppnet.backbones.backbone.create_backbone`.
        head: ``deeplabv3plus``, ``deeplabv3``, ``deeplabv2`` or ``pspnet``.
        context: what ``deeplabv3plus`` sees the surroundings with: ``aspp``, ``ppm`` or ``none``.
        output_stride: image pixels from one cell of the backbone's map to the next: 8, 16 or 32.
        rates: of ASPP; empty for the papers' at this output stride.
        width: channels inside the head; not for ``deeplabv2``, which has none.
        norm: see :func:`sppnet.layers.norms.create_norm`.
        separable: depthwise separable 3x3 convolutions in the head; None for those of ``deeplabv3plus`` alone, as the
            papers have them. Not for ``deeplabv2``.
        image_level: whether ASPP has its image-level branch.
        extra_conv: a 3x3 block before the classes of ``deeplabv3``, as torchvision has it and the paper has not.
        dropout: share of channels that training drops.
        upsample: how logits of cells become those of pixels: ``aligned`` by where the cells lie on the image, or
            ``resize`` by the ratio of the sides, as torchvision does.
        ignore: raw values of masks that do not count, where the training was told; empty for those of the layout.
        table: name, raw value of masks and colour of each class, where the training was given a class file.
        colours: RGB of each class in pictures; empty for VOC's.
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


class Segmenter(nn.Module):
    """Images (N, 3, H, W) of any size of at least 1 x 1 in, logits (N, classes, H, W) out."""

    def __init__(self, config: SegmenterConfig, backbone: Backbone) -> None:
        super().__init__()
        for name, value, choices in (
            ("head", config.head, get_args(HeadName)),
            ("context", config.context, get_args(Context)),
            ("upsample", config.upsample, get_args(Upsample)),
        ):
            choose(name, value, choices)
        if not config.classes or len(set(config.classes)) < len(config.classes):
            found = f"{len(config.classes)}, {len(set(config.classes))} of them different"
            raise ValueError(f"classes: expected one or more different names; got {found}")
        if config.context != "aspp" and config.head != "deeplabv3plus":
            raise ValueError(f"context: only deeplabv3plus has a choice; got {config.context!r} for {config.head}")
        if backbone.geometry.stride != (config.output_stride, config.output_stride):
            raise ValueError(
                f"output_stride: the last map of {backbone.name} has stride {backbone.geometry.stride[0]}; got"
                f" {config.output_stride}"
            )
        self.config = config
        self.backbone = backbone
        self.head = create_head(config, backbone)

    def forward(
        self, x: Float[Tensor, "n 3 h w"], context: Float[Tensor, "n c 1 1"] | None = None
    ) -> Float[Tensor, "n classes h w"]:
        """Logits of every pixel of a normalised batch.

        Args:
            x: RGB in [0, 1], minus `backbone.mean`, over `backbone.std`.
            context: for a tile, what :meth:`context_of` gave for the whole image.
        """
        height, width = x.shape[2:]
        x = self._large_enough(x)
        logits = self.head(*self._maps(x), context)
        if self.config.upsample == "aligned":
            return resample(logits.data, Grid(logits.stride, logits.offset), (height, width))
        spread = F.interpolate(logits.data, size=x.shape[2:], mode="bilinear", align_corners=False)
        return spread[:, :, :height, :width]

    def context_of(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c 1 1"]:
        """What ASPP's image-level branch sees of the whole image, which may be a reduced copy."""
        self.require_image_level()
        return ASPP.context_of(self._maps(self._large_enough(x))[0].data)

    def require_image_level(self) -> None:
        """Refuse a model that has no image-level branch to give a context to."""
        if not isinstance(self.head.context, ASPP) or self.head.context.image is None:
            raise ValueError(
                "context: a global context needs ASPP with an image-level branch; this model has the head"
                f" {self.config.head} with context={self.config.context!r}, image_level={self.config.image_level}"
            )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def pixels(self, image: Image.Image) -> Float[Tensor, "1 3 h w"]:
        """An RGB image as the network takes it, on its device."""
        return to_tensor(image, self.backbone.mean, self.backbone.std)[None].to(self.device)

    def _maps(self, x: Tensor) -> tuple[FeatureMap, FeatureMap | None]:
        # In this layout convolutions take less time, on the CPU and in half precision on a GPU.
        x = x.contiguous(memory_format=torch.channels_last)
        return self.backbone.both(x) if self.backbone.fine is not None else (self.backbone(x), None)

    def _large_enough(self, x: Tensor) -> Tensor:
        """The batch, its last row and column repeated where the backbone would have no cell left."""
        least = self.backbone.geometry.smallest()
        more = [max(0, least[axis] - x.shape[axis + 2]) for axis in (0, 1)]
        return F.pad(x, (0, more[1], 0, more[0]), mode="replicate") if any(more) else x


def create_head(config: SegmenterConfig, backbone: Backbone) -> SegmentationHead:
    """The head that the configuration describes, for the backbone's channels."""
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
    return deeplabv3plus_head(channels, backbone.fine_channels, classes, rates, style, config.context)


def create_segmenter(config: SegmenterConfig, weights: str | None = "auto") -> Segmenter:
    """A segmenter with a backbone at the configuration's output stride.

    Args:
        config: what to build.
        weights: of the backbone, see :func:`sppnet.backbones.backbone.create_backbone`.
    """
    if config.output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride: expected 8, 16 or 32; got {config.output_stride}")
    fine = 4 if config.head == "deeplabv3plus" else None
    backbone = create_backbone(config.backbone, -1, weights, output_stride=config.output_stride, fine_stride=fine)
    return Segmenter(config, backbone)
