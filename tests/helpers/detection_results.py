"""Detections, annotated images and pixel comparisons for tests."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageColor

from sppnet.data.formats.detection import DetectionSample
from sppnet.inference.results import Detections

Box = tuple[float, float, float, float]


def detections(*rows: tuple[Box, int, float]) -> Detections:
    """Return detections from (box, label, score) rows."""
    return Detections(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, _, score in rows], dtype=torch.float32),
        torch.tensor([label for _, label, _ in rows], dtype=torch.long),
    )


def sample(path: Path, *objects: tuple[Box, int]) -> DetectionSample:
    """Return an image annotated with (box, label) objects, none of them difficult."""
    return DetectionSample(
        path,
        torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label in objects], dtype=torch.long),
        torch.zeros(len(objects), dtype=torch.bool),
    )


def pixels(image: Image.Image) -> NDArray[np.int_]:
    return np.asarray(image).astype(int)


def has_color(image: Image.Image, color: str, tolerance: int = 0) -> NDArray[np.bool_]:
    """Return a mask of the pixels with the given color."""
    near: NDArray[np.bool_] = np.abs(pixels(image) - ImageColor.getrgb(color)) <= tolerance
    return near[..., 0] & near[..., 1] & near[..., 2]
