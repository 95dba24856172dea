"""Boxes and a slow IoU for tests."""

import torch
from hypothesis import strategies as st
from torch import Tensor


def pixels(*corners: tuple[int, int, int, int]) -> Tensor:
    """Return boxes from inclusive corner pixels, as in the VOC tools."""
    return torch.tensor(corners, dtype=torch.float32) + torch.tensor([0.0, 0, 1, 1])


@st.composite
def some_boxes(draw: st.DrawFn, count: int | None = None) -> Tensor:
    """Draw boxes with integer edges and sides of at least 1 pixel."""
    size = draw(st.integers(1, 6)) if count is None else count
    numbers = st.tuples(st.integers(-500, 1500), st.integers(-500, 1500), st.integers(1, 900), st.integers(1, 900))
    rows = draw(st.lists(numbers, min_size=size, max_size=size))
    return torch.tensor([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=torch.float32)


def slow_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union else 0.0
