"""Which images share a training batch, and at which size; a pure function of the seed and the epoch."""

import itertools
import math
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from sppnet.data.resize import MAX_SIDE

Indices = Int64[np.ndarray, "_"]
Sizes = Int64[np.ndarray, "_ 2"]
Loads = Float64[np.ndarray, "_"]

# Sides are multiplied by factors of 1 - _JITTER to 1 + _JITTER before images are sorted by them. More pads more, and
# fewer images meet again in the next epoch: on Caltech-101 in batches of 32 it is 5 % of the pixels and a quarter of
# the pairs; without jitter 3 % and half of the pairs.
_JITTER = 0.017
_PADDING = 1.05  # padded pixels for each of the images' own that batches within a budget are planned with
_TRIES = 10
_ROUNDING = 1e-9


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


@dataclass(frozen=True, slots=True)
class Draw:
    """One image of a batch: its index, the (height, width) at which it is taken, and the seed of its augmentation."""

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
) -> list[list[Draw]]:
    """Batches of one epoch: every image once, in an order of its own.

    With a side, all images become squares of it. Without, each is taken at its own size, and those of like height and
    width share a batch, so that padding them to the greatest of each wastes little. Which images meet changes from
    epoch to epoch; how many batches there are does not, and is `count_batches`.

    In epoch 0 the batch with the most padded pixels comes first, so that memory which does not suffice shows at once
    and not hours later; a later epoch may have one larger by a few per cent, within the budget if there is one.

    Args:
        sizes: (height, width) of each image as it is taken, in pixels.
        batch: most images a batch, over all processes; 1 or more. Without a budget the batches of an epoch differ by
            one image at most, so that none is too small for batch normalisation.
        epoch: counted from 0.
        seed: of the run.
        side: of square images, None for native sizes.
        budget: most padded pixels of each process' `share` of a batch (number of its images * greatest height *
            greatest width); None for no bound. Large images then come in batches of fewer. Not together with a side.
        world: number of processes; matters only where there is a budget.

    Raises:
        ValueError: an image alone has more pixels than the budget, a budget comes with a side, or `batch` or `world`
            is below 1.
    """
    rng = random.Random(f"order {seed} {epoch}")  # noqa: S311
    if side is None:
        groups = _native_groups(_Limits.checked(sizes, batch, budget, world), rng, epoch == 0)
    elif budget is not None:
        raise ValueError(f"budget: squares are bounded by batch alone, expected None; got {budget} with side {side}")
    else:
        order = list(range(len(sizes)))
        rng.shuffle(order)
        count = -(-len(order) // batch)
        borders = [len(order) * number // count for number in range(count + 1)] if count else []
        groups = [order[begin:end] for begin, end in itertools.pairwise(borders)]
        rng.shuffle(groups)
    square = None if side is None else (side, side)
    return [
        [Draw(index, square or sizes[index], f"augment {seed} {epoch} {index}") for index in group] for group in groups
    ]


def count_batches(sizes: Sequence[tuple[int, int]], batch: int, budget: int | None = None, world: int = 1) -> int:
    """Number of batches that `epoch_batches` makes of these images, the same in every epoch and for every seed.

    Args and errors are those of `epoch_batches`. Without a budget it is the number of images over `batch`, rounded up.
    """
    limits = _Limits.checked(sizes, batch, budget, world)
    return -(-len(sizes) // batch) if budget is None else _count_within_budget(limits)[0]


def share(batch: Sequence[Draw], rank: int, world: int) -> list[Draw]:
    """The part of a batch that one process takes.

    The images are sorted by height or by width, whichever leaves less padding, and cut into `world` parts that differ
    by one image at most. With fewer images than processes the last processes take none: the list is then empty. One
    process takes all, in the order that they have.

    Args:
        batch: as `epoch_batches` gives it; the same on every process.
        rank: of this process, 0 to world - 1.
        world: number of processes, 1 or more.

    Raises:
        ValueError: rank or world is out of range.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank: expected 0..world - 1 with a world of 1 or more; got rank {rank} of world {world}")
    if world == 1 or not batch:
        return list(batch)
    order, borders = _portions(np.array([draw.size for draw in batch]), world)
    return [batch[position] for position in order[borders[rank] : borders[rank + 1]]]


def waste(batches: Iterable[Sequence[Draw]], sizes: Sequence[tuple[int, int]]) -> float:
    """The share of padded pixels that belong to no image, 0 to 1, where each batch is padded to its largest sides.

    Args:
        batches: batches or shares of them; empty ones count nothing.
        sizes: (height, width) of each image, in pixels.
    """
    held = padded = 0
    for batch in batches:
        taken = [sizes[draw.index] for draw in batch]
        held += sum(height * width for height, width in taken)
        padded += len(taken) * max((h for h, _ in taken), default=0) * max((w for _, w in taken), default=0)
    return 1 - held / padded if padded else 0.0


@dataclass(frozen=True)
class _Limits:
    """What is divided, and what bounds a batch."""

    sizes: Sizes
    batch: int
    budget: int | None
    world: int

    @classmethod
    def checked(cls, sizes: Sequence[tuple[int, int]], batch: int, budget: int | None, world: int) -> "_Limits":
        for name, value in (("batch", batch), ("world", world)):
            if value < 1:
                raise ValueError(f"{name}: expected 1 or more; got {value}")
        array = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        areas = array.prod(1)
        if budget is not None and len(array) and areas.max() > budget:
            index = int(areas.argmax())
            height, width = sizes[index]
            raise ValueError(
                f"budget: image {index} of {height} x {width} (height x width) has more pixels by itself;"
                f" expected {areas.max()} or more; got {budget}"
            )
        return cls(array, batch, budget, world)

    def load(self) -> Loads:
        """What each image takes of a batch that holds `batch`: 1, or more where the budget lets fewer share one."""
        if self.budget is None:
            return np.ones(len(self.sizes))
        alone = self.world * np.floor(self.budget / (_PADDING * self.sizes.prod(1)))
        return np.asarray(self.batch / alone.clip(1, self.batch))

    def hold(self, group: Indices) -> bool:
        """Whether a group of no more than `batch` images is within the budget."""
        if self.budget is None:
            return True
        # Of the canvas of all, though each part has one of its own: so that what is taken of a group is within, too.
        return -(-len(group) // self.world) * _canvas_pixels(self.sizes, group) <= self.budget


def _native_groups(limits: _Limits, rng: random.Random, largest_first: bool) -> list[list[int]]:
    if limits.budget is None:
        groups = _divide(limits, rng)
    else:
        # Where chance divides the images into more batches than there shall be, it is asked again; in the end, about
        # once in 500 epochs, the division that was counted serves.
        count, groups = _count_within_budget(limits)
        tries = (_divide(limits, rng) for _ in range(_TRIES))
        groups = next((divided for divided in tries if len(divided) <= count), groups)
        while len(groups) < count:
            groups.sort(key=len)  # the longest are halved: none of one image where that can be avoided
            first = max(2 * len(groups) - count, 0)
            groups[first:] = [part for group in groups[first:] for part in _halves(limits, group)]
    rng.shuffle(groups)
    if largest_first and groups:
        padded = [len(group) * _canvas_pixels(limits.sizes, group) for group in groups]
        groups.insert(0, groups.pop(padded.index(max(padded))))
    return [group.tolist() for group in groups]


def _count_within_budget(limits: _Limits) -> tuple[int, list[Indices]]:
    """Number of batches of every epoch, and a division of the images into no more of them."""
    groups = _divide(limits, random.Random(0))  # noqa: S311
    # Chance makes the count vary, the more so the more batches the budget adds.
    added = len(groups) - -(-len(limits.sizes) // limits.batch)
    return min(len(groups) + math.isqrt(added) // 2, len(limits.sizes)), groups


def _divide(limits: _Limits, rng: random.Random) -> list[Indices]:
    """Divides images into batches of like height and width, by halving again and again, as a k-d tree does.

    A group that is to become k batches is sorted by height and by width and cut where some of the k are full, at a
    random place near the middle; whichever of the two cuts leaves less padding is made.
    """
    noise = np.random.RandomState(rng.getrandbits(32))  # draws the same in all versions of numpy
    sizes, load = limits.sizes, limits.load()
    keys = sizes * (1 + _JITTER * (2 * noise.random_sample(sizes.shape) - 1))
    waiting = [(np.argsort(keys[:, 0], kind="stable"), np.argsort(keys[:, 1], kind="stable"))]
    chosen = np.zeros(len(sizes), dtype=bool)
    groups: list[Indices] = []
    while waiting and len(sizes):
        orders = waiting.pop()
        total = float(load[orders[0]].sum())
        count = math.ceil(total / limits.batch - _ROUNDING)
        if count <= 1:
            if len(orders[0]) == 1 or limits.hold(orders[0]):
                groups.append(orders[0])
                continue
            count = 2
        least = max(count // 3, 1)
        share = total * rng.randint(least, count - least) / count
        options = [(by_side, _place(np.cumsum(load[by_side]), share, limits)) for by_side in orders]
        by_side, place = min(options, key=lambda option: _padded_halves(sizes, *option))
        chosen[by_side[:place]] = True
        waiting += [tuple(by_side[chosen[by_side] == half] for by_side in orders) for half in (True, False)]
        chosen[by_side[:place]] = False
    return groups


def _place(held: Loads, share: float, limits: _Limits) -> int:
    """How many of the first images make up a share, by the loads of the first, the first two, ...; 1 to n - 1."""
    place = int(np.searchsorted(held, share + _ROUNDING, side="right"))
    if limits.budget is not None:  # as many images for each process
        whole = round(place / limits.world) * limits.world
        place = whole if 0 < whole < len(held) else place
    return min(max(place, 1), len(held) - 1)


def _halves(limits: _Limits, group: Indices) -> list[Indices]:
    if len(group) == 1:
        return [group]
    orders = [group[np.argsort(limits.sizes[group, axis], kind="stable")] for axis in (0, 1)]
    middle = len(group) // 2
    order = min(orders, key=lambda order: _padded_halves(limits.sizes, order, middle))
    return [order[:middle], order[middle:]]


def _canvas_pixels(sizes: Sizes, group: Indices) -> int:
    return int(sizes[group, 0].max()) * int(sizes[group, 1].max())


def _padded_halves(sizes: Sizes, order: Indices, place: int) -> int:
    """Padded pixels of the images before a place, 1 to n - 1, and of those from it on."""
    (height, width), (other_height, other_width) = np.maximum.reduceat(sizes[order], [0, place]).tolist()
    return int(place * height * width + (len(order) - place) * other_height * other_width)


def _portions(sizes: Sizes, world: int) -> tuple[Indices, list[int]]:
    """The order in which the images of a batch are cut into parts, and the borders of the parts."""
    length, longer = divmod(len(sizes), world)
    borders = [rank * length + min(rank, longer) for rank in range(world + 1)]
    begins = borders[: min(world, len(sizes))]  # with fewer images than parts the last parts are empty
    orders = [np.argsort(sizes[:, axis], kind="stable") for axis in (0, 1)]
    canvases = [np.maximum.reduceat(sizes[order], begins).prod(1) for order in orders]
    padded = [int((canvas * np.diff([*begins, len(sizes)])).sum()) for canvas in canvases]
    return orders[padded[0] > padded[1]], borders
