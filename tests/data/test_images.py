import copy
import io
import os
import struct
import warnings
import zlib
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
from sppnet.data.listing import list_images
from sppnet.errors import ImageError

# Orientation as the EXIF standard defines it: what has to be done to the stored pixels to see them upright.
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
    """White, red, green and blue quarters: no flip or turn of it is the same picture."""
    array = np.zeros((height, width, 3), np.uint8)
    array[: height // 2, : width // 2] = 255
    array[: height // 2, width // 2 :, 0] = 255
    array[height // 2 :, : width // 2, 1] = 255
    array[height // 2 :, width // 2 :, 2] = 255
    return Image.fromarray(array)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def noise(height: int = 64, width: int = 80) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def pixels(source: ImageSource) -> list[tuple[int, int, int]]:
    return [(int(r), int(g), int(b)) for r, g, b in np.asarray(load_image(source)).reshape(-1, 3)]


def png_claiming(width: int, height: int) -> bytes:
    data = bytearray(encoded(Image.new("RGB", (4, 4)), "PNG"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_size_in_the_header_is_that_of_the_loaded_image(form: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{form.lower()}"
    path.write_bytes(encoded(corners(), form, exif=exif))
    image = load_image(path)
    assert image_size(path) == (image.height, image.width)


def test_the_size_of_a_bad_file_is_an_error_that_names_it(tmp_path: Path) -> None:
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
    data = encoded(corners(), form, exif=exif, **options)
    image = load_image(data)
    expected = UPRIGHT[orientation](np.asarray(corners())).astype(int)
    assert (image.height, image.width) == expected.shape[:2]
    # The middle of each quarter, for JPEG blurs their edges.
    difference = np.abs(np.asarray(image).astype(int) - expected)
    h, w = expected.shape[:2]
    for row in (h // 4, 3 * h // 4):
        for column in (w // 4, 3 * w // 4):
            assert difference[row, column].max() <= 8
    assert load_image(image).tobytes() == image.tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_exif_that_cannot_be_read_counts_as_none(form: str) -> None:
    image = load_image(encoded(corners(), form, exif=b"Exif\x00\x00nonsense that is no TIFF header"))
    assert image.size == (32, 48)


def test_a_jpeg_of_a_thousand_scans_is_a_bomb() -> None:
    data = encoded(Image.new("RGB", (400, 300)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    load_image(data[:-2] + data[last:-2] * 50 + data[-2:])
    with pytest.raises(ImageError, match=r"decompression bomb: 1[0-9]{3} scans over the same pixels"):
        load_image(data[:-2] + data[last:-2] * 1_000 + data[-2:])


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", "<>")
def test_a_tiff_of_a_million_tiles_is_a_bomb(order: str, big: bool) -> None:
    mark, form = (b"II" if order == "<" else b"MM"), ("HHQQ" if big else "HHII")
    head = struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else struct.pack(f"{order}HI", 42, 8)
    tags = ((256, 4, 1, 1000), (257, 4, 1, 1000), (322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 1_000_000, 0))
    entries = b"".join(struct.pack(f"{order}{form}", *tag) for tag in tags)
    data = mark + head + struct.pack(f"{order}{'Q' if big else 'H'}", len(tags)) + entries + bytes(8)
    with pytest.raises(ImageError, match="decompression bomb: 1,000,000 strips or tiles"):
        image_size(data)


def test_files_that_hold_files_are_refused(tmp_path: Path) -> None:
    """Of what is inside nothing is known before it is decoded: its size, nor what would read it."""
    for form in ("ICO", "ICNS"):
        with pytest.raises(ImageError, match="not an image"):
            image_size(encoded(Image.new("RGB", (64, 64)), form))
    photograph = encoded(Image.new("RGB", (20, 20)), "PNG")

    def field(number: int, value: bytes) -> bytes:
        return b"\x1c" + bytes(divmod(number, 256)) + len(value).to_bytes(2, "big") + value

    size = (200).to_bytes(2, "big")
    head = [(3 * 256 + 60, b"\x01\x01"), (3 * 256 + 65, b"\x00"), (3 * 256 + 20, size), (3 * 256 + 30, size)]
    iptc = b"".join(field(*one) for one in [*head, (3 * 256 + 120, b"\x04"), (8 * 256 + 10, photograph)])
    with pytest.raises(ImageError, match="not an image"):
        image_size(iptc)


def test_heic_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.heic"
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(60))
    with pytest.raises(ImageError, match="HEIC, in which phones save photographs, is not read; save it as JPEG"):
        load_image(path)


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_16_bit_ramp_keeps_256_levels(form: str, tmp_path: Path) -> None:
    ramp = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "ramp"
    Image.fromarray(ramp).save(path, form)
    result = np.asarray(load_image(path))
    assert len(np.unique(result)) == 256
    np.testing.assert_array_equal(result[..., 0], np.round(ramp / 257).astype(np.uint8))
    np.testing.assert_array_equal(result[..., 0], result[..., 2])


def test_16_bit_grey_in_mode_i_and_in_big_endian_is_scaled_alike() -> None:
    values = np.array([[0, 257, 32_896, 65_535]])
    grey = Image.fromarray(values.astype(np.int32))
    assert grey.mode == "I"
    assert [red for red, _, _ in pixels(grey)] == [0, 1, 128, 255]
    big = Image.frombytes("I;16B", (4, 1), values.astype(">u2").tobytes())
    assert pixels(big) == pixels(grey)


@pytest.mark.parametrize("values", [(-1, 9), (0, 70_000)])
def test_32_bit_grey_beyond_16_bits_is_refused(values: tuple[int, int]) -> None:
    message = rf"mode I with values {values[0]} to {values[1]}; 16-bit grey is 0 to 65535"
    with pytest.raises(ImageError, match=message):
        load_image(Image.fromarray(np.array([values], np.int32)))


def test_float_mode_is_refused_by_name(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match=r"a\.tif: mode F \(floating-point grey\) has no fixed range"):
        load_image(tmp_path / "a.tif")


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95)
    red, green, blue = pixels(data)[0]
    assert (red > 245, green < 10, blue < 10) == (True, True, True)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_alpha_is_composed_over_white(form: str) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (0, 0, 0, 128), (0, 0, 0, 0)])
    options = {"lossless": True, "exact": True} if form == "WEBP" else {}
    assert pixels(encoded(image, form, **options)) == [(10, 20, 30), (127, 127, 127), (255, 255, 255)]


def test_grey_alpha_is_composed_over_white() -> None:
    image = Image.new("LA", (2, 1))
    image.putdata([(7, 255), (7, 0)])
    assert pixels(encoded(image, "PNG")) == [(7, 7, 7), (255, 255, 255)]


@pytest.mark.parametrize("transparency", [1, bytes([255, 0])])
def test_transparent_palette_colour_becomes_white(transparency: int | bytes) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putdata([0, 1])
    assert pixels(encoded(image, "PNG", transparency=transparency)) == [(200, 0, 0), (255, 255, 255)]
    assert pixels(encoded(image, "PNG")) == [(200, 0, 0), (0, 0, 200)]


@pytest.mark.parametrize(("mode", "values"), [("L", [7, 9]), ("I;16", [7 * 257, 9 * 257])])
def test_transparent_grey_value_becomes_white(mode: str, values: list[int]) -> None:
    dtype = np.uint8 if mode == "L" else np.uint16
    image = Image.fromarray(np.array([values], dtype))
    assert image.mode == mode
    assert pixels(encoded(image, "PNG", transparency=values[1])) == [(7, 7, 7), (255, 255, 255)]


@pytest.mark.parametrize("form", ["GIF", "TIFF", "PNG", "WEBP"])
def test_first_of_several_frames_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    assert set(pixels(data)) == {(255, 0, 0)}


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF"])
def test_one_pixel(form: str) -> None:
    assert pixels(encoded(Image.new("RGB", (1, 1), (255, 0, 0)), form)) == [(255, 0, 0)]


def test_sources_agree(tmp_path: Path) -> None:
    image = noise()
    image.save(tmp_path / "a.bmp")
    expected = load_image(tmp_path / "a.bmp")
    for source in (str(tmp_path / "a.bmp"), (tmp_path / "a.bmp").read_bytes(), image, np.asarray(image)):
        assert load_image(source).tobytes() == expected.tobytes()
    assert expected.tobytes() == image.tobytes()
    grey = np.array([[0, 9]], np.uint8)
    assert pixels(grey) == [(0, 0, 0), (9, 9, 9)]


def test_a_pillow_image_is_left_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(encoded(corners(), "JPEG", exif=exif)))
    assert load_image(image).size == (48, 32)
    assert image.size == (32, 48)
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    "array", [np.zeros((2, 2), np.float32), np.zeros((2, 2, 4), np.uint8), np.zeros((0, 2), np.uint8)]
)
def test_other_arrays_are_refused(array: NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"<array>: must be uint8 .* got (float32|uint8) of shape \("):
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
def test_files_that_are_no_images(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        load_image(path)
    assert caught.value.path == str(path)
    assert caught.value.reason.startswith(reason)
    assert str(caught.value) == f"{path}: {caught.value.reason}"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone\.jpg: no such file$"):
        load_image(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="a folder, not a file"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="cannot be read: File name too long"):
        load_image("a" * 5000)


def test_a_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    held = os.open(tmp_path / "pipe.jpg", os.O_RDWR)  # so that this test fails rather than hangs
    os.write(held, b"x" * 64)
    with pytest.raises(ImageError, match="not a regular file"):
        load_image(tmp_path / "pipe.jpg")
    os.close(held)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "PPM", "TIFF", "JPEG2000"])
def test_truncated_file(form: str, tmp_path: Path) -> None:
    data = encoded(noise(), form)
    path = tmp_path / "half"
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ImageError, match=r"half: file is (truncated|damaged: .*\(.*\))$") as caught:
        load_image(path)
    if form in ("JPEG", "PNG", "BMP"):
        assert caught.value.reason == "file is truncated"


def test_header_cut_short_is_not_called_no_image() -> None:
    with pytest.raises(ImageError, match=r"<bytes>: file is (truncated|damaged: its PNG header)"):
        load_image(encoded(noise(), "PNG")[:20])


@given(
    form=st.sampled_from(["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA", "PCX", "SGI", "QOI"]),
    cut=st.integers(1, 400),
    changes=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 255)), max_size=3),
)
def test_damaged_files_load_or_raise_image_error(form: str, cut: int, changes: list[tuple[int, int]]) -> None:
    data = bytearray(encoded(noise(9, 7), form)[:cut])
    for position, value in changes:
        data[position % len(data)] = value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of odd metadata by warnings
        try:
            image = load_image(bytes(data), max_pixels=1_000_000)
        except ImageError:
            return
    assert image.mode == "RGB"


