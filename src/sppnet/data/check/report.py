"""Statistics of image sizes, and the training settings they suggest."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from sppnet.data.batching import epoch_batches, padding_fraction
from sppnet.data.sizes import ASPECTS, SIDES, group_of

BATCH = 32
_MAX_BUCKETS = 8
_MIN_GAIN = 0.01  # padding that another bucket must save, as a fraction of the pixels of all images

Sizes = Int64[np.ndarray, "_ 2"]


class Range(NamedTuple):
    """Minimum, median and maximum, in pixels."""

    least: float
    median: float
    greatest: float


class Bucket(NamedTuple):
    """A group of images of similar shape.

    Attributes:
        images: number of images.
        size: median (height, width), in pixels.
        canvas: maximum (height, width): the largest padded size of a batch of these images.
    """

    images: int
    size: tuple[int, int]
    canvas: tuple[int, int]


class Suggestions(NamedTuple):
    """Buckets and padding for training at native sizes.

    Attributes:
        buckets: buckets, the one with the most images first.
        waste_random: fraction of padding in batches of `BATCH` images in random order.
        waste_sorted: fraction of padding in batches of similar shapes, as built for training.
    """

    buckets: tuple[Bucket, ...]
    waste_random: float
    waste_sorted: float


def histograms(sizes: Sequence[tuple[int, int]]) -> tuple[dict[str, int], dict[str, int]]:
    """Count images by shorter side and by aspect ratio, in the groups of `sppnet.data.sizes`, empty ones included.

    Args:
        sizes: (height, width) of each image, in pixels.
    """
    sides = Counter(group_of(min(size), SIDES) for size in sizes)
    aspects = Counter(group_of(width / height, ASPECTS) for height, width in sizes)
    return {name: sides[name] for _, name in SIDES}, {name: aspects[name] for _, name in ASPECTS}


def ranges(sizes: Sequence[tuple[int, int]]) -> dict[str, Range]:
    """Compute minimum, median and maximum of height and width; empty without images."""
    columns = zip(*sizes, strict=True)
    return {
        name: Range(min(values), median(values), max(values))
        for name, values in zip(("height", "width"), columns, strict=False)
    }


def suggest_training(sizes: Sequence[tuple[int, int]]) -> Suggestions:
    """Compute buckets of similar shapes and the padding in batches of `BATCH` images.

    Args:
        sizes: (height, width) of each image, in pixels.
    """
    # The side only selects the grouping here: random order with a side, similar shapes without.
    wasted = [padding_fraction(epoch_batches(sizes, BATCH, 0, 0, side), sizes) for side in (1, None)]
    return Suggestions(find_buckets(sizes), wasted[0], wasted[1])


def find_buckets(sizes: Sequence[tuple[int, int]]) -> tuple[Bucket, ...]:
    """Group images so that padding each group to its maximum height and width wastes few pixels.

    Repeatedly splits one group in two, by height or by width, where this saves the most padding: until there are eight
    groups, or the next split would save less than 1 % of the images' pixels. No split leaves fewer than `BATCH` images.

    Args:
        sizes: (height, width) of each image, in pixels.
    """
    if not sizes:
        return ()
    groups = [np.array(sizes, dtype=np.int64)]
    pixels = int(groups[0].prod(1).sum())
    cuts = [_best_cut(groups[0])]
    while len(groups) < _MAX_BUCKETS:
        best = max(range(len(groups)), key=lambda index: cuts[index][0])
        saved, halves = cuts[best]
        if saved < _MIN_GAIN * pixels:
            break
        groups[best : best + 1] = halves
        cuts[best : best + 1] = [_best_cut(half) for half in halves]
    return tuple(
        sorted(
            (Bucket(len(group), _pair(np.median(group, axis=0).round()), _pair(group.max(0))) for group in groups),
            reverse=True,
        )
    )


def _best_cut(group: Sizes) -> tuple[int, list[Sizes]]:
    """Return the padding pixels saved by the best cut, and its two parts; 0 and no parts if no cut helps."""
    best: tuple[int, list[Sizes]] = (0, [])
    whole = len(group) * int(group.max(0).prod())
    for axis in (0, 1):
        ordered = group[np.argsort(group[:, axis], kind="stable")]
        positions = np.arange(BATCH, len(ordered) - BATCH + 1)
        if not len(positions):
            continue
        first = np.maximum.accumulate(ordered).prod(1)[positions - 1] * positions
        second = np.maximum.accumulate(ordered[::-1])[::-1].prod(1)[positions] * (len(ordered) - positions)
        index = int((first + second).argmin())
        saved = whole - int((first + second)[index])
        if saved > best[0]:
            best = saved, [ordered[: positions[index]], ordered[positions[index] :]]
    return best


def _pair(values: np.ndarray) -> tuple[int, int]:
    return int(values[0]), int(values[1])
