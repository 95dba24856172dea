"""Check on this machine that a network computes the same feature maps in a padded batch as for single images."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.backbones.padded.ledger import PaddingError

BOUND, DOUBLE_BOUND = 1e-5, 1e-9
_EXTRA = 160  # range of the image sides above the smallest, pixels


@dataclass(frozen=True)
class PaddingReport:
    """Comparison of a network's feature maps from a padded batch with those from single images.

    Attributes:
        backbone: name of the network.
        sizes: (height, width) of each image of the batch.
        difference: largest absolute difference, relative to the largest absolute value of the image's map; infinite if
            a map is not finite, None if the network does not support padded batches.
        worst: (height, width) of the image with the largest difference.
        naive: largest difference without this package, that is, without clearing the padding.
        double: largest difference in float64 on the CPU, computed only if `difference` is above the bound: some
            networks amplify rounding errors.
        refused: reason why the network does not support padded batches.
    """

    backbone: str
    sizes: tuple[tuple[int, int], ...]
    difference: float | None = None
    worst: tuple[int, int] | None = None
    naive: float | None = None
    double: float | None = None
    refused: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the difference is within rounding error."""
        within_bound = self.difference is not None and self.difference <= BOUND
        return within_bound or (self.double is not None and self.double <= DOUBLE_BOUND)


def check_padding(
    name: str, stage: int | None = None, weights: str | Path | None = "none", batch: int = 32, device: str = "cpu"
) -> PaddingReport:
    """Compare feature maps from one padded batch with those from the images one by one.

    Args:
        name: network name, see :func:`sppnet.backbones.backbone.create_backbone`.
        stage: index of the feature map; None for the last.
        weights: weights to load; by default random with a fixed seed.
        batch: number of images, at least 2; all sizes differ and are up to 160 pixels above the minimum.
        device: torch device to run on.
    """
    if batch < 2:
        raise ValueError(f"batch: expected at least 2, got {batch}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = create_backbone(name, stage, weights).eval()
        _randomize_tiny_scales(backbone)
        sizes = _draw_sizes(backbone, batch)
        pictures = [torch.randn(3, height, width) for height, width in sizes]
    try:
        differences, naive = _compare(backbone.to(device), [picture.to(device) for picture in pictures])
    except PaddingError as error:
        return PaddingReport(name, sizes, refused=str(error))
    worst = max(range(batch), key=differences.__getitem__)
    report = PaddingReport(name, sizes, differences[worst], sizes[worst], max(naive))
    if report.exact:
        return report
    return replace(report, double=max(_compare(backbone.cpu().double(), [picture.double() for picture in pictures])[0]))


@torch.inference_mode()
def _compare(backbone: Backbone, pictures: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Return each picture's difference from its single-image map, with and without clearing the padding."""
    sizes = [(picture.shape[1], picture.shape[2]) for picture in pictures]
    x = pictures[0].new_zeros(len(sizes), 3, max(height for height, _ in sizes), max(width for _, width in sizes))
    for picture, padded in zip(pictures, x, strict=True):
        padded[:, : picture.shape[1], : picture.shape[2]] = picture
    maps, naive_maps = backbone(x, sizes).data, backbone(x).data
    differences, naive = [], []
    for index, picture in enumerate(pictures):
        alone = backbone(picture[None]).data[0]
        rows, columns = alone.shape[1:]
        differences.append(_difference(maps[index, :, :rows, :columns], alone))
        naive.append(_difference(naive_maps[index, :, :rows, :columns], alone))
    return differences, naive


def _randomize_tiny_scales(backbone: Backbone) -> None:
    """Randomize scales initialized near zero, which would hide errors in the layers of their branch."""
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias") and float(parameter.detach().abs().max()) < 1e-3:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)


def _draw_sizes(backbone: Backbone, images: int) -> tuple[tuple[int, int], ...]:
    """Draw distinct image sizes, with sides of at least one cell."""
    rng = random.Random("sizes of the doctor")  # noqa: S311
    geometry = backbone.geometry
    smallest_sides = [max(sides) for sides in zip(geometry.smallest(), geometry.stride, strict=True)]
    sizes: set[tuple[int, int]] = set()
    while len(sizes) < images:
        height, width = (rng.randint(side, side + _EXTRA) for side in smallest_sides)
        sizes.add((height, width))
    return tuple(sorted(sizes, key=lambda _: rng.random()))


def _difference(batched: Tensor, alone: Tensor) -> float:
    """Return the relative difference; infinite if a map is not finite, since NaN compares false with every bound."""
    difference, scale = float((batched - alone).abs().max()), float(alone.abs().max())
    share = difference / scale if scale else difference
    return share if math.isfinite(share) else math.inf
