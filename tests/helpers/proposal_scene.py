"""An image with known objects, for tests of proposals."""

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

OBJECTS = torch.tensor([[20.0, 30, 60, 80], [90, 20, 140, 100], [40, 85, 80, 115]])


def draw_scene() -> Image.Image:
    """Draw three ellipses, with boxes OBJECTS, on 120 x 160 pixels of noise."""
    pixels = np.random.default_rng(0).normal((90, 120, 90), 6, (120, 160, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for box, color in zip(OBJECTS.tolist(), [(220, 40, 40), (40, 60, 220), (230, 210, 60)], strict=True):
        draw.ellipse([box[0], box[1], box[2] - 1, box[3] - 1], fill=color)
    return image


def unique_rows(boxes: Tensor) -> set[tuple[float, ...]]:
    """Return boxes as a set, and check that there are no duplicates."""
    rows = [tuple(box) for box in boxes.tolist()]
    assert len(set(rows)) == len(rows)
    return set(rows)
