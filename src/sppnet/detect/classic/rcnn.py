"""R-CNN baseline: one forward pass of the network per window."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone
from sppnet.data.images import to_tensor
from sppnet.features.encoder import DistinctVectors
from sppnet.ops.levels import Level, Reduce, count_bins, parse_levels
from sppnet.ops.pyramid import pyramid_pool

_CONTEXT = 16  # pixels around the box on each side of the warped window
_BATCH = 32  # the fastest of 8 to 128 on two cores


@dataclass(frozen=True)
class Warp:
    """Mapping of a box to a square of pixels.

    Attributes:
        box: xyxy edges in whole pixels of the image: the box with its context, clipped to the image.
        size: (height, width) to which that part is resized.
        place: (row, column) of its top left corner in the square; the rest is filled with the mean color.
    """

    box: tuple[int, int, int, int]
    size: tuple[int, int]
    place: tuple[int, int]


class CropEncoder(nn.Module):
    """Encoder of boxes with the interface of :class:`sppnet.RegionEncoder` and one forward pass per box (R-CNN).

    Args:
        backbone: network that computes the feature maps.
        levels: pyramid levels pooled from the feature map of each warped window.
        side: side of the warped windows in pixels; None for the side that the weights were trained at.
        reduce: ``max`` or ``avg``.
    """

    def __init__(
        self,
        backbone: Backbone,
        levels: Sequence[Level] = (6, 3, 2, 1),
        side: int | None = None,
        reduce: Reduce = "max",
    ) -> None:
        super().__init__()
        parse_levels(levels)
        self.backbone = backbone
        self.levels = tuple(levels)
        self.side = backbone.side if side is None else side
        if self.side <= 2 * _CONTEXT:
            raise ValueError(f"side: expected more than {2 * _CONTEXT} (twice the context), got {self.side}")
        self.reduce: Reduce = reduce
        self.eval()

    @property
    def length(self) -> int:
        """Length of a vector."""
        return self.backbone.channels * count_bins(self.levels)

    def prepare(self, image: Image.Image) -> Image.Image:
        """Return the image unchanged: windows share no computation."""
        return image

    def distinct(self, prepared: Image.Image, boxes: Float[Tensor, "k 4"]) -> DistinctVectors:
        """Compute the vectors of boxes of one image, given as xyxy edges in its pixels."""
        data = torch.cat([self._vectors(prepared, part) for part in boxes.split(_BATCH)])
        return DistinctVectors(data, torch.arange(len(boxes), device=data.device))

    def _vectors(self, image: Image.Image, boxes: Tensor) -> Tensor:
        backbone = self.backbone
        weight = next(backbone.parameters())
        crops = torch.zeros(len(boxes), 3, self.side, self.side)
        for crop, box in zip(crops, boxes.tolist(), strict=True):
            warp = compute_warp(box, (image.height, image.width), self.side)
            (height, width), (top, left) = warp.size, warp.place
            # Crop before resizing, so that no pixels outside the part are filtered into it.
            part = image.crop(warp.box).resize((width, height), Image.Resampling[backbone.interpolation.upper()])
            crop[:, top : top + height, left : left + width] = to_tensor(part, backbone.mean, backbone.std)
        crops = crops.to(weight.device, weight.dtype, memory_format=torch.channels_last)
        return pyramid_pool(backbone(crops).data, self.levels, reduce=self.reduce)


def compute_warp(box: Sequence[float], size: tuple[int, int], side: int) -> Warp:
    """Compute R-CNN's warp of a box, with 16 pixels of context in the square (R-CNN, appendix A; the authors' code).

    Args:
        box: xyxy edges in pixels of the image, which the box must overlap.
        size: (height, width) of the image.
        side: side of the square in pixels.
    """
    scale = side / (side - 2 * _CONTEXT)
    edges, sizes, places = [], [], []
    for low, high, limit in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        # The authors' code counts pixels from 1 and defines the center as the first pixel plus half the width.
        center, half = (low + high) / 2 + 1, (high - low) / 2 * scale
        first, last = _round(center - half) - 1, _round(center + half)
        begin, end = min(max(first, 0), limit - 1), max(min(last, limit), 1)
        place = min(_round(max(-first, 0) * side / (last - first)), side - 1)
        edges.append((begin, max(end, begin + 1)))
        sizes.append(max(min(_round((edges[-1][1] - begin) * side / (last - first)), side - place), 1))
        places.append(place)
    (left, right), (top, bottom) = edges
    return Warp((left, top, right, bottom), (sizes[1], sizes[0]), (places[1], places[0]))


def _round(value: float) -> int:
    """Round half away from zero, like MATLAB."""
    return int(value + 0.5) if value >= 0 else -int(-value + 0.5)
