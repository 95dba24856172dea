"""Tests of a network on the machine at hand: whether images of different sizes in one batch get their own answers."""

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
_LARGEST = 160


@dataclass(frozen=True)
class PaddingReport:
    """What a padded batch does to a network's maps.

    Attributes:
        backbone: its name.
        sizes: (height, width) of the images that shared the batch.
        difference: largest difference from the maps that the images give one by one, as a share of the largest value
            of the image's map; infinite where a map is not finite; None where the network was refused.
        worst: (height, width) of the image that has it.
        naive: the same where padding is not cleared, as without this package.
        double: where `difference` is above the bound, the same in float64 on the CPU: some networks magnify rounding.
        refused: why the network cannot take padded batches.
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
        """Whether the difference is one of rounding."""
        near = self.difference is not None and self.difference <= BOUND
        return near or (self.double is not None and self.double <= DOUBLE_BOUND)


def check_padding(
    name: str, stage: int | None = None, weights: str | Path | None = "none", images: int = 32, device: str = "cpu"
) -> PaddingReport:
    """Run images of different sizes in one padded batch and one by one, and compare.

    Args:
        name: see :func:`sppnet.backbones.backbone.create_backbone`.
        stage: which of its maps.
        weights: by default random ones, the same each time.
        images: how many, each of its own size, from the smallest that the network takes; at least 2.
        device: where.
    """
    if images < 2:
        raise ValueError(f"images: expected at least 2 to share a batch; got {images}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = create_backbone(name, stage, weights).eval()
        _wake(backbone)
        sizes = _draw_sizes(backbone, images)
        pictures = [torch.randn(3, height, width) for height, width in sizes]
    try:
        differences, naive = _compare(backbone.to(device), [picture.to(device) for picture in pictures])
    except PaddingError as error:
        return PaddingReport(name, sizes, refused=str(error))
    worst = max(range(images), key=differences.__getitem__)
    report = PaddingReport(name, sizes, differences[worst], sizes[worst], max(naive))
    if report.exact:
        return report
    return replace(report, double=max(_compare(backbone.cpu().double(), [one.double() for one in pictures])[0]))


@torch.inference_mode()
def _compare(backbone: Backbone, pictures: Sequence[Tensor]) -> tuple[list[float], list[float]]:
    """Differences of each picture's map, with its size known and without."""
    sizes = [(picture.shape[1], picture.shape[2]) for picture in pictures]
    x = pictures[0].new_zeros(len(sizes), 3, max(height for height, _ in sizes), max(width for _, width in sizes))
    for picture, place in zip(pictures, x, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    maps, plain = backbone(x, sizes).data, backbone(x).data
    differences, naive = [], []
    for index, picture in enumerate(pictures):
        alone = backbone(picture[None]).data[0]
        rows, columns = alone.shape[1:]
        differences.append(_difference(maps[index, :, :rows, :columns], alone))
        naive.append(_difference(plain[index, :, :rows, :columns], alone))
    return differences, naive


def _wake(backbone: Backbone) -> None:
    """Give scales that begin at almost nothing a value: they would hide the layers of their branch from the test."""
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias") and float(parameter.detach().abs().max()) < 1e-3:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)


def _draw_sizes(backbone: Backbone, images: int) -> tuple[tuple[int, int], ...]:
    """Different sizes, odd and even; sides from one cell on, so that maps of one row are among them."""
    rng = random.Random("sizes of the doctor")  # noqa: S311
    least = [
        max(smallest, stride)
        for smallest, stride in zip(backbone.geometry.smallest(), backbone.geometry.stride, strict=True)
    ]
    sizes: set[tuple[int, int]] = set()
    while len(sizes) < images:
        sizes.add((rng.randint(least[0], least[0] + _LARGEST), rng.randint(least[1], least[1] + _LARGEST)))
    return tuple(sorted(sizes, key=lambda _: rng.random()))


def _difference(here: Tensor, alone: Tensor) -> float:
    """Infinite where either is not finite: NaN would pass every comparison."""
    difference, scale = float((here - alone).abs().max()), float(alone.abs().max())
    share = difference / scale if scale else difference
    return share if math.isfinite(share) else math.inf
