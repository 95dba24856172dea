"""Resize policies: target sizes, limits, pixels, and parsing."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from sppnet.data.resize import POLICIES, Resize

SIDES = st.integers(1, 150)
RESIZES = st.builds(
    lambda policy, side, pixels: Resize(policy, None if policy in ("native", "square-min") else side, pixels),
    st.sampled_from(POLICIES),
    st.integers(1, 40),
    st.integers(1, 6000),
)


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("native", (480, 640), (480, 640)),
        ("native", (1000, 4000), (500, 2000)),
        ("native", (1, 3_000_000), (1, 1_000_000)),
        ("shorter-side", (480, 640), (224, 299)),  # 298.67
        ("shorter-side:224", (448, 449), (224, 225)),  # 224.5
        ("shorter-side:320", (640, 480), (427, 320)),
        ("shorter-side:224", (50, 100), (224, 448)),
        ("shorter-side:224", (10, 1000), (100, 10_000)),  # 224 x 22400 is beyond a million
        ("square-min", (480, 640), (480, 480)),
        ("square-min", (3000, 2000), (1000, 1000)),
        ("warp:256", (480, 640), (256, 256)),
        ("center-crop", (480, 640), (224, 224)),
        ("center-crop:1", (1, 1), (1, 1)),
    ],
)
def test_target_size(text: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert Resize.parse(text).target_size(*size) == expected


@pytest.mark.parametrize(
    ("text", "size", "expected"),
    [
        ("native", (300, 476), (304, 480)),
        ("native", (295, 296), (288, 304)),  # halves up
        ("native", (3, 40), (16, 48)),
        ("native", (296, 488), (288, 480)),  # 304 x 496 has more than max_pixels
        ("shorter-side:100", (150, 100), (144, 96)),  # 150 x 100
        ("warp:180", (480, 640), (176, 176)),
        ("center-crop:100", (480, 640), (96, 96)),
        ("square-min", (90, 50), (48, 48)),
    ],
)
def test_sides_are_rounded_to_the_nearest_multiple(text: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    resize = Resize.parse(text, max_pixels=146_000, multiple=16)
    assert resize.target_size(*size) == expected
    image = resize(noise(*size))
    assert (image.height, image.width) == expected


def test_rejects_multiple_below_one() -> None:
    with pytest.raises(ValueError, match="multiple: expected at least 1, got 0"):
        Resize("native", multiple=0)


@given(resize=RESIZES, height=SIDES, width=SIDES, interpolation=st.sampled_from(["bilinear", "bicubic"]))
@settings(deadline=None)
def test_result_has_the_target_size(resize: Resize, height: int, width: int, interpolation: str) -> None:
    result = resize(Image.new("RGB", (width, height)), interpolation)
    assert (result.height, result.width) == resize.target_size(height, width)
    assert result.mode == "RGB"


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(1, 10**7), st.integers(1, 500))
def test_max_pixels_is_never_exceeded(height: int, width: int, max_pixels: int, side: int) -> None:
    for resize in (
        Resize("native", None, max_pixels),
        Resize("square-min", None, max_pixels),
        Resize("shorter-side", side, max_pixels),
    ):
        h, w = resize.target_size(height, width)
        assert h * w <= max_pixels
        assert min(h, w) >= 1


@given(st.integers(1, 10**5), st.integers(1, 10**5), st.integers(1, 10**7))
def test_native_keeps_the_aspect_ratio_within_a_pixel(height: int, width: int, max_pixels: int) -> None:
    h, w = Resize("native", None, max_pixels).target_size(height, width)
    if height * width <= max_pixels:
        assert (h, w) == (height, width)
        return
    scale = math.sqrt(max_pixels / (height * width))
    if min(height, width) * scale >= 1:
        assert abs(h - height * scale) <= 1
        assert abs(w - width * scale) <= 1


@given(height=SIDES, width=SIDES, spare=st.integers(0, 100))
def test_native_does_not_change_small_images(height: int, width: int, spare: int) -> None:
    image = noise(height, width)
    assert Resize("native", None, height * width + spare)(image).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("text", "size"),
    [("shorter-side:20", (20, 31)), ("square-min", (20, 20)), ("warp:20", (20, 20))],
)
def test_unchanged_size_keeps_the_pixels(text: str, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert Resize.parse(text)(image).tobytes() == image.tobytes()


@given(height=SIDES, width=SIDES, side=st.integers(1, 40), interpolation=st.sampled_from(["bilinear", "bicubic"]))
@settings(deadline=None, max_examples=100)
def test_center_crop_matches_resize_then_crop(height: int, width: int, side: int, interpolation: str) -> None:
    assume(max(height, width) < 20 * min(height, width))
    # Pillow chooses the order of its two passes by the size of the result. Rounding in each pass causes differences of
    # up to 2 levels; low contrast keeps bicubic overshoot within the range, so that nothing is clipped.
    image = noise(height, width).point([90 + value // 4 for value in range(256)] * 3)
    short = math.floor(side / 0.875 + 0.5)
    full = Resize("shorter-side", short, 10**9)(image, interpolation)
    left, top = (full.width - side) // 2, (full.height - side) // 2
    expected = np.asarray(full.crop((left, top, left + side, top + side))).astype(int)
    result = np.asarray(Resize("center-crop", side)(image, interpolation)).astype(int)
    assert np.abs(result - expected).max() <= 2


def test_center_crop_without_scaling_is_the_center() -> None:
    image = noise(256, 300)
    result = Resize("center-crop", 224)(image)
    assert result.tobytes() == image.crop((38, 16, 262, 240)).tobytes()


def test_center_crop_of_a_long_thin_image_needs_little_memory() -> None:
    # The whole image would be resized to 256 x 15,360,000 pixels.
    assert Resize("center-crop", 224)(Image.new("RGB", (60_000, 1))).size == (224, 224)


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    result = np.asarray(Resize("warp", 16)(Image.fromarray(stripes)))
    assert 100 < result.min() <= result.max() < 160


def test_interpolation_modes_match_pillow() -> None:
    image = noise(10, 10)
    bicubic, bilinear = (image.resize((7, 7), f) for f in (Image.Resampling.BICUBIC, Image.Resampling.BILINEAR))
    assert Resize("warp", 7)(image).tobytes() == bicubic.tobytes()
    assert Resize("warp", 7)(image, "bilinear").tobytes() == bilinear.tobytes() != bicubic.tobytes()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("native", Resize("native")),
        ("square-min", Resize("square-min")),
        ("warp", Resize("warp", 224)),
        ("warp:256", Resize("warp", 256)),
        (" warp 256 ", Resize("warp", 256)),
        ("shorter-side:320", Resize("shorter-side", 320)),
        ("center-crop: 224", Resize("center-crop", 224)),
    ],
)
def test_parse(text: str, expected: Resize) -> None:
    assert Resize.parse(text) == expected


def test_parse_uses_the_default_side_and_max_pixels() -> None:
    assert Resize.parse("warp", default_side=96, max_pixels=5) == Resize("warp", 96, 5)
    assert Resize.parse("native", default_side=96) == Resize("native")


@given(RESIZES)
def test_parse_inverts_str(resize: Resize) -> None:
    assert Resize.parse(str(resize), max_pixels=resize.max_pixels) == resize


def test_str() -> None:
    assert [str(r) for r in (Resize("shorter-side", 224), Resize("native"))] == ["shorter-side:224", "native"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "shortest-side",
            r"one of native, shorter-side, .*, got 'shortest-side'; did you mean shorter-side",
        ),
        ("zzz:3", r"resize: expected one of native, .*, center-crop, got 'zzz'$"),
        ("", "resize: expected one of"),
        ("Warp", "did you mean warp"),
        ("native:224", "resize: expected no side for native, got 224"),
        ("square-min 3", "resize: expected no side for square-min, got 3"),
        ("warp:0", "resize: expected a side of 1..8192 pixels for warp, got 0"),
        ("warp:8193", "expected a side of 1..8192 pixels for warp, got 8193"),
        ("warp:-3", "resize: expected POLICY or POLICY:SIDE, such as warp:256, got 'warp:-3'"),
        ("warp:", "resize: expected POLICY or POLICY:SIDE"),
        ("warp:2:3", "resize: expected POLICY or POLICY:SIDE"),
        ("warp:1.5", "resize: expected POLICY or POLICY:SIDE"),
    ],
)
def test_parse_rejects_invalid_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resize.parse(text)


def test_rejects_other_invalid_arguments() -> None:
    with pytest.raises(ValueError, match=r"expected a side of 1\.\.8192 pixels for warp, got None"):
        Resize("warp")
    with pytest.raises(ValueError, match="max_pixels: expected at least 1, got 0"):
        Resize("native", None, 0)
    with pytest.raises(ValueError, match="height, width: expected at least 1, got 0 x 5"):
        Resize("native").target_size(0, 5)
    with pytest.raises(ValueError, match="interpolation: expected one of bilinear, bicubic, got 'nearest'"):
        Resize("native")(noise(2, 2), "nearest")
    with pytest.raises(ValueError, match=r"image: expected mode RGB, .* got mode P"):
        Resize("native")(Image.new("P", (2, 2)))
