"""What an image file tells before its pixels are decoded: bombs, the layout of pixels, EXIF data behind them."""

import io
import re
import struct

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

# Deflate reaches 1032 times, and that on nothing but one colour; scanned pages in black and white reach some 100.
_BYTES, _RATIO = 50_000_000, 500
# A progressive JPEG has some ten scans, each of which is as much work as the whole picture.
_SCANS = 100
# Strips and tiles are of many pixels; Pillow makes an object of each before anything is decoded.
_PIECES = 100_000
_STRIPS, _TILES = 273, 324  # tags of their offsets


def describe_bomb(image: Image.Image, file_bytes: int) -> str | None:
    """Why an image can only be a decompression bomb; None if it is none.

    A bomb takes more than 50 MB as RGB (height x width x 3), and its pixels as they are stored, before compression, are
    more than 500 times the bytes of its file. Or it is a JPEG of more than 100 scans.

    Args:
        image: opened, nothing decoded.
        file_bytes: size of its file, >= 1.
    """
    if isinstance(image, JpegImageFile) and (scans := _count_scans(image)) > _SCANS:
        return f"decompression bomb: {scans} scans over the same pixels; no JPEG has more than {_SCANS}"
    rgb = 3 * image.height * image.width
    if rgb <= _BYTES or _stored_bytes(image) <= _RATIO * file_bytes:
        return None
    return (
        f"decompression bomb: {image.height} x {image.width} pixels (height x width), {rgb / 1e6:.0f} MB as RGB, in a"
        f" file of {file_bytes:,} bytes; no photograph shrinks {_RATIO} times"
    )


def describe_pieces(file: io.BytesIO | io.BufferedReader) -> str | None:
    """Why a TIFF file can only be a bomb: it counts more than 100,000 strips or tiles; None if it is none.

    Args:
        file: read from its beginning; Pillow would make an object of each piece when it opens it.
    """
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
        if tag in (_STRIPS, _TILES) and count > _PIECES:
            return f"decompression bomb: {count:,} strips or tiles; no photograph has more than {_PIECES:,}"
    return None


def _count_scans(image: JpegImageFile) -> int:
    if image.fp is None:
        return 0
    place = image.fp.tell()
    image.fp.seek(0)
    scans = image.fp.read().count(b"\xff\xda")  # compressed data never have these two side by side
    image.fp.seek(place)
    return scans


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
