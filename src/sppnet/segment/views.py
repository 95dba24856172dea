"""Segmentation of an image in one pass, from several scales and mirror images, or in tiles."""

import math
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Float, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from sppnet.backbones.modes import evaluation_mode
from sppnet.data.images import ImageSource, image_size, load_image
from sppnet.errors import ImageError
from sppnet.inference import parallel
from sppnet.inference.memory import MemoryLimitError, format_bytes, settled_bytes
from sppnet.inference.tiles import tile_spans
from sppnet.segment.memory import whole_bytes, whole_fits
from sppnet.segment.network import SegmenterNetwork
from sppnet.segment.options import View
from sppnet.segment.tiles import segment_tiled, tile_stride

S = TypeVar("S")
L = TypeVar("L")
T = TypeVar("T")

_PIXELS = 8_000_000


def check_view(model: SegmenterNetwork, view: View) -> None:
    """Check what a view requires of a model, whatever the images.

    Raises:
        ValueError: the tile side or the overlap is illegal for the stride of the model, or the model does not support a
            global context.
    """
    if view.global_context:
        model.require_image_level()
    if view.tile is not None or (view.memory is not None and not view.several):
        stride = tile_stride(model)
        tile_spans(1, view.tile or 2 * stride * (view.overlap + 1), view.overlap, stride)


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


def map_images(
    model: SegmenterNetwork,
    load: Callable[[S, View], L],
    run: Callable[[L, View], T],
    items: Iterable[S],
    source: Callable[[S], ImageSource],
    view: View,
) -> Generator[T, None, None]:
    """Yield ``run(load(item, view), view)`` for each item, in order, with the model in evaluation mode.

    On the CPU, as many images are in process at a time as torch uses threads and as the memory limit of the view
    allows, see :func:`sppnet.inference.parallel.map_ordered`. Their view has no limit. Without a limit, they have at
    most 8 million pixels together. Images that are split into tiles, or larger, are processed one at a time.

    Args:
        model: segmenter.
        load: function that reads the image of an item.
        run: function of the loaded image.
        items: items with an image each.
        source: function that returns the image of an item; only the header of a file is read.
        view: scales, mirror images, memory limit and tiles.
    """
    free = None if view.memory is None else view.memory - settled_bytes()
    unlimited = replace(view, memory=None)

    def share(item: S) -> float:
        if view.tile is not None or (free is not None and free <= 0):
            return math.inf
        try:
            size = _size(source(item))
        except ImageError:  # to be reported by load
            return 0
        height, width = (max(1, round(side * max(view.scale_factors))) for side in size)
        if free is None:
            return height * width / _PIXELS
        return whole_bytes(model, height, width) / free

    def load_sized(entry: tuple[S, float]) -> tuple[L, View]:
        item, size = entry
        allowed = view if size > 1 else unlimited
        return load(item, allowed), allowed

    sized = ((item, share(item)) for item in items)
    results = parallel.map_images(load_sized, lambda loaded: run(*loaded), sized, model.device, lambda entry: entry[1])
    with evaluation_mode(model), closing(results):
        yield from results


def _size(source: ImageSource) -> tuple[int, int]:
    if isinstance(source, str | os.PathLike | bytes):
        return image_size(source)
    image = load_image(source)
    return image.height, image.width


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
    return segment_scored(model, image, view, after_tile)[0]


def segment_scored(
    model: SegmenterNetwork, image: Image.Image, view: View, after_tile: Callable[[], None] = lambda: None
) -> tuple[Integer[Tensor, "h w"], Float[Tensor, "h w"] | None]:
    """Return the labels of :func:`segment_image` and their probabilities; None for an image split into tiles."""
    if needs_tiles(model, image, view):
        return segment_tiled(model, image, view, after_tile), None
    probabilities = pixel_probabilities(model, image, view.scale_factors, view.flip)
    return probabilities.argmax(0), probabilities.amax(0)


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
