"""Which images share a batch: every one once, of like shape, the same for the same seed."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.batching import Schedule, epoch_batches


def random_sizes(count: int) -> list[tuple[int, int]]:
    rng = random.Random(count)
    return [(rng.randint(60, 500), rng.randint(60, 500)) for _ in range(count)]


@given(st.integers(1, 70), st.integers(1, 20), st.integers(0, 5), st.sampled_from([None, 64]))
def test_every_image_comes_once_an_epoch(count: int, batch: int, epoch: int, side: int | None) -> None:
    batches = epoch_batches(random_sizes(count), batch, epoch, 0, side)
    assert sorted(draw.index for group in batches for draw in group) == list(range(count))
    assert len(batches) == -(-count // batch)
    lengths = {len(group) for group in batches}
    assert max(lengths) <= batch
    assert max(lengths) - min(lengths) <= 1
    assert all(len({draw.size for draw in group}) == 1 for group in batches)


def test_native_batches_have_like_shapes() -> None:
    sizes = random_sizes(640)

    def stretch(shape: tuple[int, int], size: tuple[int, int]) -> float:
        ratio = (shape[1] / shape[0]) / (size[1] / size[0])
        return max(ratio, 1 / ratio)

    batches = epoch_batches(sizes, 16, 0, 0, None)
    stretches = sorted(stretch(draw.size, sizes[draw.index]) for group in batches for draw in group)
    assert stretches[len(stretches) // 2] < 1.15
    drawn = random.Random(0)
    others = sorted(stretch(sizes[drawn.randrange(640)], size) for size in sizes)
    assert stretches[len(stretches) // 2] < others[len(others) // 2] - 0.2
    assert all(side % 32 == 0 for group in batches for draw in group for side in draw.size)


@pytest.mark.parametrize("side", [None, 64])
def test_batches_follow_from_seed_and_epoch(side: int | None) -> None:
    sizes = random_sizes(50)
    first = epoch_batches(sizes, 8, 0, 0, side)
    assert first == epoch_batches(sizes, 8, 0, 0, side)
    together = {frozenset(draw.index for draw in group) for group in first}
    for epoch, seed in ((1, 0), (0, 1)):
        assert together != {
            frozenset(draw.index for draw in group) for group in epoch_batches(sizes, 8, epoch, seed, side)
        }


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
