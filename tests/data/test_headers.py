"""Checks before decoding: decompression bombs, pixel layout, and EXIF data after the pixels."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.mask_values import read_raw
from sppnet.data.headers import describe_bomb, raw_mode
from sppnet.data.images import exif_transpose, image_size, load_image, open_image
from sppnet.errors import ImageError
from tests.helpers.defects import bomb
from tests.helpers.image_bytes import encode

MODES = ("1", "L", "P", "P;1", "LA", "I;16", "RGB", "RGB;16", "RGBA")

_MEMORY = """
import sys
from sppnet.errors import ImageError; from sppnet.data.images import exif_transpose, image_size, load_image, open_image

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

good, *bombs = sys.argv[1:]
load_image(good)
image_size(good)
before = peak()
for path in bombs:
    image_size(path)
    with open_image(path) as image:
        exif_transpose(image)
    for source in (path, open(path, "rb").read()):
        try:
            load_image(source)
        except ImageError:
            continue
        raise SystemExit(f"{path} was loaded")
print(peak() - before)
"""


@pytest.mark.parametrize("mode", MODES)
def test_small_uniform_images_are_accepted(mode: str) -> None:
    assert load_image(bomb(1_500, mode)).size == (1_500, 1_500)


@pytest.mark.parametrize("mode", MODES)
def test_rejects_bombs(mode: str, tmp_path: Path) -> None:
    data = bomb(9_000, mode)
    (tmp_path / "bomb.png").write_bytes(data)
    reason = (
        rf"decompression bomb: 9000 x 9000 pixels \(height x width\), 243 MB as RGB, in a file of {len(data):,} bytes;"
        " no photograph compresses 500-fold"
    )
    with pytest.raises(ImageError, match=rf"bomb\.png: {reason}"):
        load_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=f"<bytes>: {reason}"):
        load_image(data)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_rejecting_bombs_takes_less_than_50_mb(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "good.png")
    paths = [tmp_path / f"{side} {mode}.png" for side in (9_000, 14_000) for mode in MODES]
    for path in paths:
        side, mode = path.stem.split()
        path.write_bytes(bomb(int(side), mode))
    for form in ("TIFF", "WEBP", "GIF"):
        paths.append(tmp_path / f"bomb.{form.lower()}")
        options = {"compression": "tiff_adobe_deflate"} if form == "TIFF" else {"lossless": True}
        Image.new("L", (6_000, 6_000)).save(paths[-1], form, **options)
    command = [sys.executable, "-c", _MEMORY, str(tmp_path / "good.png"), *map(str, paths)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not finished.stderr
    assert int(finished.stdout) < 50_000_000


@pytest.mark.parametrize(
    ("mode", "stored"),
    [
        ("1", 10_125_000),
        ("P;1", 10_125_000),
        ("L", 81_000_000),
        ("P", 81_000_000),
        ("I;16", 162_000_000),
        ("RGB", 243_000_000),
        ("RGBA", 324_000_000),
    ],
)
def test_compression_ratio_limit_is_500(mode: str, stored: int) -> None:
    image = Image.open(io.BytesIO(bomb(9_000, mode)))
    assert describe_bomb(image, stored // 500) is None
    assert describe_bomb(image, stored // 500 - 1) is not None


def test_images_below_50_mb_are_not_bombs() -> None:
    assert describe_bomb(Image.open(io.BytesIO(bomb(4_082, "RGB"))), 1) is None
    assert describe_bomb(Image.open(io.BytesIO(bomb(4_083, "RGB"))), 1) is not None


def test_rejects_jpeg_with_1000_scans() -> None:
    data = encode(Image.new("RGB", (400, 300)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    load_image(data[:-2] + data[last:-2] * 50 + data[-2:])
    with pytest.raises(ImageError, match=r"decompression bomb: 1[0-9]{3} scans over the same pixels"):
        load_image(data[:-2] + data[last:-2] * 1_000 + data[-2:])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_rejects_tiff_with_a_million_tiles(order: str, big: bool) -> None:
    mark, form = (b"II" if order == "<" else b"MM"), ("HHQQ" if big else "HHII")
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    tags = ((256, 4, 1, 1000), (257, 4, 1, 1000), (322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 1_000_000, 0))
    entries = b"".join(struct.pack(f"{order}{form}", *tag) for tag in tags)
    data = mark + head + struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + bytes(8)
    with pytest.raises(ImageError, match="decompression bomb: 1,000,000 strips or tiles"):
        image_size(data)


def test_masks_may_be_uniform(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(bomb(9_000, "1"))
    assert read_raw(tmp_path / "mask.png").shape == (9_000, 9_000)


def test_raw_mode() -> None:
    assert [raw_mode(Image.open(io.BytesIO(bomb(9, mode)))) for mode in ("P;1", "I;16", "RGB;16")] == [
        "P;1",
        "I;16B",
        "RGB;16B",
    ]
    assert raw_mode(Image.new("L", (2, 2))) == ""


@pytest.mark.parametrize("late", [False, True])
def test_exif_data_after_png_pixels_are_found_without_decoding(late: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.fromarray(pixels), "PNG", **({} if late else {"exif": exif}))
    if late:
        body = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        data = data[:-12] + chunk + data[-12:]
    path = tmp_path / "turned.png"
    path.write_bytes(data)
    assert image_size(path) == (200, 300)
    with open_image(str(path)) as image:
        assert image.fp
        position = image.fp.tell()
        assert exif_transpose(image) == Image.Transpose.ROTATE_270
        assert image.fp.tell() == position
        assert image.tile, "the image has been decoded"
        np.testing.assert_array_equal(np.asarray(image), pixels)  # decoding still works
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.rot90(pixels, -1))


def test_truncated_png_has_a_size(tmp_path: Path) -> None:
    (tmp_path / "cut.png").write_bytes(encode(Image.new("RGB", (30, 20)), "PNG")[:-20])
    assert image_size(tmp_path / "cut.png") == (20, 30)


def tiff(
    bits: list[int], bands: int, photometric: int, sample_format: int = 1, *, order: str = "<", big: bool = False
) -> bytes:
    """Return a TIFF of 2 x 3 pixels (height x width) with zeros."""
    number, entry, size = ("Q", "HHQ8s", 8) if big else ("H", "HHI4s", 4)
    pixels = 6 * bands * bits[0] // 8
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}H", 43 if big else 42)
    head += struct.pack(f"{order}HHQ", 8, 0, 16) if big else struct.pack(f"{order}I", 8)
    begin = len(head) + struct.calcsize(f"={number}{number}") + 11 * struct.calcsize(f"={entry}")
    values = {256: [3], 257: [2], 258: bits, 259: [1], 262: [photometric], 273: [begin + 2 * len(bits)], 277: [bands]}
    values |= {278: [2], 279: [pixels], 284: [1], 339: [sample_format]}
    fields = b""
    for tag, numbers in values.items():
        data = struct.pack(f"{order}{len(numbers)}H", *numbers)
        data = data.ljust(size, b"\0") if len(data) <= size else struct.pack(f"{order}{'Q' if big else 'I'}", begin)
        fields += struct.pack(f"{order}{entry}", tag, 3, len(numbers), data)
    end = bytes(struct.calcsize(f"={number}"))
    depths = struct.pack(f"{order}{len(bits)}H", *bits)
    return head + struct.pack(f"{order}{number}", len(values)) + fields + end + depths + bytes(pixels)


@pytest.mark.parametrize(
    ("data", "content"),
    [
        (tiff([8] * 4, 4, 1), "TIFF of 4 bands of 8-bit unsigned integers, MinIsBlack"),
        (tiff([16] * 4, 4, 1), "TIFF of 4 bands of 16-bit unsigned integers, MinIsBlack"),
        (tiff([16] * 2, 2, 1), "TIFF of 2 bands of 16-bit unsigned integers, MinIsBlack"),
        (tiff([32] * 3, 3, 2, 3), "TIFF of 3 bands of 32-bit floating-point numbers, RGB"),
        (tiff([64], 1, 1, 2), "TIFF of 1 band of 64-bit signed integers, MinIsBlack"),
        (tiff([64], 1, 1, 3, order=">"), "big-endian TIFF of 1 band of 64-bit floating-point numbers, MinIsBlack"),
        (tiff([8], 1, 1, order=">", big=True), "big-endian BigTIFF of 1 band of 8-bit unsigned integers, MinIsBlack"),
        (tiff([8] * 3, 3, 99), "TIFF of 3 bands of 8-bit unsigned integers, photometric interpretation 99"),
    ],
)
def test_describes_tiffs_that_pillow_cannot_decode(data: bytes, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(data)
    for read in (load_image, read_raw, image_size):
        with pytest.raises(
            ImageError, match=rf"a\.tif: {content}, which is not supported; save the image as 8-bit RGB"
        ):
            read(tmp_path / "a.tif")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read")
@pytest.mark.parametrize("order", "<>")
def test_reads_supported_tiffs_and_calls_truncated_ones_damaged(order: str) -> None:
    for data in (tiff([8], 1, 1, order=order), tiff([8] * 3, 3, 2, order=order), tiff([16], 1, 1, order=order)):
        assert image_size(data) == (2, 3)
        assert load_image(data).size == (3, 2)
        for end in range(8, 60):
            with pytest.raises(ImageError, match=r"truncated|damaged"):
                load_image(data[:end])
