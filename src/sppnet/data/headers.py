"""Checks on image files before decoding: decompression bombs, pixel layout, EXIF data after the pixels."""

import io
import re
import struct

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

# Deflate compresses at most 1032-fold, and only uniform data; scanned black-and-white pages reach about 100-fold.
_BYTES, _RATIO = 50_000_000, 500
# A progressive JPEG has about ten scans; decoding each one is as much work as decoding the whole image.
_MAX_SCANS = 100
# Pillow creates an object for each strip or tile when it opens a TIFF file.
_MAX_PIECES = 100_000
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324  # TIFF tags


def describe_bomb(image: Image.Image, file_bytes: int) -> str | None:
    """Describe why an image is a decompression bomb; None if it is not one.

    A bomb takes more than 50 MB as RGB (height x width x 3), and its stored pixels, before compression, take more than
    500 times the bytes of the file. A JPEG of more than 100 scans is a bomb, too.

    Args:
        image: opened but not decoded image.
        file_bytes: size of the file, at least 1.
    """
    if isinstance(image, JpegImageFile) and (scans := _count_scans(image)) > _MAX_SCANS:
        return f"decompression bomb: {scans} scans over the same pixels, more than {_MAX_SCANS}"
    rgb = 3 * image.height * image.width
    if rgb <= _BYTES or _stored_bytes(image) <= _RATIO * file_bytes:
        return None
    return (
        f"decompression bomb: {image.height} x {image.width} pixels (height x width), {rgb / 1e6:.0f} MB as RGB, in a"
        f" file of {file_bytes:,} bytes; no photograph compresses {_RATIO}-fold"
    )


def describe_tiff_bomb(file: io.BytesIO | io.BufferedReader) -> str | None:
    """Describe why a TIFF file is a bomb (more than 100,000 strips or tiles); None if it is not one."""
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")
    order = "<" if head[:2] == b"II" else ">"
    large = struct.unpack_from(f"{order}H", head, 2)[0] == 43  # BigTIFF
    number, entry = (f"{order}Q", f"{order}HHQ8x") if large else (f"{order}H", f"{order}HHI4x")
    file.seek(*struct.unpack_from(f"{order}Q" if large else f"{order}I", head, 8 if large else 4))
    (entries,) = struct.unpack(number, file.read(struct.calcsize(number)))
    size = struct.calcsize(entry)
    directory = file.read(size * min(entries, 65_535))
    for tag, _, count in struct.iter_unpack(entry, directory[: len(directory) // size * size]):
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > _MAX_PIECES:
            return f"decompression bomb: {count:,} strips or tiles, more than {_MAX_PIECES:,}"
    return None


def _count_scans(image: JpegImageFile) -> int:
    if image.fp is None:
        return 0
    position = image.fp.tell()
    image.fp.seek(0)
    scans = image.fp.read().count(b"\xff\xda")  # this marker never occurs in compressed data
    image.fp.seek(position)
    return scans


def raw_mode(image: Image.Image) -> str:
    """Return the layout of pixels in the file of an opened image, such as ``RGB;16B``; empty if unknown to Pillow."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    arguments = tiles[0].args if tiles else None
    mode = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return mode if isinstance(mode, str) else ""


def find_late_exif(image: Image.Image) -> None:
    """Store EXIF data that follow the pixels of a PNG in ``image.info``; Pillow would decode the pixels to find them.

    Args:
        image: opened image; unchanged if it is not a PNG or already decoded.
    """
    if not isinstance(image, PngImageFile) or not image.tile or "exif" in image.info or image.fp is None:
        return
    position = image.fp.tell()  # Pillow continues reading from here
    image.fp.seek(8)
    while len(head := image.fp.read(8)) == 8:
        length, name = struct.unpack(">I4s", head)
        if name == b"eXIf":
            image.info["exif"] = b"Exif\0\0" + image.fp.read(length)
            break
        image.fp.seek(length + 4, 1)
    image.fp.seek(position)


def _stored_bytes(image: Image.Image) -> float:
    """Return the size of the uncompressed pixels in bytes, by layout in the file (``P;4``: 4 bits) or else by mode."""
    pixels = image.height * image.width
    if packed := re.match(r"[LP];([124])\b", raw_mode(image)):
        return pixels * int(packed[1]) / 8
    depth = {"1": 1 / 8, "I": 4, "F": 4}.get(image.mode, 2 if image.mode.startswith("I;") else 1)
    return pixels * len(image.getbands()) * depth
