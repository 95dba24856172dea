"""Batches of an epoch: completeness, padding, budgets, shares, and reproducibility."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.batching import BatchImage, count_batches, epoch_batches, padding_fraction, share

Size = tuple[int, int]

sides = st.integers(1, 40) | st.sampled_from([7, 8])
shapes = st.lists(st.tuples(sides, sides), max_size=60)


def random_sizes(count: int) -> list[Size]:
    rng = random.Random(count)
    return [(rng.randint(60, 500), rng.randint(60, 500)) for _ in range(count)]


def draws(*sizes: Size) -> list[BatchImage]:
    return [BatchImage(index, size, "") for index, size in enumerate(sizes)]


def padded(batch: Sequence[BatchImage]) -> int:
    """Return the pixels of a batch after padding."""
    height, width = (max((draw.size[axis] for draw in batch), default=0) for axis in (0, 1))
    return len(batch) * height * width


def members(batches: Sequence[Sequence[BatchImage]]) -> set[frozenset[int]]:
    return {frozenset(draw.index for draw in batch) for batch in batches}


def repeated_pairs(first: list[list[BatchImage]], second: list[list[BatchImage]]) -> float:
    before, after = (
        {pair for batch in batches for pair in itertools.combinations(sorted(draw.index for draw in batch), 2)}
        for batches in (first, second)
    )
    return len(before & after) / len(after)


@given(shapes, st.integers(1, 20), st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 64]))
def test_every_image_appears_once_per_epoch(
    sizes: list[Size], batch: int, epoch: int, seed: int, side: int | None
) -> None:
    batches = epoch_batches(sizes, batch, epoch, seed, side)
    assert sorted(draw.index for group in batches for draw in group) == list(range(len(sizes)))
    assert len(batches) == math.ceil(len(sizes) / batch) == count_batches(sizes, batch)
    lengths = {len(group) for group in batches} or {0}
    assert max(lengths) <= batch
    assert max(lengths) - min(lengths) <= 1
    for draw in itertools.chain(*batches):
        assert draw.size == ((side, side) if side else sizes[draw.index])
        assert draw.seed == f"augment {seed} {epoch} {draw.index}"


@given(shapes, st.integers(1, 20), st.sampled_from([1, 1.3, 4, 20]), st.integers(1, 5), st.integers(0, 3))
def test_shares_are_within_the_budget(sizes: list[Size], batch: int, times: float, world: int, epoch: int) -> None:
    budget = int(times * max((height * width for height, width in sizes), default=1))
    batches = epoch_batches(sizes, batch, epoch, 0, None, budget, world)
    assert sorted(draw.index for group in batches for draw in group) == list(range(len(sizes)))
    assert len(batches) == count_batches(sizes, batch, budget, world)
    for group in batches:
        assert 1 <= len(group) <= batch
        assert all(padded(share(group, rank, world)) <= budget for rank in range(world))


def test_large_budget_has_no_effect() -> None:
    sizes = random_sizes(100)
    assert epoch_batches(sizes, 8, 1, 0, None, 8 * 500 * 500) == epoch_batches(sizes, 8, 1, 0, None)


def test_budget_separates_large_images_and_groups_small_ones() -> None:
    sizes = [(100, 100)] * 3 + [(10, 10)] * 90
    batches = epoch_batches(sizes, 30, 0, 0, None, 15_000)
    assert sorted(len(group) for group in batches) == [1] * 3 + [30] * 3


def test_longest_share_is_within_the_budget() -> None:
    sizes = [(10, 20), (20, 10), (14, 14)]
    assert len(epoch_batches(sizes, 3, 0, 0, None, 420, world=2)) == 2
    assert len(epoch_batches(sizes, 3, 0, 0, None, 800, world=2)) == 1


def test_budgeted_batches_divide_evenly_among_processes() -> None:
    sizes = random_sizes(200)
    batches = epoch_batches(sizes, 64, 0, 0, None, 600_000, world=4)
    assert sum(len(group) % 4 > 0 for group in batches) <= 2


def test_batches_without_a_budget_do_not_depend_on_processes() -> None:
    sizes = random_sizes(100)
    assert epoch_batches(sizes, 16, 0, 0, None, world=4) == epoch_batches(sizes, 16, 0, 0, None)


def test_equal_sizes_need_no_padding_and_are_regrouped() -> None:
    sizes = [(32, 48)] * 200
    first, second = (epoch_batches(sizes, 10, epoch, 0, None) for epoch in (0, 1))
    assert padding_fraction(first, sizes) == 0
    assert repeated_pairs(first, second) < 0.15


def test_increasing_sizes_are_regrouped() -> None:
    sizes = [(500 + number, 500) for number in range(200)]
    first, second = (epoch_batches(sizes, 10, epoch, 0, None) for epoch in (0, 1))
    assert repeated_pairs(first, second) < 0.6
    assert padding_fraction(first, sizes) < 0.03


def test_two_shapes_are_not_mixed() -> None:
    sizes = [(300, 200), (200, 300)] * 48
    batches = epoch_batches(sizes, 16, 3, 0, None)
    assert padding_fraction(batches, sizes) == 0
    assert [len(group) for group in batches] == [16] * 6


def test_batch_lengths_are_balanced() -> None:
    assert sorted(len(group) for group in epoch_batches(random_sizes(33), 16, 0, 0, None)) == [11, 11, 11]


def test_one_image_and_no_images() -> None:
    assert epoch_batches([(5, 7)], 16, 2, 3, None) == [[BatchImage(0, (5, 7), "augment 3 2 0")]]
    assert epoch_batches([], 16, 0, 0, None) == epoch_batches([], 16, 0, 0, 64) == []
    assert epoch_batches([], 16, 0, 0, None, 100) == []
    assert count_batches([], 16) == count_batches([], 16, 100) == 0


def test_similar_shapes_are_grouped() -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in np.exp(rng.uniform(np.log(60), np.log(500), (1024, 2)))]
    random_order = [draws(*sizes)[first : first + 8] for first in range(0, 1024, 8)]
    assert padding_fraction(random_order, sizes) > 0.7
    epochs = [epoch_batches(sizes, 8, epoch, 0, None) for epoch in range(3)]
    assert all(padding_fraction(batches, sizes) < 0.16 for batches in epochs)
    assert all(repeated_pairs(*pair) < 0.45 for pair in itertools.pairwise(epochs))


@pytest.mark.parametrize("side", [None, 64])
@pytest.mark.parametrize("budget", [None, 900_000])
def test_batches_depend_only_on_seed_and_epoch(side: int | None, budget: int | None) -> None:
    if side and budget:
        return
    sizes = random_sizes(200)
    first = epoch_batches(sizes, 8, 0, 0, side, budget)
    assert first == epoch_batches(sizes, 8, 0, 0, side, budget)
    for epoch, seed in ((1, 0), (0, 1)):
        assert members(first) != members(epoch_batches(sizes, 8, epoch, seed, side, budget))


@pytest.mark.parametrize("budget", [None, 900_000])
def test_first_batch_of_epoch_0_is_the_largest(budget: int | None) -> None:
    sizes = random_sizes(400)
    batches = epoch_batches(sizes, 8, 0, 5, None, budget)
    assert padded(batches[0]) == max(padded(batch) for batch in batches)
    order = [padded(batch) for batch in batches[1:]]
    assert order != sorted(order, reverse=True)
    later = [epoch_batches(sizes, 8, epoch, 5, None, budget) for epoch in (1, 2, 3)]
    assert any(padded(batches[0]) != max(padded(batch) for batch in batches) for batches in later)


@given(st.lists(st.tuples(sides, sides), max_size=40), st.integers(2, 12))
def test_shares_partition_the_batch(sizes: list[Size], world: int) -> None:
    batch = draws(*sizes)
    parts = [share(batch, rank, world) for rank in range(world)]
    assert sorted(draw.index for part in parts for draw in part) == list(range(len(sizes)))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)  # with fewer images than processes, the last shares are empty
    together = list(itertools.chain(*parts))
    assert any([d.size[axis] for d in together] == sorted(s[axis] for s in sizes) for axis in (0, 1))


def test_shares_are_sorted_by_the_side_with_less_padding() -> None:
    batch = draws((10, 90), (90, 80), (11, 81), (91, 90))
    assert [[d.index for d in share(batch, rank, 2)] for rank in (0, 1)] == [[0, 2], [1, 3]]
    transposed = [replace(draw, size=draw.size[::-1]) for draw in batch]
    assert [[d.index for d in share(transposed, rank, 2)] for rank in (0, 1)] == [[0, 2], [1, 3]]


def test_last_shares_are_empty_with_fewer_images_than_processes() -> None:
    batch = draws((10, 10), (20, 20))
    assert [len(share(batch, rank, 4)) for rank in range(4)] == [1, 1, 0, 0]
    assert [share([], rank, 2) for rank in range(2)] == [[], []]


def test_waste() -> None:
    batch = draws((10, 30), (20, 15))
    sizes = [(10, 30), (20, 15), (5, 5)]
    assert padding_fraction([batch], sizes) == pytest.approx(1 - (300 + 300) / (2 * 20 * 30))
    assert padding_fraction([batch, [BatchImage(2, (5, 5), "")], []], sizes) == pytest.approx(1 - 625 / 1225)
    assert padding_fraction([], sizes) == 0


def test_rejects_invalid_arguments() -> None:
    sizes = [(10, 10), (30, 50), (20, 20)]
    for call in (
        lambda: epoch_batches(sizes, 2, 0, 0, None, 1499),
        lambda: count_batches(sizes, 2, 1499),
    ):
        with pytest.raises(
            ValueError, match=r"budget: expected at least 1500 pixels, the area of image 1 with 30 x 50 .*, got 1499"
        ):
            call()
    assert len(epoch_batches(sizes, 2, 0, 0, None, 1500)) == 2
    for side in (None, 8):
        with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
            epoch_batches([(5, 7)], 0, 0, 0, side)
    with pytest.raises(ValueError, match="budget: expected None when side is given, got 9 with side 8"):
        epoch_batches(sizes, 2, 0, 0, 8, 9)
    with pytest.raises(ValueError, match="batch: expected at least 1, got 0"):
        epoch_batches(sizes, 0, 0, 0, None)
    with pytest.raises(ValueError, match="world: expected at least 1, got 0"):
        epoch_batches(sizes, 2, 0, 0, None, world=0)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"rank: expected 0..world - 1 .* got rank {rank} of world {world}"):
            share(draws((1, 1)), rank, world)
