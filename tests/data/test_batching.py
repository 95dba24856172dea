"""Which images share a batch: every one once, of like height and width, the same for the same seed."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.batching import Draw, Schedule, count_batches, epoch_batches, share, waste

Size = tuple[int, int]

sides = st.integers(1, 40) | st.sampled_from([7, 8])
shapes = st.lists(st.tuples(sides, sides), max_size=60)


def random_sizes(count: int) -> list[Size]:
    rng = random.Random(count)
    return [(rng.randint(60, 500), rng.randint(60, 500)) for _ in range(count)]


def draws(*sizes: Size) -> list[Draw]:
    return [Draw(index, size, "") for index, size in enumerate(sizes)]


def padded(batch: Sequence[Draw]) -> int:
    """Pixels of a batch, image by image on the canvas."""
    return sum(max(draw.size[0] for draw in batch) * max(draw.size[1] for draw in batch) for _ in batch)


def members(batches: Sequence[Sequence[Draw]]) -> set[frozenset[int]]:
    return {frozenset(draw.index for draw in batch) for batch in batches}


def share_of_pairs_that_meet_again(first: list[list[Draw]], second: list[list[Draw]]) -> float:
    before, after = (
        {pair for batch in batches for pair in itertools.combinations(sorted(draw.index for draw in batch), 2)}
        for batches in (first, second)
    )
    return len(before & after) / len(after)


@given(shapes, st.integers(1, 20), st.integers(0, 3), st.integers(0, 3), st.sampled_from([None, 64]))
def test_every_image_comes_once_an_epoch(
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
def test_parts_are_within_the_budget(sizes: list[Size], batch: int, times: float, world: int, epoch: int) -> None:
    budget = int(times * max((height * width for height, width in sizes), default=1))
    batches = epoch_batches(sizes, batch, epoch, 0, None, budget, world)
    assert sorted(draw.index for group in batches for draw in group) == list(range(len(sizes)))
    assert len(batches) == count_batches(sizes, batch, budget, world)
    for group in batches:
        assert 1 <= len(group) <= batch
        assert all(padded(share(group, rank, world)) <= budget for rank in range(world))


def test_a_wide_budget_changes_nothing() -> None:
    sizes = random_sizes(100)
    assert epoch_batches(sizes, 8, 1, 0, None, 8 * 500 * 500) == epoch_batches(sizes, 8, 1, 0, None)


def test_a_budget_lets_small_images_share_batches_and_leaves_large_ones_alone() -> None:
    sizes = [(100, 100)] * 3 + [(10, 10)] * 90
    batches = epoch_batches(sizes, 30, 0, 0, None, 15_000)
    assert sorted(len(group) for group in batches) == [1] * 3 + [30] * 3


def test_the_part_with_one_image_more_is_within_the_budget() -> None:
    sizes = [(10, 20), (20, 10), (14, 14)]
    assert len(epoch_batches(sizes, 3, 0, 0, None, 420, world=2)) == 2
    assert len(epoch_batches(sizes, 3, 0, 0, None, 800, world=2)) == 1


def test_with_a_budget_processes_take_as_many_images_each() -> None:
    sizes = random_sizes(200)
    batches = epoch_batches(sizes, 64, 0, 0, None, 600_000, world=4)
    assert sum(len(group) % 4 > 0 for group in batches) <= 2


def test_without_a_budget_steps_do_not_depend_on_processes() -> None:
    sizes = random_sizes(100)
    assert epoch_batches(sizes, 16, 0, 0, None, world=4) == epoch_batches(sizes, 16, 0, 0, None)


def test_equal_sizes_waste_nothing_and_meet_others() -> None:
    sizes = [(32, 48)] * 200
    first, second = (epoch_batches(sizes, 10, epoch, 0, None) for epoch in (0, 1))
    assert waste(first, sizes) == 0
    assert share_of_pairs_that_meet_again(first, second) < 0.15


def test_images_in_a_row_meet_others() -> None:
    sizes = [(500 + number, 500) for number in range(200)]
    first, second = (epoch_batches(sizes, 10, epoch, 0, None) for epoch in (0, 1))
    assert share_of_pairs_that_meet_again(first, second) < 0.6
    assert waste(first, sizes) < 0.03


def test_two_shapes_do_not_meet() -> None:
    sizes = [(300, 200), (200, 300)] * 48
    batches = epoch_batches(sizes, 16, 3, 0, None)
    assert waste(batches, sizes) == 0
    assert [len(group) for group in batches] == [16] * 6


def test_one_image_more_than_whole_batches() -> None:
    assert sorted(len(group) for group in epoch_batches(random_sizes(33), 16, 0, 0, None)) == [11, 11, 11]


def test_one_image_and_none() -> None:
    assert epoch_batches([(5, 7)], 16, 2, 3, None) == [[Draw(0, (5, 7), "augment 3 2 0")]]
    assert epoch_batches([], 16, 0, 0, None) == epoch_batches([], 16, 0, 0, 64) == []
    assert epoch_batches([], 16, 0, 0, None, 100) == []
    assert count_batches([], 16) == count_batches([], 16, 100) == 0


def test_like_shapes_meet_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    sizes = [(int(h), int(w)) for h, w in np.exp(rng.uniform(np.log(60), np.log(500), (1024, 2)))]
    random_order = [draws(*sizes)[first : first + 8] for first in range(0, 1024, 8)]
    assert waste(random_order, sizes) > 0.7
    epochs = [epoch_batches(sizes, 8, epoch, 0, None) for epoch in range(3)]
    assert all(waste(batches, sizes) < 0.16 for batches in epochs)
    again = [share_of_pairs_that_meet_again(*pair) for pair in itertools.pairwise(epochs)]
    assert all(pairs < 0.45 for pairs in again)


@pytest.mark.parametrize("side", [None, 64])
@pytest.mark.parametrize("budget", [None, 900_000])
def test_batches_follow_from_seed_and_epoch(side: int | None, budget: int | None) -> None:
    if side and budget:
        return
    sizes = random_sizes(200)
    first = epoch_batches(sizes, 8, 0, 0, side, budget)
    assert first == epoch_batches(sizes, 8, 0, 0, side, budget)
    for epoch, seed in ((1, 0), (0, 1)):
        assert members(first) != members(epoch_batches(sizes, 8, epoch, seed, side, budget))


@pytest.mark.parametrize("budget", [None, 900_000])
def test_the_first_batch_of_all_has_the_most_padded_pixels(budget: int | None) -> None:
    sizes = random_sizes(400)
    batches = epoch_batches(sizes, 8, 0, 5, None, budget)
    assert padded(batches[0]) == max(padded(batch) for batch in batches)
    order = [padded(batch) for batch in batches[1:]]
    assert order != sorted(order, reverse=True)
    later = [epoch_batches(sizes, 8, epoch, 5, None, budget) for epoch in (1, 2, 3)]
    assert any(padded(batches[0]) != max(padded(batch) for batch in batches) for batches in later)


@given(st.lists(st.tuples(sides, sides), max_size=40), st.integers(2, 12))
def test_shares_make_up_the_batch(sizes: list[Size], world: int) -> None:
    batch = draws(*sizes)
    parts = [share(batch, rank, world) for rank in range(world)]
    assert sorted(draw.index for part in parts for draw in part) == list(range(len(sizes)))
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert lengths == sorted(lengths, reverse=True)  # with fewer images than processes the last have none
    together = list(itertools.chain(*parts))
    assert any([d.size[axis] for d in together] == sorted(s[axis] for s in sizes) for axis in (0, 1))


def test_shares_are_sorted_by_the_side_that_saves_more() -> None:
    low_and_high = draws((10, 90), (90, 80), (11, 81), (91, 90))
    assert [[d.index for d in share(low_and_high, rank, 2)] for rank in (0, 1)] == [[0, 2], [1, 3]]
    turned = [replace(draw, size=draw.size[::-1]) for draw in low_and_high]
    assert [[d.index for d in share(turned, rank, 2)] for rank in (0, 1)] == [[0, 2], [1, 3]]


def test_a_batch_with_fewer_images_than_processes_leaves_the_last_without() -> None:
    batch = draws((10, 10), (20, 20))
    assert [len(share(batch, rank, 4)) for rank in range(4)] == [1, 1, 0, 0]
    assert [share([], rank, 2) for rank in range(2)] == [[], []]


def test_waste() -> None:
    batch = draws((10, 30), (20, 15))
    sizes = [(10, 30), (20, 15), (5, 5)]
    assert waste([batch], sizes) == pytest.approx(1 - (300 + 300) / (2 * 20 * 30))
    assert waste([batch, [Draw(2, (5, 5), "")], []], sizes) == pytest.approx(1 - 625 / 1225)
    assert waste([], sizes) == 0


def test_wrong_arguments_are_named() -> None:
    sizes = [(10, 10), (30, 50), (20, 20)]
    for call in (
        lambda: epoch_batches(sizes, 2, 0, 0, None, 1499),
        lambda: count_batches(sizes, 2, 1499),
    ):
        with pytest.raises(ValueError, match=r"budget: image 1 of 30 x 50 .* expected 1500 or more; got 1499"):
            call()
    assert len(epoch_batches(sizes, 2, 0, 0, None, 1500)) == 2
    with pytest.raises(
        ValueError, match="budget: squares are bounded by batch alone, expected None; got 9 with side 8"
    ):
        epoch_batches(sizes, 2, 0, 0, 8, 9)
    with pytest.raises(ValueError, match="batch: expected 1 or more; got 0"):
        epoch_batches(sizes, 0, 0, 0, None)
    with pytest.raises(ValueError, match="world: expected 1 or more; got 0"):
        epoch_batches(sizes, 2, 0, 0, None, world=0)
    for rank, world in ((2, 2), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"rank: expected 0..world - 1 .* got rank {rank} of world {world}"):
            share(draws((1, 1)), rank, world)


def test_schedules() -> None:
    assert [Schedule.parse("224").side(epoch, 0) for epoch in range(3)] == [224, 224, 224]
    assert [Schedule.parse("180,224").side(epoch, 0) for epoch in range(4)] == [180, 224, 180, 224]
    assert Schedule.parse("native").side(0, 0) is None
    drawn = [Schedule.parse("180-224").side(epoch, 0) for epoch in range(400)]
    assert set(drawn) == set(range(180, 225))
    assert drawn == [Schedule.parse("180-224").side(epoch, 0) for epoch in range(400)]
    assert drawn != [Schedule.parse("180-224").side(epoch, 1) for epoch in range(400)]


@pytest.mark.parametrize("text", ["", "large", "224-180", "0", "9000", "180,", "180-224,300", "-180"])
def test_wrong_schedules_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="sizes: expected"):
        Schedule.parse(text)
