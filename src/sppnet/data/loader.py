"""Padded batches of images of mixed sizes, for the training loops of users."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from sppnet.data.batching import count_batches, epoch_batches


class Padded(NamedTuple):
    """Images of different sizes in one zero-padded tensor.

    Attributes:
        images: tensor (N, C, H, W) in channels-last format, with each image in its top left corner.
        sizes: (height, width) of each image.
    """

    images: Tensor
    sizes: tuple[tuple[int, int], ...]


def pad_images(images: Sequence[Tensor]) -> Padded:
    """Copy images (C, H, W) of any sizes into one zero-padded tensor."""
    sizes = tuple((image.shape[1], image.shape[2]) for image in images)
    shape = len(images), len(images[0]), *map(max, zip(*sizes, strict=True))
    x = torch.empty(shape, dtype=images[0].dtype, memory_format=torch.channels_last).zero_()
    for target, image, (height, width) in zip(x, images, sizes, strict=True):
        target[:, :height, :width] = image
    return Padded(x, sizes)


def collate_images(samples: Sequence[Tensor | Sequence[Any]]) -> tuple[Any, ...]:
    """Collate samples with images of different sizes; a ``collate_fn`` of :class:`torch.utils.data.DataLoader`.

    Args:
        samples: images (C, H, W), or tuples of an image and other values.

    Returns:
        A tensor (N, C, H, W) with each image in its top left corner and zeros elsewhere, the (height, width) of each
        image, and the other values, batched by :func:`torch.utils.data.default_collate`. The first two are the
        arguments of :class:`sppnet.Classifier` and :class:`sppnet.Backbone`.

    Raises:
        TypeError: a sample does not begin with an image tensor.
        ValueError: the images differ in channels, or there are no samples.
    """
    rows = [(sample,) if isinstance(sample, Tensor) else tuple(sample) for sample in samples]
    for index, row in enumerate(rows):
        if not row or not isinstance(row[0], Tensor) or row[0].ndim != 3:
            got = (
                f"shape {tuple(row[0].shape)}" if row and isinstance(row[0], Tensor) else type(samples[index]).__name__
            )
            raise TypeError(
                f"samples[{index}]: expected a tensor (C, H, W), or a tuple that begins with one, got {got}"
            )
    channels = {len(row[0]) for row in rows}
    if len(channels) != 1:
        raise ValueError(f"samples: expected images with the same number of channels, got {sorted(channels) or 'none'}")
    images, *others = zip(*rows, strict=True)
    return (*pad_images(images), *(default_collate(list(values)) for values in others))


class SizeBatchSampler(Sampler[list[int]]):
    """Batches of images of similar height and width, in random order, so that padding adds few pixels.

    Each epoch, which is each iteration, has every image once and the same number of batches, but other groups. Batch k
    of an epoch depends only on the sizes, the options and the seed.

    Args:
        sizes: (height, width) of each image of the data set.
        batch_size: largest number of images per batch; the numbers differ by at most one.
        batch_pixels: largest number of pixels of a batch, with padding; large images then form smaller batches. None
            for no limit.
        seed: random seed.

    Attributes:
        epoch: number of the next epoch, from 0; set it to continue a training.
    """

    def __init__(
        self, sizes: Sequence[tuple[int, int]], batch_size: int, *, batch_pixels: int | None = None, seed: int = 0
    ) -> None:
        self.sizes, self.batch_size, self.batch_pixels, self.seed = list(sizes), batch_size, batch_pixels, seed
        self.epoch = 0
        self.batches = count_batches(self.sizes, batch_size, batch_pixels)

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self.batches

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of the images of each batch of the next epoch."""
        batches = epoch_batches(self.sizes, self.batch_size, self.epoch, self.seed, None, self.batch_pixels)
        self.epoch += 1
        return iter([[image.index for image in batch] for batch in batches])


def mixed_size_loader(
    dataset: Dataset[Any],
    sizes: Sequence[tuple[int, int]],
    batch_size: int,
    *,
    batch_pixels: int | None = None,
    seed: int = 0,
    **options: Any,
) -> "DataLoader[Any]":
    """Return a loader of padded batches of images of similar sizes, with the fields of :func:`collate_images`.

    Args:
        dataset: images (C, H, W), or tuples of an image and other values, by index.
        sizes: (height, width) of each image.
        batch_size: see :class:`SizeBatchSampler`, which forms the batches.
        batch_pixels: see :class:`SizeBatchSampler`.
        seed: random seed.
        options: further arguments of :class:`torch.utils.data.DataLoader`, such as ``num_workers``.
    """
    sampler = SizeBatchSampler(sizes, batch_size, batch_pixels=batch_pixels, seed=seed)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate_images, **options)
