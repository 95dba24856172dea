"""What headers tell: decompression bombs, without filling the memory, and EXIF data behind the pixels."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sppnet.data.formats.masks import read_raw
from sppnet.data.headers import describe_bomb, raw_mode
from sppnet.data.images import exif_turn, image_size, load_image, open_image
from sppnet.errors import ImageError
from tests.helpers.defects import bomb

MODES = ("1", "L", "P", "P;1", "LA", "I;16", "RGB", "RGB;16", "RGBA")

_MEMORY = """
import sys
from sppnet.errors import ImageError; from sppnet.data.images import exif_turn, image_size, load_image, open_image

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

good, *bombs = sys.argv[1:]
load_image(good)
image_size(good)
before = peak()
for path in bombs:
    image_size(path)
    with open_image(path) as image:
        exif_turn(image)
    for source in (path, open(path, "rb").read()):
        try:
            load_image(source)
        except ImageError:
            continue
        raise SystemExit(f"{path} was loaded")
print(peak() - before)
"""


@pytest.mark.parametrize("mode", MODES)
def test_a_small_bomb_is_an_image_like_any_other(mode: str) -> None:
    assert load_image(bomb(1_500, mode)).size == (1_500, 1_500)


@pytest.mark.parametrize("mode", MODES)
def test_a_bomb_is_refused_before_it_is_decoded(mode: str, tmp_path: Path) -> None:
    data = bomb(9_000, mode)
    (tmp_path / "bomb.png").write_bytes(data)
    reason = (
        rf"decompression bomb: 9000 x 9000 pixels \(height x width\), 243 MB as RGB, in a file of {len(data):,} bytes;"
        " no photograph shrinks 500 times"
    )
    with pytest.raises(ImageError, match=rf"bomb\.png: {reason}"):
        load_image(tmp_path / "bomb.png")
    with pytest.raises(ImageError, match=f"<bytes>: {reason}"):
        load_image(data)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_refusing_bombs_takes_less_than_50_mb(tmp_path: Path) -> None:
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
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.stderr
    assert int(done.stdout) < 50_000_000


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
def test_500_times_the_file_is_the_limit(mode: str, stored: int) -> None:
    image = Image.open(io.BytesIO(bomb(9_000, mode)))
    assert describe_bomb(image, stored // 500) is None
    assert describe_bomb(image, stored // 500 - 1) is not None


def test_nothing_below_50_mb_is_a_bomb() -> None:
    assert describe_bomb(Image.open(io.BytesIO(bomb(4_082, "RGB"))), 1) is None
    assert describe_bomb(Image.open(io.BytesIO(bomb(4_083, "RGB"))), 1) is not None


def test_masks_may_be_all_alike(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(bomb(9_000, "1"))
    assert read_raw(tmp_path / "mask.png").shape == (9_000, 9_000)


def test_raw_mode_is_that_of_the_file() -> None:
    assert [raw_mode(Image.open(io.BytesIO(bomb(9, mode)))) for mode in ("P;1", "I;16", "RGB;16")] == [
        "P;1",
        "I;16B",
        "RGB;16B",
    ]
    assert raw_mode(Image.new("L", (2, 2))) == ""


@pytest.mark.parametrize("late", [False, True])
def test_exif_data_behind_the_pixels_of_a_png_are_found_without_decoding_them(late: bool, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 200, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", **({} if late else {"exif": exif}))
    data = stream.getvalue()
    if late:
        body = exif.tobytes().removeprefix(b"Exif\0\0")
        chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
        data = data[:-12] + chunk + data[-12:]
    path = tmp_path / "turned.png"
    path.write_bytes(data)
    assert image_size(path) == (200, 300)
    with open_image(str(path)) as image:
        assert image.fp
        place = image.fp.tell()
        assert exif_turn(image) == Image.Transpose.ROTATE_270
        assert image.fp.tell() == place
        assert image.tile, "it has been decoded"
        np.testing.assert_array_equal(np.asarray(image), pixels)  # and still can be
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.rot90(pixels, -1))


def test_a_png_cut_short_has_a_size(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "PNG")
    (tmp_path / "cut.png").write_bytes(stream.getvalue()[:-20])
    assert image_size(tmp_path / "cut.png") == (20, 30)
