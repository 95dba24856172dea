"""Benchmark candidates: every peer matches sppnet, and the random boxes resemble proposals."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sppnet.tools.bench import check
from sppnet.tools.cases import Case
from sppnet.tools.peers import box_cells, draw_boxes, proposals, pyramid_candidates, region_candidates

CASES = [
    Case((2, 3, 13, 9), (4, 2, 1)),
    Case((1, 2, 5, 17), (6, 3, 2, 1), "bfloat16", "channels_last"),
    Case((3, 5, 1, 7), (1, (2, 3), 4, (4, 6)), "float32", "channels_last"),
    Case((2, 70, 11, 10), (3, 2), reduce="avg"),
    Case((2, 3, 11, 10), (3, 2), "bfloat16", reduce="avg"),
    Case((2, 3, 14, 19), (6, 3, 2, 1), boxes=31),
    Case((3, 70, 9, 31), (4, (1, 2), 1), "bfloat16", "channels_last", boxes=23),
    Case((1, 3, 14, 19), (6, 3, 2, 1), "float16", boxes=11),
    Case((2, 3, 14, 9), (3, 2), boxes=12, reduce="avg"),
]


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_peers_match_sppnet(case: Case, backward: bool) -> None:
    case = replace(case, backward=backward)
    candidates = region_candidates(case, draw_boxes(case)) if case.boxes else pyramid_candidates(case)
    check(candidates, case)
    assert sum(candidate.role == "peer" for candidate in candidates) >= 1
    assert len({candidate.name for candidate in candidates}) == len(candidates)


def test_coarse_levels_are_derived_from_the_coarsest_divisible_level(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled: list[tuple[int, int]] = []
    derived: list[tuple[int, int]] = []

    def adaptive(x: Tensor, grid: tuple[int, int]) -> Tensor:
        pooled.append(grid)
        return x.new_zeros(*x.shape[:2], *grid)

    def fixed(x: Tensor, kernel: tuple[int, int]) -> Tensor:
        derived.append(kernel)
        return x.new_zeros(*x.shape[:2], x.shape[2] // kernel[0], x.shape[3] // kernel[1])

    form = {c.name: c.form for c in pyramid_candidates(Case((1, 2, 9, 9), (6, 4, 3, 2, 1)))}["coarse from fine"]
    monkeypatch.setattr(F, "adaptive_max_pool2d", adaptive)
    monkeypatch.setattr(F, "max_pool2d", fixed)
    assert form(torch.zeros(1, 2, 9, 9)).shape == (1, 2 * 66)
    assert pooled == [(6, 6), (4, 4)]
    assert derived == [(2, 2), (2, 2), (2, 2)]  # 3 from 6, 2 from 4, 1 from 2


def test_roi_pool_is_for_orientation_at_levels_with_inexact_bins() -> None:
    """At 57 cells, torchvision's level 7 reads one row too many."""
    case = Case((1, 16, 60, 60), (7, 2), boxes=60)
    roles = {candidate.name: candidate.role for candidate in region_candidates(case, draw_boxes(case))}
    assert roles["roi_pool"] == roles["roi_pool, coarse from fine"] == "orientation"
    assert roles["crops of channels_last"] == "peer"


@pytest.mark.parametrize(("height", "width"), [(40, 60), (75, 100), (38, 50)])
def test_proposals_vary_in_size_and_repeat_windows(height: int, width: int) -> None:
    case = Case((1, 1, height, width), (1,), boxes=2000)
    (boxes,) = draw_boxes(case)
    assert torch.equal(boxes, proposals(2000, 16 * height, 16 * width))
    cells = box_cells([boxes], case)
    assert 0.65 <= len(cells.unique(dim=0)) / 2000 <= 0.8
    assert (cells[:, 1:3] >= 0).all()
    assert (cells[:, 3] <= width).all()
    assert (cells[:, 4] <= height).all()
    assert (cells[:, 3] == width).any()  # up to the last cell
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(dim=1).log2()
    assert 10 < areas.quantile(0.25) < areas.quantile(0.75) - 2 < math.log2(256 * height * width) - 2


@pytest.mark.parametrize("count", [1, 2, 3])
def test_boxes_stay_on_a_tiny_map(count: int) -> None:
    case = Case((2, 1, 1, 2), (1,), boxes=count)
    cells = box_cells(draw_boxes(case), case)
    assert cells.shape == (count, 5)
    assert (cells[:, 3] <= 2).all()
    assert (cells[:, 4] == 1).all()
