"""Training batches of a two-stage detector, from cached maps or from images."""

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sppnet.data.batching import BatchImage, epoch_batches, share
from sppnet.data.formats.detection import DetectionSample
from sppnet.data.images import image_size
from sppnet.detect.two_stage.losses import Objects
from sppnet.detect.two_stage.network import TwoStageNetwork, edge_scale
from sppnet.errors import ImageError
from sppnet.inference.parallel import map_ordered
from sppnet.ops.boxes import mirror

_STEPS = 50  # fewest batches of an epoch; a small data set is passed several times


class Example(NamedTuple):
    """An image of a batch.

    Attributes:
        maps: its maps (C, H, W), or its normalized pixels (3, H, W) alone.
        size: (height, width) of the image in pixels of the input, without padding.
        objects: its objects.
    """

    maps: list[Float[Tensor, "_ _ _"]]
    size: tuple[int, int]
    objects: Objects


class Batch(NamedTuple):
    """Images of a batch, padded with zeros at the bottom and right; see :class:`Example`."""

    maps: list[Float[Tensor, "n _ _ _"]]
    sizes: list[tuple[int, int]]
    objects: list[Objects]


class ObjectBatches:
    """Batches of images of similar size, each mirrored with probability 0.5.

    Args:
        network: network that is trained.
        samples: images and their objects.
        read: function that returns the maps or pixels of an image or its mirror image, as of :class:`Example`.
        batch: images per batch, over all processes.
        seed: seed of the run.
        workers: processes that read the images; 0 for this one.
        fabric: Lightning Fabric, each of whose processes gets its share of every batch; None for a single process.
    """

    def __init__(
        self,
        network: TwoStageNetwork,
        samples: Sequence[DetectionSample],
        read: Callable[[Path, bool], list[Tensor]],
        batch: int,
        seed: int,
        workers: int = 0,
        fabric: Any = None,
    ) -> None:
        self.rank: int = fabric.global_rank if fabric else 0
        self.world: int = fabric.world_size if fabric else 1
        self.batch, self.seed, self.workers = batch, seed, workers
        self.images = _Images(network, samples, read)
        multiple = network.multiple
        self.sizes = [
            (-(-height // multiple) * multiple, -(-width // multiple) * multiple) for height, width in self.images.sizes
        ]
        self.passes = -(-_STEPS // -(-len(samples) // batch))
        self.steps = self.passes * -(-len(samples) // batch)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Batch, list[Objects], list[ImageError]]]:
        """Yield the batches of an epoch, beginning with batch `start`."""
        batches: list[list[BatchImage]] = []
        for number in range(epoch * self.passes, (epoch + 1) * self.passes):
            batches += epoch_batches(self.sizes, self.batch, number, self.seed, side=None)
        shares = [share(batch, self.rank, self.world) for batch in batches[start:]]
        yield from DataLoader(self.images, batch_sampler=shares, collate_fn=_collate, num_workers=self.workers)

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Return None: images keep their aspect ratios."""
        return None


class _Images(Dataset[Example | ImageError]):
    def __init__(
        self,
        network: TwoStageNetwork,
        samples: Sequence[DetectionSample],
        read: Callable[[Path, bool], list[Tensor]],
    ) -> None:
        self.samples, self.read = samples, read
        self.originals = list(map_ordered(image_size, [sample.path for sample in samples]))
        self.sizes = [network.resized(*size) for size in self.originals]

    def __getitem__(self, drawn: BatchImage) -> Example | ImageError:
        sample, size = self.samples[drawn.index], self.sizes[drawn.index]
        mirrored = random.Random(drawn.seed).random() < 0.5  # noqa: S311
        try:
            maps = self.read(sample.path, mirrored)
        except ImageError as error:
            return error
        boxes = sample.boxes * edge_scale(self.originals[drawn.index], size)
        boxes = mirror(boxes, size[1]) if mirrored else boxes
        return Example(maps, size, Objects(boxes, sample.labels, sample.difficult))


def _collate(items: list[Example | ImageError]) -> tuple[Batch, list[Objects], list[ImageError]]:
    examples = [item for item in items if isinstance(item, Example)]
    failures = [item for item in items if isinstance(item, ImageError)]
    maps = [_stack(level) for level in zip(*(example.maps for example in examples), strict=True)]
    objects = [example.objects for example in examples]
    return Batch(maps, [example.size for example in examples], objects), objects, failures


def _stack(maps: Sequence[Float[Tensor, "c _ _"]]) -> Float[Tensor, "n c rows columns"]:
    """Stack maps of similar size, padded with zeros to the largest height and width."""
    rows, columns = (max(data.shape[axis] for data in maps) for axis in (1, 2))
    padded = [F.pad(data, (0, columns - data.shape[2], 0, rows - data.shape[1])) for data in maps]
    return torch.stack(padded).contiguous(memory_format=torch.channels_last)
