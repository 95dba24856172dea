"""Segmentation of an image in one pass, from several scales and mirror images, or in tiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sppnet.inference.memory import format_bytes
from sppnet.inference.tiles import OVERLAP
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter
from sppnet.segment.tiles import segment_tiled


@dataclass(frozen=True)
class View:
    """Scales, mirror images and tiles used to segment an image.

    Attributes:
        scales: factors in 0.1..10 by which the image is resized; the probabilities are averaged. DeepLab v3 (table 6)
            uses 0.5, 0.75, 1, 1.25, 1.5 and 1.75.
        flip: whether to add the mirror image at each scale.
        memory: limit for the process in bytes; an image that would exceed it in one pass is split into tiles. None for
            one pass.
        tile: maximum tile side in pixels, regardless of `memory`; None to compute it from `memory`.
        overlap: minimum overlap of tiles in pixels.
        global_context: whether tiles use the context of the whole image in ASPP's image-level branch.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    memory: int | None = None
    tile: int | None = None
    overlap: int = OVERLAP
    global_context: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ValueError(f"scales: expected factors in 0.1..10, such as 0.75,1,1.25, got {self.scales}")
        for name, value, minimum in (("tile", self.tile, 1), ("overlap", self.overlap, 0), ("memory", self.memory, 1)):
            if value is not None and value < minimum:
                raise ValueError(f"{name}: expected at least {minimum}, got {value}")
        if self.tile is not None and self.several:
            raise ValueError(f"tile: expected None if scales or flip is set, got {self.tile}; omit them to use tiles")

    @property
    def several(self) -> bool:
        """Whether probabilities are averaged over scales or mirror images."""
        return self.scales != (1.0,) or self.flip

    def in_tiles(self, model: Segmenter, image: Image.Image) -> bool:
        """Return whether an image is split into tiles.

        Raises:
            ValueError: the image needs tiles, which cannot be combined with scales or mirror images.
        """
        if self.tile is not None or self.memory is None:
            return self.tile is not None
        height, width = (max(1, round(side * max(self.scales))) for side in (image.height, image.width))
        if whole_fits(model, height, width, self.memory):
            return False
        if self.several:
            raise ValueError(
                f"memory: expected enough for {image.height} x {image.width} pixels at scales {self.scales}, got"
                f" {format_bytes(self.memory)}; raise it, or omit scales and flip to use tiles"
            )
        return True


def segment_image(
    model: Segmenter, image: Image.Image, view: View, after_tile: Callable[[], None] = lambda: None
) -> Int[Tensor, "h w"]:
    """Segment an RGB image and return the class index of each pixel.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image.
        view: scales, mirror images and tiles.
        after_tile: see :func:`sppnet.segment.tiles.segment_tiled`.
    """
    if not view.in_tiles(model, image):
        return pixel_probabilities(model, image, view.scales, view.flip).argmax(0)
    memory = view.memory if view.tile is None else None
    return segment_tiled(
        model,
        image,
        memory=memory,
        tile=view.tile,
        overlap=view.overlap,
        global_context=view.global_context,
        after_tile=after_tile,
    )


def pixel_probabilities(
    model: Segmenter, image: Image.Image, scales: Sequence[float] = (1.0,), flip: bool = False
) -> Float[Tensor, "classes h w"]:
    """Compute the class probabilities of each pixel, averaged over scales and mirror images.

    Args:
        model: segmenter in evaluation mode.
        image: RGB image.
        scales: factors by which the image is resized.
        flip: whether to add the mirror image at each scale.

    Returns:
        Probabilities on the CPU, at the size of the image.
    """
    size = (image.height, image.width)
    total = torch.zeros(len(model.config.classes), *size)
    mirrors = (False, True) if flip else (False,)
    for scale in scales:
        height, width = (max(1, round(side * scale)) for side in size)
        resized = image if (height, width) == size else image.resize((width, height), Image.Resampling.BILINEAR)
        for mirror in mirrors:
            with torch.inference_mode():
                x = model.pixels(resized)
                logits = model(x.flip(3)).flip(3) if mirror else model(x)
                if (height, width) != size:
                    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
                total += logits[0].softmax(0).cpu()
    return total / (len(scales) * len(mirrors))
