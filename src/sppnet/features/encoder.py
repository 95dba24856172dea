"""Vectors of boxes from one pass of the network an image (SPP-net, section 4.1)."""

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
from sppnet.errors import choose
from sppnet.ops import library
from sppnet.ops.bins import CellRule, Level, count_bins, parse_levels
from sppnet.ops.boxes import areas
from sppnet.ops.reference import Reduce
from sppnet.ops.regions import box_windows

ScaleRule = Literal["paper", "released"]

PAPER_SCALES = (480, 576, 688, 864, 1200)
# A window is best seen at the size that the networks were trained at; the authors' code aims at 13 cells of 16 pixels.
_PAPER_SIDE, _RELEASED_SIDE = 224, 208
_CHUNK = 1 << 25  # numbers pooled at a time


@dataclass(frozen=True)
class ImageMaps:
    """The feature maps of one image, one for each scale.

    Attributes:
        size: (height, width) of the image.
        network_sizes: (height, width) at which the network saw it.
        maps: each of batch size 1.
    """

    size: tuple[int, int]
    network_sizes: tuple[tuple[int, int], ...]
    maps: tuple[FeatureMap, ...]


@dataclass(frozen=True)
class DistinctVectors:
    """Vectors of boxes of which many cover the same cells.

    Attributes:
        data: one row for each distinct window.
        index: row of each box.
    """

    data: Float[Tensor, "n d"]
    index: Int[Tensor, " k"]


@dataclass(frozen=True)
class BoxCells:
    """Which cells a box covers.

    Attributes:
        scale: shorter side at which the network sees the image for this box, pixels.
        network_size: (height, width) that this is.
        map_size: (height, width) of the map, in cells.
        cells: xyxy, half-open; inside the map but under the rule ``roi_pool``.
    """

    scale: int
    network_size: tuple[int, int]
    map_size: tuple[int, int]
    cells: tuple[int, int, int, int]


