"""Decoding of mask files to ids and colors, without a class table."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer
from numpy.typing import NDArray
from PIL import ImageFile

from sppnet.data.formats.polygons import PolygonMask
from sppnet.data.headers import raw_mode
from sppnet.data.images import MAX_PIXELS, MAX_SIDE, decode_pixels, exif_transpose, open_image
from sppnet.errors import ImageError

ID_COUNT = 1 << 16  # masks have up to 16 bits
WHITE = 255  # foreground of binary masks, but usually an ignored id
_MIN_IS_WHITE = re.compile("[1L];[24]?IR?")  # layouts that Pillow inverts


@dataclass(frozen=True)
class RawMask:
    """A decoded mask file.

    Attributes:
        values: ids, or colors if there are three channels.
        palette: color of each id of a palette image.
        shades: gray level of the id 0, and of each step to the next id, on the scale 0 to 255.
    """

    values: NDArray[Any]
    palette: NDArray[np.int32] | None = None
    shades: tuple[int, int] = (0, 1)

    def colors(self, ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the packed colors of ids, -1 for ids without a color."""
        if self.palette is not None:
            return np.where(ids < len(self.palette), self.palette[ids.clip(max=len(self.palette) - 1)], -1)
        gray = self.shades[0] + self.shades[1] * ids
        if gray.max() > WHITE:  # 16 bits
            gray = np.where(gray % 257 == 0, gray // 257, -1)
        return np.where(gray < 0, -1, gray * 0x010101).astype(np.int32)

    def is_gray(self, ids: NDArray[np.int64]) -> bool:
        """Return whether the image is gray, or its palette has the gray level of each id."""
        return self.palette is None or bool((self.colors(ids) == ids * 0x010101).all())


def decode_mask(path: str | Path | PolygonMask, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE) -> RawMask:
    """Decode the ids and colors of a mask; see `read_raw`."""
    if isinstance(path, PolygonMask):
        return RawMask(path.rasterize(max_pixels, max_side))
    path = str(path)
    with open_image(path) as image:
        if image.format in ("JPEG", "MPO"):
            raise ImageError(path, "JPEG compression changes the ids of a mask; save masks as PNG")
        scale = _gray_scale(image)
        white_is_0 = image.format == "TIFF" and bool(_MIN_IS_WHITE.fullmatch(raw_mode(image)))
        decode_pixels(image, path, max_pixels=max_pixels, max_side=max_side)
        transposition = exif_transpose(image)
        pixels = np.asarray(image if transposition is None else image.transpose(transposition))
        mode = image.mode
        palette = image.getpalette("RGB") if mode == "P" else None
    if mode in ("LA", "RGBA"):
        if pixels[..., -1].min() < 255:
            raise ImageError(path, f"the mask has transparent pixels (mode {mode}); save it without an alpha channel")
        return RawMask(pixels[..., 0] if mode == "LA" else pixels[..., :3])
    if mode not in ("1", "L", "P", "RGB") and not mode.startswith("I"):
        raise ImageError(path, f"mask mode: expected a palette, gray or RGB image, got {mode}; save masks as PNG")
    if mode.startswith("I") and not 0 <= pixels.min() <= pixels.max() < ID_COUNT:
        raise ImageError(path, f"mask ids: expected 0 to {ID_COUNT - 1}, got {pixels.min()} to {pixels.max()}")
    if mode == "1":
        pixels, scale = pixels.astype(np.uint8) * 255, 255
    if white_is_0:
        return RawMask((255 - pixels) // scale, shades=(255, -scale))
    packed = None if palette is None else pack_rgb(np.array(palette, np.int32).reshape(-1, 3).T)
    return RawMask(pixels // scale if scale > 1 else pixels, packed, (0, scale))


def read_raw(
    path: str | Path | PolygonMask, *, max_pixels: int = MAX_PIXELS, max_side: int = MAX_SIDE
) -> Integer[np.ndarray, "h w *rgb"]:
    """Decode the raw ids of a mask, or its colors if it has three channels.

    Args:
        path: mask file, or polygons.
        max_pixels: limit as in `sppnet.data.images.load_image`.
        max_side: limit as in `sppnet.data.images.load_image`.

    Raises:
        ImageError: see `load_mask`.
    """
    return decode_mask(path, max_pixels, max_side).values


def raw_ids(raw: Integer[np.ndarray, "h w *rgb"], path: str | Path | PolygonMask) -> Integer[np.ndarray, "h w"]:
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
            f"the mask has colors, such as {format_rgb(raw[colored][0])}, without a color table; give a .csv class"
            " file with the columns name,r,g,b",
            "unknown-id",
        )
    return red


def _gray_scale(image: ImageFile.ImageFile) -> int:
    """Return the factor by which Pillow stretches the values of a gray image of 2 or 4 bits to 0 to 255."""
    bits = re.match("L;([24])(?![0-9])", raw_mode(image))
    return 1 if bits is None else {"2": 85, "4": 17}[bits[1]]


def pack_rgb(rgb: Any) -> Any:
    """Return red, green and blue as one number."""
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]


def format_rgb(rgb: Sequence[int] | NDArray[Any]) -> str:
    """Format a color for a message."""
    return f"({', '.join(str(int(value)) for value in rgb)})"


def format_packed(value: int) -> str:
    """Format a packed color for a message; -1 is no color."""
    if value < 0:
        return "(none)"
    return format_rgb((value >> 16, value >> 8 & 255, value & 255))
