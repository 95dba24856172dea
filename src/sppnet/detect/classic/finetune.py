"""Fine-tuning of the fully connected layers on windows, with the paper's batches (SPP-net, section 4.1)."""

import random
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sppnet.detect.classic.windows import Windows, WindowVectors
from sppnet.detect.options import DetectOptions
from sppnet.errors import ImageError

POSITIVE_SHARE = 0.25
_POSITIVE, _BACKGROUND = 0.5, 0.1
_MEMORY = 1_000_000_000  # bytes of vectors in memory; bounds the number of images per epoch
_WINDOWS_PER_IMAGE = 64  # drawn before each epoch, a quarter of them positive


class WindowBatches:
    """Batches of 128 windows, a quarter of them positive.

    Windows that overlap an object by 0.5 or more are positive and have its label; 0.1 to 0.5 is background. Before
    each epoch, windows are drawn from all images, or from as many as fit into memory; each image is mirrored with
    probability 0.5.

    Args:
        vectors: source of the window vectors.
        usable: indices of the readable images.
        background: label of the background.
        norm: scale factor of the vectors.
        options: windows per batch, batches per epoch, mirroring and seed.
        fabric: Lightning Fabric; each of its processes gets the windows of its share of the images. None for a single
            process.
    """

    def __init__(
        self,
        vectors: WindowVectors,
        usable: Sequence[int],
        background: int,
        norm: float,
        options: DetectOptions,
        fabric: Any = None,
    ) -> None:
        self.rank: int = fabric.global_rank if fabric else 0
        self.world: int = fabric.world_size if fabric else 1
        self.vectors, self.usable, self.background, self.norm = vectors, list(usable), background, norm
        self.batch, self.steps, self.seed = options.batch, options.steps, options.seed
        self.mirror = options.mirror

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Any, Tensor, list[ImageError]]]:
        """Yield the batches of an epoch, beginning with batch `start`."""
        x, places, labels = self._draw(random.Random(f"windows {self.seed} {epoch}"))  # noqa: S311
        positive, background = (
            part.nonzero()[:, 0].tolist() for part in (labels != self.background, labels == self.background)
        )
        for step in range(start, self.steps):
            rng = random.Random(f"batch {self.seed} {epoch} {step}")  # noqa: S311
            count = min(round(self.batch * POSITIVE_SHARE), len(positive))
            drawn = rng.sample(positive, count) + rng.sample(background, min(self.batch - count, len(background)))
            rows = torch.tensor(drawn, dtype=torch.long)
            rows = rows[places[rows] >= 0]
            yield x[places[rows]].float() * self.norm, labels[rows], []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Return None: windows have no common size."""
        return None

    def _draw(self, rng: random.Random) -> tuple[Float[Tensor, "m d"], Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Draw windows; return the vectors of this process, each window's place among them or -1, and the labels."""
        images = self.usable.copy()
        rng.shuffle(images)
        max_images = max(_MEMORY // (2 * self.vectors.length * _WINDOWS_PER_IMAGE), 1)
        parts, own, labels = [torch.empty(0, self.vectors.length, dtype=torch.float16)], [], []
        for number, image in enumerate(images[:max_images]):
            windows = self.vectors.windows[image]
            rows = draw_windows(windows, round(_WINDOWS_PER_IMAGE * POSITIVE_SHARE), _WINDOWS_PER_IMAGE, rng)
            mirrored = self.mirror and rng.random() < 0.5
            if number % self.world == self.rank:
                parts.append(self.vectors.vectors(image, rows, mirrored).half())
            own.append(torch.full(rows.shape, number % self.world == self.rank))
            labels.append(torch.where(positives(windows)[rows], windows.labels[rows], self.background))
        in_share = torch.cat(own)
        return torch.cat(parts), torch.where(in_share, in_share.cumsum(0) - 1, -1), torch.cat(labels)


def positives(windows: Windows) -> Bool[Tensor, " k"]:
    """Return a mask of the windows that overlap an object by 0.5 or more."""
    return windows.counts & (windows.overlap >= _POSITIVE)


def draw_windows(
    windows: Windows, most_positive: int, total: int, rng: random.Random, *, far: bool = True
) -> Int[Tensor, " n"]:
    """Draw training windows of an image: positives, then background that overlaps an object, then other background.

    Args:
        windows: windows of the image.
        most_positive: maximum number of positives.
        total: maximum number of windows.
        rng: random number generator.
        far: fill up with background that overlaps every object by less than 0.1.
    """
    positive = positives(windows)
    background = windows.counts & ~positive
    near = windows.overlap >= _BACKGROUND
    groups = [part.nonzero()[:, 0].tolist() for part in (positive, background & near, background & ~near)]
    rows = rng.sample(groups[0], min(most_positive, len(groups[0])))
    for group in groups[1 : 2 + far]:
        rows += rng.sample(group, min(total - len(rows), len(group)))
    return torch.tensor(rows, dtype=torch.long)