class RegionEncoder(nn.Module):
    """Boxes of images of any size in, one vector a box out; the network runs once an image and scale.

    Args:
        backbone: a network, or its name for :func:`sppnet.backbones.backbone.create_backbone`.
        levels: of the pyramid.
        scales: shorter sides at which the network sees each image, pixels; of several, each box takes the one that
            :func:`sppnet.features.encoder.choose_scales` gives it.
        max_side: bound of the longer side, pixels; a longer image is scaled down as a whole.
        rule: how boxes become cells, see :func:`sppnet.region_pyramid_pool`.
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
        choose("rule", rule, get_args(CellRule))
        choose("reduce", reduce, get_args(Reduce))
        choose("scale_rule", scale_rule, get_args(ScaleRule))
        self.backbone = create_backbone(backbone) if isinstance(backbone, str) else backbone
        least = max(self.backbone.geometry.smallest())
        if not scales or min(scales) < least:
            raise ValueError(
                f"scales: {self.backbone.name} takes shorter sides of at least {least} pixels; got {tuple(scales)}"
            )
        if max_side < max(scales):
            raise ValueError(f"max_side: expected at least the largest scale, {max(scales)}; got {max_side}")
        self.levels, self.scales, self.max_side = tuple(levels), tuple(scales), max_side
        self.rule: CellRule = rule
        self.reduce: Reduce = reduce
        self.scale_rule: ScaleRule = scale_rule
        self.eval()

    @property
    def length(self) -> int:
        """Numbers of a vector."""
        return self.backbone.channels * count_bins(self.levels)

    def forward(
        self, images: ImageSource | Iterable[ImageSource], boxes: Sequence[Float[Tensor, "_ 4"]] | Tensor
    ) -> list[Float[Tensor, "_ d"]]:
        """Vectors of boxes, image by image.

        Args:
            images: one or several: paths, bytes of files, Pillow images, uint8 arrays.
            boxes: for each image a float tensor (K, 4), xyxy edges in pixels of the image as its EXIF orientation
                turns it; one tensor for one image. A box may leave the image but not lie outside.

        Returns:
            For each image (K, channels * bins): levels in the order given, inside a level channel, row, column.

        Raises:
            sppnet.ImageError: an image that cannot be read.
            TypeError: boxes that are not float32 or float64 tensors.
            ValueError: not as many tensors as images, or a box that is not finite, has no area or lies outside its
                image.
        """
        single = isinstance(images, str | bytes | os.PathLike | Image.Image | np.ndarray)
        sources: list[ImageSource] = [images] if single else list(images)  # type: ignore[list-item,arg-type]
        lists = [boxes] if isinstance(boxes, Tensor) else list(boxes)
        if len(lists) != len(sources):
            raise ValueError(f"boxes: expected one tensor for each of the {len(sources)} images; got {len(lists)}")
        vectors = []
        for number, (source, part) in enumerate(zip(sources, lists, strict=True)):
            image = load_image(source)
            check_boxes(part, (image.height, image.width), f"boxes[{number}]")
            with torch.inference_mode():
                maps = self.prepare(image)
                vectors.append(maps.maps[0].data.new_empty((len(part), self.length)))
                self.fill(vectors[-1], maps, part.float())
        return vectors

    def network_size(self, size: tuple[int, int], scale: int) -> tuple[int, int]:
        """(height, width) at which the network sees an image of this size: the aspect kept, rounded to pixels."""
        factor = min(scale / min(size), self.max_side / max(size))
        least = max(self.backbone.geometry.smallest())  # a strip of 10 to 1 and more
        return max(round(size[0] * factor), least), max(round(size[1] * factor), least)

    def pixels(self, image: Image.Image, network_size: tuple[int, int]) -> Float[Tensor, "1 3 h w"]:
        """What the network sees of an RGB image at this (height, width): resized and normalised."""
        height, width = network_size
        resized = image.resize((width, height), Image.Resampling[self.backbone.interpolation.upper()])
        return to_tensor(resized, self.backbone.mean, self.backbone.std)[None]

    def prepare(self, image: Image.Image) -> ImageMaps:
        """The network's pass over an RGB image at each scale."""
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
        """Vectors of boxes of one image, in the dtype of its maps.

        Args:
            maps: of the image.
            boxes: xyxy edges in pixels of the image. An edge on the image's border takes all cells up to the
                border of the map, so that the box of the whole image gets the image's own vector.
        """
        distinct = self.distinct(maps, boxes)
        return distinct.data[distinct.index]

    def fill(self, out: Float[Tensor, "k d"], maps: ImageMaps, boxes: Float[Tensor, "k 4"]) -> None:
        """Write what :meth:`vectors` gives into a tensor, of any dtype and device, a bounded part at a time."""
        count = max(1, _CHUNK // self.length)
        for rows, part in zip(out.split(count), boxes.split(count), strict=True):
            found = self.distinct(maps, part)
            torch.index_select(found.data.to(out), 0, found.index.to(out.device), out=rows)

    def distinct(self, maps: ImageMaps, boxes: Float[Tensor, "k 4"]) -> DistinctVectors:
        """As :meth:`vectors`, each window of cells once: of many proposals a fifth and more cover others' cells."""
        if len(maps.maps) > 1:
            chosen = choose_scales(boxes, maps.size, self.scales, self.scale_rule)
        else:
            chosen = torch.zeros(len(boxes), dtype=torch.long)
        data, index, rows = [], torch.empty(len(boxes), dtype=torch.long, device=maps.maps[0].data.device), 0
        for number, features in enumerate(maps.maps):
            mine = (chosen == number).nonzero()[:, 0]
            windows = self._windows(boxes[mine], maps.size, maps.network_sizes[number], features.data.shape[2:])
            windows, inverse = windows.unique(dim=0, return_inverse=True)
            device = features.data.device
            data.append(
                library.pool(features.data, windows.to(device), parse_levels(self.levels), "adaptive", self.reduce)
            )
            index[mine.to(device)] = inverse.to(device) + rows
            rows += len(windows)
        return DistinctVectors(data[0] if len(data) == 1 else torch.cat(data), index)

    def cells(self, box: Float[Tensor, " 4"], size: tuple[int, int]) -> BoxCells:
        """The cells that a box covers; the network does not run.

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
            # Far enough out that the border's own cells lie inside.
            height, width = network_size
            reach = 2 * max(*stride, *(abs(place) for place in offset)) + max(network_size)
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
    """Which scale each box is pooled at.

    ``paper`` takes the scale at which the box's area is nearest to 224 x 224 pixels (SPP-net, section 4.1),
    ``released`` the one nearest to the shorter side at which its side would be 208, as the authors' code does; ties go
    to the first.

    Args:
        boxes: xyxy edges in pixels of the image.
        size: (height, width) of the image.
        scales: shorter sides, pixels.
        rule: ``paper`` or ``released``.

    Returns:
        Indices into `scales`.
    """
    choose("scale_rule", rule, get_args(ScaleRule))
    shorter = min(size)
    listed = boxes.new_tensor(list(scales), dtype=torch.float64)
    area = areas(boxes.double())[:, None]
    if rule == "paper":
        distance = (area * (listed / shorter) ** 2 - _PAPER_SIDE**2).abs()
    else:
        expected = (_RELEASED_SIDE * shorter / area.clamp(min=1e-9).sqrt() + 0.5).floor()
        distance = (listed - expected).abs()
    return distance.argmin(1)


def check_boxes(boxes: Tensor, size: tuple[int, int], name: str) -> None:
    """Refuse what are no boxes of an image of (height, width) pixels; `name` is theirs in the message.

    Raises:
        TypeError: not a tensor of float32 or float64.
        ValueError: not of shape (K, 4), or a box that is not finite, has no area or lies outside.
    """
    expected = "expected a float32 tensor (K, 4), xyxy in pixels"
    if not isinstance(boxes, Tensor) or boxes.dtype not in (torch.float32, torch.float64):
        found = f"a tensor of {boxes.dtype}" if isinstance(boxes, Tensor) else type(boxes).__name__
        raise TypeError(f"{name}: {expected}; got {found}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: {expected}; got shape {tuple(boxes.shape)}")
    height, width = size
    good = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    good &= (boxes[:, 2:] > 0).all(1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    if not good.all():
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"{name}[{row}]: expected finite xyxy with x1 < x2 and y1 < y2 that touches the image of {width} x {height}"
            f" (width x height) pixels; got {boxes[row].tolist()}"
        )
