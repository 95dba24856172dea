"""Feature vectors of boxes, with one forward pass per image and scale (SPP-net, section 4.1)."""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, overload

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone, FeatureMap, create_backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.data.images import ImageSource, list_sources, load_image, source_name, to_tensor
from sppnet.data.resize import nearest_multiple
from sppnet.errors import ImageError, check_choice
from sppnet.features.boxes import WHOLE, Boxes, check_boxes, fit_boxes, split_boxes
from sppnet.features.options import RegionEncoderConfig, ScaleRule
from sppnet.inference.drawing import draw_bins
from sppnet.inference.results import Failure, OnError, Result
from sppnet.ops import library
from sppnet.ops.boxes import areas
from sppnet.ops.levels import CellRule, Level, Reduce, count_bins, parse_levels
from sppnet.ops.regions import box_windows

Images = ImageSource | Iterable[ImageSource]
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


@dataclass(frozen=True, repr=False)
class RegionFeatures(Result):
    """Vectors of the boxes of one image.

    Attributes:
        boxes: xyxy edges in pixels of the image.
        vectors: one row per box.
        ids: one name per box, by default its index; :meth:`draw` writes them into the boxes.
    """

    boxes: Float[Tensor, "k 4"]
    vectors: Float[Tensor, "k d"]
    ids: tuple[str, ...]

    def _summary(self) -> str:
        count, length = self.vectors.shape
        return f"{count} boxes, vectors of length {length}"

    def to_dict(self) -> dict[str, Any]:
        """Return source, size, boxes and vectors as JSON types."""
        return super().to_dict() | {"boxes": self.boxes.tolist(), "vectors": self.vectors.tolist()}

    def draw(self, image: Image.Image) -> Image.Image:
        """Return a copy of the image with the boxes and their ids drawn on it."""
        return draw_bins(image, self.boxes, labels=self.ids)


class RegionEncoder(nn.Module):
    """Box encoder: one vector per box of an image of any size, with one forward pass per image and scale.

    Args:
        backbone: a backbone, or a name or module for :func:`sppnet.create_backbone`.
        levels, scales, max_side, rule, reduce, scale_rule: fields of :class:`sppnet.RegionEncoderConfig`.
    """

    def __init__(
        self,
        backbone: Backbone | nn.Module | str = EMBEDDED_BACKBONE,
        levels: Sequence[Level] = (6, 3, 2, 1),
        scales: Sequence[int] = (688,),
        max_side: int = 2000,
        rule: CellRule = "paper",
        reduce: Reduce = "max",
        scale_rule: ScaleRule = "paper",
    ) -> None:
        super().__init__()
        self.backbone = backbone if isinstance(backbone, Backbone) else create_backbone(backbone)
        name, stage = self.backbone.name, self.backbone.stage
        self.config = RegionEncoderConfig(name, stage, tuple(levels), tuple(scales), max_side, rule, reduce, scale_rule)
        smallest = max(self.backbone.geometry.smallest())
        if not scales or min(scales) < smallest:
            raise ValueError(
                f"scales: expected shorter sides of at least {smallest} pixels for {self.backbone.name},"
                f" got {tuple(scales)}"
            )
        if max_side < max(scales):
            raise ValueError(f"max_side: expected at least the largest scale, {max(scales)}, got {max_side}")
        self.levels, self.scales, self.max_side = self.config.levels, self.config.scales, max_side
        self.rule, self.reduce, self.scale_rule = self.config.rule, self.config.reduce, self.config.scale_rule
        self.eval()

    @property
    def length(self) -> int:
        """Vector length, channels times bins."""
        return self.backbone.channels * count_bins(self.levels)

    def forward(self, images: Images, boxes: Boxes | None = None) -> list[Float[Tensor, "_ d"]]:
        """Encode the boxes of each image; takes the arguments of :meth:`predict` and raises the same errors.

        Returns:
            One tensor (K, channels * bins) per image: levels in the given order; within a level: channel, row, column.
        """
        return [result.vectors for result in self.predict(images, boxes)]

    @overload
    def predict(self, images: Images, boxes: Boxes | None = None) -> list[RegionFeatures]: ...

    @overload
    def predict(
        self, images: Images, boxes: Boxes | None = None, *, on_error: OnError
    ) -> list[RegionFeatures | Failure]: ...

    def predict(self, images: Images, boxes: Boxes | None = None, *, on_error: OnError = "raise") -> list[Any]:
        """Encode the boxes of each image.

        Args:
            images: one image or several, see :func:`sppnet.data.images.load_image`.
            boxes: numbers of shape (K, 4) for each image, as a tensor, an array or a nested list: xyxy edges in pixels
                of the image with its EXIF orientation applied. A box must overlap its image and may extend beyond it.
                None for one box per image, the whole image.
            on_error: ``raise`` the error of the first image that cannot be used, or ``skip`` such images, which yields
                a `Failure` in their place.

        Returns:
            One result per image, in order, with vectors as of :meth:`forward`.

        Raises:
            sppnet.ImageError: an image cannot be used, and `on_error` is ``raise``.
            TypeError: boxes are neither integers, float32 nor float64.
            ValueError: the numbers of images and of lists of boxes differ, or a box is not finite, has no area or does
                not overlap its image.
        """
        check_choice("on_error", on_error, get_args(OnError))
        sources = list_sources(images)
        parts = [WHOLE] * len(sources) if boxes is None else split_boxes(boxes, len(sources))
        results: list[RegionFeatures | Failure] = []
        for index, (source, part) in enumerate(zip(sources, parts, strict=True)):
            name = source_name(source, index)
            try:
                image = load_image(source)
            except ImageError as error:
                if on_error == "raise":
                    raise
                results.append(Failure(name, ImageError(name, error.reason)))
                continue
            size = (image.height, image.width)
            part = fit_boxes(part, size) if boxes is None else part
            check_boxes(part, size, f"boxes[{index}]")
            with evaluation_mode(self), torch.inference_mode():
                maps = self.prepare(image)
                vectors = maps.maps[0].data.new_empty((len(part), self.length))
                self.fill(vectors, maps, part.float())
            results.append(RegionFeatures(name, size, part.float(), vectors, tuple(map(str, range(len(part))))))
        return results

    def network_size(self, size: tuple[int, int], scale: int) -> tuple[int, int]:
        """Return the (height, width) of the network input for an image size; the aspect ratio is kept.

        Sides are rounded to the nearest multiple of :attr:`sppnet.Backbone.multiple`.
        """
        factor = min(scale / min(size), self.max_side / max(size))
        smallest = max(self.backbone.geometry.smallest())  # matters for aspect ratios of 10 and more
        height, width = (max(round(side * factor), smallest) for side in size)
        multiple = self.backbone.multiple
        return nearest_multiple(height, multiple), nearest_multiple(width, multiple)

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


def create_region_encoder(
    config: RegionEncoderConfig | None = None, weights: str | Path | None = "auto", **fields: Any
) -> RegionEncoder:
    """Create a region encoder.

    Args:
        config: configuration of the encoder; None for the default.
        weights: weights of the backbone, see :func:`sppnet.create_backbone`.
        fields: fields of the configuration to replace.
    """
    options = dataclasses.asdict(dataclasses.replace(config or RegionEncoderConfig(), **fields))
    backbone = create_backbone(options.pop("backbone"), options.pop("stage"), weights)
    return RegionEncoder(backbone, **options)


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
