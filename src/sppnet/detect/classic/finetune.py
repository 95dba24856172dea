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
# Windows are drawn from so many images before each epoch, and their vectors kept in memory: at most so much of it.
_MEMORY = 1_000_000_000
_DRAWN_EACH = 64  # windows of an image at most, a quarter of them positive


class WindowBatches:
    """Batches of 128 windows, a quarter of them on objects.

    A window is positive from an overlap of 0.5 on, with the label of that object, and background from 0.1 to 0.5.
    Before each epoch windows are drawn from all images, or from as many as memory allows; each image is mirrored by the
    toss of a coin.

    Args:
        vectors: gives windows their vectors.
        usable: numbers of the images that can be read.
        background: label of the background.
        norm: scales vectors.
        options: windows a batch, batches an epoch, whether images are mirrored, and the seed.
    """

    def __init__(
        self, vectors: WindowVectors, usable: Sequence[int], background: int, norm: float, options: DetectOptions
    ) -> None:
        self.vectors, self.usable, self.background, self.norm = vectors, list(usable), background, norm
        self.batch, self.steps, self.seed = options.batch, options.steps, options.seed
        self.mirror = options.mirror

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Any, Tensor, list[ImageError]]]:
        """The batches of an epoch from the one numbered `start` on."""
        x, labels = self._draw(random.Random(f"windows {self.seed} {epoch}"))  # noqa: S311
        positive, background = (
            part.nonzero()[:, 0].tolist() for part in (labels != self.background, labels == self.background)
        )
        for step in range(start, self.steps):
            rng = random.Random(f"batch {self.seed} {epoch} {step}")  # noqa: S311
            few = min(round(self.batch * POSITIVE_SHARE), len(positive))
            rows = rng.sample(positive, few) + rng.sample(background, min(self.batch - few, len(background)))
            yield x[rows].float() * self.norm, labels[rows], []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        """Windows have sizes of their own."""
        return None

    def _draw(self, rng: random.Random) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"]]:
        images = self.usable.copy()
        rng.shuffle(images)
        most = max(_MEMORY // (2 * self.vectors.length * _DRAWN_EACH), 1)
        parts, labels = [], []
        for image in images[:most]:
            windows = self.vectors.windows[image]
            rows = draw_windows(windows, round(_DRAWN_EACH * POSITIVE_SHARE), _DRAWN_EACH, rng)
            parts.append(self.vectors.vectors(image, rows, mirrored=self.mirror and rng.random() < 0.5).half())
            labels.append(torch.where(positives(windows)[rows], windows.labels[rows], self.background))
        return torch.cat(parts), torch.cat(labels)


def positives(windows: Windows) -> Bool[Tensor, " k"]:
    """Which windows are on an object."""
    return windows.counts & (windows.overlap >= _POSITIVE)


def draw_windows(
    windows: Windows, most_positive: int, total: int, rng: random.Random, *, far: bool = True
) -> Int[Tensor, " n"]:
    """Draw windows of an image for training: positive ones first, then background, near objects where there are any.

    Args:
        windows: of the image.
        most_positive: as many on objects at most.
        total: as many in all at most.
        rng: draws.
        far: take background that overlaps no object by 0.1 where there is too little that does.
    """
    on = positives(windows)
    background = windows.counts & ~on
    near = windows.overlap >= _BACKGROUND
    listed = [part.nonzero()[:, 0].tolist() for part in (on, background & near, background & ~near)]
    rows = rng.sample(listed[0], min(most_positive, len(listed[0])))
    for part in listed[1 : 2 + far]:
        rows += rng.sample(part, min(total - len(rows), len(part)))
    return torch.tensor(rows, dtype=torch.long)
