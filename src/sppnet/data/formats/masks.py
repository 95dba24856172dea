"""Decoding of segmentation masks, and the classes that their ids stand for."""

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

from sppnet.console import track
from sppnet.data.images import (
    MAX_PIXELS,
    MAX_SIDE,
    decode_pixels,
    exif_turn,
    image_size,
    load_image,
    open_image,
)
from sppnet.errors import ImageError, list_some

IGNORE = -1  # class index of pixels that do not count
_UNKNOWN = -2
_IDS = 1 << 16  # more than any id of a 16-bit mask

Colour = tuple[int, int, int]
Mask = Int16[np.ndarray, "h w"]


@dataclass(frozen=True)
class SegmentationSample:
    """An image file and the file of its mask."""

    path: Path
    mask: Path


@dataclass(frozen=True)
class LabelMap:
    """What the pixels of masks stand for.

    Attributes:
        classes: names; class indices count from 0.
        ids: class index of each raw id, as masks have it. A class may have none: data that lack it.
        ignore: raw ids of pixels that do not count.
        colours: class index of each RGB colour, or `IGNORE`; None where masks in colours cannot be read.
    """

    classes: tuple[str, ...]
    ids: Mapping[int, int]
    ignore: tuple[int, ...] = (255,)
    colours: Mapping[Colour, int] | None = None

    @cached_property
    def _by_id(self) -> NDArray[np.int16]:
        table = np.full(_IDS, _UNKNOWN, np.int16)
        table[[value for value in self.ignore if 0 <= value < _IDS]] = IGNORE
        for value, index in self.ids.items():
            table[value] = index
        return table

    @cached_property
    def _by_colour(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        """Sorted colours as numbers, and the class index of each."""
        found = sorted((_number(colour), index) for colour, index in (self.colours or {}).items())
        return np.array([number for number, _ in found], np.int32), np.array([index for _, index in found], np.int16)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}


