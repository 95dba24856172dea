"""Hand-made windows, vectors and images for tests of training on windows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.detect.classic.windows import MapVectors, Windows


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Return smooth color noise: neighboring cells are similar, distant ones differ."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def make_windows(
    overlap: Sequence[float],
    labels: Sequence[int] | None = None,
    objects: int = 0,
    num_classes: int = 2,
    counts: Sequence[bool] | None = None,
    path: str = "image.png",
) -> Windows:
    """Return windows with these overlaps with objects of their own class, and no overlap with other classes."""
    size = len(overlap)
    classes = torch.tensor(labels if labels is not None else [0] * size, dtype=torch.long)
    per_class = torch.zeros(size, num_classes)
    per_class[torch.arange(size), classes] = torch.tensor(overlap, dtype=torch.float32)
    boxes = torch.tensor([[0.0, 0, 1 + row, 1] for row in range(size)]).reshape(-1, 4)
    counted = torch.tensor(counts if counts is not None else [True] * size, dtype=torch.bool)
    return Windows(Path(path), boxes, objects, classes, per_class.sum(1), boxes, per_class, counted)


class HandMadeVectors(MapVectors):
    """Vectors that encode their image (column 0), their window (column 1) and whether it is mirrored (column 2)."""

    def __init__(self, windows: Sequence[Windows]) -> None:
        self.windows, self.length = windows, 3

    def vectors(self, image: int, rows: Tensor, mirrored: bool = False) -> Tensor:
        image_column, mirrored_column = (torch.full((len(rows),), float(value)) for value in (image, mirrored))
        return torch.stack((image_column, rows.float(), mirrored_column), dim=1)
