"""Decoding of segmentation masks to class indices."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int16, Int64
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sppnet.data.formats.mask_values import (
    ID_COUNT,
    WHITE,
    RawMask,
    decode_mask,
    format_packed,
    pack_rgb,
    raw_ids,
    read_raw,
)
from sppnet.data.formats.polygons import PolygonMask
from sppnet.data.images import MAX_PIXELS, MAX_SIDE, exif_transpose, image_size, load_image, open_image
from sppnet.data.items import Problem, Problems
from sppnet.errors import ImageError, list_some
from sppnet.progress import track

IGNORE = -1  # class index of ignored pixels
_UNKNOWN = -2

Colour = tuple[int, int, int]
Mask = Int16[np.ndarray, "h w"]


@dataclass(frozen=True)
class SegmentationSample:
    """An image file and its mask: a file, or polygons and run-length encodings."""

    path: Path
    mask: Path | PolygonMask


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
        table = np.full(ID_COUNT, _UNKNOWN, np.int16)
        table[[value for value in self.ignore if 0 <= value < ID_COUNT]] = IGNORE
        for value, index in self.ids.items():
            table[value] = index
        return table

    @cached_property
    def _by_color(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Packed colors in sorted order, and their class indices."""
        pairs = sorted((pack_rgb(color), index) for color, index in (self.colours or {}).items())
        return np.array([color for color, _ in pairs], np.int32), np.array([index for _, index in pairs], np.int16)

    @cached_property
    def has_gray_colors_only(self) -> bool:
        """Whether all colors are gray, so that gray masks can have all of them."""
        return bool(self.colours) and all(len(set(color)) == 1 for color in self.colours or ())

    def find_colors(self, pixels: NDArray[np.int32]) -> NDArray[np.int16]:
        """Return the class index of each packed color, or a value below `IGNORE` for unknown colors."""
        colors, indices = self._by_color
        if not len(colors):
            return np.full(pixels.shape, _UNKNOWN, np.int16)
        position = np.searchsorted(colors, pixels).clip(max=len(colors) - 1)
        return np.where(colors[position] == pixels, indices[position], np.int16(_UNKNOWN))

    def __getstate__(self) -> dict[str, Any]:
        return {field: value for field, value in vars(self).items() if field in self.__dataclass_fields__}


def load_mask(
    path: str | Path | PolygonMask, labels: LabelMap, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Int16[np.ndarray, "h w"]:
    """Decode a mask to class indices, with `IGNORE` for ignored pixels; the mask's own EXIF orientation is applied.

    Raw ids are the indices of a palette image, or the values of a gray image of 1, 2, 4, 8 or 16 bits as stored in the
    file (also in a TIFF in which 0 is white). RGB colors are looked up in ``labels.colours``; if that is None, the
    channels must be equal and are the id.

    If ``labels.colours`` is given, the colors of palette masks count, too, and so do those of gray masks if all colors
    in the table are gray, or if a value is not an id. The ids count if the mask has other colors than the table, such
    as a palette for display.

    Args:
        path: mask file, or polygons.
        labels: mapping from ids and colors to classes.
        max_pixels: limit as in `sppnet.data.images.load_image`.
        max_side: limit as in `sppnet.data.images.load_image`.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, too large, a JPEG, of an unsupported pixel mode, has
            an id or color without a class, or its ids and colors contradict each other.
    """
    raw = decode_mask(path, max_pixels, max_side)
    if labels.colours is not None:
        if raw.values.ndim == 3:
            pixels = pack_rgb(np.moveaxis(raw.values, 2, 0).astype(np.int32))
            mask = labels.find_colors(pixels)
            if mask.min() == _UNKNOWN:
                raise ImageError(str(path), _unknown_colors(pixels[mask == _UNKNOWN]), "unknown-id")
            return mask
        present = np.flatnonzero(np.bincount(raw.values.ravel()))
        if (by_color := _choose_colors(raw, present, labels, str(path))) is not None:
            table = np.full(present[-1] + 1, _UNKNOWN, np.int16)
            table[present] = by_color
            return table.take(raw.values)
    ids = raw_ids(raw.values, path)
    mask = labels._by_id.take(ids)
    if mask.min() == _UNKNOWN:
        raise ImageError(str(path), _unknown_ids(ids[mask == _UNKNOWN], labels), "unknown-id")
    return mask


def _choose_colors(raw: RawMask, present: NDArray[np.int64], labels: LabelMap, path: str) -> NDArray[np.int16] | None:
    """Return the class index of each value of a mask by its color; None if the value is an id.

    Raises:
        ImageError: ids and colors contradict each other.
    """
    colors = raw.colors(present)
    by_color, by_id = labels.find_colors(colors), labels._by_id[present]
    known, usable = by_color != _UNKNOWN, by_id != _UNKNOWN
    differs = known & usable & (by_color != by_id)
    shows_colors = labels.has_gray_colors_only or not raw.is_gray(present)
    if known.all() and (shows_colors or not usable.all() or not (differs & (by_id != IGNORE)).any()):
        return by_color
    if usable.all() and not (differs.any() and (shows_colors or known.all())):
        return None
    if differs.any():
        first = int(differs.argmax())
        by = [_class_of(labels, int(indices[first])) for indices in (by_id, by_color)]
        raise ImageError(
            path,
            f"the value {present[first]} of the mask is the id of {by[0]}, but its color"
            f" {format_packed(int(colors[first]))} that of {by[1]}; save the mask as RGB with the colors of the class"
            " file, or give a class file without colors if it holds ids",
            "unknown-id",
        )
    if shows_colors and known.any():
        counts = np.bincount(raw.values.ravel())[present]
        raise ImageError(path, _unknown_colors(np.repeat(colors[~known], counts[~known])), "unknown-id")
    return None


def _class_of(labels: LabelMap, index: int) -> str:
    return "an ignored pixel" if index == IGNORE else f"the class {labels.classes[index]}"


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
        "mask-size",
    )


