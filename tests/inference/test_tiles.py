from itertools import pairwise

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sppnet.inference.tiles import Span, tile_spans
from tests.helpers.tile_blocks import PredictTile, collect_blocks

Outputs = dict[tuple[Span, Span], Tensor]

# (size, tile, overlap, stride) of axes with up to a dozen tiles.
grids = st.integers(1, 32).flatmap(
    lambda stride: st.integers(0, 4).flatmap(
        lambda overlap: st.integers(2 * overlap + 2, 2 * overlap + 8).flatmap(
            lambda tile: st.tuples(
                st.integers(1, 12 * tile * stride), st.just(tile * stride), st.just(overlap * stride), st.just(stride)
            )
        )
    )
)


@settings(max_examples=300, deadline=None)
@given(grids)
@example((31, 20, 8, 2))  # with equal steps, the third tile would overlap the first
def test_tiles_cover_the_axis_and_start_at_multiples_of_the_stride(grid: tuple[int, int, int, int]) -> None:
    size, tile, overlap, stride = grid
    spans = tile_spans(*grid)
    assert (spans[0][0], spans[-1][1]) == (0, size)
    for start, end in spans:
        assert start % stride == 0
        assert (end - start) % stride == size % stride
        assert 0 < end - start <= tile
    for (_, end), (start, _) in pairwise(spans):
        assert overlap <= end - start < overlap + stride
    for (_, end), (start, _) in zip(spans, spans[2:], strict=False):
        assert end <= start
    assert len({end - start for start, end in spans[:-1]}) <= 1


def fewest_tiles(size: int, tile: int, overlap: int, stride: int) -> int:
    """Count the tiles of a greedy cover, where each tile starts and ends as late as possible."""
    count, start = 1, 0
    while size - start > tile:
        end = max(end for end in range(start + 1, start + tile + 1) if (end - size) % stride == 0)
        start = max(next_start for next_start in range(0, end + 1, stride) if end - next_start >= overlap)
        count += 1
    return count


@settings(deadline=None)
@given(grids)
def test_number_of_tiles_is_minimal(grid: tuple[int, int, int, int]) -> None:
    assert len(tile_spans(*grid)) == fewest_tiles(*grid)


def test_spans_of_typical_sizes() -> None:
    assert tile_spans(512, 512, 64, 32) == [(0, 512)]
    assert tile_spans(1000, 512, 64, 8) == [(0, 376), (312, 688), (624, 1000)]
    assert tile_spans(12_000, 2048, 64, 16)[:2] == [(0, 1776), (1712, 3488)]


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (500, 64, "tile: expected a multiple of 32, the model's stride, got 500; use 512"),
        (0, 0, "tile: expected at least 64 pixels, twice the sum of overlap 0 and stride 32, got 0"),
        (-1, 0, "tile: expected a multiple of 32, the model's stride, got -1; use 32"),
        (512, 65, "overlap: expected a multiple of 32, the model's stride, got 65; use 96"),
        (512, -32, "overlap: expected a multiple of 32, the model's stride, got -32; use 0"),
        (160, 64, "tile: expected at least 192 pixels, twice the sum of overlap 64 and stride 32, got 160"),
    ],
)
def test_rejects_illegal_tiles_and_overlaps(tile: int, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tile_spans(1000, tile, overlap, 32)


def random_outputs(down: list[Span], across: list[Span]) -> Outputs:
    return {
        (rows, columns): torch.rand(2, rows[1] - rows[0], columns[1] - columns[0])
        for rows in down
        for columns in across
    }


def look_up(outputs: Outputs) -> PredictTile:
    return lambda rows, columns: outputs[rows, columns].clone()


def tile_weights(spans: list[Span], tile: Span) -> Tensor:
    """Compute the weight of one tile at each pixel of an axis, which changes linearly in overlaps."""
    weights = torch.zeros(spans[-1][1])
    for pixel in range(*tile):
        weights[pixel] = 1
        for start, end in spans:
            if start < tile[0] <= pixel < end:
                weights[pixel] = (pixel - tile[0] + 0.5) / (end - tile[0])
            if tile[0] < start <= pixel:
                weights[pixel] = 1 - (pixel - start + 0.5) / (tile[1] - start)
    return weights


def blend_whole(down: list[Span], across: list[Span], outputs: Outputs) -> Tensor:
    """Add the weighted outputs of all tiles in one map of the whole image."""
    total = torch.zeros(2, down[-1][1], across[-1][1])
    for (rows, columns), values in outputs.items():
        weight = tile_weights(down, rows)[slice(*rows), None] * tile_weights(across, columns)[slice(*columns)]
        total[:, slice(*rows), slice(*columns)] += weight * values
    return total


# (height, width, stride, overlap in strides, additional tile side in strides)
small_grids = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4), st.integers(0, 2), st.integers(0, 3))


def spans_of(grid: tuple[int, int, int, int, int]) -> tuple[list[Span], list[Span]]:
    height, width, stride, overlap, extra = grid
    tile = (2 * overlap + 2 + extra) * stride
    return tile_spans(height, tile, overlap * stride, stride), tile_spans(width, tile, overlap * stride, stride)


@settings(max_examples=100, deadline=None)
@given(small_grids)
def test_weights_add_up_to_1_at_each_pixel(grid: tuple[int, int, int, int, int]) -> None:
    down, across = spans_of(grid)
    whole = collect_blocks(
        down, across, lambda rows, columns: torch.ones(2, rows[1] - rows[0], columns[1] - columns[0])
    )
    torch.testing.assert_close(whole, torch.ones_like(whole))


@settings(max_examples=100, deadline=None)
@given(small_grids)
def test_blocks_match_the_weighted_sum_of_all_tiles(grid: tuple[int, int, int, int, int]) -> None:
    down, across = spans_of(grid)
    outputs = random_outputs(down, across)
    blended = collect_blocks(down, across, look_up(outputs))
    torch.testing.assert_close(blended, blend_whole(down, across, outputs))


def test_starting_at_a_later_row_gives_identical_rows_below_it() -> None:
    down, across = tile_spans(90, 24, 8, 4), tile_spans(50, 24, 8, 4)
    predict = look_up(random_outputs(down, across))
    whole, later = collect_blocks(down, across, predict), collect_blocks(down, across, predict, 2)
    complete = down[3][0]
    assert later[:, complete:].equal(whole[:, complete:])
    assert not later[:, down[2][0] : complete].equal(whole[:, down[2][0] : complete])
