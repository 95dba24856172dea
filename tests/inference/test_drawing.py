"""Bins on images, drawn boxes and class colors."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageColor

from sppnet.backbones.backbone import FeatureMap
from sppnet.inference.drawing import arrange, bin_boxes, class_colour, draw_bins, load_font, truncate
from tests.helpers.slow_reference import adaptive_bins

# Normal vision, protanopia and deuteranopia on linear RGB, from Machado, Oliveira and Fernandes (2009).
VISION = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
)


def feature_map(rows: int, columns: int, stride: int, offset: tuple[float, float]) -> FeatureMap:
    return FeatureMap(torch.zeros(1, 1, rows, columns), (stride, stride), offset)


def nearest_cells(side: int, cells: int, stride: int, offset: float) -> list[int]:
    """Return the nearest cell center of each pixel."""
    return [min(range(cells), key=lambda cell: abs(pixel - offset - stride * cell)) for pixel in range(side)]


def test_single_bin_covers_the_image() -> None:
    features = feature_map(14, 20, 32, (10.0, 31.0))
    assert bin_boxes(features, (213, 320), (427, 640), 1).tolist() == [[0, 0, 320, 213]]


def test_bins_are_disjoint_if_the_level_divides_the_map() -> None:
    features = feature_map(4, 4, 32, (15.5, 15.5))
    boxes = bin_boxes(features, (128, 128), (128, 128), 2)
    assert boxes.tolist() == [[0, 0, 64, 64], [64, 0, 128, 64], [0, 64, 64, 128], [64, 64, 128, 128]]


def test_bins_share_a_cell_if_the_level_does_not_divide_the_map() -> None:
    features = feature_map(2, 3, 32, (15.5, 15.5))
    boxes = bin_boxes(features, (64, 96), (64, 96), (1, 2))
    assert boxes.tolist() == [[0, 0, 64, 64], [32, 0, 96, 64]]


def test_bin_borders_follow_the_offset() -> None:
    # Borders between cells at 10.5 + 32 * (cell - 0.5) = 26.5, 58.5, ... pixels of the network's input.
    features = feature_map(4, 2, 32, (10.0, 31.0))
    boxes = bin_boxes(features, (240, 128), (120, 64), (4, 2))
    assert boxes[:, 1].unique().tolist() == [0, 53, 117, 181]
    assert boxes[:, 3].unique().tolist() == [53, 117, 181, 240]
    assert boxes[:2].tolist() == [[0, 0, 95, 53], [95, 0, 128, 53]]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 5, 8, 16]),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(1, 6),
    st.integers(1, 6),
)
def test_boxes_contain_the_pixels_nearest_to_the_cells_of_their_bins(
    rows: int, columns: int, stride: int, down: int, right: int, level_rows: int, level_columns: int
) -> None:
    # An offset of a third of a pixel keeps borders off pixel centers, so each pixel has a unique nearest cell.
    offset = down / 2 + 1 / 3, right / 2 + 1 / 3
    size = int(offset[0] + stride * rows) + 1, int(offset[1] + stride * columns) + 1
    boxes = bin_boxes(feature_map(rows, columns, stride, offset), size, size, (level_rows, level_columns))
    assert boxes.shape == (level_rows * level_columns, 4)
    y, x = nearest_cells(size[0], rows, stride, offset[0]), nearest_cells(size[1], columns, stride, offset[1])
    expected = [
        (
            {pixel for pixel, cell in enumerate(y) if cell in row},
            {pixel for pixel, cell in enumerate(x) if cell in column},
        )
        for row in adaptive_bins(rows, level_rows)
        for column in adaptive_bins(columns, level_columns)
    ]
    actual = [
        (
            {pixel for pixel in range(size[0]) if y1 < pixel + 0.5 < y2},
            {pixel for pixel in range(size[1]) if x1 < pixel + 0.5 < x2},
        )
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    assert actual == expected
    covered = {(i, j) for pixels_y, pixels_x in actual for i in pixels_y for j in pixels_x}
    assert len(covered) == size[0] * size[1]


def test_rejects_empty_sizes_and_padded_batches() -> None:
    features = feature_map(2, 2, 32, (15.5, 15.5))
    with pytest.raises(ValueError, match=r"image_size.*at least 1 x 1 pixels, got \(0, 5\)"):
        bin_boxes(features, (0, 5), (64, 64), 1)
    with pytest.raises(ValueError, match=r"levels\[0\]: expected at least 1 bin per side"):
        bin_boxes(features, (64, 64), (64, 64), 0)
    padded = FeatureMap(features.data, features.stride, features.offset, ((1, 1),))
    with pytest.raises(ValueError, match="features: expected a map without padding"):
        bin_boxes(padded, (64, 64), (64, 64), 1)


def test_outlines_cover_exactly_the_edges() -> None:
    image = Image.new("RGB", (40, 30), (0, 60, 0))
    before = np.asarray(image).copy()
    changed = (np.asarray(draw_bins(image, torch.tensor([[5.0, 10, 25, 20]]))) != before).any(2)
    expected = np.zeros((30, 40), bool)
    expected[10:20, 5:25] = True
    expected[11:19, 6:24] = False
    assert (changed == expected).all()
    assert (np.asarray(image) == before).all()


def test_tint_is_the_mean_value_of_overlapping_boxes() -> None:
    image = Image.new("RGB", (60, 20), (100, 100, 100))
    boxes = torch.tensor([[0.0, 0, 40, 20], [20, 0, 60, 20]])
    picture = np.asarray(draw_bins(image, boxes, values=(1.0, 0.0))).astype(int)
    first, both, second = picture[10, 10], picture[10, 30], picture[10, 50]
    assert second.tolist() == [100, 100, 100]
    assert first[0] > 100 > first[2]
    assert both == pytest.approx((first + second) / 2, abs=1)


def test_tinted_images_are_converted_to_gray() -> None:
    image = Image.new("RGB", (20, 20), (200, 0, 0))
    red, green, blue = np.asarray(draw_bins(image, torch.tensor([[0.0, 0, 20, 20]]), values=[0.0]))[10, 10]
    assert red == green == blue


def test_labels_are_centered_in_boxes_that_fit_them() -> None:
    image = Image.new("RGB", (400, 200))
    boxes = torch.tensor([[0.0, 0, 200, 200], [200, 0, 220, 200]])
    plain = np.asarray(draw_bins(image, boxes))
    written = (np.asarray(draw_bins(image, boxes, labels=["cat", "caterpillar"])) != plain).any(2)
    y, x = written.nonzero()
    assert x.max() < 200
    assert (x.min() + x.max()) / 2 == pytest.approx(99.5, abs=3)
    assert (y.min() + y.max()) / 2 == pytest.approx(99.5, abs=3)


def test_labels_do_not_overlap() -> None:
    image = Image.new("RGB", (400, 200))
    near, far = (
        torch.tensor([[0.0, 0, 200, 200], [20, 0, 220, 200]]),
        torch.tensor([[0.0, 0, 200, 200], [200, 0, 400, 200]]),
    )
    widths = []
    for boxes in (near, far):
        picture = np.asarray(draw_bins(image, boxes, labels=["cat", "cat"]))
        _, x = (picture != np.asarray(draw_bins(image, boxes))).any(2).nonzero()
        widths.append(x.max() - x.min())
    assert widths[0] < 40 < 200 < widths[1]


def test_requires_one_value_and_label_per_box() -> None:
    image, boxes = Image.new("RGB", (20, 20)), torch.tensor([[0.0, 0, 20, 20]])
    with pytest.raises(ValueError, match=r"values: expected one per box \(1\), got 2"):
        draw_bins(image, boxes, values=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"labels: expected one per box \(1\), got 0"):
        draw_bins(image, boxes, labels=[])
    with pytest.raises(ValueError, match=r"values: expected numbers in \[0, 1\], got 1.5"):
        draw_bins(image, boxes, values=[1.5])


def lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856)).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=1)


def test_twenty_class_colors_differ_for_all_kinds_of_color_vision() -> None:
    rgb = np.array([ImageColor.getrgb(class_colour(label)) for label in range(20)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for transform in VISION:
        perceived = lab((linear @ transform.T).clip(0, 1))
        assert min(float(np.linalg.norm(a - b)) for a, b in combinations(perceived, 2)) > 15
    assert class_colour(20) == class_colour(0)


def test_truncated_text_fits_the_width() -> None:
    font = load_font(15)
    assert truncate("pedestrian", font, 1000) == "pedestrian"
    short = truncate("pedestrian", font, 50)
    assert short.endswith("…")
    assert font.getlength(short) <= 50 < font.getlength("pedestrian"[: len(short)] + "…")
    assert truncate("pedestrian", font, 0) == "…"


@pytest.mark.parametrize("vertically", [False, True])
def test_arranged_pictures_are_separated_by_the_margin(vertically: bool) -> None:
    pictures = [Image.new("RGB", size, color) for size, color in (((4, 3), "red"), ((5, 6), "lime"))]
    sheet = arrange(pictures, 2, vertically=vertically)
    assert sheet.size == ((5, 11) if vertically else (11, 6))
    second = (0, 5) if vertically else (6, 0)
    assert sheet.crop((*second, second[0] + 5, second[1] + 6)).tobytes() == pictures[1].tobytes()
    assert sheet.getpixel((3, 2)) == (255, 0, 0)
    assert sheet.getpixel((0, 3) if vertically else (4, 0)) == (22, 22, 26)
    assert arrange([], vertically=vertically).size == (1, 1)