@pytest.mark.parametrize(("width", "height"), [(40_000, 40_000), (15_000, 15_000)])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, width: int, height: int) -> None:
    (tmp_path / "bomb.png").write_bytes(png_claiming(width, height))
    size = f"{height} x {width}"
    reason = rf"bomb\.png: too many pixels: {size} \(height x width\), more than max_pixels=178956970"
    with pytest.raises(ImageError, match=reason):
        load_image(tmp_path / "bomb.png")


def test_limits_are_the_caller_s() -> None:
    image = Image.new("RGB", (8, 4))
    assert load_image(image, max_pixels=32, max_side=8).size == (8, 4)
    with pytest.raises(ImageError, match=r"too many pixels: 4 x 8 \(height x width\), .*max_pixels=31"):
        load_image(image, max_pixels=31)
    with pytest.raises(ImageError, match=r"too long a side: 4 x 8 \(height x width\), .*max_side=7"):
        load_image(image, max_side=7)
    with pytest.raises(ValueError, match="max_side must be 1 or more, got 0"):
        load_image(image, max_side=0)


def test_pillow_s_own_settings_are_neither_changed_nor_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert load_image(data).size == (80, 64)
    assert Image.MAX_IMAGE_PIXELS == 10
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


def test_image_error_survives_a_copy() -> None:
    error = copy.copy(ImageError("a.jpg", "file is empty"))
    assert (error.path, error.reason, str(error)) == ("a.jpg", "file is empty", "a.jpg: file is empty")