class PixelCounts(NamedTuple):
    """Pixel counts of the masks of a data set.

    Attributes:
        pixels: number of pixels of each class.
        shown: number of non-ignored pixels, of any class, in the images that contain each class, for median frequency
            balancing (SegNet, section 3).
        failures: errors of samples that were not counted: unreadable files, different sizes, ids without a class.
        problems: masks without a boundary between classes.
    """

    pixels: Int64[Tensor, " k"]
    shown: Int64[Tensor, " k"]
    failures: list[ImageError]
    problems: Sequence[Problem] = ()


def count_pixels(samples: Sequence[SegmentationSample], labels: LabelMap) -> PixelCounts:
    """Decode all masks, check their sizes against the image headers, and count the pixels of each class.

    Args:
        samples: image and mask files.
        labels: mapping from ids and colors to classes.
    """
    pixels, shown = np.zeros((2, len(labels.classes)), np.int64)
    failures, problems = [], Problems()
    for sample in track(samples, "masks", len(samples)):
        try:
            counts = count_mask(sample, labels, image_size(sample.path), problems)
        except ImageError as error:
            failures.append(error)
            continue
        pixels += counts
        shown[counts > 0] += counts.sum()
    return PixelCounts(torch.from_numpy(pixels), torch.from_numpy(shown), failures, problems)


def count_mask(
    sample: SegmentationSample, labels: LabelMap, size: tuple[int, int], problems: Problems
) -> Int64[np.ndarray, " k"]:
    """Decode a mask, check its size, and count the pixels of each class.

    Args:
        sample: files of the mask and its image.
        labels: mapping from ids and colors to classes.
        size: (height, width) of the upright image.
        problems: receives masks of a single class, or without one.

    Raises:
        ImageError: the mask cannot be used.
    """
    mask = orient_mask(load_mask(sample.mask, labels), sample, size)
    counts = np.bincount(mask.ravel() - IGNORE, minlength=1 + len(labels.classes))[1:]
    present = np.flatnonzero(counts)
    if len(present) < 2:
        text = f"have the class {labels.classes[present[0]]}" if len(present) else "are ignored"
        problems.report(Path(str(sample.mask)), "one-value", f"all pixels{' that count' * bool(len(present))} {text}")
    return counts


def holds_0_and_255(samples: Sequence[SegmentationSample], labels: LabelMap) -> bool:
    """Return whether the readable masks hold the ids 0 and 255, or only 255, which could be a class or ignored.

    Reading stops at the first mask with another id, or with a color of the table.
    """
    has_white = False
    for sample in samples:
        try:
            raw = decode_mask(sample.mask)
            ids = raw_ids(raw.values, sample.mask) if raw.values.ndim == 2 or labels.colours is None else None
        except ImageError:
            continue
        present = None if ids is None else np.flatnonzero(np.bincount(ids.ravel()))
        if present is None or not set(present.tolist()) <= {0, WHITE}:
            return False
        if WHITE in present and labels.find_colors(raw.colors(np.array([WHITE])))[0] != _UNKNOWN:
            return False
        has_white |= WHITE in present
    return has_white


def find_ids(samples: Sequence[SegmentationSample]) -> tuple[set[int], list[ImageError]]:
    """Collect the raw ids in all masks, and the errors of masks that cannot be read or are in color."""
    is_present = np.zeros(ID_COUNT, bool)
    failures = []
    for sample in track(samples, "ids of the masks", len(samples)):
        try:
            is_present[raw_ids(read_raw(sample.mask), sample.mask)] = True
        except ImageError as error:
            failures.append(error)
    return set(np.flatnonzero(is_present).tolist()), failures


def _unknown_colors(pixels: NDArray[np.int32]) -> str:
    values, counts = np.unique(pixels, return_counts=True)
    colors = list_some(
        f"{format_packed(value)} ({count} pixels)"
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
