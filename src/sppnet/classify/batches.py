"""Batches for the training loop: batch k of epoch e depends only on the data, the options and the seed."""

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.predict import too_small
from sppnet.data.batching import BatchImage, count_batches, epoch_batches, padding_fraction, share
from sppnet.data.formats.classification import Sample
from sppnet.data.images import load_image, to_tensor
from sppnet.data.loader import Padded, pad_images
from sppnet.data.resize import Resize
from sppnet.data.schedule import Schedule
from sppnet.data.sizes import read_sizes
from sppnet.errors import ImageError
from sppnet.ops.bins import bin_edges
from sppnet.ops.levels import parse_levels

Batch = tuple["Tensor | Padded", Int[Tensor, " n"], list[ImageError]]

# The paper crops 224 pixels from images whose shorter side is 256 (section 3.1.1).
_CROP = 224 / 256


class VectorBatches:
    """Shuffled batches of precomputed vectors."""

    def __init__(self, vectors: Float[Tensor, "n d"], labels: Int[Tensor, " n"], batch: int, seed: int) -> None:
        self.vectors, self.labels = vectors, labels
        self.batch, self.seed = batch, seed
        self.steps = -(-len(labels) // batch)

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting from batch `start`."""
        order = list(range(len(self.labels)))
        random.Random(f"order {self.seed} {epoch}").shuffle(order)  # noqa: S311
        for step in range(start, self.steps):
            indices = torch.tensor(order[step * self.batch : (step + 1) * self.batch])
            yield self.vectors[indices].float(), self.labels[indices], []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Return None: vectors have no image size."""
        return None


class ImageBatches:
    """Batches of decoded and augmented images, at the sizes of the training schedule.

    Square images are resized random crops, 7/8 of the shorter side wide (SPP-net, sections 2.3 and 3.1.1). At native
    sizes, whole images of similar shape share a padded batch; only images with more than `options.max_pixels` are
    resized. Each image is mirrored with probability 0.5.

    Args:
        samples: training images and labels.
        backbone: backbone that defines normalization, interpolation and minimum image size.
        options: training options.
        cache: file that caches image sizes, see :func:`sppnet.data.sizes.read_sizes`.
        fabric: Lightning Fabric; each of its processes gets its share of every batch.
    """

    def __init__(
        self, samples: Sequence[Sample], backbone: Backbone, options: ClassifyOptions, cache: Path, fabric: Any
    ) -> None:
        self.options = options
        self.rank, self.world = fabric.global_rank, fabric.world_size
        self.schedule = Schedule.parse(options.sizes)
        self.failures: list[ImageError] = []
        self.samples, self.sizes = list(samples), [(1, 1)] * len(samples)
        if not self.schedule.sides:
            with fabric.rank_zero_first():  # the other processes read the cache written by the first
                self._read_sizes(backbone, cache)
        self.steps = count_batches(self.sizes, options.batch, options.batch_pixels, self.world)
        self.images = _Images(self.samples, backbone, crop=bool(self.schedule.sides))

    def _read_sizes(self, backbone: Backbone, cache: Path) -> None:
        """Keep the samples whose native size can be read and suits the network; record the others as failures."""
        native = Resize("native", max_pixels=self.options.max_pixels)
        original_sizes, failures = read_sizes([sample.path for sample in self.samples], cache)
        sizes = {path: native.target_size(*size) for path, size in original_sizes.items()}
        reasons = {path: reason for path, size in sizes.items() if (reason := too_small(backbone, size))}
        if normalizes_single_images(backbone, len(self.samples), self.options.batch):
            text = "{} x {} pixels give a map of one cell, which cannot be normalized in a batch of one image"
            single = {path: size for path, size in sizes.items() if max(backbone.geometry.map_size(*size)) == 1}
            reasons = {path: text.format(*size) for path, size in single.items()} | reasons
        self.failures += failures + [ImageError(str(path), reason) for path, reason in reasons.items()]
        self.samples = [sample for sample in self.samples if sample.path in sizes and sample.path not in reasons]
        self.sizes = [sizes[sample.path] for sample in self.samples]

    def epoch(self, epoch: int, start: int) -> Iterator[Batch]:
        """Yield this process's share of the batches of an epoch, starting from batch `start`."""
        batches = self.plan(epoch)
        loader: DataLoader[Any] = DataLoader(
            self.images,
            batch_sampler=[share(batch, self.rank, self.world) or batch[:1] for batch in batches[start:]],
            collate_fn=partial(_collate, padded=not self.schedule.sides),
            num_workers=self.options.workers,
        )
        for batch, (x, y, failures) in zip(batches[start:], loader, strict=True):
            no_share = len(batch) <= self.rank  # the process takes part in the step with an unlabeled image
            yield x, y[:0] if no_share else y, [] if no_share else failures

    def plan(self, epoch: int) -> list[list[BatchImage]]:
        """Return the batches of an epoch, before they are divided among the processes."""
        options = self.options
        return epoch_batches(
            self.sizes, options.batch, epoch, options.seed, self.side(epoch), options.batch_pixels, self.world
        )

    def waste(self) -> float:
        """Return the fraction of pixels in the first epoch that are padding; 0 for square images."""
        parts = (share(batch, rank, self.world) for batch in self.plan(0) for rank in range(self.world))
        return padding_fraction(parts, self.sizes)

    def side(self, epoch: int) -> int | None:
        """Return the side of the square images of an epoch, or None for native sizes."""
        return self.schedule.side(epoch, self.options.seed)


def normalizes_single_images(backbone: Backbone, images: int, batch: int) -> bool:
    """Return whether batch normalization gets batches of one image, for which it needs maps of at least two cells."""
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    return has_batch_norm and images // -(-images // batch) == 1


def check_sizes(backbone: Backbone, options: ClassifyOptions, images: int) -> None:
    """Check that the network and the pooling rule support the training sizes, before any file is written.

    On a map with fewer cells than a level has bins, bins would repeat the same cells, and an input smaller than one
    stride would be mostly padding.
    """
    if options.frozen:
        return
    sides = Schedule.parse(options.sizes).sides
    if not sides:
        _check_padding(backbone)
        return
    geometry, levels = backbone.geometry, parse_levels(options.levels)
    bins = max(map(max, levels))
    smallest = next(side for side in count(max(geometry.stride)) if min(geometry.map_size(side, side)) >= bins)
    if min(sides) < smallest:
        raise ValueError(
            f"sizes: expected at least {smallest} pixels for {options.backbone}, so that its map has a cell for each of"
            f" the {bins} x {bins} bins of the largest level, got {min(sides)}; train at larger sizes or with smaller"
            " levels"
        )
    single_cell = max(geometry.map_size(min(sides), min(sides))) == 1
    if single_cell and normalizes_single_images(backbone, images, options.batch):
        raise ValueError(
            "batch: expected batches of at least 2 images, which batch normalization needs on maps of one cell, got"
            f" {options.batch} for {images} images; use larger batches or sizes"
        )
    for side in sides:
        rows, columns = geometry.map_size(side, side)
        for level_rows, level_columns in levels:
            bin_edges(rows, level_rows, options.rule)
            bin_edges(columns, level_columns, options.rule)


def _check_padding(backbone: Backbone) -> None:
    """Check that the network supports images of different sizes in one batch."""
    height, width = backbone.geometry.smallest()
    x = torch.zeros(2, 3, height + 5, width + 7)
    try:
        with evaluation_mode(backbone), torch.inference_mode():
            backbone(x, [(height, width + 7), (height + 5, width)])
    except PaddingError as error:
        raise PaddingError(f"{error}, for example with sizes 180,224 or 180-224") from error


class _Images(Dataset[tuple[Tensor, int] | ImageError]):
    def __init__(self, samples: Sequence[Sample], backbone: Backbone, crop: bool) -> None:
        self.samples, self.crop = samples, crop
        self.mean, self.std, self.interpolation = backbone.mean, backbone.std, backbone.interpolation

    def __getitem__(self, draw: BatchImage) -> tuple[Tensor, int] | ImageError:
        sample = self.samples[draw.index]
        try:
            image = load_image(sample.path)
        except ImageError as error:
            return error
        image = _augment(image, draw, Image.Resampling[self.interpolation.upper()], self.crop)
        return to_tensor(image, self.mean, self.std), sample.label


def _augment(image: Image.Image, draw: BatchImage, resampling: Image.Resampling, crop: bool) -> Image.Image:
    rng = random.Random(draw.seed)  # noqa: S311
    height, width = draw.size
    box = None
    if crop:
        side = max(round(_CROP * min(image.size)), 1)
        left, top = rng.randint(0, image.width - side), rng.randint(0, image.height - side)
        box = (left, top, left + side, top + side)
    resized = image.resize((width, height), resampling, box)
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else resized


def _collate(items: list[tuple[Tensor, int] | ImageError], padded: bool) -> Batch:
    good = [item for item in items if not isinstance(item, ImageError)]
    failures = [item for item in items if isinstance(item, ImageError)]
    labels = torch.tensor([label for _, label in good], dtype=torch.long)
    # A process that cannot read its images must still take part in the step, with an unlabeled image.
    images = [image for image, _ in good] or [torch.zeros(3, 224, 224)]
    x = pad_images(images)
    return x if padded else x.images, labels, failures
