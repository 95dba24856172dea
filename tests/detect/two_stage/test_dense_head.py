"""Fusion of maps, and the scores and boxes of cells."""

import pytest
import torch
from torch import Tensor, nn

from sppnet.detect.two_stage.dense_head import DenseHead

CHANNELS, STRIDES = (3, 4, 5), (8, 16, 32)


def maps(images: int = 1, rows: int = 2, columns: int = 3) -> list[Tensor]:
    """Return maps of images of rows x columns cells of the largest stride."""
    scales = [STRIDES[-1] // stride for stride in STRIDES]
    return [
        torch.randn(images, count, scale * rows, scale * columns) for count, scale in zip(CHANNELS, scales, strict=True)
    ]


def without_weights(layer: nn.Conv2d) -> None:
    nn.init.zeros_(layer.weight)


def test_initial_boxes_surround_the_centers_of_the_cells() -> None:
    head = DenseHead(CHANNELS, STRIDES, width=4)
    without_weights(head.score)
    without_weights(head.distances)
    output = head(*maps())
    expected = [[x * 8 + 4.0, y * 8 + 4.0] for y in range(8) for x in range(12)]
    assert output.centers.tolist() == expected
    sides = torch.tensor([-48.0, -48, 48, 48])
    torch.testing.assert_close(output.boxes[0], output.centers.repeat(1, 2) + sides)
    assert output.logits.sigmoid().flatten().tolist() == pytest.approx([0.01] * 96)
    assert output.fused.shape == (1, 4, 8, 12)


def test_cells_of_a_mirrored_map_have_mirrored_boxes() -> None:
    """With 1 x 1 kernels, the network itself is symmetric."""
    head = DenseHead((3,), (8,), width=4).eval()
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.weight.data[..., [0, 2]] = module.weight.data[..., [1, 1]]
    rows = head.distances.weight.data
    rows[2] = rows[0]  # the same distance to the left and to the right edge
    x = torch.randn(1, 3, 4, 5)
    with torch.inference_mode():
        boxes, mirrored = (head(data).boxes[0].reshape(4, 5, 4) for data in (x, x.flip(3)))
    x1, y1, x2, y2 = boxes.flip(1).unbind(2)
    torch.testing.assert_close(mirrored, torch.stack((40 - x2, y1, 40 - x1, y2), 2))


@pytest.mark.parametrize("level", range(3))
def test_each_map_changes_only_the_fused_cells_near_its_own(level: int) -> None:
    head, data = DenseHead(CHANNELS, STRIDES, width=8).eval(), maps(rows=4, columns=4)
    with torch.inference_mode():
        before = head.fuse(data)
        data[level][:, :, 0, 0] += 10
        changed = (head.fuse(data) != before).any(1)[0]
    # One cell of the coarsest map has 4 x 4 of the finest; convolutions add the borders.
    reach = {0: 2, 1: 2 + 3, 2: 4 + 3}[level]
    assert changed[0, 0]
    assert not changed[reach:].any()
    assert not changed[:, reach:].any()


def test_predictions_do_not_depend_on_other_images_of_the_batch() -> None:
    head, data = DenseHead(CHANNELS, STRIDES, width=8).eval(), maps(images=3)
    with torch.inference_mode():
        batch, single = head(*data), head(*(level[1:2] for level in data))
    torch.testing.assert_close(batch.logits[1], single.logits[0])
    torch.testing.assert_close(batch.boxes[1], single.boxes[0])


def test_extreme_values_give_finite_boxes() -> None:
    head = DenseHead(CHANNELS, STRIDES, width=4).eval()
    with torch.inference_mode():
        boxes = head(*(level * 1e30 for level in maps())).boxes
    assert boxes.isfinite().all()
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_trains_on_a_map_of_one_cell() -> None:
    head = DenseHead((3,), (16,), width=4)
    output = head(torch.randn(1, 3, 1, 1))
    (output.logits.sum() + output.boxes.sum()).backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in head.parameters())
