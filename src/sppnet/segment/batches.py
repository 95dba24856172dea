"""Reproducible training batches for segmentation: the seed, epoch and batch number determine a batch."""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sppnet.backbones.backbone import Backbone
from sppnet.data.batching import BatchImage, epoch_batches, share
from sppnet.data.formats.masks import IGNORE, Mask, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.data.images import to_tensor
from sppnet.errors import ImageError

MaskBatch = tuple[Float[Tensor, "n 3 h w"], Int[Tensor, "k h w"], list[ImageError]]

_MAX_DRAWS = 10
_SAMPLING_STEP = 4  # class shares are estimated from every fourth row and column


class Crop(NamedTuple):
    """A region of an image, and its position in the network input.

    Attributes:
        box: xyxy edges of the region in pixels of the image.
        size: (height, width) of the resized region.
        top, left: position of the resized region in the input; the rest is padding.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    top: int
    left: int


class MaskBatches:
    """Batches of random crops with their masks.

    Each image is scaled by a random factor, cropped at a random position, padded if it is smaller than the crop, and
    mirrored with probability 0.5. Crops dominated by one class are redrawn, up to ten draws in total.

    Args:
        data: images and masks.
        backbone: backbone whose normalization and interpolation are used.
        size: (height, width) of the crops in pixels.
        batch: maximum number of images per batch, >= 1.
        seed: seed of the run.
        workers: number of decoding processes; 0 decodes in this process.
        scale: (minimum, maximum) scale factor of the images.
        jitter: strength of the color jitter, from 0 to 1; brightness, contrast and saturation are multiplied by random
            factors from 1 - jitter to 1 + jitter.
        most: maximum share of one class among the labeled pixels of a crop, above which it is redrawn; 1 never redraws.
        fabric: Lightning Fabric, each of whose processes gets its share of every batch; None for a single process.
    """

    def __init__(
        self, data: SegmentationData, backbone: Backbone, size: tuple[int, int], batch: int, seed: int, workers: int,
        scale: tuple[float, float] = (0.5, 2.0), jitter: float = 0.0, most: float = 0.75, fabric: Any = None,
    ) -> None:  # fmt: skip
        self.rank: int = fabric.global_rank if fabric else 0
        self.world: int = fabric.world_size if fabric else 1
        self.size, self.batch, self.seed, self.workers = size, batch, seed, workers
        self.steps = -(-len(data.samples) // batch)
        self.images = _Images(data, backbone, scale, jitter, most)

    def epoch(self, epoch: int, start: int) -> Iterator[MaskBatch]:
        """Yield images, masks and unreadable files of each batch of an epoch, starting at batch `start`."""
        sizes = [self.size] * len(self.images.data.samples)
        batches = epoch_batches(sizes, self.batch, epoch, self.seed, side=None)
        shares = [share(batch, self.rank, self.world) for batch in batches[start:]]
        loader: DataLoader[Any] = DataLoader(
            self.images, batch_sampler=shares, collate_fn=self._collate, num_workers=self.workers
        )
        yield from loader

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Return the side of the crops; None if they are not square."""
        return self.size[0] if self.size[0] == self.size[1] else None

    def _collate(self, items: list[tuple[Tensor, Tensor] | ImageError]) -> MaskBatch:
        good = [item for item in items if not isinstance(item, ImageError)]
        failures = [item for item in items if isinstance(item, ImageError)]
        if not good:
            # A process without targets takes part in the step with an empty image.
            return torch.zeros(1, 3, *self.size), torch.empty(0, *self.size, dtype=torch.long), failures
        return torch.stack([image for image, _ in good]), torch.stack([mask for _, mask in good]), failures


class _Images(Dataset[tuple[Tensor, Tensor] | ImageError]):
    def __init__(
        self, data: SegmentationData, backbone: Backbone, scale: tuple[float, float], jitter: float, most: float
    ) -> None:
        self.data, self.scale, self.jitter, self.most = data, scale, jitter, most
        self.mean, self.std = backbone.mean, backbone.std
        self.resampling = Image.Resampling[backbone.interpolation.upper()]

    def __getitem__(self, draw: BatchImage) -> tuple[Tensor, Tensor] | ImageError:
        try:
            image, mask = load_pair(self.data.samples[draw.index], self.data.labels)
        except ImageError as error:
            return error
        rng = random.Random(draw.seed)  # noqa: S311
        crop, labels = self._draw(rng, mask, draw.size)
        resized = image.resize(crop.size[::-1], self.resampling, crop.box)
        if rng.random() < 0.5:
            resized, labels = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1]
        if self.jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                resized = enhance(resized).enhance(rng.uniform(1 - self.jitter, 1 + self.jitter))
        region = (..., slice(crop.top, crop.top + crop.size[0]), slice(crop.left, crop.left + crop.size[1]))
        x, y = torch.zeros(3, *draw.size), torch.full(draw.size, IGNORE, dtype=torch.long)
        x[region] = to_tensor(resized, self.mean, self.std)
        y[region] = torch.from_numpy(labels.astype(np.int64))
        return x, y

    def _draw(
        self, rng: random.Random, mask: Mask, size: tuple[int, int]
    ) -> tuple[Crop, Int16[np.ndarray, "rows columns"]]:
        draws = 1
        while True:
            crop = draw_crop(rng, mask.shape, size, self.scale)
            labels = crop_mask(mask, crop)
            if draws == _MAX_DRAWS or largest_share(labels[::_SAMPLING_STEP, ::_SAMPLING_STEP]) <= self.most:
                return crop, labels
            draws += 1


def draw_crop(rng: random.Random, image: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]) -> Crop:
    """Draw the scale factor and the position of a crop, both uniformly.

    Args:
        rng: random generator.
        image: (height, width) of the image in pixels.
        size: (height, width) of the crop in pixels.
        scale: (minimum, maximum) scale factor of the image.
    """
    factor = rng.uniform(*scale)
    (y1, y2, height, top), (x1, x2, width, left) = (
        _draw_axis(rng, length, max(round(length * factor), 1), side) for length, side in zip(image, size, strict=True)
    )
    return Crop((x1, y1, x2, y2), (height, width), top, left)


def _draw_axis(rng: random.Random, original: int, scaled: int, side: int) -> tuple[float, float, int, int]:
    """Draw a region along one axis; return its two edges in the image, and its length and start in the crop."""
    length = min(scaled, side)
    start = rng.randint(0, scaled - length)
    return start * original / scaled, (start + length) * original / scaled, length, rng.randint(0, side - length)


def crop_mask(mask: Mask, crop: Crop) -> Int16[np.ndarray, "rows columns"]:
    """Crop a mask and resize it by nearest-neighbor interpolation."""
    x1, y1, x2, y2 = crop.box
    rows, columns = (
        (low + (np.arange(length) + 0.5) * ((high - low) / length)).astype(np.int64)
        for low, high, length in ((y1, y2, crop.size[0]), (x1, x2, crop.size[1]))
    )
    return mask[rows[:, None], columns]


def largest_share(mask: Mask) -> float:
    """Return the share of the most frequent class among the pixels that are not ignored; 1 if all are ignored."""
    counts = np.bincount(mask.ravel() - IGNORE)[1:]
    total = counts.sum()
    return float(counts.max() / total) if total else 1.0
