"""Checks on image files before decoding: decompression bombs, pixel layout, EXIF data after the pixels."""

import io
import re
import struct
from collections.abc import Iterator

from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import COMPRESSION_INFO

# Deflate compresses at most 1032-fold, and only uniform data; scanned black-and-white pages reach about 100-fold.
_BYTES, _RATIO = 50_000_000, 500
# A progressive JPEG has about ten scans; decoding each one is as much work as decoding the whole image.
_MAX_SCANS = 100
# Pillow creates an object for each strip or tile when it opens a TIFF file.
_MAX_PIECES = 100_000
_STRIP_OFFSETS, _TILE_OFFSETS = 273, 324  # TIFF tags
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _BANDS, _SAMPLE_FORMAT = 256, 257, 258, 259, 262, 277, 339
_TAGS = {_STRIP_OFFSETS, _TILE_OFFSETS, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _BANDS, _SAMPLE_FORMAT}
_NUMBERS = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers", 6: "complex numbers"}
_PHOTOMETRICS = {0: "MinIsWhite", 1: "MinIsBlack", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELab"}


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


def refuse_tiff(file: io.BytesIO | io.BufferedReader) -> tuple[str, str] | None:
    """Return why a TIFF file must not be opened, as the reason and kind of an ImageError; None if it may be.

    Files with more than 100,000 strips or tiles are bombs. Pillow opens gray images of several bands, but decodes wrong
    pixels; of big-endian BigTIFF files it misreads the header.

    Raises:
        struct.error: the header is truncated.
    """
    for tag, _, count, _ in _tiff_entries(file):
        if tag in (_STRIP_OFFSETS, _TILE_OFFSETS) and count > _MAX_PIECES:
            return f"decompression bomb: {count:,} strips or tiles, more than {_MAX_PIECES:,}", "bomb"
    tags = _tiff_tags(file)
    bits, bands = tags.get(_BITS, [1]), tags.get(_BANDS, [1])[0]
    is_gray = tags.get(_PHOTOMETRIC, [-1])[0] in (0, 1)
    if _tiff_form(file) != (">", True) and (not is_gray or bands == 1 or (bands == 2 and set(bits) == {8})):
        return None
    content = describe_tiff(file)
    return None if content is None else (content, "unreadable")


def describe_tiff(file: io.BytesIO | io.BufferedReader) -> str | None:
    """Describe the content of a TIFF file that Pillow cannot decode; None if its header is damaged."""
    try:
        tags = _tiff_tags(file)
        order, large = _tiff_form(file)
    except (struct.error, ValueError, OverflowError):
        return None
    if not all(len(tags.get(tag, [])) == 1 and tags[tag][0] > 0 for tag in (_WIDTH, _HEIGHT)):
        return None
    if _PHOTOMETRIC not in tags or not {_STRIP_OFFSETS, _TILE_OFFSETS} & tags.keys():  # both are mandatory
        return None
    bits = tags.get(_BITS, [1])
    bands = tags.get(_BANDS, [len(bits)])[0]
    numbers = _NUMBERS.get(tags.get(_SAMPLE_FORMAT, [1])[0], "unknown numbers")
    depth = " and ".join(str(value) for value in dict.fromkeys(bits))
    photometric, compression = tags[_PHOTOMETRIC][0], tags.get(_COMPRESSION, [1])[0]
    parts = [f"{bands} band{'s' * (bands > 1)} of {depth}-bit {numbers}"]
    parts.append(_PHOTOMETRICS.get(photometric, f"photometric interpretation {photometric}"))
    if compression not in COMPRESSION_INFO:
        parts.append(f"compression {compression}")
    form = f"{'big-endian ' * (order == '>')}{'Big' * large}TIFF"
    return (
        f"{form} of {', '.join(parts)}, which is not supported; save the image as 8-bit RGB or gray, or as 16-bit gray"
    )


def _tiff_tags(file: io.BytesIO | io.BufferedReader) -> dict[int, list[int]]:
    """Return the integers of each entry of the first directory, at most eight; other entries are left out."""
    entries = _tiff_entries(file)
    tags = {tag: _tiff_values(file, kind, count, value) for tag, kind, count, value in list(entries) if tag in _TAGS}
    return {tag: values for tag, values in tags.items() if values}


def _tiff_form(file: io.BytesIO | io.BufferedReader) -> tuple[str, bool]:
    """Return the byte order of a TIFF file, and whether it is a BigTIFF."""
    file.seek(0)
    head = file.read(4).ljust(4, b"\0")
    order = "<" if head[:2] == b"II" else ">"
    return order, struct.unpack_from(f"{order}H", head, 2)[0] == 43


def _tiff_entries(file: io.BytesIO | io.BufferedReader) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield tag, type, count and value (or its offset) of the entries of the first directory of a TIFF file."""
    order, large = _tiff_form(file)
    file.seek(0)
    head = file.read(16).ljust(16, b"\0")
    number, entry = (f"{order}Q", f"{order}HHQ8s") if large else (f"{order}H", f"{order}HHI4s")
    file.seek(*struct.unpack_from(f"{order}Q" if large else f"{order}I", head, 8 if large else 4))
    (entries,) = struct.unpack(number, file.read(struct.calcsize(number)))
    size = struct.calcsize(entry)
    directory = file.read(size * min(entries, 65_535))
    yield from struct.iter_unpack(entry, directory[: len(directory) // size * size])


def _tiff_values(file: io.BytesIO | io.BufferedReader, kind: int, count: int, value: bytes) -> list[int]:
    """Return the values of an entry of integers, at most eight; none for other types."""
    order, large = _tiff_form(file)
    letter = {1: "B", 3: "H", 4: "I", 16: "Q"}.get(kind)
    if letter is None:
        return []
    count = min(count, 8)
    form = f"{order}{count}{letter}"
    if struct.calcsize(form) > len(value):
        file.seek(*struct.unpack(f"{order}{'Q' if large else 'I'}", value))
        value = file.read(struct.calcsize(form))
    return list(struct.unpack_from(form, value)) if len(value) >= struct.calcsize(form) else []


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
