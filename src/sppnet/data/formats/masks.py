"""Decoding of segmentation masks to class indices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, Int64, Integer
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from sppnet.data.images import MAX_PIXELS, MAX_SIDE, decode_pixels, exif_transpose, image_size, load_image, open_image
from sppnet.errors import ImageError, list_some
from sppnet.progress import track

IGNORE = -1  # class index of ignored pixels
_UNKNOWN = -2
_ID_COUNT = 1 << 16  # masks have up to 16 bits

Colour = tuple[int, int, int]
Mask = Int16[np.ndarray, "h w"]


@dataclass(frozen=True)
class SegmentationSample:
    """An image file and its mask file."""

    path: Path
    mask: Path


@dataclass(frozen=True)
class LabelMap:
    """Mapping from raw mask values to class indices.

    Attributes:
        classes: class names, in index order.
        ids: class index by raw id. Classes without an id are legal: the data do not contain them.
        ignore: raw ids of ignored pixels.
        colours: class index, or `IGNORE`, by RGB color; None if color masks are not supported.
    """

    classes: tuple[str, ...]
    ids: Mapping[int, int]
    ignore: tuple[int, ...] = (255,)
    colours: Mapping[Colour, int] | None = None

    @cached_property
    def _by_id(self) -> NDArray[np.int16]:
        table = np.full(_ID_COUNT, _UNKNOWN, np.int16)
        table[[value for value in self.ignore if 0 <= value < _ID_COUNT]] = IGNORE
        for value, index in self.ids.items():
            table[value] = index
        return table

    @cached_property
    def _by_color(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Packed colors in sorted order, and their class indices."""
        pairs = sorted((_pack_rgb(color), index) for color, index in (self.colours or {}).items())
        return np.array([color for color, _ in pairs], np.int32), np.array([index for _, index in pairs], np.int16)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def load_mask(
    path: str | Path, labels: LabelMap, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Int16[np.ndarray, "h w"]:
    """Decode a mask to class indices, with `IGNORE` for ignored pixels; the mask's own EXIF orientation is applied.

    Raw ids are the indices (never the colors) of a palette image, or the values of a gray image of 1, 2, 4, 8 or 16
    bits. RGB colors are looked up in ``labels.colours``; if that is None, the channels must be equal and are the id.

    Args:
        path: mask file.
        labels: mapping from ids and colors to classes.
        max_pixels: limit as in `sppnet.data.images.load_image`.
        max_side: limit as in `sppnet.data.images.load_image`.

    Raises:
        ImageError: if the file is missing, empty, truncated, damaged, too large, a JPEG, of an unsupported pixel mode,
            or has an id or color without a class.
    """
    raw = read_raw(path, max_pixels=max_pixels, max_side=max_side)
    if raw.ndim == 3 and labels.colours is not None:
        colors, indices = labels._by_color
        pixels = _pack_rgb(np.moveaxis(raw, 2, 0).astype(np.int32))
        position = np.searchsorted(colors, pixels).clip(max=len(colors) - 1)
        mask = np.where(colors[position] == pixels, indices[position], np.int16(_UNKNOWN))
        if mask.min() == _UNKNOWN:
            raise ImageError(str(path), _unknown_colors(pixels[mask == _UNKNOWN]))
        return mask
    ids = raw_ids(raw, path)
    mask = labels._by_id.take(ids)
    if mask.min() == _UNKNOWN:
        raise ImageError(str(path), _unknown_ids(ids[mask == _UNKNOWN], labels))
    return mask


def load_pair(sample: SegmentationSample, labels: LabelMap) -> tuple[Image.Image, Mask]:
    """Decode an image and its mask with `sppnet.data.images.load_image`, `load_mask` and `upright`.

    Raises:
        ImageError: if either file cannot be used, or their sizes differ.
    """
    image = load_image(sample.path)
    return image, orient_mask(load_mask(sample.mask, labels), sample, (image.height, image.width))


def orient_mask(mask: Mask, sample: SegmentationSample, size: tuple[int, int]) -> Int16[np.ndarray, "rows columns"]:
    """Apply the EXIF orientation of the image to a mask that was drawn on the stored, unrotated pixels.

    This is detected by size: the orientation swaps height and width, and the mask has the stored size of the image. It
    cannot be detected if the image is square, mirrored or rotated by 180 degrees; the mask is then returned unchanged.

    Args:
        mask: class indices from `load_mask`.
        sample: files of the mask and its image.
        size: (height, width) of the image with its EXIF orientation applied.

    Raises:
        ImageError: if the sizes of the mask and the image differ.
    """
    if mask.shape == size:
        return mask
    with open_image(str(sample.path)) as image:
        transposition = exif_transpose(image)
        stored = (image.height, image.width)
    if transposition is not None and mask.shape == stored == size[::-1]:
        return np.asarray(Image.fromarray(mask.view(np.uint16)).transpose(transposition)).view(np.int16)
    raise ImageError(
        str(sample.mask),
        f"mask size: expected {size[0]} x {size[1]} (height x width), the size of its image {sample.path}, got"
        f" {mask.shape[0]} x {mask.shape[1]}",
    )


class PixelCounts(NamedTuple):
    """Pixel counts of the masks of a data set.

    Attributes:
        pixels: number of pixels of each class.
        shown: number of non-ignored pixels, of any class, in the images that contain each class, for median frequency
            balancing (SegNet, section 3).
        failures: errors of samples that were not counted: unreadable files, different sizes, ids without a class.
    """

    pixels: Int64[Tensor, " k"]
    shown: Int64[Tensor, " k"]
    failures: list[ImageError]


def count_pixels(samples: Sequence[SegmentationSample], labels: LabelMap) -> PixelCounts:
    """Decode all masks, check their sizes against the image headers, and count the pixels of each class.

    Args:
        samples: image and mask files.
        labels: mapping from ids and colors to classes.
    """
    pixels, shown = np.zeros((2, len(labels.classes)), np.int64)
    failures = []
    for sample in track(samples, "masks", len(samples)):
        try:
            mask = orient_mask(load_mask(sample.mask, labels), sample, image_size(sample.path))
        except ImageError as error:
            failures.append(error)
            continue
        counts = np.bincount(mask.ravel() - IGNORE, minlength=1 + len(pixels))[1:]
        pixels += counts
        shown[counts > 0] += counts.sum()
    return PixelCounts(torch.from_numpy(pixels), torch.from_numpy(shown), failures)


def find_ids(samples: Sequence[SegmentationSample]) -> tuple[set[int], list[ImageError]]:
    """Collect the raw ids in all masks, and the errors of masks that cannot be read or are in color."""
    present = np.zeros(_ID_COUNT, bool)
    failures = []
    for sample in track(samples, "ids of the masks", len(samples)):
        try:
            present[raw_ids(read_raw(sample.mask), sample.mask)] = True
        except ImageError as error:
            failures.append(error)
    return set(np.flatnonzero(present).tolist()), failures


def read_raw(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Integer[np.ndarray, "h w *rgb"]:
    """Decode the raw ids of a mask, or its colors if it has three channels.

    Args:
        path: mask file.
        max_pixels: limit as in `sppnet.data.images.load_image`.
        max_side: limit as in `sppnet.data.images.load_image`.

    Raises:
        ImageError: see `load_mask`.
    """
    path = str(path)
    with open_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise ImageError(path, "JPEG compression changes the ids of a mask; save masks as PNG")
        scale = _gray_scale(image)
        decode_pixels(image, path, max_pixels=max_pixels, max_side=max_side)
        transposition = exif_transpose(image)
        pixels = np.asarray(image if transposition is None else image.transpose(transposition))
        mode = image.mode
    if mode in ("LA", "RGBA"):
        if pixels[..., -1].min() < 255:
            raise ImageError(path, f"the mask has transparent pixels (mode {mode}); save it without an alpha channel")
        return pixels[..., 0] if mode == "LA" else pixels[..., :3]
    if mode not in ("1", "L", "P", "RGB") and not mode.startswith("I"):
        raise ImageError(path, f"mask mode: expected a palette, gray or RGB image, got {mode}; save masks as PNG")
    if mode.startswith("I") and not 0 <= pixels.min() <= pixels.max() < _ID_COUNT:
        raise ImageError(path, f"mask ids: expected 0 to {_ID_COUNT - 1}, got {pixels.min()} to {pixels.max()}")
    return pixels.astype(np.uint8) if mode == "1" else pixels // scale if scale > 1 else pixels


def raw_ids(raw: Integer[np.ndarray, "h w *rgb"], path: str | Path) -> Integer[np.ndarray, "h w"]:
    """Return the raw ids of a mask without using a color table; three equal channels count as gray.

    Args:
        raw: ids or colors from `read_raw`.
        path: mask file, for the message.

    Raises:
        ImageError: if the channels differ.
    """
    if raw.ndim == 2:
        return raw
    red = raw[..., 0]
    colored = (raw[..., 1] != red) | (raw[..., 2] != red)
    if colored.any():
        raise ImageError(
            str(path),
            f"the mask has colors, such as {_format_rgb(raw[colored][0])}, without a color table; give a .csv class"
            " file with the columns name,r,g,b",
        )
    return red


def _gray_scale(image: ImageFile.ImageFile) -> int:
    """Return the factor by which Pillow stretches the values of a gray image of 2 or 4 bits to 0 to 255."""
    raw_mode = image.tile[0].args if image.tile else None
    return {"L;2": 85, "L;4": 17}.get(raw_mode if isinstance(raw_mode, str) else "", 1)


def _pack_rgb(rgb: Any) -> Any:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _format_rgb(rgb: Sequence[int] | NDArray[Any]) -> str:
    return f"({', '.join(str(int(value)) for value in rgb)})"


def _unknown_colors(pixels: NDArray[np.int32]) -> str:
    values, counts = np.unique(pixels, return_counts=True)
    colors = list_some(
        f"{_format_rgb((value >> 16, value >> 8 & 255, value & 255))} ({count} pixels)"
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    )
    return f"colors without a class: {colors}; to ignore a color, add it to the class file with the id -1"


def _unknown_ids(ids: NDArray[Any], labels: LabelMap) -> str:
    values, counts = np.unique(ids, return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    unknown = list_some(f"{value} ({count} pixels)" for value, count in pairs)
    return (
        f"ids without a class: {unknown}; expected {format_ranges(labels.ids)} (classes) or"
        f" {format_ranges(labels.ignore) or 'none'} (ignored)"
    )


def format_ranges(values: Iterable[int]) -> str:
    """Format integers for a message, such as ``0 to 10, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return list_some(f"{low} to {high}" if low < high else f"{low}" for low, high in runs)
