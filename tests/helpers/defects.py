"""A data set of class folders with all kinds of defective image files."""

import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.helpers.images import write_classes

_PNG_FORMS = {"1": (1, 0, 1), "L": (8, 0, 8), "P": (8, 3, 8), "LA": (8, 4, 16), "RGB": (8, 2, 24), "RGBA": (8, 6, 32)}
_PNG_FORMS |= {"I;16": (16, 0, 16), "RGB;16": (16, 2, 48), "P;1": (1, 3, 1)}


def bomb(side: int, mode: str) -> bytes:
    """Return a PNG of a single color, built from one repeated deflate block instead of all its pixels."""
    depth, color, bits = _PNG_FORMS[mode]
    total = side * (1 + (side * bits + 7) // 8)
    deflate = zlib.compressobj(9, wbits=-15)
    size = 1 << 20
    block = deflate.compress(bytes(size)) + deflate.flush(zlib.Z_FULL_FLUSH)
    deflate = zlib.compressobj(9, wbits=-15)
    rest = deflate.compress(bytes(total % size)) + deflate.flush()
    adler = struct.pack(">I", (total % 65_521) << 16 | 1)
    pixels = b"\x78\xda" + block * (total // size) + rest + adler
    header = struct.pack(">IIBBBBB", side, side, depth, color, 0, 0, 0)
    palette = _chunk(b"PLTE", b"\x80\x90\xa0") if color == 3 else b""
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def write_defects(root: Path) -> dict[str, str]:
    """Write three classes of four good images each, and defective files.

    Returns:
        Problem kind by path in the root, for each defective file or folder.
    """
    write_classes(root, 4)
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.normal((190, 60, 60), 10, (60, 48, 3)).clip(0, 255).astype(np.uint8))
    red, green, blue = root / "red", root / "green", root / "blue"
    photo.save(red / "truncated.jpg")
    (red / "truncated.jpg").write_bytes((red / "truncated.jpg").read_bytes()[:700])
    (red / "empty.jpg").touch()
    (blue / "page.jpg").write_bytes(b"<!DOCTYPE html><title>404 Not Found</title>")
    (blue / "noise.png").write_bytes(bytes(rng.integers(0, 256, 999, np.uint8)))
    photo.save(blue / "damaged.png")
    _corrupt(blue / "damaged.png")
    (green / "bomb9000.png").write_bytes(bomb(9_000, "RGB"))
    (green / "bomb14000.png").write_bytes(bomb(14_000, "RGB"))
    Image.fromarray(rng.integers(0, 1 << 16, (50, 60), np.uint16)).save(blue / "deep.png")
    photo.convert("CMYK").save(red / "printed.jpg")
    photo.convert("RGBA").save(red / "alpha.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(green / "turned.jpg", exif=exif)
    Image.new("RGB", (1, 1), (60, 190, 60)).save(green / "dot.png")
    shutil.copy(red / "0.png", red / "again.png")
    shutil.copy(green / "0.png", blue / "strayed.png")
    (root / "white").mkdir()
    photo.convert("L").save(red / "grey.jpg")
    palette = photo.convert("P")
    palette.save(green / "palette.png", transparency=0)
    photo.rotate(90, expand=True).save(blue / "really_png.jpg", "PNG")
    photo.save(blue / "photo.dat", "JPEG")
    (green / "notes.txt").write_text("taken in May")
    return {
        "red/truncated.jpg": "truncated",
        "red/empty.jpg": "empty-file",
        "blue/page.jpg": "not-an-image",
        "blue/noise.png": "not-an-image",
        "blue/damaged.png": "damaged",
        "green/bomb9000.png": "bomb",
        "green/bomb14000.png": "too-many-pixels",
        "blue/deep.png": "16-bit",
        "red/printed.jpg": "cmyk",
        "red/alpha.png": "alpha",
        "green/palette.png": "alpha",
        "green/turned.jpg": "exif-turned",
        "green/dot.png": "too-small",
        "red/again.png": "duplicate",
        "blue/strayed.png": "duplicate-across-classes",
        "white": "empty-class",
        "blue/really_png.jpg": "other-format",
        "blue/photo.dat": "left-out",
        "green/notes.txt": "passed-over",
    }


def _corrupt(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
