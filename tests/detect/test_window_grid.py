"""Tests of the sliding-window grid."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sppnet.detect.window_grid import window_grid
from sppnet.evaluation.recall import recall
from sppnet.ops.boxes import areas


def test_windows_of_a_small_grid() -> None:
    """Two windows of 62.5 pixels on a side of 100 would have a stride of 0.6, so three are needed for 0.45."""
    assert window_grid((100, 100), 8).tolist() == [[0, 0, 100, 100]]
    boxes = window_grid((100, 100), 16)
    whole, tall, square = boxes[:1], boxes[1:4], boxes[-9:]
    assert whole.tolist() == [[0, 0, 100, 100]]
    assert tall.tolist() == [[0, 0, 62.5, 100], [18.75, 0, 81.25, 100], [37.5, 0, 100, 100]]
    assert sorted({x for x, *_ in square.tolist()}) == [0, 18.75, 37.5]
    assert len(boxes) == 1 + 3 + 3 + 9


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(1, 3000))
def test_grid_covers_the_image_within_the_number_of_windows(height: int, width: int, count: int) -> None:
    boxes = window_grid((height, width), count)
    assert 1 <= len(boxes) <= count
    assert [0, 0, width, height] in boxes.tolist()
    assert len(boxes.unique(dim=0)) == len(boxes)
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() == width
    assert boxes[:, 3].max() == height
    others = boxes[areas(boxes) < height * width]
    sides = others[:, 2:] - others[:, :2]
    assert (sides.amax(1) <= 2.001 * sides.amin(1)).all()
    assert (sides >= min(16, height, width) - 1e-3).all()


def test_more_windows_give_higher_recall() -> None:
    generator = torch.Generator().manual_seed(0)
    side = 40 * 6 ** torch.rand(300, 1, generator=generator)
    sides = torch.cat((side, side * (0.7 + 0.7 * torch.rand(300, 1, generator=generator))), 1)
    low = torch.rand(300, 2, generator=generator) * (torch.tensor([640.0, 480]) - sides).clamp(min=0)
    objects = torch.cat((low, low + sides), 1)
    recalls = [recall([window_grid((480, 640), count)], [objects]).fractions[0] for count in (100, 1000, 4000)]
    assert recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.99
