"""A small segmenter with random weights, images for it, and options for a short training."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.segment.options import SegmentOptions

TINY = SegmenterConfig(("ground", "disc", "square"), "test_efficientnet", width=16)
# Options of `TINY` for all heads and context modules.
HEADS: tuple[dict[str, Any], ...] = (
    {},
    {"context": "ppm"},
    {"context": "none"},
    {"head": "deeplabv3"},
    {"head": "deeplabv2", "output_stride": 8},
    {"head": "pspnet", "output_stride": 8},
)
OPTIONS = SegmentOptions(width=16, crop=(48, 64), epochs=2, batch=3, rates=(1, 2))
COMMAND_OPTIONS = (
    *("--width", "16", "--crop", "48,64", "--batch", "3"),
    *("--rates", "1,2", "--lr", "0.005", "--scale-range", "0.8,1.2"),
)


def tiny_segmenter(seed: int = 0, gain: float = 1.0, **options: Any) -> Segmenter:
    """Create a segmenter in evaluation mode.

    Args:
        seed: seed of the random weights.
        gain: factor for all parameters; above 1, predictions vary within an image.
        **options: fields of the configuration to change.
    """
    torch.manual_seed(seed)
    model = create_segmenter(replace(TINY, **options), "none").eval()
    for parameter in model.parameters():
        parameter.data.mul_(gain)
    return model


def smooth_image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Create an RGB image of smooth random colors."""
    cells = np.random.default_rng(seed).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC)
