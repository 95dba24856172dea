"""Which images share a training batch, and at which size; a pure function of the seed and the epoch."""

import itertools
import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sppnet.data.resize import MAX_SIDE


@dataclass(frozen=True)
class Schedule:
    """Sizes of the training images by epoch (SPP-net, section 2.3).

    Attributes:
        sides: ``(224,)``: one size; ``(180, 224)``: one after the other, an epoch each; the two ends where
            `drawn`; none for native sizes.
        drawn: a side is drawn for each epoch, uniformly from the two ends and all between.
    """

    sides: tuple[int, ...]
    drawn: bool = False

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Read ``224``, ``180,224``, ``180-224`` or ``native``.

        Raises:
            ValueError: anything else, or a side outside 1..8192.
        """
        compact = text.replace(" ", "")
        if compact == "native":
            return cls(())
        if not re.fullmatch(r"\d+(-\d+|(,\d+)*)", compact):
            raise ValueError(f"sizes: expected 224, 180,224, 180-224 or native; got {text!r}")
        sides = tuple(int(side) for side in re.split("[-,]", compact))
        if not all(1 <= side <= MAX_SIDE for side in sides) or ("-" in compact and sides[0] > sides[1]):
            raise ValueError(f"sizes: expected sides of 1..{MAX_SIDE} pixels, the smaller end first; got {text!r}")
        return cls(sides, drawn="-" in compact)

    def side(self, epoch: int, seed: int) -> int | None:
        """Side of the square training images of an epoch; None where each batch has a shape of its own."""
        if not self.sides:
            return None
        if self.drawn:
            return random.Random(f"side {seed} {epoch}").randint(*self.sides)  # noqa: S311
        return self.sides[epoch % len(self.sides)]


@dataclass(frozen=True)
class Draw:
    """One image of a batch: its index, the (height, width) that its batch has, and the seed of its augmentation."""

    index: int
    size: tuple[int, int]
    seed: str


def epoch_batches(
    sizes: Sequence[tuple[int, int]],
    batch: int,
    epoch: int,
    seed: int,
    side: int | None,
    multiple: int = 32,
    least: int = 1,
) -> list[list[Draw]]:
    """Batches of one epoch: every image once, in an order of its own.

    With a side, all images become squares of it. Without, images of like shape share a batch, whose shape is
    their geometric mean rounded to the next multiple; which images meet changes from epoch to epoch.

    Args:
        sizes: (height, width) of each image, in pixels.
        batch: most images a batch, >= 1; the batches of an epoch differ by one image at most.
        epoch: counted from 0.
        seed: of the run.
        side: of square images, None for batches of like shape.
        multiple: the network's stride, in pixels.
        least: smallest side that the network takes, in pixels; for batches of like shape.
    """
    rng = random.Random(f"order {seed} {epoch}")  # noqa: S311
    order = list(range(len(sizes)))
    rng.shuffle(order)
    if side is None:
        # Coarse classes of aspect first, area inside: neighbours differ little in both. The sort is stable, so the
        # shuffle above decides which of them meet.
        order.sort(key=lambda i: _shape_key(sizes[i]))
    # Groups of near-equal length: a last batch of one image would be too few for batch normalisation.
    count = -(-len(order) // batch)
    borders = [len(order) * number // count for number in range(count + 1)]
    groups = [order[begin:end] for begin, end in itertools.pairwise(borders)]
    rng.shuffle(groups)
    batches = []
    for group in groups:
        size = (side, side) if side else _common_size([sizes[index] for index in group], multiple, least)
        batches.append([Draw(index, size, f"augment {seed} {epoch} {index}") for index in group])
    return batches


def _shape_key(size: tuple[int, int]) -> tuple[int, int]:
    height, width = size
    return round(3 * math.log2(width / height)), round(2 * math.log2(height * width))


def _common_size(sizes: Sequence[tuple[int, int]], multiple: int, least: int) -> tuple[int, int]:
    height, width = (math.exp(sum(math.log(size[axis]) for size in sizes) / len(sizes)) for axis in (0, 1))
    steps = -(-least // multiple)
    return max(round(height / multiple), steps) * multiple, max(round(width / multiple), steps) * multiple
