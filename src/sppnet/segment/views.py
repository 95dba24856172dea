"""The classes of an image's pixels: in one pass, from several views, or in tiles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sppnet.inference.tiles import OVERLAP
from sppnet.segment.memory import whole_fits
from sppnet.segment.model import Segmenter
from sppnet.segment.tiles import segment_tiled


@dataclass(frozen=True)
class View:
    """How an image is looked at.

    Attributes:
        scales: factors by which it is resized before it is looked at, in 0.1..10; the probabilities are averaged.
            DeepLab v3 (table 6) takes 0.5, 0.75, 1, 1.25, 1.5 and 1.75.
        flip: look at its mirror image at each scale, too.
        memory: bytes that the process may hold; an image that takes more in one pass is looked at in tiles. None for
            one pass.
        tile: side of tiles in pixels, whatever the memory; None to go by `memory`.
        overlap: of tiles, in pixels.
        global_context: tiles see the whole image in ASPP's image-level branch.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    memory: int | None = None
    tile: int | None = None
    overlap: int = OVERLAP
    global_context: bool = False

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ValueError(f"scales: expected factors in 0.1..10, such as 0.75,1,1.25; got {self.scales}")
        for name, value, least in (("tile", self.tile, 1), ("overlap", self.overlap, 0), ("memory", self.memory, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}; got {value}")
        if self.tile is not None and self.several:
            raise ValueError("tile: tiles are looked at once each; leave scales and flip out")

    @property
    def several(self) -> bool:
        """Whether there is more than the image itself to look at."""
        return self.scales != (1.0,) or self.flip

    def in_tiles(self, model: Segmenter, image: Image.Image) -> bool:
        """Whether this image is looked at in tiles.

        Raises:
            ValueError: it is, but there are several scales or mirror images to look at.
        """
        if self.tile is not None or self.memory is None:
            return self.tile is not None
        height, width = (max(1, round(side * max(self.scales))) for side in (image.height, image.width))
        if whole_fits(model, height, width, self.memory):
            return False
        if self.several:
            raise ValueError(
                f"memory: {image.height} x {image.width} pixels at scales {self.scales} do not fit, and tiles are"
                " looked at once each; raise it, or leave scales and flip out"
            )
        return True


def label_image(
    model: Segmenter, image: Image.Image, view: View, after_tile: Callable[[], None] = lambda: None
) -> Int[Tensor, "h w"]:
    """The class of each pixel of an RGB image; `after_tile` may end it, as in :func:`sppnet.segment.tiles.segment_tiled`."""
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
    """Probability of each class at each pixel of an RGB image, averaged over scales and mirror images.

    Args:
        model: in evaluation mode.
        image: RGB.
        scales: see :class:`View`.
        flip: see :class:`View`.

    Returns:
        On the CPU, of the image's own size.
    """
    size = (image.height, image.width)
    total = torch.zeros(len(model.config.classes), *size)
    mirrors = (False, True) if flip else (False,)
    for scale in scales:
        height, width = (max(1, round(side * scale)) for side in size)
        seen = image if (height, width) == size else image.resize((width, height), Image.Resampling.BILINEAR)
        for mirror in mirrors:
            with torch.inference_mode():
                x = model.pixels(seen)
                logits = model(x.flip(3)).flip(3) if mirror else model(x)
                if (height, width) != size:
                    logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
                total += logits[0].softmax(0).cpu()
    return total / (len(scales) * len(mirrors))