def load_mask(
    path: str | Path, labels: LabelMap, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Int16[np.ndarray, "h w"]:
    """Decodes a mask to class indices, `IGNORE` for pixels that do not count; its own EXIF orientation is applied.

    Raw ids are the indices of a palette image (never its colours), or the values of a grey one of 1, 2, 4, 8 or 16
    bits. Red, green and blue are looked up in ``labels.colours``; without those they must be equal, and are the id.

    Args:
        path: of the mask.
        labels: what the ids and colours stand for.
        max_pixels: as for `sppnet.data.images.load_image`.
        max_side: as for `sppnet.data.images.load_image`.

    Raises:
        ImageError: if the file is missing, empty, truncated, damaged, too large, a JPEG or of another kind of pixels,
            or has an id or a colour that stands for nothing.
    """
    raw = read_raw(path, max_pixels=max_pixels, max_side=max_side)
    if raw.ndim == 3 and labels.colours is not None:
        numbers, indices = labels._by_colour
        found = _number(np.moveaxis(raw, 2, 0).astype(np.int32))
        place = np.searchsorted(numbers, found).clip(max=len(numbers) - 1)
        mask = np.where(numbers[place] == found, indices[place], np.int16(_UNKNOWN))
        if mask.min() == _UNKNOWN:
            raise ImageError(str(path), _unknown_colours(found[mask == _UNKNOWN]))
        return mask
    ids = raw_ids(raw, path)
    mask = labels._by_id.take(ids)
    if mask.min() == _UNKNOWN:
        raise ImageError(str(path), _unknown_ids(ids[mask == _UNKNOWN], labels))
    return mask


def load_pair(sample: SegmentationSample, labels: LabelMap) -> tuple[Image.Image, Mask]:
    """Decodes an image and its mask, see `sppnet.data.images.load_image`, `load_mask` and `upright`.

    Raises:
        ImageError: if one of the two cannot be used, or their sizes differ.
    """
    image = load_image(sample.path)
    return image, upright(load_mask(sample.mask, labels), sample, (image.height, image.width))


def upright(mask: Mask, sample: SegmentationSample, size: tuple[int, int]) -> Int16[np.ndarray, "rows columns"]:
    """The mask, turned as its image is where it was drawn on the stored pixels.

    That shows where the image's EXIF orientation turns it on its side, and the mask has the size of before. An image
    that is as high as wide, is mirrored or stands on its head tells nothing: there the mask is taken as it is.

    Args:
        mask: as `load_mask` gives it.
        sample: of which the mask is.
        size: (height, width) of the image, upright.

    Raises:
        ImageError: if the mask has another size than the image.
    """
    if mask.shape == size:
        return mask
    with open_image(str(sample.path)) as image:
        turn = exif_turn(image)
        stored = (image.height, image.width)
    if turn is not None and mask.shape == stored == size[::-1]:
        return np.asarray(Image.fromarray(mask.view(np.uint16)).transpose(turn)).view(np.int16)
    raise ImageError(
        str(sample.mask),
        f"the mask is of {mask.shape[0]} x {mask.shape[1]} (height x width), but its image {sample.path} of"
        f" {size[0]} x {size[1]}; both must have the same size",
    )


class PixelCounts(NamedTuple):
    """What the masks of a data set hold.

    Attributes:
        pixels: of each class.
        shown: pixels that count of the images that show a class, for median frequency balancing (SegNet, section 3).
        failures: a mask or image header that cannot be read, sizes that differ, ids that stand for nothing.
    """

    pixels: Int64[Tensor, " k"]
    shown: Int64[Tensor, " k"]
    failures: list[ImageError]


def count_pixels(samples: Sequence[SegmentationSample], labels: LabelMap) -> PixelCounts:
    """Decodes every mask, checks it against its image's header, and counts pixels; masks with an error count nothing.

    Args:
        samples: whose masks are read.
        labels: what the ids and colours stand for.
    """
    pixels, shown = np.zeros((2, len(labels.classes)), np.int64)
    failures = []
    for sample in track(samples, "masks", len(samples)):
        try:
            mask = upright(load_mask(sample.mask, labels), sample, image_size(sample.path))
        except ImageError as error:
            failures.append(error)
            continue
        counts = np.bincount(mask.ravel() - IGNORE, minlength=1 + len(pixels))[1:]
        pixels += counts
        shown[counts > 0] += counts.sum()
    return PixelCounts(torch.from_numpy(pixels), torch.from_numpy(shown), failures)


def find_ids(samples: Sequence[SegmentationSample]) -> tuple[set[int], list[ImageError]]:
    """The raw ids that masks have, and the errors of those that cannot be read or are in colours."""
    found = np.zeros(_IDS, bool)
    failures = []
    for sample in track(samples, "ids of the masks", len(samples)):
        try:
            found[raw_ids(read_raw(sample.mask), sample.mask)] = True
        except ImageError as error:
            failures.append(error)
    return set(np.flatnonzero(found).tolist()), failures


def read_raw(
    path: str | Path, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Integer[np.ndarray, "h w *rgb"]:
    """Decodes the raw ids of a mask, or its colours where it has three channels.

    Args:
        path: of the mask.
        max_pixels: as for `sppnet.data.images.load_image`.
        max_side: as for `sppnet.data.images.load_image`.

    Raises:
        ImageError: see `load_mask`.
    """
    path = str(path)
    with open_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise ImageError(path, "a JPEG mask: its compression changes ids; save masks as PNG")
        scale = _scale(image)
        decode_pixels(image, path, max_pixels=max_pixels, max_side=max_side)
        turn = exif_turn(image)
        pixels = np.asarray(image if turn is None else image.transpose(turn))
        mode = image.mode
    if mode in ("LA", "RGBA"):
        if pixels[..., -1].min() < 255:
            raise ImageError(path, f"a mask with transparent pixels (mode {mode}); save it without alpha")
        return pixels[..., 0] if mode == "LA" else pixels[..., :3]
    if mode not in ("1", "L", "P", "RGB") and not mode.startswith("I"):
        raise ImageError(path, f"a mask of mode {mode}; it must be a palette, grey or RGB image, such as a PNG")
    if mode.startswith("I") and not 0 <= pixels.min() <= pixels.max() < _IDS:
        raise ImageError(path, f"ids {pixels.min()} to {pixels.max()}; they must be 0 to {_IDS - 1}")
    return pixels.astype(np.uint8) if mode == "1" else pixels // scale if scale > 1 else pixels


def raw_ids(raw: Integer[np.ndarray, "h w *rgb"], path: str | Path) -> Integer[np.ndarray, "h w"]:
    """The raw ids of a mask without a table of colours: equal channels count as grey.

    Args:
        raw: as `read_raw` gives it.
        path: for the message.

    Raises:
        ImageError: if it is in colours.
    """
    if raw.ndim == 2:
        return raw
    grey = raw[..., 0]
    other = (raw[..., 1] != grey) | (raw[..., 2] != grey)
    if other.any():
        raise ImageError(
            str(path),
            f"a mask in colours, such as {_text(raw[other][0])}, and no colours of classes are known; give a class"
            " file .csv with the columns name,r,g,b",
        )
    return grey


def _scale(image: ImageFile.ImageFile) -> int:
    """By what Pillow multiplies the ids of a grey image of 2 or 4 bits, to spread them over 0 to 255."""
    form = image.tile[0].args if image.tile else None
    return {"L;2": 85, "L;4": 17}.get(form if isinstance(form, str) else "", 1)


def _number(rgb: Any) -> Any:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def _text(rgb: Sequence[int] | NDArray[Any]) -> str:
    return f"({', '.join(str(int(value)) for value in rgb)})"


def _unknown_colours(numbers: NDArray[np.int32]) -> str:
    values, counts = np.unique(numbers, return_counts=True)
    found = list_some(
        f"{_text((value >> 16, value >> 8 & 255, value & 255))} ({count} pixels)"
        for value, count in zip(values.tolist(), counts.tolist(), strict=True)
    )
    return f"colours that stand for no class: {found}; a row of the class file with the id -1 has a colour ignored"


def _unknown_ids(ids: NDArray[Any], labels: LabelMap) -> str:
    values, counts = np.unique(ids, return_counts=True)
    pairs = zip(values.tolist(), counts.tolist(), strict=True)
    found = list_some(f"{value} ({count} pixels)" for value, count in pairs)
    return (
        f"ids that stand for no class: {found}; the {len(labels.classes)} classes have {ranges(labels.ids)}, and"
        f" {ranges(labels.ignore) or 'nothing'} is ignored"
    )


def ranges(values: Iterable[int]) -> str:
    """Numbers for a message, such as ``0 to 10, 255``."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return list_some(f"{low} to {high}" if low < high else f"{low}" for low, high in runs)
