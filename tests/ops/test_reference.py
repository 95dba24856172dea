"""The operator in plain torch: chunked gradients, saved cells, and the transpose of the gradient."""

import pytest
import torch

from sppnet import region_pyramid_pool
from sppnet.ops import reference
from sppnet.ops.levels import Reduce
from tests.helpers import slow_reference
from tests.helpers.region_boxes import random_boxes

GRIDS = [(3, 3), (1, 2)]
# Images, then xyxy cells: inside, across the border, outside.
WINDOWS = torch.tensor([[1, 1, 1, 4, 5], [0, -2, 3, 2, 9], [1, 20, 20, 22, 22]])


@pytest.mark.parametrize("reduce", ["max", "avg"])
def test_gradients_in_chunks_and_of_equal_boxes(reduce: Reduce, monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 is pooled in plain torch: with more equal windows than maps, and gradients two rows at a time."""
    monkeypatch.setattr(reference, "_CHUNK", 2 * 30)
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64, requires_grad=True)
    boxes = [random_boxes(3).repeat(4, 1), random_boxes(1).repeat(5, 1)]
    boxes[0][5] = boxes[1][0]
    expected = slow_reference.regions(x, boxes, [(3, 3), (1, 1)], "paper", reduce)
    vectors = region_pyramid_pool(x, boxes, (3, 1), reduce=reduce)
    torch.testing.assert_close(vectors, expected)
    weight = torch.randn_like(vectors)
    gradient, expected_gradient = (torch.autograd.grad(v, x, weight)[0] for v in (vectors, expected))
    torch.testing.assert_close(gradient, expected_gradient)


def test_saved_cells_hold_the_maxima() -> None:
    x = torch.randn(2, 3, 6, 7)
    values, cells = reference.forward(x, WINDOWS, GRIDS, "adaptive", "max", True)
    assert torch.equal(reference.gather_cells(x, cells, WINDOWS, GRIDS), values)
    assert (cells[2] == -1).all()
    assert (values[2] == 0).all()
    assert (cells[0] >= 0).all()


def test_backward_is_the_transpose_of_take() -> None:
    x = torch.randn(2, 3, 6, 7, dtype=torch.float64)
    values, cells = reference.forward(x, WINDOWS, GRIDS, "adaptive", "max", True)
    grad = torch.randn_like(values)
    gradient = reference.backward(grad, cells, WINDOWS, x.shape, False, GRIDS, "adaptive", "max")
    torch.testing.assert_close((gradient * x).sum(), (grad * values).sum())
