"""Bin edges and window cells: against exact fractions, and literal values from the paper and its code."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sppnet.ops.bins import bin_edges, clipped_edges, window_cells
from sppnet.ops.levels import Rule
from tests.helpers import slow_reference

SIDES = range(1, 65)
LEVELS = (1, 2, 3, 4, 5, 6, 7, 8)


def to_ranges(cells: list[list[int]]) -> list[tuple[int, int]]:
    return [(c[0], c[-1] + 1) for c in cells]


@pytest.mark.parametrize("level", LEVELS)
def test_adaptive_matches_reference_at_every_side(level: int) -> None:
    for side in SIDES:
        assert list(bin_edges(side, level)) == to_ranges(slow_reference.adaptive_bins(side, level))


@pytest.mark.parametrize("level", LEVELS)
def test_sliding_matches_reference_or_is_rejected(level: int) -> None:
    for side in SIDES:
        expected = slow_reference.sliding_bins(side, level)
        if len(expected) == level:
            assert list(bin_edges(side, level, "sliding")) == to_ranges(expected)
        else:
            with pytest.raises(ValueError, match=f"map side of {side} into {level} bins, got 'sliding'"):
                bin_edges(side, level, "sliding")


@pytest.mark.parametrize("level", [1, 2, 4, 8, 16])
def test_caffe_matches_reference_or_is_rejected(level: int) -> None:
    rejected = 0
    for side in SIDES:
        expected = slow_reference.caffe_bins(side, level)
        if expected is None:
            rejected += 1
            with pytest.raises(ValueError, match="is not smaller than kernel"):
                bin_edges(side, level, "caffe")
        else:
            assert list(bin_edges(side, level, "caffe")) == to_ranges(expected)
    assert rejected == {1: 0, 2: 1, 4: 4, 8: 16, 16: 48}[level]


@pytest.mark.parametrize(
    ("side", "level", "edges"),
    [
        (13, 6, [(0, 3), (2, 5), (4, 7), (6, 9), (8, 11), (10, 13)]),
        (13, 2, [(0, 7), (6, 13)]),
        (10, 6, [(0, 2), (1, 4), (3, 5), (5, 7), (6, 9), (8, 10)]),
        (7, 4, [(0, 2), (1, 4), (3, 6), (5, 7)]),
        (4, 6, [(0, 1), (0, 2), (1, 2), (2, 3), (2, 4), (3, 4)]),
        (1, 3, [(0, 1), (0, 1), (0, 1)]),
    ],
)
def test_adaptive_literals(side: int, level: int, edges: list[tuple[int, int]]) -> None:
    assert list(bin_edges(side, level)) == edges


@pytest.mark.parametrize(
    ("side", "level", "count"),
    [(10, 6, 9), (7, 4, 6), (6, 4, 5), (11, 4, 5), (5, 3, 4), (15, 6, 7)],
)
def test_sliding_error_names_the_number_of_windows(side: int, level: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"give {count} bins"):
        bin_edges(side, level, "sliding")


@pytest.mark.parametrize(("side", "level"), [(13, 6), (13, 3), (13, 2), (10, 3), (10, 4), (18, 6), (14, 6)])
def test_sliding_accepts_sides_with_the_right_number_of_windows(side: int, level: int) -> None:
    assert len(bin_edges(side, level, "sliding")) == level


def test_sliding_rejects_sides_below_the_level() -> None:
    for level in (2, 3, 6):
        for side in range(1, level):
            with pytest.raises(ValueError, match=rf"give no bins\); nearest sides that it cuts: {level};"):
                bin_edges(side, level, "sliding")


def test_sliding_error_names_the_nearest_sides() -> None:
    with pytest.raises(ValueError, match="nearest sides that it cuts: 7 and 12; rule='adaptive'"):
        bin_edges(10, 6, "sliding")


def test_sliding_equals_adaptive_only_for_remainders_0_and_1() -> None:
    for level in LEVELS:
        for side in range(level, 65):
            try:
                same = bin_edges(side, level, "sliding") == bin_edges(side, level)
            except ValueError:
                same = False
            assert same == (side % level in (0, 1))


@pytest.mark.parametrize(
    ("side", "level", "edges"),
    [
        (7, 4, [(0, 1), (1, 3), (3, 5), (5, 7)]),
        (13, 4, [(0, 2), (2, 6), (6, 10), (10, 13)]),
        (9, 4, [(0, 1), (1, 4), (4, 7), (7, 9)]),
        (10, 4, [(0, 2), (2, 5), (5, 8), (8, 10)]),
        (13, 2, [(0, 6), (6, 13)]),
    ],
)
def test_caffe_literals(side: int, level: int, edges: list[tuple[int, int]]) -> None:
    assert list(bin_edges(side, level, "caffe")) == edges


@given(st.integers(1, 3000), st.integers(1, 64))
def test_adaptive_covers_every_cell_and_is_mirror_symmetric(side: int, level: int) -> None:
    edges = bin_edges(side, level)
    assert edges[0][0] == 0
    assert edges[-1][1] == side
    assert all(begin < end for begin, end in edges)
    assert all(after[0] <= before[1] for before, after in itertools.pairwise(edges))
    assert edges == tuple((side - end, side - begin) for begin, end in reversed(edges))


def test_bin_edges_rejects_sizes_and_levels_below_1() -> None:
    with pytest.raises(ValueError, match="size: expected a map side of at least 1"):
        bin_edges(0, 2)
    with pytest.raises(ValueError, match="level: expected at least 1"):
        bin_edges(3, 0)


@pytest.mark.usefixtures("unchecked")
def test_unknown_rule_suggests_the_closest() -> None:
    with pytest.raises(ValueError, match="adaptive, sliding, caffe, got 'slidin'; did you mean 'sliding'"):
        bin_edges(3, 2, "slidin")  # type: ignore[arg-type]


def one_based_cells(window: tuple[float, float], side: int, stride: int, center: int, rule: str) -> tuple[int, int]:
    """Return the first and last cell of a window from its first and last pixel, counted from 1 as by the authors."""
    box = torch.tensor([[window[0] - 1.0, window[0] - 1.0, window[1], window[1]]])
    offset = (center - 1, center - 1)
    x1, y1, x2, y2 = window_cells(box, (side, side), (stride, stride), offset, rule)[0].tolist()  # type: ignore[arg-type]
    assert x1 == y1
    assert x2 == y2
    return x1 + 1, x2


@pytest.mark.parametrize(
    ("window", "side", "expected"),
    [((1, 224), 15, (1, 13)), ((17, 240), 15, (1, 14)), ((33, 256), 15, (2, 15)), ((1, 224), 13, (1, 13))],
)
def test_released_cells_of_views(window: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert one_based_cells(window, side, 16, 21, "released") == expected


def test_released_cells_with_overfeat_constants() -> None:
    assert one_based_cells((1, 224), 18, 12, 15, "released") == (1, 18)


@pytest.mark.parametrize(("window", "expected"), [((100, 105), (6, 6)), ((110, 112), (6, 6)), ((1, 10), (1, 1))])
def test_released_cells_of_collapsed_windows(window: tuple[int, int], expected: tuple[int, int]) -> None:
    assert one_based_cells(window, 39, 16, 21, "released") == expected


@pytest.mark.parametrize(("begin", "expected"), [(38.0, 2), (38.4, 2), (38.5, 3), (38.6, 3)])
def test_released_cells_of_fractional_pixels(begin: float, expected: int) -> None:
    """The first cell is the floor of (begin - 21 + 6.5) / 16 + 1/2, plus 1; at 38.5 the sum is 2."""
    assert one_based_cells((begin, 600), 200, 16, 21, "released")[0] == expected


def test_paper_and_released_differ_only_near_centers() -> None:
    for distance in range(400):
        pixel = distance + 21
        paper = one_based_cells((pixel, 2000), 200, 16, 21, "paper")[0]
        released = one_based_cells((pixel, 2000), 200, 16, 21, "released")[0]
        assert (released == paper - 1) if distance % 16 in (0, 1) else (released == paper)
        if distance >= 32:
            paper = one_based_cells((1, pixel), 200, 16, 21, "paper")[1]
            released = one_based_cells((1, pixel), 200, 16, 21, "released")[1]
            assert (released == paper + 1) if distance % 16 in (0, 15) else (released == paper)


@given(st.floats(-500, 500), st.floats(0.01, 600), st.sampled_from(["paper", "released"]))
def test_every_window_contains_a_cell_of_the_map(begin: float, length: float, rule: str) -> None:
    box = torch.tensor([[begin, begin, begin + length, begin + length]])
    x1, y1, x2, y2 = window_cells(box, (5, 9), (16, 16), (20.0, 20.0), rule)[0].tolist()  # type: ignore[arg-type]
    assert 0 <= x1 < x2 <= 9
    assert 0 <= y1 < y2 <= 5


def roi_cells(*edges: float, stride: float = 16.0) -> list[int]:
    window = torch.tensor([edges], dtype=torch.float32)
    return window_cells(window, (5, 9), (stride, stride), (7.0, 3.0), "roi_pool")[0].tolist()


@pytest.mark.parametrize(
    ("pixel", "cell"),
    [(7.9, 0), (8, 1), (24, 2), (40, 3), (-7.9, 0), (-8, -1), (-24, -2), (55.9, 3), (56, 4), (1600, 100)],
)
def test_roi_pool_rounds_halves_away_from_zero(pixel: float, cell: int) -> None:
    """The offset is ignored, cells may be outside the map of 5 x 9, and the last cell belongs to the window."""
    assert roi_cells(pixel, 0, pixel, 16) == [cell, 0, cell + 1, 2]
    assert roi_cells(0, pixel, 1600, pixel) == [0, cell, 101, cell + 1]


def test_roi_pool_rounds_in_float32() -> None:
    """0.49999997 is the largest float32 below 0.5; adding 0.5 in float32 would give 1."""
    assert roi_cells(0.49999997, 0, 0.49999997, 0, stride=1.0) == [0, 0, 1, 1]
    assert roi_cells(0.4999999999, 0, 8388609, 0, stride=1.0) == [1, 0, 8388610, 1]


def test_roi_pool_reduces_an_inverted_window_to_its_first_cell() -> None:
    assert roi_cells(40, 72, 24, 8) == [3, 5, 4, 6]


def test_roi_pool_clamps_cells_to_two_to_the_thirtieth() -> None:
    assert roi_cells(-3e38, -3e38, 3e38, 3e38) == [-(2**30), -(2**30), 2**30 + 1, 2**30 + 1]


def test_each_window_is_clipped_to_its_own_map_size() -> None:
    windows = torch.tensor([[0.0, 0.0, 900.0, 900.0]] * 3)
    sizes = torch.tensor([[5, 9], [1, 3], [60, 60]])
    cells = window_cells(windows, sizes, (16.0, 16.0), (0.0, 0.0), "released")
    assert cells.tolist() == [[0, 0, 9, 5], [0, 0, 3, 1], [0, 0, 57, 57]]


def test_clipped_edges_computed_by_hand() -> None:
    windows = torch.tensor([[1, 0, 5, 3], [-2, 2, 2, 6], [9, -5, 12, -1]])
    edges = clipped_edges(windows, (4, 6), [(2, 3), (1, 1)])
    assert edges.tolist() == [
        [[0, 2], [1, 3], [1, 3], [2, 4], [3, 5], [0, 3], [1, 5]],
        [[2, 4], [4, 4], [0, 0], [0, 1], [0, 2], [2, 4], [0, 2]],
        [[0, 0], [0, 0], [6, 6], [6, 6], [6, 6], [0, 0], [6, 6]],
    ]


def test_clipped_edges_without_windows() -> None:
    for rule in ("adaptive", "sliding", "caffe"):
        assert clipped_edges(torch.empty(0, 4, dtype=torch.long), (4, 6), [(2, 3)], rule).shape == (0, 5, 2)


@given(st.integers(-20, 20), st.integers(1, 40), st.integers(1, 7), st.sampled_from(["adaptive", "sliding", "caffe"]))
def test_clipped_edges_are_shifted_and_clipped_bin_edges(begin: int, size: int, level: int, rule: Rule) -> None:
    window = torch.tensor([[begin, 0, begin + size, 1]])
    try:
        expected = bin_edges(size, level, rule)
    except ValueError:
        with pytest.raises(ValueError, match=f"cuts a map side of {size} into {level} bins"):
            clipped_edges(window, (1, 11), [(1, level)], rule)
    else:
        edges = clipped_edges(window, (1, 11), [(1, level)], rule)[0].tolist()
        assert edges[0] == [0, 1]
        assert edges[1:] == [[min(max(begin + edge, 0), 11) for edge in pair] for pair in expected]
