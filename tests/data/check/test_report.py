"""Size statistics against counts by hand, and buckets against a brute-force search of cuts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sppnet.data.check.report import BATCH, find_buckets, histograms, ranges, suggest_training


def test_counts_sizes_by_group() -> None:
    sizes = [(100, 300), (128, 128), (223, 400), (320, 240), (600, 512), (1000, 400)]
    sides, aspects = histograms(sizes)
    assert list(sides.values()) == [1, 2, 1, 1, 1]
    assert list(aspects.values()) == [1, 1, 2, 1, 1]
    assert list(histograms([])[0].values()) == [0] * 5
    assert ranges(sizes) == {"height": (100, 271.5, 1000), "width": (128, 350, 512)}
    assert ranges([]) == {}


def test_finds_one_bucket_per_shape() -> None:
    sizes = [(480, 640), (640, 480)] * 50 + [(640, 479)] * 10
    assert find_buckets(sizes) == ((60, (640, 480), (640, 480)), (50, (480, 640), (480, 640)))
    suggested = suggest_training(sizes)
    # Mixed batches are padded to 640 x 640, of which each shape fills three quarters.
    assert suggested.waste_random == pytest.approx(0.25, abs=0.001)
    assert suggested.waste_sorted < 0.1
    assert find_buckets([]) == ()
    assert len(find_buckets([(100, 100), (100, 103)] * 100)) == 2  # saves 1.5 %
    assert len(find_buckets([(100, 100), (100, 101)] * 100)) == 1  # 0.5 %
    assert find_buckets([(9, 9)] * 500) == ((500, (9, 9), (9, 9)),)


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=200))
def test_buckets_contain_all_images_and_save_padding(sizes: list[tuple[int, int]]) -> None:
    buckets = find_buckets(sizes)
    assert sum(bucket.images for bucket in buckets) == len(sizes)
    assert all(bucket.images >= min(BATCH, len(sizes)) for bucket in buckets)
    padded = sum(bucket.images * bucket.canvas[0] * bucket.canvas[1] for bucket in buckets)
    whole = len(sizes) * max(height for height, _ in sizes) * max(width for _, width in sizes)
    pixels = sum(height * width for height, width in sizes)
    assert pixels <= padded <= whole
    cuts = [cut_in_two(sorted(sizes, key=lambda size: size[axis])) for axis in (0, 1)]
    saved = max((whole - padded for padded in cuts if padded is not None), default=0)
    assert (len(buckets) > 1) == (saved >= 0.01 * pixels and saved > 0)


def cut_in_two(ordered: list[tuple[int, int]]) -> int | None:
    """Return the smallest padded area of two consecutive parts; None if there are too few images."""
    cuts = range(BATCH, len(ordered) - BATCH + 1)
    return min((padded_area(ordered[:cut]) + padded_area(ordered[cut:]) for cut in cuts), default=None)


def padded_area(sizes: list[tuple[int, int]]) -> int:
    return len(sizes) * max(height for height, _ in sizes) * max(width for _, width in sizes)
