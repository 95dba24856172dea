"""Composition and image sizes of training batches, as a pure function of seed and epoch."""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

Indices = Int64[np.ndarray, "_"]
Sizes = Int64[np.ndarray, "_ 2"]
Loads = Float64[np.ndarray, "_"]

# Sides are scaled by random factors of 1 - _JITTER to 1 + _JITTER before images are sorted by size. More jitter means
# more padding and fewer pairs of images that share a batch again in the next epoch: on Caltech-101 in batches of 32,
# 5 % padding and a quarter of the pairs; without jitter, 3 % and half of the pairs.
_JITTER = 0.017
_PADDING = 1.05  # ratio of padded pixels to image pixels assumed when planning batches within a budget
_TRIES = 10
_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class BatchImage:
    """One image of a batch: its index, its (height, width) in the batch, and the seed of its augmentation."""

    index: int
    size: tuple[int, int]
    seed: str


def epoch_batches(
    sizes: Sequence[tuple[int, int]],
    batch: int,
    epoch: int,
    seed: int,
    side: int | None,
    budget: int | None = None,
    world: int = 1,
) -> list[list[BatchImage]]:
    """Return the batches of one epoch, in random order; each image appears exactly once.

    With a side, all images become squares of that side. Without one, each image keeps its own size, and images of
    similar height and width share a batch, so that padding to the largest height and width adds few pixels. The
    grouping changes from epoch to epoch; the number of batches, `count_batches`, does not.

    In epoch 0 the batch with the most padded pixels comes first, so that insufficient memory shows at once rather than
    hours later. Batches of later epochs may be larger by a few percent, but stay within the budget.

    Args:
        sizes: (height, width) of each image in the batch, in pixels.
        batch: maximum number of images per batch, over all processes; at least 1. Without a budget, the lengths of
            batches differ by at most one, so that none is too small for batch normalization.
        epoch: epoch number, from 0.
        seed: seed of the run.
        side: side of square images; None for native sizes.
        budget: maximum number of padded pixels (images * largest height * largest width) in each process's `share` of
            a batch; None for no limit. Large images then form smaller batches. Not allowed with a side.
        world: number of processes; only used with a budget.

    Raises:
        ValueError: a single image has more pixels than the budget, both a budget and a side are given, or `batch` or
            `world` is below 1.
    """
    if side is not None and budget is not None:
        raise ValueError(f"budget: expected None when side is given, got {budget} with side {side}")
    limits = _Limits.checked(sizes, batch, budget, world)
    rng = random.Random(f"order {seed} {epoch}")  # noqa: S311
    if side is None:
        groups = _native_groups(limits, rng, epoch == 0)
    else:
        order = list(range(len(sizes)))
        rng.shuffle(order)
        count = -(-len(order) // batch)
        borders = [len(order) * number // count for number in range(count + 1)] if count else []
        groups = [order[begin:end] for begin, end in itertools.pairwise(borders)]
        rng.shuffle(groups)
    square = None if side is None else (side, side)
    return [
        [BatchImage(index, square or sizes[index], f"augment {seed} {epoch} {index}") for index in group]
        for group in groups
    ]


def count_batches(sizes: Sequence[tuple[int, int]], batch: int, budget: int | None = None, world: int = 1) -> int:
    """Return the number of batches of `epoch_batches`, which is the same for every epoch and seed.

    Arguments and errors are those of `epoch_batches`. Without a budget, the result is ceil(images / batch).
    """
    limits = _Limits.checked(sizes, batch, budget, world)
    return -(-len(sizes) // batch) if budget is None else _count_within_budget(limits)[0]


def share(batch: Sequence[BatchImage], rank: int, world: int) -> list[BatchImage]:
    """Return the images of a batch that one process trains on.

    The images are sorted by height or by width, whichever needs less padding, and cut into `world` shares whose lengths
    differ by at most one. With fewer images than processes, the shares of the last processes are empty. A single
    process gets the batch in its original order.

    Args:
        batch: a batch of `epoch_batches`; the same on every process.
        rank: rank of this process, 0 to world - 1.
        world: number of processes, at least 1.

    Raises:
        ValueError: rank or world is out of range.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank: expected 0..world - 1 with a world of at least 1, got rank {rank} of world {world}")
    if world == 1 or not batch:
        return list(batch)
    order, borders = _cut_shares(np.array([draw.size for draw in batch]), world)
    return [batch[position] for position in order[borders[rank] : borders[rank + 1]]]


def padding_fraction(batches: Iterable[Sequence[BatchImage]], sizes: Sequence[tuple[int, int]]) -> float:
    """Return the fraction of pixels that are padding, 0 to 1, if each batch is padded to its largest height and width.

    Args:
        batches: batches or shares of batches; empty ones are ignored.
        sizes: (height, width) of each image, in pixels.
    """
    valid = padded = 0
    for batch in batches:
        members = [sizes[draw.index] for draw in batch]
        valid += sum(height * width for height, width in members)
        padded += len(members) * max((h for h, _ in members), default=0) * max((w for _, w in members), default=0)
    return 1 - valid / padded if padded else 0.0


@dataclass(frozen=True)
class _Limits:
    """Image sizes and the limits of a batch."""

    sizes: Sizes
    batch: int
    budget: int | None
    world: int

    @classmethod
    def checked(cls, sizes: Sequence[tuple[int, int]], batch: int, budget: int | None, world: int) -> "_Limits":
        for name, value in (("batch", batch), ("world", world)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        array = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        areas = array.prod(1)
        if budget is not None and len(array) and areas.max() > budget:
            index = int(areas.argmax())
            height, width = sizes[index]
            raise ValueError(
                f"budget: expected at least {areas.max()} pixels, the area of image {index} with"
                f" {height} x {width} (height x width), got {budget}"
            )
        return cls(array, batch, budget, world)

    def load(self) -> Loads:
        """Return the load of each image, >= 1; the loads of a batch's images sum to at most `batch`."""
        if self.budget is None:
            return np.ones(len(self.sizes))
        capacity = self.world * np.floor(self.budget / (_PADDING * self.sizes.prod(1)))
        return np.asarray(self.batch / capacity.clip(1, self.batch))

    def allow(self, group: Indices) -> bool:
        """Return whether a group of at most `batch` images is within the budget."""
        if self.budget is None:
            return True
        # Uses the canvas of the whole group although each share has its own: then every subset is within the budget.
        return -(-len(group) // self.world) * _canvas_pixels(self.sizes, group) <= self.budget


def _native_groups(limits: _Limits, rng: random.Random, largest_first: bool) -> list[list[int]]:
    if limits.budget is None:
        groups = _divide(limits, rng)
    else:
        # Random divisions into more than `count` batches are retried; if all tries fail (about once in 500 epochs), the
        # division that determined `count` is used.
        count, groups = _count_within_budget(limits)
        tries = (_divide(limits, rng) for _ in range(_TRIES))
        groups = next((division for division in tries if len(division) <= count), groups)
        while len(groups) < count:
            groups.sort(key=len)  # halve the longest, which avoids batches of one image where possible
            first = max(2 * len(groups) - count, 0)
            groups[first:] = [half for group in groups[first:] for half in _halves(limits, group)]
    rng.shuffle(groups)
    if largest_first and groups:
        padded = [len(group) * _canvas_pixels(limits.sizes, group) for group in groups]
        groups.insert(0, groups.pop(padded.index(max(padded))))
    return [group.tolist() for group in groups]


def _count_within_budget(limits: _Limits) -> tuple[int, list[Indices]]:
    """Return the number of batches per epoch, and a division of the images into no more batches than that."""
    groups = _divide(limits, random.Random(0))  # noqa: S311
    # Headroom for random divisions: their counts vary more, the more batches the budget adds.
    added = len(groups) - -(-len(limits.sizes) // limits.batch)
    return min(len(groups) + math.isqrt(added) // 2, len(limits.sizes)), groups


def _divide(limits: _Limits, rng: random.Random) -> list[Indices]:
    """Divide images into batches of similar height and width by recursive bisection, like a k-d tree.

    A group that needs several batches is sorted by height and, separately, by width. Each order is cut near the middle,
    after a random number of full batches; the cut with less padding is used.
    """
    noise = np.random.RandomState(rng.getrandbits(32))  # same numbers in all versions of numpy
    sizes, load = limits.sizes, limits.load()
    keys = sizes * (1 + _JITTER * (2 * noise.random_sample(sizes.shape) - 1))
    stack = [(np.argsort(keys[:, 0], kind="stable"), np.argsort(keys[:, 1], kind="stable"))]
    in_first = np.zeros(len(sizes), dtype=bool)
    groups: list[Indices] = []
    while stack and len(sizes):
        orders = stack.pop()
        total = float(load[orders[0]].sum())
        count = math.ceil(total / limits.batch - _TOLERANCE)
        if count <= 1:
            if len(orders[0]) == 1 or limits.allow(orders[0]):
                groups.append(orders[0])
                continue
            count = 2
        margin = max(count // 3, 1)
        first_load = total * rng.randint(margin, count - margin) / count
        cuts = [(order, _cut_position(np.cumsum(load[order]), first_load, limits)) for order in orders]
        best_order, position = min(cuts, key=lambda cut: _padded_pixels(sizes, *cut))
        in_first[best_order[:position]] = True
        stack += [tuple(order[in_first[order] == first] for order in orders) for first in (True, False)]
        in_first[best_order[:position]] = False
    return groups


def _cut_position(cumulative: Loads, load: float, limits: _Limits) -> int:
    """Return the number of leading images whose cumulative load is at most `load`, clamped to 1..n - 1."""
    position = int(np.searchsorted(cumulative, load + _TOLERANCE, side="right"))
    if limits.budget is not None:  # the same number of images for each process
        multiple = round(position / limits.world) * limits.world
        position = multiple if 0 < multiple < len(cumulative) else position
    return min(max(position, 1), len(cumulative) - 1)


def _halves(limits: _Limits, group: Indices) -> list[Indices]:
    if len(group) == 1:
        return [group]
    orders = [group[np.argsort(limits.sizes[group, axis], kind="stable")] for axis in (0, 1)]
    middle = len(group) // 2
    order = min(orders, key=lambda order: _padded_pixels(limits.sizes, order, middle))
    return [order[:middle], order[middle:]]


def _canvas_pixels(sizes: Sizes, group: Indices) -> int:
    return int(sizes[group, 0].max()) * int(sizes[group, 1].max())


def _padded_pixels(sizes: Sizes, order: Indices, position: int) -> int:
    """Return the total padded pixels of the two groups that result from a cut at a position, 1 to n - 1."""
    (height, width), (other_height, other_width) = np.maximum.reduceat(sizes[order], [0, position]).tolist()
    return int(position * height * width + (len(order) - position) * other_height * other_width)


def _cut_shares(sizes: Sizes, world: int) -> tuple[Indices, list[int]]:
    """Return the order in which the images of a batch are cut into shares, and the borders of the shares."""
    length, longer = divmod(len(sizes), world)
    borders = [rank * length + min(rank, longer) for rank in range(world + 1)]
    begins = borders[: min(world, len(sizes))]  # with fewer images than shares, the last shares are empty
    orders = [np.argsort(sizes[:, axis], kind="stable") for axis in (0, 1)]
    canvases = [np.maximum.reduceat(sizes[order], begins).prod(1) for order in orders]
    padded = [int((canvas * np.diff([*begins, len(sizes)])).sum()) for canvas in canvases]
    return orders[padded[0] > padded[1]], borders
