"""Tests of a network on the machine at hand: whether images of different sizes in one batch get their own answers."""

import math
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sppnet.backbones import Backbone, create_backbone
from sppnet.padded.ledger import PaddingError

BOUND = 1e-5
_LARGEST = 160


@dataclass(frozen=True)
class PaddingReport:
    """What a padded batch does to a network's maps.

    Attributes:
        backbone: its name.
        sizes: (height, width) of the images that shared the batch.
        difference: largest difference from the maps that the images give one by one, as a share of the largest value
            of the image's map; infinite where a map is not finite or of another size; None where the network was
            refused.
        worst: (height, width) of the image that has it.
        naive: the same where padding is not cleared, as without this package.
        refused: why the network cannot take padded batches.
    """

    backbone: str
    sizes: tuple[tuple[int, int], ...]
    difference: float | None = None
    worst: tuple[int, int] | None = None
    naive: float | None = None
    refused: str | None = None

    @property
    def exact(self) -> bool:
        """Whether the difference is one of rounding."""
        return self.difference is not None and self.difference <= BOUND


def check_padding(
    name: str, stage: int | None = None, weights: str | Path | None = "none", images: int = 32, device: str = "cpu"
) -> PaddingReport:
    """Run images of different sizes in one padded batch and one by one, and compare.

    Args:
        name: see :func:`sppnet.backbones.create_backbone`.
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
        backbone.to(device)
        sizes = _draw_sizes(backbone, images)
        pictures = [torch.randn(3, height, width) for height, width in sizes]
    x = torch.zeros(images, 3, max(height for height, _ in sizes), max(width for _, width in sizes))
    for picture, place in zip(pictures, x, strict=True):
        place[:, : picture.shape[1], : picture.shape[2]] = picture
    with torch.inference_mode():
        try:
            maps = backbone(x.to(device), sizes)
        except PaddingError as error:
            return PaddingReport(name, sizes, refused=str(error))
        plain = backbone(x.to(device)).data
        differences, naive = [], []
        for index, picture in enumerate(pictures):
            alone = backbone(picture[None].to(device)).data[0]
            rows, columns = alone.shape[1:]
            rightly = maps.sizes is not None and maps.sizes[index] == (rows, columns)
            differences.append(_difference(maps.data[index, :, :rows, :columns], alone) if rightly else math.inf)
            naive.append(_difference(plain[index, :, :rows, :columns], alone))
    worst = max(range(images), key=differences.__getitem__)
    return PaddingReport(name, sizes, differences[worst], sizes[worst], max(naive))


def _wake(backbone: Backbone) -> None:
    """Give scales that begin at almost nothing a value: they would hide the layers of their branch from the test."""
    for name, parameter in backbone.named_parameters():
        if parameter.ndim == 1 and not name.endswith("bias") and float(parameter.detach().abs().max()) < 1e-3:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)


def _draw_sizes(backbone: Backbone, images: int) -> tuple[tuple[int, int], ...]:
    """Different sizes, odd and even; sides from a cell and a half on, so that maps of one row are among them."""
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
