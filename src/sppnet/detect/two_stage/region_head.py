"""Region head: class, objectness and refined box of proposals."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.ops import roi_align

from sppnet.ops.levels import Level, count_bins
from sppnet.ops.regions import region_pyramid_pool

_SIDE = 7  # samples of the fused map per box side


class RegionOutput(NamedTuple):
    """Predictions for proposals.

    Attributes:
        logits: class logits of a softmax.
        objectness: logit of the IoU with an object.
        offsets: offsets of :func:`sppnet.ops.boxes.decode`.
    """

    logits: Float[Tensor, "k classes"]
    objectness: Float[Tensor, " k"]
    offsets: Float[Tensor, "k 4"]


class RegionHead(nn.Module):
    """Predicts boxes from the fused map, classes from fused map and pyramids, and objectness from both.

    Args:
        width: channels of the fused map.
        channels: channels of each map that a spatial pyramid pools.
        levels: levels of the pyramid of each of these maps.
        classes: number of classes.
        dropout: dropout of the class branch.
        hidden: width of the hidden layers.
    """

    def __init__(
        self,
        width: int,
        channels: Sequence[int],
        levels: Sequence[Sequence[Level]],
        classes: int,
        dropout: float = 0.4,
        hidden: int = 256,
    ) -> None:
        super().__init__()
        self.levels = [tuple(part) for part in levels]
        sampled = width * _SIDE**2
        bins = map(count_bins, self.levels)
        length = sampled + sum(count * part for count, part in zip(channels, bins, strict=True))
        self.norm = nn.BatchNorm1d(length)
        self.box_branch = nn.Sequential(
            _Dropout(0.3), nn.Linear(sampled, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.class_branch = nn.Sequential(_Dropout(dropout), nn.Linear(length, hidden), nn.ReLU(), nn.Dropout(dropout))
        self.score = nn.Linear(hidden, classes)
        self.objectness = nn.Linear(2 * hidden, 1)
        self.offsets = nn.Linear(hidden, 4)
        self.sampled = sampled
        nn.init.constant_(self.objectness.bias, -2.0)
        nn.init.normal_(self.offsets.weight, std=0.001)
        nn.init.zeros_(self.offsets.bias)

    def forward(self, vectors: Float[Tensor, "k d"]) -> RegionOutput:
        """Predict for the vectors of proposals, see :meth:`pool`."""
        # A single vector has no variance.
        vectors = self.norm(vectors) if len(vectors) > 1 or not self.training else _normalize(vectors, self.norm)
        boxes = self.box_branch(vectors[:, : self.sampled])
        classes = self.class_branch(vectors)
        objectness = self.objectness(torch.cat((boxes, classes), dim=1))[:, 0]
        return RegionOutput(self.score(classes).float(), objectness.float(), self.offsets(boxes).float())

    def pool(
        self,
        fused: Float[Tensor, "n width _ _"],
        fused_stride: int,
        maps: Sequence[Float[Tensor, "n _ _ _"]],
        strides: Sequence[int],
        boxes: Sequence[Float[Tensor, "_ 4"]],
    ) -> Float[Tensor, "k d"]:
        """Pool the vectors of the boxes of each image.

        Args:
            fused: fused maps of the dense head.
            fused_stride: stride of the fused map in pixels.
            maps: maps that the pyramids pool.
            strides: stride of each of these maps in pixels.
            boxes: boxes of each image, as xyxy edges in pixels of the input.
        """
        samples = roi_align(fused.float(), list(boxes), _SIDE, 1 / fused_stride, sampling_ratio=1, aligned=True)
        return torch.cat((samples.flatten(1), self.pyramids(maps, strides, boxes)), dim=1)

    def pyramids(
        self,
        maps: Sequence[Float[Tensor, "n _ _ _"]],
        strides: Sequence[int],
        boxes: Sequence[Float[Tensor, "_ 4"]],
    ) -> Float[Tensor, "k p"]:
        """Pool and concatenate the pyramid vectors of the boxes of each image; arguments as for :meth:`pool`."""
        vectors = [
            region_pyramid_pool(map.float(), list(boxes), levels, 1 / stride, "roi_pool")
            for map, levels, stride in zip(maps, self.levels, strides, strict=True)
        ]
        return torch.cat(vectors, dim=1)


class _Dropout(nn.Dropout):
    """Dropout whose mask comes from random bytes, in a third of the time of torch's on a CPU; p is rounded to 1/256."""

    def forward(self, input: Tensor) -> Tensor:
        dropped = round(256 * self.p)
        if not self.training or not dropped:
            return input
        words = torch.empty(-(-input.numel() // 8), dtype=torch.int64, device=input.device)
        noise = words.random_(-(2**63), None).view(torch.uint8)[: input.numel()].view(input.shape)
        return input * (noise >= dropped) * (256 / (256 - dropped))


def _normalize(vectors: Float[Tensor, "k d"], norm: nn.BatchNorm1d) -> Float[Tensor, "k d"]:
    """Normalize vectors by the running statistics."""
    return F.batch_norm(vectors, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
