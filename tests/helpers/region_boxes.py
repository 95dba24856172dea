"""Boxes for the tests of region pooling."""

import torch
from torch import Tensor


def box(*edges: float) -> Tensor:
    return torch.tensor([edges], dtype=torch.float32)


def random_boxes(count: int, size: tuple[int, int] = (6, 7), stride: float = 16.0, beyond: float = 2.0) -> Tensor:
    """Draw boxes around maps of this (height, width): inside, outside, across the border, and some without area.

    They extend up to `beyond` strides past the map; the operator accepts every box up to two strides.
    """
    height, width = size[0] * stride, size[1] * stride
    span = torch.tensor([width, height]) + (2 * beyond - 1.5) * stride
    first = torch.rand(count, 2) * span - beyond * stride
    extent = torch.rand(count, 2) ** 2 * torch.tensor([width, height]) * 1.5
    extent[::10] = 0
    extent[1::10, 0] = 0
    boxes = torch.cat((first, first + extent), dim=1)
    boxes[::3] = boxes[::3].round()  # whole pixels, which hit centers and rounding ties
    boxes[::4] = (boxes[::4] / 8).round() * 8
    return boxes
