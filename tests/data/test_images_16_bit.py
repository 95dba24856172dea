"""16 bits a channel by every route that Pillow reads: scaled, never clipped."""

import struct
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sppnet.data.images import load_image


def png16(values: NDArray[Any]) -> bytes:
    """A PNG of 16 bits a channel: grey, or red, green, blue and perhaps alpha."""
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[1 if values.ndim == 2 else values.shape[2]]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff16(values: NDArray[Any], order: str) -> bytes:
    """A TIFF of 16 bits a channel in one strip: grey, or red, green and blue."""
    height, width = values.shape[:2]
    count = 1 if values.ndim == 2 else 3
    begin = 8 + 2 + 9 * 12 + 4
    pixels = values.astype(f"{order}u2").tobytes()
    tags = {256: width, 257: height, 258: 16 if count == 1 else begin, 259: 1, 262: count // 2 + 1}
    tags |= {273: begin + 2 * count, 277: count, 278: height, 279: len(pixels)}
    # Numbers of 32 bits all, but for the depths of several channels, which lie behind the tags.
    forms = {258: (4, 1) if count == 1 else (3, count)}
    fields = [struct.pack(f"{order}HHII", tag, *forms.get(tag, (4, 1)), value) for tag, value in tags.items()]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + b"".join(fields) + struct.pack(f"{order}I{count}H", 0, *[16] * count) + pixels


@pytest.mark.parametrize("route", ["PNG", "PNG alpha", "TIFF <", "TIFF >", "PPM"])
def test_16_bit_colour_keeps_256_levels(route: str) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    colours = np.stack([ramp, ramp[::-1], ramp.T], 2)
    data = {
        "PNG": lambda: png16(colours),
        "PNG alpha": lambda: png16(np.dstack([colours, np.full_like(ramp, 65_535)])),
        "TIFF <": lambda: tiff16(colours, "<"),
        "TIFF >": lambda: tiff16(colours, ">"),
        "PPM": lambda: b"P6 256 256 65535\n" + colours.astype(">u2").tobytes(),
    }[route]()
    result = np.asarray(load_image(data))
    assert len(np.unique(result)) == 256
    # Pillow keeps the high byte of all but PPM, which it rounds as we do grey.
    expected = np.round(colours / 257) if route == "PPM" else colours >> 8
    np.testing.assert_array_equal(result, expected.astype(np.uint8))


@pytest.mark.parametrize("route", ["PNG", "TIFF <", "TIFF >", "PGM"])
def test_16_bit_grey_is_scaled_by_every_route(route: str) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    data = {
        "PNG": lambda: png16(ramp),
        "TIFF <": lambda: tiff16(ramp, "<"),
        "TIFF >": lambda: tiff16(ramp, ">"),
        "PGM": lambda: b"P5 256 256 65535\n" + ramp.astype(">u2").tobytes(),
    }[route]()
    np.testing.assert_array_equal(np.asarray(load_image(data))[..., 0], np.round(ramp / 257).astype(np.uint8))
