"""Segmentation of an image in one pass, from several scales and mirror images, or in tiles."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sppnet.inference.memory import MemoryLimitError, format_bytes
from sppnet.segment.memory import whole_fits
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.tiles import segment_tiled


def needs_tiles(model: SegmenterNetwork, image: Image.Image, view: View) -> bool:
    """Return whether an image is split into tiles.

    Raises:
        MemoryLimitError: the image needs tiles, which cannot be combined with scales or mirror images.
        ValueError: the model does not support a global context.
    """
    if view.global_context:
        model.require_image_level()
    if view.tile is not None or view.memory is None:
        return view.tile is not None
    height, width = (max(1, round(side * max(view.scale_factors))) for side in (image.height, image.width))
    if whole_fits(model, height, width, view.memory):
        return False
    if view.several:
        raise MemoryLimitError(
            f"memory: expected enough for {image.height} x {image.width} pixels (height x width) at the scale factors"
            f" {view.scale_factors}, got {format_bytes(view.memory)}; raise it, or omit scale_factors and flip to use"
            " tiles"
        )
    return True


def segment_image(
    model: SegmenterNetwork, image: Image.Image, view: View, after_tile: Callable[[], None] = lambda: None
) -> Integer[Tensor, "h w"]:
    """Segment an RGB image and return the class index of each pixel.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image.
        view: scales, mirror images and tiles.
        after_tile: see :func:`sppnet.segment.tiles.segment_tiled`.
    """
    if needs_tiles(model, image, view):
        return segment_tiled(model, image, view, after_tile)
    return pixel_probabilities(model, image, view.scale_factors, view.flip).argmax(0)


def pixel_probabilities(
    model: SegmenterNetwork, image: Image.Image, scale_factors: Sequence[float] = (1.0,), flip: bool = False
) -> Float[Tensor, "classes h w"]:
    """Compute the class probabilities of each pixel, averaged over scales and mirror images.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image.
        scale_factors: factors by which the image is resized.
        flip: whether to add the mirror image at each scale.

    Returns:
        Probabilities in float32 on the CPU, at the size of the image.
    """
    size = (image.height, image.width)
    total = torch.zeros(len(model.config.classes), *size)
    mirrors = (False, True) if flip else (False,)
    for factor in scale_factors:
        height, width = (max(1, round(side * factor)) for side in size)
        resized = image if (height, width) == size else image.resize((width, height), Image.Resampling.BILINEAR)
        for mirror in mirrors:
            with torch.inference_mode():
                x = model.pixels(resized)
                logits = (model(x.flip(3)).flip(3) if mirror else model(x)).float()
                if (height, width) != size:
                    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
                total += logits[0].softmax(0).cpu()
    return total / (len(scale_factors) * len(mirrors))
