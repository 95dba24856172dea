"""The network of a two-stage detector: backbone, dense head and region head."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.names import EMBEDDED_BACKBONE
from sppnet.backbones.paper import PAPER_NETS
from sppnet.data.images import to_tensor
from sppnet.detect.two_stage.dense_head import DenseHead, DenseOutput
from sppnet.detect.two_stage.region_head import RegionHead, RegionOutput
from sppnet.detect.two_stage.regions import propose
from sppnet.devices import fast_precision
from sppnet.errors import check_classes
from sppnet.ops.boxes import decode
from sppnet.ops.levels import Level

_STRIDES = (8, 16, 32)
_PYRAMID_STRIDE, _COARSE_LEVELS = 16, (3, 2, 1)
_LEAST_SCORE = 3e-4  # of proposals; most images have few above it, which saves time


@dataclass(frozen=True)
class TwoStageConfig:
    """Configuration of a two-stage detector: everything except the weights.

    Attributes:
        classes: class names, in label order.
        method: ``two-stage``.
        backbone: name of the backbone, see :func:`sppnet.backbones.backbone.create_backbone`.
        levels: levels of the pyramid that proposals pool from the last map of stride 16; from the last map of stride
            32, they pool the levels 3, 2 and 1.
        side, max_side: images are resized to a shorter side of `side` pixels, or less if the longer side would exceed
            `max_side`.
        dropout: dropout of the region head.
        windows: largest number of proposals per image.
        dense_weight: exponent w of the dense head's score in the score ``objectness ** (1 - w) * dense ** w * class``.
        calibration: a and b of the probability ``sigmoid(a * logit(score) + b)`` that is reported as the score; None
            to report the score itself.
        threshold: lowest score to report by default; None for 0.5.
    """

    task: ClassVar[str] = "detect"
    probabilities: ClassVar[bool] = True

    classes: tuple[str, ...]
    method: Literal["two-stage"] = "two-stage"
    backbone: str = EMBEDDED_BACKBONE
    levels: tuple[Level, ...] = (6, 3, 2, 1)
    side: int = 480
    max_side: int = 1000
    dropout: float = 0.4
    windows: int = 1000
    dense_weight: float = 0.3
    calibration: tuple[float, float] | None = None
    threshold: float | None = None

    @property
    def min_score(self) -> float:
        """Lowest score to report by default."""
        return 0.5 if self.threshold is None else self.threshold


class Candidates(NamedTuple):
    """Refined proposals of an image.

    Attributes:
        boxes: refined boxes, as xyxy edges in pixels of the input.
        classes: probability of each class, of a softmax.
        objectness: predicted IoU with an object, in [0, 1].
        dense: score of the dense head.
        proposals: the proposals, best first.
    """

    boxes: Float[Tensor, "k 4"]
    classes: Float[Tensor, "k c"]
    objectness: Float[Tensor, " k"]
    dense: Float[Tensor, " k"]
    proposals: Float[Tensor, "k 4"]


class TwoStageNetwork(nn.Module):
    """A backbone of which several maps are used, a dense head for proposals, and a region head.

    Attributes:
        stages: stages of the maps, from fine to coarse: the last ones of strides up to 8, 16 and 32.
        strides: strides of the maps, in pixels.
        pooled: indices of the maps that pyramids pool: the last one of stride 16 or less, and a coarser one.
        multiple: side in pixels to whose multiples images are padded.
    """

    def __init__(self, config: TwoStageConfig, backbone: Backbone) -> None:
        super().__init__()
        check_classes(config.classes)
        self.config = config
        self.backbone = backbone
        self.stages = detection_stages(backbone)
        infos = [backbone.stage_info(stage) for stage in self.stages]
        self.strides = [info.geometry.stride[0] for info in infos]
        self.multiple = lcm(self.strides[-1], backbone.multiple)
        fine = max([number for number, stride in enumerate(self.strides) if stride <= _PYRAMID_STRIDE] or [0])
        self.pooled = list(range(fine, len(self.strides)))
        channels, classes = [info.channels for info in infos], len(config.classes)
        self.dense = DenseHead(channels, self.strides)
        levels = (config.levels, _COARSE_LEVELS)[: len(self.pooled)]
        self.region = RegionHead(
            self.dense.width, [channels[number] for number in self.pooled], levels, classes, config.dropout
        )

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.dense.score.weight.device

    def maps(self, x: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Return the maps of a normalized batch whose sides are multiples of `multiple`, from fine to coarse."""
        x = x.contiguous(memory_format=torch.channels_last)
        with fast_precision(x.device):
            return [features.data for features in self.backbone.maps(x, self.stages)]

    def pad(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h2 w2"]:
        """Pad a normalized batch with zeros at the bottom and right to multiples of `multiple`."""
        height, width = x.shape[2:]
        return F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is resized."""
        config = self.config
        factor = min(config.side / min(height, width), config.max_side / max(height, width))
        return max(round(height * factor), 1), max(round(width * factor), 1)

    def prepare(self, image: Image.Image) -> Float[Tensor, "1 3 h w"]:
        """Resize and normalize an RGB image."""
        height, width = self.resized(image.height, image.width)
        if (width, height) != image.size:
            image = image.resize((width, height), Image.Resampling[self.backbone.interpolation.upper()])
        return to_tensor(image, self.backbone.mean, self.backbone.std)[None]

    def forward(self, maps: Sequence[Float[Tensor, "1 _ _ _"]], size: tuple[int, int]) -> Candidates:
        """Propose and refine boxes of an image.

        The region head is applied twice, the second time to the boxes that it refined first.

        Args:
            maps: result of :meth:`maps` for the padded image.
            size: (height, width) of the image in pixels of the input, without padding.
        """
        output = self.propose(maps)
        regions = propose(output, 0, size, self.config.windows, _LEAST_SCORE)
        boxes = regions.boxes
        refined = self.predict_regions(self.vectors(output, maps, [boxes]))
        boxes = clip_boxes_to_image(decode(boxes, refined.offsets), size)
        predicted = self.predict_regions(self.vectors(output, maps, [boxes]))
        boxes = clip_boxes_to_image(decode(boxes, predicted.offsets), size)
        classes, objectness = predicted.logits.softmax(1), predicted.objectness.sigmoid()
        return Candidates(boxes, classes, objectness, regions.scores, regions.boxes)

    def propose(self, maps: Sequence[Float[Tensor, "n _ _ _"]]) -> DenseOutput:
        """Apply the dense head to the maps of a batch."""
        with fast_precision(self.device):
            output: DenseOutput = self.dense(*maps)
        return output

    def predict_regions(self, vectors: Float[Tensor, "k d"]) -> RegionOutput:
        """Apply the region head to pooled vectors."""
        with fast_precision(self.device):
            output: RegionOutput = self.region(vectors)
        return output

    def vectors(
        self, output: DenseOutput, maps: Sequence[Tensor], boxes: Sequence[Float[Tensor, "_ 4"]]
    ) -> Float[Tensor, "k d"]:
        """Pool the vectors of the boxes of each image, see :meth:`RegionHead.pool`."""
        return self.region.pool(output.fused, self.strides[0], *self._pooled(maps), boxes)

    def pyramids(self, maps: Sequence[Tensor], boxes: Float[Tensor, "k 4"]) -> Float[Tensor, "k p"]:
        """Pool the pyramid vectors of the boxes of an image."""
        return self.region.pyramids(*self._pooled(maps), [boxes])

    def _pooled(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
        """Return the maps that pyramids pool, and their strides."""
        return [maps[number] for number in self.pooled], [self.strides[number] for number in self.pooled]


def detection_stages(backbone: Backbone) -> tuple[int | None, ...]:
    """Return the last stages with strides up to 8, 16 and 32; None alone for a backbone with a single map."""
    if backbone.name in PAPER_NETS:
        return (None,)
    stages: list[int | None] = []
    for stride in _STRIDES:
        try:
            stage = backbone.stage_within(stride)
        except ValueError:  # all its maps are coarser
            continue
        if stage not in stages:
            stages.append(stage)
    return tuple(stages)


def edge_scale(size: tuple[int, int], resized: tuple[int, int]) -> Float[Tensor, " 4"]:
    """Return the factors from xyxy edges in pixels of an image to those of the resized image."""
    vertical, horizontal = (after / before for before, after in zip(size, resized, strict=True))
    return torch.tensor([horizontal, vertical, horizontal, vertical])