def test_to_tensor_normalises_each_channel() -> None:
    image = Image.new("RGB", (2, 1))
    image.putdata([(0, 51, 255), (255, 102, 0)])
    tensor = to_tensor(image, mean=(0.0, 0.2, 0.5), std=(1.0, 0.5, 0.25))
    assert tensor.dtype == torch.float32
    expected = torch.tensor([[[0.0, 1.0]], [[0.0, 0.4]], [[2.0, -2.0]]])
    torch.testing.assert_close(tensor, expected)


@pytest.mark.parametrize(
    ("mode", "mean", "std", "message"),
    [
        ("L", (0.5,) * 3, (0.5,) * 3, "image must be of mode RGB, .* got mode L"),
        ("RGB", (0.5,), (0.5,) * 3, "mean must have 3 values, .* got 1"),
        ("RGB", (0.5,) * 3, (0.5,) * 4, "std must have 3 values, .* got 4"),
        ("RGB", (0.5,) * 3, (0.5, 0.0, 0.5), r"std must be above 0 in every channel, got \[0.5, 0.0, 0.5\]"),
    ],
)
def test_to_tensor_refuses(mode: str, mean: tuple[float], std: tuple[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_tensor(Image.new(mode, (2, 2)), mean, std)


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpg", ".hidden.jpg", "notes.txt", "z/c.webp", ".git/d.jpg", "film.mpg", "e.pdf"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "z" / "up").symlink_to(tmp_path)
    assert [str(path.relative_to(tmp_path)) for path in list_images(tmp_path)] == [
        "a.jpg",
        "b.PNG",
        "z/c.webp",
    ]
    assert list_images(str(tmp_path / "notes.txt")) == [tmp_path / "notes.txt"]
    (tmp_path / ".git" / "d.jpg").unlink()
    with pytest.raises(ImageError, match=r"\.git: the folder holds no image"):
        list_images(tmp_path / ".git")
    with pytest.raises(ImageError, match="gone: no such file or folder"):
        list_images(tmp_path / "gone")


def test_image_extensions() -> None:
    extensions = image_extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".webp", ".ppm", ".mpo"} <= extensions
    assert not {".pdf", ".eps", ".mpg", ".h5", ".wmf", ".txt", ""} & extensions
