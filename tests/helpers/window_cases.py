"""Windows, vectors and pictures made by hand, for the tests of what is trained on windows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sppnet.detect.classic.windows import MapVectors, Windows


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """Coloured spots, smooth enough that neighbouring cells differ little and far ones much."""
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
    """Windows with these overlaps with an object of these classes, and none with any other class."""
    size = len(overlap)
    kinds = torch.tensor(labels if labels is not None else [0] * size, dtype=torch.long)
    others = torch.zeros(size, num_classes)
    others[torch.arange(size), kinds] = torch.tensor(overlap, dtype=torch.float32)
    boxes = torch.tensor([[0.0, 0, 1 + row, 1] for row in range(size)]).reshape(-1, 4)
    counted = torch.tensor(counts if counts is not None else [True] * size, dtype=torch.bool)
    return Windows(Path(path), boxes, objects, kinds, others.sum(1), boxes, others, counted)


class HandMadeVectors(MapVectors):
    """Vectors that tell which image (column 0) and window (column 1) they are of, and whether it is mirrored (2)."""

    def __init__(self, windows: Sequence[Windows]) -> None:
        self.windows, self.length = windows, 3

    def vectors(self, image: int, rows: Tensor, mirrored: bool = False) -> Tensor:
        mirror = torch.full((len(rows),), float(mirrored))
        return torch.stack((torch.full((len(rows),), float(image)), rows.float(), mirror), dim=1)
