"""Decoding of images: formats, orientation, transparency, limits and damaged files."""

import io
import os
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFile

from sppnet.data.images import ImageSource, image_extensions, image_size, load_image, to_tensor
from sppnet.errors import ImageError
from tests.helpers.image_bytes import encode

# Transform that turns the stored pixels upright, by EXIF orientation.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


def corners(height: int = 48, width: int = 32) -> Image.Image:
    """Return an image of white, red, green and blue quarters, which differs from all its flips and rotations."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = 255
    array[: height // 2, width // 2 :, 0] = 255
    array[height // 2 :, : width // 2, 1] = 255
    array[height // 2 :, width // 2 :, 2] = 255
    return Image.fromarray(array)


def noise(height: int = 64, width: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pixels(source: ImageSource) -> list[tuple[int, int, int]]:
    return [(int(r), int(g), int(b)) for r, g, b in np.asarray(load_image(source)).reshape(-1, 3)]


def png_with_header_size(width: int, height: int) -> bytes:
    data = bytearray(encode(Image.new("RGB", (4, 4)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_header_size_matches_loaded_image(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{form.lower()}"
    path.write_bytes(encode(corners(), form, exif=exif))
    image = load_image(path)
    assert image_size(path) == (image.height, image.width)


def test_image_size_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        image_size(tmp_path / "none.png")
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    with pytest.raises(ImageError, match=r"page\.jpg: not an image: the file begins with '<html>'"):
        image_size(tmp_path / "page.jpg")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form in ("JPEG", "WEBP") else {}
    data = encode(corners(), form, exif=exif, **options)
    image = load_image(data)
    expected = UPRIGHT[orientation](np.asarray(corners())).astype(int)
    assert (image.height, image.width) == expected.shape[:2]
    # Compare the middle of each quarter: JPEG blurs the edges.
    difference = np.abs(np.asarray(image).astype(int) - expected)
    h, w = expected.shape[:2]
    for row in (h // 4, 3 * h // 4):
        for column in (w // 4, 3 * w // 4):
            assert difference[row, column].max() <= 8
    assert load_image(image).tobytes() == image.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_unreadable_exif_is_ignored(form: str) -> None:
    image = load_image(encode(corners(), form, exif=b"Exif\x00\x00nonsense that is no TIFF header"))
    assert image.size == (32, 48)


def test_rejects_container_formats(tmp_path: Path) -> None:
    for form in ("ICO", "ICNS"):
        with pytest.raises(ImageError, match="not an image"):
            image_size(encode(Image.new("RGB", (64, 64)), form))
    photograph = encode(Image.new("RGB", (20, 20)), "PNG")

    def field(number: int, value: bytes) -> bytes:
        return b"\x1c" + bytes(divmod(number, 256)) + len(value).to_bytes(2, "big") + value

    size = (200).to_bytes(2, "big")
    records = [(3 * 256 + 60, b"\x01\x01"), (3 * 256 + 65, b"\x00"), (3 * 256 + 20, size), (3 * 256 + 30, size)]
    iptc = b"".join(field(*record) for record in [*records, (3 * 256 + 120, b"\x04"), (8 * 256 + 10, photograph)])
    with pytest.raises(ImageError, match="not an image"):
        image_size(iptc)


def test_heic_error_suggests_conversion(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    with pytest.raises(ImageError, match="HEIC, the format of many phone photos, is not supported; convert it to JPEG"):
        load_image(path)


def test_rejects_float_images(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: mode F \(floating-point gray\) has no fixed range"):
        load_image(tmp_path / "a.tif")


def test_cmyk_jpeg_keeps_its_colors() -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = pixels(data)[0]
    assert (red > 245, green < 10, blue < 10) == (True, True, True)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_composited_over_white(form: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (0, 0, 0, 128), (0, 0, 0, 0)])
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert pixels(encode(image, form, **options)) == [(10, 20, 30), (127, 127, 127), (255, 255, 255)]


def test_gray_alpha_is_composited_over_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(7, 255), (7, 0)])
    assert pixels(encode(image, "PNG")) == [(7, 7, 7), (255, 255, 255)]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_color_becomes_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    assert pixels(encode(image, "PNG", transparency=transparency)) == [(200, 0, 0), (255, 255, 255)]
    assert pixels(encode(image, "PNG")) == [(200, 0, 0), (0, 0, 200)]


@pytest.mark.parametrize(("mode", "values"), [("L", [7, 9]), ("I;16", [7 * 257, 9 * 257])])
def test_transparent_gray_value_becomes_white(mode: str, values: list[int]) -> None:
    dtype = np.uint8 if mode == "L" else np.uint16
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode == mode
    assert pixels(encode(image, "PNG", transparency=values[1])) == [(7, 7, 7), (255, 255, 255)]


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_only_the_first_frame_is_decoded(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encode(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert set(pixels(data)) == {(255, 0, 0)}


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
def test_single_pixel_images(form: str) -> None:
    assert pixels(encode(Image.new("RGB", (1, 1), (255, 0, 0)), form)) == [(255, 0, 0)]


def test_all_source_types_give_the_same_image(tmp_path: Path) -> None:
    image = noise()
    image.save(tmp_path / "a.bmp")
    expected = load_image(tmp_path / "a.bmp")
    for source in (str(tmp_path / "a.bmp"), (tmp_path / "a.bmp").read_bytes(), image, np.asarray(image)):
        assert load_image(source).tobytes() == expected.tobytes()
    assert expected.tobytes() == image.tobytes()
    gray = np.array([[0, 9]], np.uint8)
    assert pixels(gray) == [(0, 0, 0), (9, 9, 9)]


def test_pillow_image_is_not_modified() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encode(corners(), "JPEG", exif=exif)))
    assert load_image(image).size == (48, 32)
    assert image.size == (32, 48)
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_rejects_other_arrays(array: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"<array>: expected uint8 .* got (float32|uint8) of shape \("):
        load_image(array)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "file is empty"),
        (b"<html lang='en'><body>404</body>", "not an image: the file begins with '<html'"),
        (b"\n <!DOCTYPE html>", "not an image: the file begins with '<!DOCTYPE'"),
        (bytes(range(200, 230)), "not an image: the file begins with the bytes c8 c9 ca cb cc cd ce cf"),
        (b"\x00", "not an image: the file begins with the bytes 00"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image: the file begins with '%!PS-"),
    ],
)
def test_rejects_files_that_are_not_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.path == str(path)
    assert caught.value.reason.startswith(reason)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_rejects_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file$"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="a folder, not a file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        load_image("a" * 5000)


def test_rejects_a_pipe_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    pipe = os.open(tmp_path / "pipe.jpg", os.O_RDWR)  # makes a wrong implementation fail rather than hang
    os.write(pipe, b"x" * 64)
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")
    os.close(pipe)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "JPEG2000"])
def test_rejects_truncated_files(form: str, tmp_path: Path) -> None:
    data = encode(noise(), form)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"half: file is (truncated|damaged: .*\(.*\))$") as caught:
        load_image(path)
    if form in ("JPEG", "PNG", "BMP"):
        assert caught.value.reason == "file is truncated"


def test_truncated_header_counts_as_damage() -> None:
    with pytest.raises(ImageError, match=r"<bytes>: file is (truncated|damaged: its PNG header)"):
        load_image(encode(noise(), "PNG")[:20])


@given(
    form=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "SGI", "QOI"]),
    cut=st.integers(1, 400),
    changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=3),
)
def test_damaged_files_load_or_raise_image_error(form: str, cut: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encode(noise(9, 7), form)[:cut])
    for position, value in changes:
        data[position % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about odd metadata
        try:
            image = load_image(bytes(data), max_pixels=1_000_000)
        except ImageError:
            return
    assert image.mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (15_000, 15_000)])
def test_rejects_too_many_pixels_from_the_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_with_header_size(width, height))
    size = f"{height} x {width}"
    reason = rf"bomb\.png: too many pixels: {size} \(height x width\), more than max_pixels=178956970"
    with pytest.raises(ImageError, match=reason):
        load_image(tmp_path / "bomb.png")


def test_custom_size_limits() -> None:
    image = Image.new("RGB", (8, 4))
    assert load_image(image, max_pixels=32, max_side=8).size == (8, 4)
    with pytest.raises(ImageError, match=r"too many pixels: 4 x 8 \(height x width\), .*max_pixels=31"):
        load_image(image, max_pixels=31)
    with pytest.raises(ImageError, match=r"side too long: 4 x 8 \(height x width\), .*max_side=7"):
        load_image(image, max_side=7)
    with pytest.raises(ValueError, match="max_side: expected at least 1, got 0"):
        load_image(image, max_side=0)


def test_pillow_settings_are_neither_changed_nor_used(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(noise(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(data).size == (80, 64)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_to_tensor_normalizes_each_channel() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(0, 51, 255), (255, 102, 0)])
    tensor = to_tensor(image, mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))
    assert tensor.dtype == torch.float32
    expected = torch.tensor([[[0.0, 1.0]], [[0.0, 0.4]], [[2.0, -2.0]]])
    torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize(
    ("mode", "mean", "std", "message"),
    [
        ("L", (0.5,) * 3, (0.5,) * 3, "image: expected mode RGB, .* got mode L"),
        ("RGB", (0.5,), (0.5,) * 3, "mean: expected 3 values, .* got 1"),
        ("RGB", (0.5,) * 3, (0.5,) * 4, "std: expected 3 values, .* got 4"),
        ("RGB", (0.5,) * 3, (0.5, 0.0, 0.5), r"std: expected values above 0, got \[0.5, 0.0, 0.5\]"),
    ],
)
def test_to_tensor_rejects_invalid_arguments(mode: str, mean: tuple[float], std: tuple[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_tensor(Image.new(mode, (2, 2)), mean, std)


def test_image_extensions() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".mpo"} <= extensions
    assert not {".pdf", ".eps", ".mpg", ".h5", ".wmf", ".txt", ""} & extensions


def test_threads_can_decode_the_same_image_object() -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8)).save(file, "JPEG")
    expected = load_image(file.getvalue()).tobytes()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            image = Image.open(io.BytesIO(file.getvalue()))
            assert [loaded.tobytes() for loaded in pool.map(load_image, [image] * 4)] == [expected] * 4
