"""What an image file tells before its pixels are decoded: bombs, the layout of pixels, EXIF data behind them."""

import re
import struct

from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile

# Deflate reaches 1032 times, and that on nothing but one colour; scanned pages in black and white reach some 100.
_BYTES, _RATIO = 50_000_000, 500


def describe_bomb(image: Image.Image, file_bytes: int) -> str | None:
    """Why an image can only be a decompression bomb; None if it is none.

    A bomb takes more than 50 MB as RGB (height x width x 3), and its pixels as they are stored, before compression, are
    more than 500 times the bytes of its file.

    Args:
        image: opened, nothing decoded.
        file_bytes: size of its file, >= 1.
    """
    rgb = 3 * image.height * image.width
    if rgb <= _BYTES or _stored_bytes(image) <= _RATIO * file_bytes:
        return None
    return (
        f"decompression bomb: {image.height} x {image.width} pixels (height x width), {rgb / 1e6:.0f} MB as RGB, in a"
        f" file of {file_bytes:,} bytes; no photograph shrinks {_RATIO} times"
    )


def raw_mode(image: Image.Image) -> str:
    """How the pixels of an opened image lie in its file, such as ``RGB;16B``; empty where Pillow does not tell."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    form = tiles[0].args if tiles else None
    mode = form[0] if isinstance(form, tuple) and form else form
    return mode if isinstance(mode, str) else ""


def find_late_exif(image: Image.Image) -> None:
    """Puts the EXIF data of a PNG that lie behind its pixels where Pillow looks for them; it would decode the pixels.

    Args:
        image: opened; one that is no PNG, or is decoded already, is left as it is.
    """
    if not isinstance(image, PngImageFile) or not image.tile or "exif" in image.info or image.fp is None:
        return
    place = image.fp.tell()  # from where Pillow reads on
    image.fp.seek(8)
    while len(head := image.fp.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            image.info["exif"] = b"Exif\0\0" + image.fp.read(length)
            break
        image.fp.seek(length + 4, 1)
    image.fp.seek(place)


def _stored_bytes(image: Image.Image) -> float:
    """Size of the pixels before compression, by their layout in the file (``P;4``: 4 bits) or else by their mode."""
    pixels = image.height * image.width
    if packed := re.match(r"[LP];([124])\b", raw_mode(image)):
        return pixels * int(packed[1]) / 8
    depth = {"1": 1 / 8, "I": 4, "F": 4}.get(image.mode, 2 if image.mode.startswith("I;") else 1)
    return pixels * len(image.getbands()) * depth
