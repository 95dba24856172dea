"""Boxes as arguments of region encoders: conversion to tensors, checks, and boxes of whole images."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from sppnet.data.formats.boxes import ImageBoxes

# Boxes of one image or of several: tensors, arrays or nested lists.
Boxes = Tensor | NDArray[Any] | Sequence[Any]

# The box of an image whose size is not known yet.
WHOLE = torch.tensor([[0.0, 0.0, math.inf, math.inf]])


def whole_images(paths: Iterable[Path | str]) -> tuple[ImageBoxes, ...]:
    """Return one box per image that covers it; the sizes of the images are read when their vectors are computed."""
    return tuple(ImageBoxes(path, WHOLE, ("0",)) for path in paths)


def fit_boxes(boxes: Float[Tensor, "k 4"], size: tuple[int, int]) -> Float[Tensor, "k 4"]:
    """Replace the infinite edges of whole images by those of an image of (height, width) pixels."""
    height, width = size
    return torch.where(boxes.isinf(), boxes.new_tensor([0, 0, width, height]), boxes)


def split_boxes(boxes: Boxes, count: int) -> list[Tensor]:
    """Return the boxes of `count` images as one tensor each; integers become float32."""
    parts = [boxes] if count == 1 and _depth(boxes) < 3 else list(boxes)
    if len(parts) != count:
        raise ValueError(f"boxes: expected one tensor for each of the {count} images, got {len(parts)}")
    return [_to_tensor(part, f"boxes[{index}]") for index, part in enumerate(parts)]


def _depth(boxes: Any) -> int:
    if isinstance(boxes, Tensor | np.ndarray):
        return boxes.ndim
    return 1 + (_depth(boxes[0]) if boxes else 1) if isinstance(boxes, list | tuple) else 0


def _to_tensor(boxes: Any, name: str) -> Tensor:
    try:
        tensor = torch.empty(0, 4) if isinstance(boxes, list | tuple) and not boxes else torch.as_tensor(boxes)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name}: expected numbers (K, 4), xyxy in pixels, got {repr(boxes)[:100]}") from error
    return tensor if tensor.dtype.is_floating_point or tensor.dtype.is_complex else tensor.float()


def check_boxes(boxes: Tensor, size: tuple[int, int], name: str) -> None:
    """Validate the boxes of an image of (height, width) pixels; error messages refer to them as `name`.

    Raises:
        TypeError: `boxes` is not a float32 or float64 tensor.
        ValueError: the shape is not (K, 4), or a box is not finite, has no area or does not overlap the image.
    """
    expected = "expected integers or float32 numbers (K, 4), xyxy in pixels"
    if boxes.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: {expected}, got {boxes.dtype}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}: {expected}, got shape {tuple(boxes.shape)}")
    height, width = size
    good = boxes.isfinite().all(1) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    good &= (boxes[:, 2:] > 0).all(1) & (boxes[:, 0] < width) & (boxes[:, 1] < height)
    if not good.all():
        row = int((~good).nonzero()[0])
        raise ValueError(
            f"{name}[{row}]: expected finite xyxy with x1 < x2 and y1 < y2 that overlaps the image of"
            f" {height} x {width} (height x width) pixels, got {boxes[row].tolist()}"
        )
