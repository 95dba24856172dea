"""Feature vectors of boxes, with one forward pass per image and scale (SPP-net, section 4.1)."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone, FeatureMap, create_backbone
from sppnet.backbones.weights import EMBEDDED_BACKBONE
from sppnet.data.images import ImageSource, load_image, to_tensor
from sppnet.errors import check_choice
from sppnet.ops import library
from sppnet.ops.bins import CellRule, Level, count_bins, parse_levels
from sppnet.ops.boxes import areas
from sppnet.ops.reference import Reduce
from sppnet.ops.regions import box_windows

ScaleRule = Literal["paper", "released"]

PAPER_SCALES = (480, 576, 688, 864, 1200)
# The paper scales a window to the training size of its networks, the authors' code to 13 cells of 16 pixels.
_PAPER_SIDE, _RELEASED_SIDE = 224, 208
_CHUNK = 1 << 25  # vector elements pooled at a time


@dataclass(frozen=True)
class ImageMaps:
    """Feature maps of one image, one per scale.

    Attributes:
        size: (height, width) of the image.
        network_sizes: (height, width) of the network input at each scale.
        maps: feature maps, of batch size 1.
    """

    size: tuple[int, int]
    network_sizes: tuple[tuple[int, int], ...]
    maps: tuple[FeatureMap, ...]


@dataclass(frozen=True)
class DistinctVectors:
    """Vectors of boxes; boxes that cover the same cells share a row.

    Attributes:
        data: one row per distinct window of cells.
        index: row of each box in `data`.
    """

    data: Float[Tensor, "n d"]
    index: Int[Tensor, " k"]


@dataclass(frozen=True)
class BoxCells:
    """Cells that a box covers.

    Attributes:
        scale: shorter side of the network input for this box, in pixels.
        network_size: (height, width) of the network input.
        map_size: (height, width) of the feature map, in cells.
        cells: half-open xyxy range; inside the map except with the rule ``roi_pool``.
    """

    scale: int
    network_size: tuple[int, int]
    map_size: tuple[int, int]
    cells: tuple[int, int, int, int]


class RegionEncoder(nn.Module):
    """Box encoder: one vector per box of an image of any size, with one forward pass per image and scale.

    Args:
        backbone: a network, or its name for :func:`sppnet.backbones.backbone.create_backbone`.
        levels: pyramid levels, n for n x n bins or (rows, columns).
        scales: shorter sides of the network input, in pixels; if there are several, each box is pooled at the one that
            :func:`sppnet.features.encoder.choose_scales` selects.
        max_side: maximum longer side of the network input, in pixels; it overrides the scale.
        rule: conversion of boxes into cells, see :func:`sppnet.region_pyramid_pool`.
        reduce: ``max`` or ``avg``.
        scale_rule: ``paper`` or ``released``, see :func:`sppnet.features.encoder.choose_scales`.
    """

    def __init__(
        self,
        backbone: Backbone | str = EMBEDDED_BACKBONE,
        levels: Sequence[Level] = (6, 3, 2, 1),
        scales: Sequence[int] = (688,),
        max_side: int = 2000,
        rule: CellRule = "paper",
        reduce: Reduce = "max",
        scale_rule: ScaleRule = "paper",
    ) -> None:
        super().__init__()
        parse_levels(levels)
        check_choice("rule", rule, get_args(CellRule))
        check_choice("reduce", reduce, get_args(Reduce))
        check_choice("scale_rule", scale_rule, get_args(ScaleRule))
        self.backbone = create_backbone(backbone) if isinstance(backbone, str) else backbone
        smallest = max(self.backbone.geometry.smallest())
        if not scales or min(scales) < smallest:
            raise ValueError(
                f"scales: expected shorter sides of at least {smallest} pixels for {self.backbone.name},"
                f" got {tuple(scales)}"
            )
        if max_side < max(scales):
            raise ValueError(f"max_side: expected at least the largest scale, {max(scales)}, got {max_side}")
        self.levels, self.scales, self.max_side = tuple(levels), tuple(scales), max_side
        self.rule: CellRule = rule
        self.reduce: Reduce = reduce
        self.scale_rule: ScaleRule = scale_rule
        self.eval()

    @property
    def length(self) -> int:
        """Vector length, channels times bins."""
        return self.backbone.channels * count_bins(self.levels)

    def forward(
        self, images: ImageSource | Iterable[ImageSource], boxes: Sequence[Float[Tensor, "_ 4"]] | Tensor
    ) -> list[Float[Tensor, "_ d"]]:
        """Encode the boxes of each image.

        Args:
            images: one image or several: paths, encoded files as bytes, Pillow images, uint8 arrays.
            boxes: one float tensor (K, 4) per image, xyxy edges in pixels of the image with its EXIF orientation
                applied. A box must overlap its image and may extend beyond it.

        Returns:
            One tensor (K, channels * bins) per image: levels in the given order; within a level: channel, row, column.

        Raises:
            sppnet.ImageError: an image cannot be read.
            TypeError: boxes are not float32 or float64 tensors.
            ValueError: the numbers of tensors and images differ, or a box is not finite, has no area or does not
                overlap its image.
        """
        single = isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray)
        sources: list[ImageSource] = [images] if single else list(images)  # type: ignore[list-item,arg-type]
        box_lists = [boxes] if isinstance(boxes, Tensor) else list(boxes)
        if len(box_lists) != len(sources):
            raise ValueError(f"boxes: expected one tensor for each of the {len(sources)} images, got {len(box_lists)}")
        vectors = []
        for number, (source, part) in enumerate(zip(sources, box_lists, strict=True)):
            image = load_image(source)
            check_boxes(part, (image.height, image.width), f"boxes[{number}]")
            with torch.inference_mode():
                maps = self.prepare(image)
                vectors.append(maps.maps[0].data.new_empty((len(part), self.length)))
                self.fill(vectors[-1], maps, part.float())
        return vectors

    def network_size(self, size: tuple[int, int], scale: int) -> tuple[int, int]:
        """Return the (height, width) of the network input for an image size; the aspect ratio is kept."""
        factor = min(scale / min(size), self.max_side / max(size))
        smallest = max(self.backbone.geometry.smallest())  # matters for aspect ratios of 10 and more
        return max(round(size[0] * factor), smallest), max(round(size[1] * factor), smallest)

    def pixels(self, image: Image.Image, network_size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
        """Resize an RGB image to (height, width) and normalize it."""
        height, width = network_size
        resized = image.resize((width, height), Image.Resampling[self.backbone.interpolation.upper()])
        return to_tensor(resized, self.backbone.mean, self.backbone.std)[None]

    def prepare(self, image: Image.Image) -> ImageMaps:
        """Compute the feature maps of an RGB image at each scale."""
        backbone = self.backbone
        size = (image.height, image.width)
        network_sizes = tuple(self.network_size(size, scale) for scale in self.scales)
        weight = next(backbone.parameters())
        maps = []
        for network_size in network_sizes:
            x = self.pixels(image, network_size)
            maps.append(backbone(x.to(weight.device, weight.dtype, memory_format=torch.channels_last)))
        return ImageMaps(size, network_sizes, tuple(maps))

    def vectors(self, maps: ImageMaps, boxes: Float[Tensor, "k 4"]) -> Float[Tensor, "k d"]:
        """Pool the boxes of one image into vectors, in the dtype of its maps.

        Args:
            maps: feature maps of the image.
            boxes: xyxy edges in pixels of the image. An edge on the image border includes all cells up to the map
                border, so the box of the whole image gets the vector of the image.
        """
        distinct = self.distinct(maps, boxes)
        return distinct.data[distinct.index]

    def fill(self, out: Float[Tensor, "k d"], maps: ImageMaps, boxes: Float[Tensor, "k 4"]) -> None:
        """Write the result of :meth:`vectors` into a tensor of any dtype and device, in chunks of bounded size."""
        count = max(1, _CHUNK // self.length)
        for rows, part in zip(out.split(count), boxes.split(count), strict=True):
            distinct = self.distinct(maps, part)
            torch.index_select(distinct.data.to(out), 0, distinct.index.to(out.device), out=rows)

    def distinct(self, maps: ImageMaps, boxes: Float[Tensor, "k 4"]) -> DistinctVectors:
        """Like :meth:`vectors`, but pool equal windows only once: among many proposals, 20% or more are duplicates."""
        if len(maps.maps) > 1:
            chosen = choose_scales(boxes, maps.size, self.scales, self.scale_rule)
        else:
            chosen = torch.zeros(len(boxes), dtype=torch.long)
        data, index, rows = [], torch.empty(len(boxes), dtype=torch.long, device=maps.maps[0].data.device), 0
        for number, features in enumerate(maps.maps):
            selected = (chosen == number).nonzero()[:, 0]
            windows = self._windows(boxes[selected], maps.size, maps.network_sizes[number], features.data.shape[2:])
            windows, inverse = windows.unique(dim=0, return_inverse=True)
            device = features.data.device
            data.append(
                library.pool(features.data, windows.to(device), parse_levels(self.levels), "adaptive", self.reduce)
            )
            index[selected.to(device)] = inverse.to(device) + rows
            rows += len(windows)
        return DistinctVectors(data[0] if len(data) == 1 else torch.cat(data), index)

    def cells(self, box: Float[Tensor, " 4"], size: tuple[int, int]) -> BoxCells:
        """Return the cells that a box covers, without running the network.

        Args:
            box: xyxy edges in pixels of the image.
            size: (height, width) of the image.
        """
        scale = self.scales[int(choose_scales(box[None], size, self.scales, self.scale_rule))]
        network_size = self.network_size(size, scale)
        map_size = self.backbone.geometry.map_size(*network_size)
        _, left, top, right, bottom = self._windows(box[None], size, network_size, map_size)[0].tolist()
        return BoxCells(scale, network_size, map_size, (left, top, right, bottom))

    def _windows(
        self, boxes: Tensor, size: tuple[int, int], network_size: tuple[int, int], map_size: Sequence[int]
    ) -> Int[Tensor, "k 5"]:
        vertical, horizontal = (network_size[axis] / size[axis] for axis in (0, 1))
        scaled = boxes * boxes.new_tensor([horizontal, vertical, horizontal, vertical])
        geometry = self.backbone.geometry
        stride, offset = geometry.stride, geometry.offset(*network_size)
        if self.rule != "roi_pool":
            # Move edges on the image border outward, so that the cells at the map border are included.
            height, width = network_size
            reach = 2 * max(*stride, *(abs(value) for value in offset)) + max(network_size)
            for column, border in enumerate((0, 0, width, height)):
                edge = boxes[:, column]
                touches = edge <= 0 if column < 2 else edge >= size[1 if column == 2 else 0]
                outer = -reach if column < 2 else border + reach
                scaled[:, column] = torch.where(touches, outer, scaled[:, column])
        images = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
        scale = (1 / stride[0], 1 / stride[1])
        return box_windows(scaled, images, (map_size[0], map_size[1]), scale, offset, self.rule)


def choose_scales(
    boxes: Float[Tensor, "k 4"], size: tuple[int, int], scales: Sequence[int], rule: ScaleRule = "paper"
) -> Int[Tensor, " k"]:
    """Choose the scale at which each box is pooled.

    ``paper`` takes the scale at which the area of the box is closest to 224 x 224 pixels (SPP-net, section 4.1).
    ``released`` takes the scale closest to that at which the area would be 208 x 208 pixels, like the authors' code.
    Ties go to the first scale.

    Args:
        boxes: xyxy edges in pixels of the image.
        size: (height, width) of the image.
        scales: shorter sides of the network input, in pixels.
        rule: ``paper`` or ``released``.

    Returns:
        Indices into `scales`.
    """
    check_choice("scale_rule", rule, get_args(ScaleRule))
    shorter = min(size)
    sides = boxes.new_tensor(list(scales), dtype=torch.float64)
    area = areas(boxes.double())[:, None]
    if rule == "paper":
        distance = (area * (sides / shorter) ** 2 - _PAPER_SIDE**2).abs()
    else:
        expected = (_RELEASED_SIDE * shorter / area.clamp(min=1e-9).sqrt() + 0.5).floor()
        distance = (sides - expected).abs()
    return distance.argmin(1)


def check_boxes(boxes: Tensor, size: tuple[int, int], name: str) -> None:
    """Validate the boxes of an image of (height, width) pixels; error messages refer to them as `name`.

    Raises:
        TypeError: `boxes` is not a float32 or float64 tensor.
        ValueError: the shape is not (K, 4), or a box is not finite, has no area or does not overlap the image.
    """
    expected = "expected a float32 tensor (K, 4), xyxy in pixels"
    if not isinstance(boxes, Tensor) or boxes.dtype not in (torch.float32, torch.float64):
        given = f"a tensor of {boxes.dtype}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise TypeError(f"{name}: {expected}, got {given}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: {expected}, got shape {tuple(boxes.shape)}")
    height, width = size
    good = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    good &= (boxes[:, 2:] > 0).all(1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    if not good.all():
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"{name}[{row}]: expected finite xyxy with x1 < x2 and y1 < y2 that overlaps the image of"
            f" {height} x {width} (height x width) pixels, got {boxes[row].tolist()}"
        )
