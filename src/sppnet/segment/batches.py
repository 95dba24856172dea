"""Training batches for segmentation; batch k of epoch e is the same in every run with the same seed."""

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
from sppnet.data.batching import Draw, epoch_batches
from sppnet.data.formats.masks import IGNORE, Mask, load_pair
from sppnet.data.formats.segmentation import SegmentationData
from sppnet.data.images import to_tensor
from sppnet.errors import ImageError

MaskBatch = tuple[Float[Tensor, "n 3 h w"], Int[Tensor, "n h w"], list[ImageError]]

_DRAWS = 10
_THIN = 4  # of so many rows and columns one is counted


class Crop(NamedTuple):
    """A part of an image, and where it lies in what the network sees.

    Attributes:
        box: xyxy edges of the part in pixels of the image.
        size: (height, width) to which it is resized.
        top, left: of the resized part in the whole; all around it is padding.
    """

    box: tuple[float, float, float, float]
    size: tuple[int, int]
    top: int
    left: int


class MaskBatches:
    """Batches of crops, with masks.

    Each image is scaled by a factor of its own, cut to one size at a random place, padded where it is smaller, and
    mirrored half of the time. Crops in which one class has more than a share of the pixels are drawn again, ten times
    at most.

    Args:
        data: the images and masks.
        backbone: whose normalisation and interpolation are used.
        size: (height, width) of the crops, pixels.
        batch: most images a batch, >= 1.
        seed: of the run.
        workers: processes that decode; 0 for none.
        scale: (least, greatest) factor, of the image's size.
        jitter: brightness, contrast and saturation are multiplied by factors of 1 - jitter to 1 + jitter; 0 to 1.
        most: largest share of a crop's pixels that one class should have; 1 never draws again.
    """

    def __init__(
        self, data: SegmentationData, backbone: Backbone, size: tuple[int, int], batch: int, seed: int, workers: int,
        scale: tuple[float, float] = (0.5, 2.0), jitter: float = 0.0, most: float = 0.75,
    ) -> None:  # fmt: skip
        self.size, self.batch, self.seed, self.workers = size, batch, seed, workers
        self.steps = -(-len(data.samples) // batch)
        self.images = _Images(data, backbone, scale, jitter, most)

    def epoch(self, epoch: int, start: int) -> Iterator[MaskBatch]:
        """The batches of an epoch from the one numbered `start` on."""
        sizes = [self.size] * len(self.images.data.samples)
        batches = epoch_batches(sizes, self.batch, epoch, self.seed, side=None)
        loader: DataLoader[Any] = DataLoader(
            self.images, batch_sampler=batches[start:], collate_fn=self._collate, num_workers=self.workers
        )
        yield from loader

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Side of the crops if they are square."""
        return self.size[0] if self.size[0] == self.size[1] else None

    def _collate(self, items: list[tuple[Tensor, Tensor] | ImageError]) -> MaskBatch:
        good = [item for item in items if not isinstance(item, ImageError)]
        failures = [item for item in items if isinstance(item, ImageError)]
        if not good:
            return torch.empty(0, 3, *self.size), torch.empty(0, *self.size, dtype=torch.long), failures
        return torch.stack([image for image, _ in good]), torch.stack([mask for _, mask in good]), failures


class _Images(Dataset[tuple[Tensor, Tensor] | ImageError]):
    def __init__(
        self, data: SegmentationData, backbone: Backbone, scale: tuple[float, float], jitter: float, most: float
    ) -> None:
        self.data, self.scale, self.jitter, self.most = data, scale, jitter, most
        self.mean, self.std = backbone.mean, backbone.std
        self.resampling = Image.Resampling[backbone.interpolation.upper()]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, Tensor] | ImageError:
        try:
            image, mask = load_pair(self.data.samples[draw.index], self.data.labels)
        except ImageError as error:
            return error
        rng = random.Random(draw.seed)  # noqa: S311
        crop, part = self._draw(rng, mask, draw.size)
        resized = image.resize(crop.size[::-1], self.resampling, crop.box)
        if rng.random() < 0.5:
            resized, part = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT), part[:, ::-1]
        if self.jitter:
            for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
                resized = enhance(resized).enhance(rng.uniform(1 - self.jitter, 1 + self.jitter))
        within = (..., slice(crop.top, crop.top + crop.size[0]), slice(crop.left, crop.left + crop.size[1]))
        x, y = torch.zeros(3, *draw.size), torch.full(draw.size, IGNORE, dtype=torch.long)
        x[within] = to_tensor(resized, self.mean, self.std)
        y[within] = torch.from_numpy(part.astype(np.int64))
        return x, y

    def _draw(
        self, rng: random.Random, mask: Mask, size: tuple[int, int]
    ) -> tuple[Crop, Int16[np.ndarray, "rows columns"]]:
        draws = 1
        while True:
            crop = draw_crop(rng, mask.shape, size, self.scale)
            part = crop_mask(mask, crop)
            if draws == _DRAWS or largest_share(part[::_THIN, ::_THIN]) <= self.most:
                return crop, part
            draws += 1


def draw_crop(rng: random.Random, image: tuple[int, int], size: tuple[int, int], scale: tuple[float, float]) -> Crop:
    """Draws a scale and a place.

    Args:
        rng: drawn from.
        image: its (height, width), pixels.
        size: (height, width) of the crop, pixels.
        scale: (least, greatest) factor of the image's size, each as likely as all between.
    """
    factor = rng.uniform(*scale)
    (y1, y2, height, top), (x1, x2, width, left) = (
        _draw_side(rng, before, max(round(before * factor), 1), side) for before, side in zip(image, size, strict=True)
    )
    return Crop((x1, y1, x2, y2), (height, width), top, left)


def _draw_side(rng: random.Random, before: int, scaled: int, side: int) -> tuple[float, float, int, int]:
    """Along one side: the two edges of the part, its length in the crop, and where it begins there."""
    length = min(scaled, side)
    first = rng.randint(0, scaled - length)
    return first * before / scaled, (first + length) * before / scaled, length, rng.randint(0, side - length)


def crop_mask(mask: Mask, crop: Crop) -> Int16[np.ndarray, "rows columns"]:
    """The part of a mask that a crop shows, resized to the nearest pixels."""
    x1, y1, x2, y2 = crop.box
    rows, columns = (
        (low + (np.arange(length) + 0.5) * ((high - low) / length)).astype(np.int64)
        for low, high, length in ((y1, y2, crop.size[0]), (x1, x2, crop.size[1]))
    )
    return mask[rows[:, None], columns]


def largest_share(mask: Mask) -> float:
    """The share of the pixels that count which the most frequent class has; 1 where none counts."""
    counts = np.bincount(mask.ravel() - IGNORE)[1:]
    total = counts.sum()
    return float(counts.max() / total) if total else 1.0
