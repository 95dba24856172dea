import pickle
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from sppnet.data.formats.masks import (
    IGNORE,
    LabelMap,
    SegmentationSample,
    count_mask,
    count_pixels,
    find_ids,
    format_ranges,
    load_mask,
    load_pair,
)
from sppnet.data.images import load_image
from sppnet.data.items import Problems
from sppnet.errors import ImageError
from tests.helpers.segmentation_data import save_mask

IDS = np.array([[0, 1, 2], [255, 1, 0]], np.uint8)
INDICES = [[0, 1, 2], [IGNORE, 1, 0]]
LABELS = LabelMap(("wall", "door", "window"), {0: 0, 1: 1, 2: 2})
COLORED = LabelMap(("wall", "door"), {0: 0, 1: 1}, (), {(9, 9, 9): 0, (200, 0, 1): 1, (0, 0, 0): IGNORE})


def save_with_orientation(path: Path, pixels: np.ndarray, orientation: int) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def low_bit_png(path: Path, rows: list[bytes], width: int, bits: int) -> Path:
    """Write a gray PNG of 1, 2 or 4 bits, which Pillow does not support."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save_mask(IDS, path),
        lambda path: save_mask(IDS, path, palette=True),
        lambda path: Image.fromarray(IDS.astype(np.uint16)).save(path),
        lambda path: Image.fromarray(np.stack([IDS] * 3, 2)).save(path),
        lambda path: Image.fromarray(np.stack([*[IDS] * 3, np.full_like(IDS, 255)], 2)).save(path),
        lambda path: Image.fromarray(np.stack([IDS, np.full_like(IDS, 255)], 2)).save(path),
    ],
    ids=["gray", "palette", "16 bit", "RGB", "RGBA", "gray with alpha"],
)
def test_reads_ids_from_all_pixel_modes(write: Callable[[Path], object], tmp_path: Path) -> None:
    write(tmp_path / "m.png")
    mask = load_mask(tmp_path / "m.png", LABELS)
    assert mask.dtype == np.int16
    assert mask.tolist() == INDICES


def test_reads_unscaled_ids_from_1_2_and_4_bit_masks(tmp_path: Path) -> None:
    labels = LabelMap(tuple("abcdefghijklmnop"), {value: value for value in range(16)}, ())
    mask_1_bit = low_bit_png(tmp_path / "1.png", [b"\xa0"], 4, 1)
    mask_2_bit = low_bit_png(tmp_path / "2.png", [b"\x1b"], 4, 2)
    mask_4_bit = low_bit_png(tmp_path / "4.png", [b"\x07\xf3"], 4, 4)
    assert load_mask(mask_1_bit, labels).tolist() == [[1, 0, 1, 0]]
    assert load_mask(mask_2_bit, labels).tolist() == [[0, 1, 2, 3]]
    assert load_mask(mask_4_bit, labels).tolist() == [[0, 7, 15, 3]]
    assert np.asarray(load_image(mask_2_bit))[0, 3].tolist() == [255, 255, 255]


def test_reads_16_bit_ids_up_to_65535(tmp_path: Path) -> None:
    Image.fromarray(np.array([[300, 65_535, 0]], np.uint16)).save(tmp_path / "m.png")
    labels = LabelMap(("a", "b"), {300: 1, 0: 0}, (65_535,))
    assert load_mask(tmp_path / "m.png", labels).tolist() == [[1, IGNORE, 0]]


def test_maps_colors_to_classes(tmp_path: Path) -> None:
    pixels = np.array([[[9, 9, 9], [200, 0, 1], [0, 0, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    assert load_mask(tmp_path / "m.png", COLORED).tolist() == [[0, 1, IGNORE]]
    assert load_mask(save_mask(np.array([[1, 0]], np.uint8), tmp_path / "gray.png"), COLORED).tolist() == [[1, 0]]
    pixels[0, :2] = (200, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: colors without a class: \(200, 0, 0\) \(2 pixels\)"):
        load_mask(tmp_path / "m.png", COLORED)


def test_rejects_colors_without_a_color_table(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 1, 1], [1, 2, 1]]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(ImageError, match=r"m\.png: the mask has colors, such as \(1, 2, 1\), .* columns name,r,g,b"):
        load_mask(tmp_path / "m.png", LABELS)


def test_rejects_ids_without_a_class(tmp_path: Path) -> None:
    path = save_mask(np.array([[7, 7, 0], [9, 255, 2]], np.uint8), tmp_path / "m.png")
    message = r"m\.png: ids without a class: 7 \(2 pixels\), 9 \(1 pixels\); expected 0 to 2 \(classes\) or 255 \(ign"
    with pytest.raises(ImageError, match=message):
        load_mask(path, LABELS)
    with pytest.raises(ImageError, match=r"expected 0 \(classes\) or none \(ignored\)"):
        load_mask(path, LabelMap(("a",), {0: 0}, ()))


def test_rejects_unsupported_pixels(tmp_path: Path) -> None:
    for file_format, name in (("JPEG", "a.jpg"), ("JPEG", "a.png")):
        Image.fromarray(IDS).save(tmp_path / name, file_format)
        with pytest.raises(ImageError, match=rf"{name}: JPEG compression changes the ids of a mask; save masks as PNG"):
            load_mask(tmp_path / name, LABELS)
    Image.fromarray(IDS.astype(np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match=r"f\.tif: mask mode: expected a palette, gray or RGB image, got F"):
        load_mask(tmp_path / "f.tif", LABELS)
    Image.fromarray(np.array([[-3, 2]], np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(ImageError, match=r"i\.tif: mask ids: expected 0 to 65535, got -3 to 2"):
        load_mask(tmp_path / "i.tif", LABELS)
    Image.fromarray(np.zeros((2, 2, 4), np.uint8)).save(tmp_path / "t.png")
    with pytest.raises(ImageError, match=r"t\.png: the mask has transparent pixels \(mode RGBA\)"):
        load_mask(tmp_path / "t.png", LABELS)


def test_rejects_unreadable_and_too_large_files(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 3, (80, 80), dtype=np.uint8)
    path = save_mask(noise, tmp_path / "m.png")
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"m\.png: file is truncated"):
        load_mask(path, LABELS)
    (tmp_path / "e.png").touch()
    with pytest.raises(ImageError, match=r"e\.png: file is empty"):
        load_mask(tmp_path / "e.png", LABELS)
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        load_mask(tmp_path / "none.png", LABELS)
    save_mask(noise, path)
    with pytest.raises(ImageError, match=r"m\.png: too many pixels: 80 x 80 .* max_pixels=6399"):
        load_mask(path, LABELS, max_pixels=6399)
    with pytest.raises(ImageError, match=r"m\.png: side too long: .* max_side=79"):
        load_mask(path, LABELS, max_side=79)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_applies_image_orientation_to_masks_of_stored_pixels(orientation: int, tmp_path: Path) -> None:
    # The gray levels of the image are the ids of the mask.
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    labels = LabelMap(tuple("abcdef"), {value: value for value in range(6)}, ())
    image = save_with_orientation(tmp_path / "i.png", ids, orientation)
    stored = SegmentationSample(image, save_mask(ids, tmp_path / "stored.png"))
    pixels, mask = load_pair(stored, labels)
    upright = np.asarray(pixels)[..., 0]
    assert mask.shape == upright.shape
    if orientation in (1, 5, 6, 7, 8):
        assert mask.tolist() == upright.tolist()
    else:  # the size does not reveal the orientation
        assert mask.tolist() == ids.tolist()
    own_orientation = save_with_orientation(tmp_path / "own.png", ids, orientation)
    for path in (save_mask(upright, tmp_path / "upright.png"), own_orientation):
        assert load_pair(SegmentationSample(image, path), labels)[1].tolist() == upright.tolist()
    assert count_pixels([stored], labels).pixels.tolist() == [1] * 6


def test_rejects_mask_of_different_size(tmp_path: Path) -> None:
    Image.new("RGB", (5, 4)).save(tmp_path / "i.png")
    sample = SegmentationSample(tmp_path / "i.png", save_mask(IDS, tmp_path / "m.png"))
    message = (
        f"{sample.mask}: mask size: expected 4 x 5 (height x width), the size of its image {sample.path}, got 2 x 3"
    )
    with pytest.raises(ImageError, match=f"^{re.escape(message)}$"):
        load_pair(sample, LABELS)
    assert [str(failure) for failure in count_pixels([sample], LABELS).failures] == [message]
    # A transposed mask is rejected if the image has no EXIF orientation.
    with pytest.raises(ImageError, match=r"expected 3 x 2 .*, got 2 x 3"):
        load_pair(SegmentationSample(save_mask(IDS.T.copy(), tmp_path / "t.png"), sample.mask), LABELS)


def test_counts_pixels_and_reports_bad_masks(tmp_path: Path) -> None:
    samples = []
    for name, ids in {"a": IDS, "b": np.full((1, 4), 1, np.uint8), "c": IDS + 5, "d": IDS}.items():
        mask = save_mask(ids, tmp_path / f"{name}m.png")
        Image.new("RGB", ids.shape[::-1]).save(tmp_path / f"{name}.png")
        samples.append(SegmentationSample(tmp_path / f"{name}.png", mask))
    samples[3].path.unlink()
    counts = count_pixels(samples, LABELS)
    assert counts.pixels.tolist() == [2, 6, 1]
    assert counts.shown.tolist() == [5, 9, 5]
    assert [Path(failure.path).name for failure in counts.failures] == ["cm.png", "d.png"]
    assert find_ids(samples)[0] == {0, 1, 2, 4, 5, 6, 7, 255}


def test_pickles_label_map_without_lookup_tables(tmp_path: Path) -> None:
    path = save_mask(IDS, tmp_path / "m.png")
    load_mask(path, LABELS)  # creates the tables
    copy = pickle.loads(pickle.dumps(LABELS))
    assert copy == LABELS
    assert len(pickle.dumps(LABELS)) < 1000
    assert load_mask(path, copy).tolist() == INDICES


def test_formats_ranges() -> None:
    assert format_ranges((255, 1, 0, 2)) == "0 to 2, 255"
    assert format_ranges(()) == ""


BLACK_WHITE = {(0, 0, 0): 0, (255, 255, 255): 1}
RGB_TABLE = {(200, 0, 0): 0, (0, 200, 0): 1, (9, 9, 200): 2}


def labels_with(colors: dict[tuple[int, int, int], int], ignore: tuple[int, ...] = (255,)) -> LabelMap:
    names = tuple("abc"[: 1 + max(colors.values())])
    return LabelMap(names, {index: index for index in range(len(names))}, ignore, colors)


@pytest.mark.parametrize("mode", ["L", "P", "RGB", "1", "I;16", "LA", "RGBA"])
@pytest.mark.parametrize("flip", [False, True])
def test_gray_colors_of_a_table_count_in_all_modes(mode: str, flip: bool, tmp_path: Path) -> None:
    colors = {color: 1 - index if flip else index for color, index in BLACK_WHITE.items()}
    for pixels in ([[0, 255, 255]], [[0, 0, 0]], [[255, 255, 255]]):
        gray = Image.fromarray(np.array(pixels, np.uint8))
        image = gray.convert("RGB").quantize(2) if mode == "P" else gray
        image = Image.fromarray(np.array(pixels, np.uint16)) if mode == "I;16" else image.convert(mode)
        image.save(tmp_path / "m.png")
        expected = [[colors[value, value, value] for value in pixels[0]]]
        assert load_mask(tmp_path / "m.png", labels_with(colors)).tolist() == expected
        assert load_mask(tmp_path / "m.png", labels_with(colors, ())).tolist() == expected


def test_ids_count_where_the_table_does_not_have_the_gray_levels(tmp_path: Path) -> None:
    path = save_mask(np.array([[0, 1, 1]], np.uint8), tmp_path / "m.png")
    assert load_mask(path, labels_with(BLACK_WHITE)).tolist() == [[0, 1, 1]]
    assert load_mask(path, labels_with(RGB_TABLE)).tolist() == [[0, 1, 1]]
    with pytest.raises(
        ImageError, match=r"the value 0 of the mask is the id of the class a, but its color \(0, 0, 0\)"
    ):
        load_mask(path, labels_with({(0, 0, 0): 1, (255, 255, 255): 0}))


def test_palette_colors_count_where_the_table_has_them(tmp_path: Path) -> None:
    pixels = np.array([[[9, 9, 200], [9, 9, 200], [0, 200, 0], [200, 0, 0], [9, 9, 200]]], np.uint8)
    for row in (pixels, pixels[:, :2], pixels[:, 3:]):
        expected = [[RGB_TABLE[tuple(color)] for color in row[0].tolist()]]
        Image.fromarray(row).save(tmp_path / "rgb.png")
        Image.fromarray(row).quantize(8).save(tmp_path / "p.png")
        for name in ("rgb.png", "p.png"):
            assert load_mask(tmp_path / name, labels_with(RGB_TABLE)).tolist() == expected
    # Another palette is only for display.
    assert load_mask(save_mask(IDS % 3, tmp_path / "d.png", palette=True), labels_with(RGB_TABLE)).max() == 2
    ignored = np.array([[0, 2, 255]], np.uint8)
    mask = Image.fromarray(ignored)
    mask.putpalette([*(200, 0, 0), *(0, 200, 0), *(9, 9, 200), *[7] * 759])
    mask.save(tmp_path / "p.png")
    assert load_mask(tmp_path / "p.png", labels_with(RGB_TABLE)).tolist() == [[0, 2, IGNORE]]


def test_rejects_palettes_that_contradict_the_table(tmp_path: Path) -> None:
    mask = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    mask.putpalette([*(0, 200, 0), *(5, 5, 5), *(200, 0, 0)])
    mask.save(tmp_path / "p.png")
    message = (
        r"p\.png: the value 0 of the mask is the id of the class a, but its color \(0, 200, 0\) that of the class b"
    )
    with pytest.raises(ImageError, match=message) as caught:
        load_mask(tmp_path / "p.png", labels_with(RGB_TABLE))
    assert caught.value.kind == "unknown-id"
    mask = Image.fromarray(np.array([[0, 9]], np.uint8))
    mask.putpalette([*(200, 0, 0), *[5] * 765])
    mask.save(tmp_path / "p.png")
    with pytest.raises(ImageError, match=r"p\.png: colors without a class: \(5, 5, 5\) \(1 pixels\)"):
        load_mask(tmp_path / "p.png", labels_with(RGB_TABLE))


def test_reports_masks_with_one_value(tmp_path: Path) -> None:
    problems = Problems()
    Image.new("RGB", (2, 1)).save(tmp_path / "i.png")
    for ids in ([1, 255], [255, 255], [0, 1]):
        sample = SegmentationSample(tmp_path / "i.png", save_mask(np.array([ids], np.uint8), tmp_path / "m.png"))
        count_mask(sample, LABELS, (1, 2), problems)
    reasons = ["all pixels that count have the class door", "all pixels are ignored"]
    assert [(problem.kind, problem.reason) for problem in problems] == [("one-value", reason) for reason in reasons]
