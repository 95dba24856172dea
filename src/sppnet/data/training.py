"""Batches for the training loop; batch k of epoch e is the same in every run with the same seed."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sppnet.backbones import Backbone
from sppnet.data.batching import Draw, Schedule, epoch_batches
from sppnet.data.datasets import Sample
from sppnet.data.images import ImageError, image_size, load_image, to_tensor
from sppnet.data.resize import Resize

Batch = tuple[Float[Tensor, "n ..."], Int[Tensor, " n"], list[ImageError]]

# The paper crops 224 pixels from images whose shorter side is 256 (section 3.1.1).
_CROP = 224 / 256


class VectorBatches:
    """Batches of vectors that were computed before."""

    def __init__(self, vectors: Float[Tensor, "n d"], labels: Int[Tensor, " n"], batch: int, seed: int) -> None:
        self.vectors, self.labels = vectors, labels
        self.batch, self.seed = batch, seed
        self.steps = -(-len(labels) // batch)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from the one numbered `start` on."""
        order = list(range(len(self.labels)))
        random.Random(f"order {self.seed} {epoch}").shuffle(order)  # noqa: S311
        for step in range(start, self.steps):
            chosen = torch.tensor(order[step * self.batch : (step + 1) * self.batch])
            yield self.vectors[chosen].float(), self.labels[chosen], []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Vectors have no size."""
        return None


class ImageBatches:
    """Batches of images, decoded, augmented and brought to the size of their batch.

    Square images are crops of 7/8 of the shorter side at a random place, resized (SPP-net, sections 2.3 and
    3.1.1); where sizes are native the whole image is taken at the shape that its batch shares. Half of the
    images are mirrored.
    """

    def __init__(
        self, samples: Sequence[Sample], backbone: Backbone, schedule: Schedule, max_pixels: int, batch: int, seed: int,
        workers: int,
    ) -> None:  # fmt: skip
        self.schedule, self.batch, self.seed, self.workers = schedule, batch, seed, workers
        self.multiple, self.least = max(backbone.geometry.stride), max(backbone.geometry.smallest())
        self.failures: list[ImageError] = []
        if schedule.sides:
            self.samples, self.sizes = list(samples), [(1, 1)] * len(samples)
        else:
            self.samples, self.sizes = self._read_sizes(samples, Resize("native", max_pixels=max_pixels))
        self.steps = -(-len(self.samples) // batch)
        self.images = _Images(self.samples, backbone, crop=bool(schedule.sides))

    def _read_sizes(self, samples: Sequence[Sample], native: Resize) -> tuple[list[Sample], list[tuple[int, int]]]:
        kept, sizes = [], []
        for sample in samples:
            try:
                sizes.append(native.target_size(*image_size(sample.path)))
                kept.append(sample)
            except ImageError as error:
                self.failures.append(error)
        return kept, sizes

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """The batches of an epoch from the one numbered `start` on."""
        side = self.side(epoch)
        batches = epoch_batches(self.sizes, self.batch, epoch, self.seed, side, self.multiple, self.least)
        loader: DataLoader[Any] = DataLoader(
            self.images,
            batch_sampler=batches[start:],
            collate_fn=_collate,
            num_workers=self.workers,
        )
        yield from loader

    def side(self, epoch: int) -> int | None:
        """Side of the square images of an epoch, None for native sizes."""
        return self.schedule.side(epoch, self.seed)


class _Images(Dataset[tuple[Tensor, int] | ImageError]):
    def __init__(self, samples: Sequence[Sample], backbone: Backbone, crop: bool) -> None:
        self.samples, self.crop = samples, crop
        self.mean, self.std, self.interpolation = backbone.mean, backbone.std, backbone.interpolation

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int] | ImageError:
        sample = self.samples[draw.index]
        try:
            image = load_image(sample.path)
        except ImageError as error:
            return error
        image = _augment(image, draw, Image.Resampling[self.interpolation.upper()], self.crop)
        return to_tensor(image, self.mean, self.std), sample.label


def _augment(image: Image.Image, draw: Draw, resampling: Image.Resampling, crop: bool) -> Image.Image:
    rng = random.Random(draw.seed)  # noqa: S311
    height, width = draw.size
    box = None
    if crop:
        side = max(round(_CROP * min(image.size)), 1)
        left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
        box = (left, top, left + side, top + side)
    resized = image.resize((width, height), resampling, box)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else resized


def _collate(items: list[tuple[Tensor, int] | ImageError]) -> Batch:
    good = [item for item in items if not isinstance(item, ImageError)]
    failures = [item for item in items if isinstance(item, ImageError)]
    x = torch.stack([image for image, _ in good]) if good else torch.empty(0, 3, 1, 1)
    return x, torch.tensor([label for _, label in good], dtype=torch.long), failures
