"""Assignment of cells to objects, compared with loops over cells and objects."""

import math

import pytest
import torch
from torch import Tensor

from sppnet.detect.two_stage.assignment import Assignment, assign
from tests.helpers.two_stage import iou, is_inside

STRIDE, SIDE = 8, 12
CENTERS = torch.tensor([[x * STRIDE + 4.0, y * STRIDE + 4.0] for y in range(SIDE) for x in range(SIDE)])


def predictions(count: int = len(CENTERS)) -> tuple[Tensor, Tensor]:
    """Return random scores, and boxes around the centers."""
    return torch.rand(count), torch.cat((CENTERS - torch.rand(count, 2) * 40, CENTERS + torch.rand(count, 2) * 40), 1)


def random_objects(count: int) -> Tensor:
    corners = torch.rand(count, 2) * 70
    return torch.cat((corners, corners + 2 + torch.rand(count, 2) * 60), 1)


def as_dict(found: Assignment) -> dict[int, tuple[int, float]]:
    return {cell: (number, target) for cell, number, target in zip(*(part.tolist() for part in found), strict=True)}


def slow_assign(scores: Tensor, boxes: Tensor, objects: Tensor) -> dict[int, tuple[int, float]]:
    """Return object and target of each positive cell."""
    cells = range(len(CENTERS))
    claims: dict[int, list[tuple[float, int]]] = {}
    for number, target in enumerate(objects.tolist()):
        fits = {cell: scores[cell].item() * iou(boxes[cell].tolist(), target) ** 6 for cell in cells}
        candidates = [cell for cell in cells if is_inside(CENTERS[cell].tolist(), target)]
        best = sorted(candidates, key=lambda cell: -fits[cell])[:10]
        if best:
            for cell in best:
                claims.setdefault(cell, []).append((iou(boxes[cell].tolist(), target), number))
        else:
            center = [(target[axis] + target[axis + 2]) / 2 for axis in (0, 1)]
            cell = min(cells, key=lambda cell: math.dist(center, CENTERS[cell].tolist()))
            claims.setdefault(cell, []).append((2.0, number))
    owners = {cell: max(claim)[1] for cell, claim in claims.items()}
    result = {}
    for cell, number in owners.items():
        own = [other for other, owner in owners.items() if owner == number]
        overlap = {other: iou(boxes[other].tolist(), objects[number].tolist()) for other in own}
        fit = {other: scores[other].item() * overlap[other] ** 6 for other in own}
        result[cell] = (number, fit[cell] / max(fit.values()) * max(overlap.values()))
    return result


@pytest.mark.parametrize("count", [1, 3, 12])
def test_matches_loops_over_cells_and_objects(count: int) -> None:
    scores, boxes = predictions()
    objects = random_objects(count)
    found, expected = as_dict(assign(scores, boxes, CENTERS, objects)), slow_assign(scores, boxes, objects)
    assert {cell: number for cell, (number, _) in found.items()} == {
        cell: number for cell, (number, _) in expected.items()
    }
    for cell, (_, target) in expected.items():
        assert found[cell][1] == pytest.approx(target, rel=1e-4, abs=1e-7)


def test_without_objects_all_cells_are_background() -> None:
    assert [len(part) for part in assign(*predictions(), CENTERS, torch.zeros(0, 4))] == [0, 0, 0]


@pytest.mark.parametrize("side", [0.5, 3.0])
def test_object_between_the_centers_gets_the_nearest_cell_with_their_iou(side: float) -> None:
    """Even the box of a cell that is far too large has a target above 0, so that the cell learns."""
    scores, boxes = torch.full((len(CENTERS),), 0.01), torch.cat((CENTERS - 48, CENTERS + 48), 1)
    box = torch.tensor([[33.0, 17.0, 33.0 + side, 17.0 + side]])
    found = assign(scores, boxes, CENTERS, box)
    assert found.cells.tolist() == [2 * SIDE + 4]
    assert found.targets.tolist() == pytest.approx([side**2 / 96**2], rel=1e-3)


def test_object_in_a_map_of_one_cell_gets_that_cell() -> None:
    found = assign(torch.tensor([0.3]), torch.tensor([[0.0, 0, 8, 8]]), CENTERS[:1], torch.tensor([[0.0, 0, 8, 4]]))
    assert as_dict(found) == {0: (0, 0.5)}


def test_mirrored_objects_get_mirrored_cells() -> None:
    scores, boxes = predictions()
    objects = random_objects(5)
    width = STRIDE * SIDE

    def flip(x: Tensor) -> Tensor:
        return torch.stack((width - x[:, 2], x[:, 1], width - x[:, 0], x[:, 3]), 1)

    order = torch.arange(len(CENTERS)).reshape(SIDE, SIDE).flip(1).flatten()
    mirrored = assign(scores[order], flip(boxes)[order], CENTERS, flip(objects))
    found, expected = as_dict(mirrored), as_dict(assign(scores, boxes, CENTERS, objects))
    assert {int(order[cell]): number for cell, (number, _) in found.items()} == {
        cell: number for cell, (number, _) in expected.items()
    }


def test_many_objects_get_targets_in_the_range_of_scores() -> None:
    scores, boxes = predictions()
    found = assign(scores, boxes, CENTERS, random_objects(2000))
    assert found.cells.unique().shape == found.cells.shape
    assert found.targets.min() >= 0
    assert found.targets.max() <= 1
