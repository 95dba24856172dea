"""16-bit images in all formats that Pillow reads are scaled to 8 bits, never clipped."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sppnet.data.images import load_image
from sppnet.errors import ImageError


def png16(values: NDArray[Any]) -> bytes:
    """Return a PNG with 16 bits per channel: gray, RGB or RGBA."""
    color_type = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff16(values: NDArray[Any], order: str) -> bytes:
    """Return a TIFF with 16 bits per channel, gray or RGB, in one strip."""
    height, width = values.shape[:2]
    count = 1 if values.ndim == 2 else 3
    begin = 8 + 2 + 9 * 12 + 4
    pixels = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 16 if count == 1 else begin, 259: 1, 262: count // 2 + 1}
    tags |= {273: begin + 2 * count, 277: count, 278: height, 279: len(pixels)}
    # All values are 32-bit, except the bit depths of several channels, which follow the tags.
    forms = {258: (4, 1) if count == 1 else (3, count)}
    fields = [struct.pack(f"{order}HHII", tag, *forms.get(tag, (4, 1)), value) for tag, value in tags.items()]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + b"".join(fields) + struct.pack(f"{order}I{count}H", 0, *[16] * count) + pixels


@pytest.mark.parametrize("form", ["PNG", "PNG alpha", "TIFF <", "TIFF >", "PPM"])
def test_16_bit_color_keeps_256_levels(form: str) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    colors = np.stack([ramp, ramp[::-1], ramp.T], 2)
    data = {
        "PNG": lambda: png16(colors),
        "PNG alpha": lambda: png16(np.dstack([colors, np.full_like(ramp, 65_535)])),
        "TIFF <": lambda: tiff16(colors, "<"),
        "TIFF >": lambda: tiff16(colors, ">"),
        "PPM": lambda: b"P6 256 256 65535\n" + colors.astype(">u2").tobytes(),
    }[form]()
    result = np.asarray(load_image(data))
    assert len(np.unique(result)) == 256
    # Pillow keeps the high byte in all formats but PPM, which it rounds like load_image does gray.
    expected = np.round(colors / 257) if form == "PPM" else colors >> 8
    np.testing.assert_array_equal(result, expected.astype(np.uint8))


@pytest.mark.parametrize("form", ["PNG", "TIFF <", "TIFF >", "PGM"])
def test_16_bit_gray_is_scaled(form: str) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    data = {
        "PNG": lambda: png16(ramp),
        "TIFF <": lambda: tiff16(ramp, "<"),
        "TIFF >": lambda: tiff16(ramp, ">"),
        "PGM": lambda: b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes(),
    }[form]()
    expected = np.round(ramp / 257).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(load_image(data)), np.dstack([expected] * 3))


def test_gray_in_mode_i_and_big_endian_is_scaled() -> None:
    values = np.array([[0, 257, 32_896, 65_535]])
    gray = Image.fromarray(values.astype(np.int32))
    assert gray.mode == "I"
    assert np.asarray(load_image(gray))[0, :, 0].tolist() == [0, 1, 128, 255]
    big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert load_image(big).tobytes() == load_image(gray).tobytes()


@pytest.mark.parametrize("values", [(-1, 9), (0, 70_000)])
def test_rejects_gray_values_outside_16_bits(values: tuple[int, int]) -> None:
    message = f"mode I with values {values[0]} to {values[1]}, outside the 16-bit range 0 to 65535"
    with pytest.raises(ImageError, match=message):
        load_image(Image.fromarray(np.array([values], np.int32)))
