"""Sizes of images counted, and what they suggest for training."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sppnet.data.batching import epoch_batches, waste
from sppnet.data.sizes import ASPECTS, SIDES, group_of

BATCH = 32
_MOST_BUCKETS = 8
_LEAST_GAIN = 0.01  # of the images' own pixels: what a bucket more must save in padding

Sizes = Int64[np.ndarray, "_ 2"]


class Range(NamedTuple):
    """Least, middle and greatest, in pixels."""

    least: float
    median: float
    greatest: float


class Bucket(NamedTuple):
    """Images of like shape.

    Attributes:
        images: how many.
        size: median (height, width), pixels.
        canvas: greatest (height, width), to which a batch of them may have to be padded.
    """

    images: int
    size: tuple[int, int]
    canvas: tuple[int, int]


class Suggestions(NamedTuple):
    """For training at native sizes.

    Attributes:
        buckets: the largest first.
        waste_random: share of padded pixels that belong to no image, for batches of `BATCH` in random order.
        waste_sorted: the same for the batches of like shape that training makes.
    """

    buckets: tuple[Bucket, ...]
    waste_random: float
    waste_sorted: float


def histograms(sizes: Sequence[tuple[int, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """Number of images by shorter side and by aspect, in the groups of `sppnet.classify.evaluate`; empty groups included.

    Args:
        sizes: (height, width) of each image, pixels.
    """
    sides = Counter(group_of(min(size), SIDES) for size in sizes)
    aspects = Counter(group_of(width / height, ASPECTS) for height, width in sizes)
    return {name: sides[name] for _, name in SIDES}, {name: aspects[name] for _, name in ASPECTS}


def ranges(sizes: Sequence[tuple[int, int]]) -> dict[str, Range]:
    """Least, middle and greatest height and width; empty without images."""
    columns = zip(*sizes, strict=True)
    return {
        name: Range(min(values), median(values), max(values))
        for name, values in zip(("height", "width"), columns, strict=False)
    }


def suggest_training(sizes: Sequence[tuple[int, int]]) -> Suggestions:
    """Buckets of like shape, and what batches of `BATCH` images waste by padding.

    Args:
        sizes: (height, width) of each image, pixels.
    """
    # Only which images meet matters here: with a side they meet at random, without one by shape.
    wasted = [waste(epoch_batches(sizes, BATCH, 0, 0, side), sizes) for side in (1, None)]
    return Suggestions(find_buckets(sizes), wasted[0], wasted[1])


def find_buckets(sizes: Sequence[tuple[int, int]]) -> tuple[Bucket, ...]:
    """Groups images so that padding each group to its greatest sides wastes little.

    One group is cut in two again and again, by height or by width, where that saves the most padding: until there are
    eight, or the next cut would save less than a hundredth of the images' own pixels. No group is smaller than `BATCH`.

    Args:
        sizes: (height, width) of each image, pixels.
    """
    if not sizes:
        return ()
    groups = [np.array(sizes, dtype=np.int64)]
    own = int(groups[0].prod(1).sum())
    cuts = [_best_cut(groups[0])]
    while len(groups) < _MOST_BUCKETS:
        number = max(range(len(groups)), key=lambda index: cuts[index][0])
        saved, halves = cuts[number]
        if saved < _LEAST_GAIN * own:
            break
        groups[number : number + 1] = halves
        cuts[number : number + 1] = [_best_cut(half) for half in halves]
    return tuple(
        sorted(
            (Bucket(len(group), _pair(np.median(group, axis=0).round()), _pair(group.max(0))) for group in groups),
            reverse=True,
        )
    )


def _best_cut(group: Sizes) -> tuple[int, list[Sizes]]:
    """The padded pixels that the best cut saves, and its two parts; nothing for what is too small to cut."""
    best: tuple[int, list[Sizes]] = (0, [])
    whole = len(group) * int(group.max(0).prod())
    for axis in (0, 1):
        ordered = group[np.argsort(group[:, axis], kind="stable")]
        places = np.arange(BATCH, len(ordered) - BATCH + 1)
        if not len(places):
            continue
        first = np.maximum.accumulate(ordered).prod(1)[places - 1] * places
        second = np.maximum.accumulate(ordered[::-1])[::-1].prod(1)[places] * (len(ordered) - places)
        number = int((first + second).argmin())
        saved = whole - int((first + second)[number])
        if saved > best[0]:
            best = saved, [ordered[: places[number]], ordered[places[number] :]]
    return best


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])
