from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from sppnet.data.formats.mask_values import read_raw
from sppnet.data.formats.masks import IGNORE, LabelMap, load_mask, load_pair
from sppnet.data.formats.segmentation import SegmentationData, read_segmentation
from sppnet.segment.evaluate import SegmentationReport, SegmentationScores
from sppnet.segment.pictures import count_labels, labels_picture, overlay, palette, save_png, write_mosaic
from tests.helpers.segmentation_data import CLASSES, write_shapes

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
GRAY = Image.new("RGB", (40, 30), (100, 100, 100))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def write_labels(labels: np.ndarray, path: Path, colors: tuple[tuple[int, int, int], ...] = ()) -> None:
    save_png(labels_picture(labels, colors), path)


def draw(
    image: Image.Image, labels: np.ndarray, classes: tuple[str, ...], colors: tuple[tuple[int, int, int], ...] = ()
) -> np.ndarray:
    return np.asarray(overlay(image, labels, classes, colors)).astype(int)


def halves(height: int = 30, width: int = 40, classes: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Return labels with one class on the left and another on the right."""
    labels = np.full((height, width), classes[0], np.int64)
    labels[:, width // 2 :] = classes[1]
    return labels


def test_default_palette_is_that_of_voc() -> None:
    expected = {
        0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 3: (128, 128, 0), 4: (0, 0, 128), 7: (128, 128, 128),
        8: (64, 0, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192),
    }  # fmt: skip
    table = palette()
    assert table.shape == (256, 3)
    assert {index: tuple(table[index].tolist()) for index in expected} == expected
    assert len(np.unique(palette(size=1000), axis=0)) == 1000


def test_given_colors_precede_the_default_ones() -> None:
    table = palette((RED, GREEN))
    assert table[:4].tolist() == [[255, 0, 0], [0, 255, 0], [0, 128, 0], [128, 128, 0]]
    assert palette((RED, GREEN, BLUE), 2).tolist() == [[255, 0, 0], [0, 255, 0]]


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.uint16, np.int64])
def test_mask_has_indices_and_a_palette(kind: Any, tmp_path: Path) -> None:
    labels, file = np.arange(15).reshape(3, 5).astype(kind), tmp_path / "mask.png"
    write_labels(labels, file, (RED,))
    with Image.open(file) as mask:
        assert (mask.mode, mask.size) == ("P", (5, 3))
        assert np.array_equal(np.asarray(mask), labels)
    shown = pixels(file)
    assert shown[0, :3].tolist() == [[255, 0, 0], [128, 0, 0], [0, 128, 0]]
    assert shown[2, 2].tolist() == [64, 0, 128]  # 12
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_ignored_pixels_are_written_as_255_and_read_as_ignored(tmp_path: Path) -> None:
    labels, file = np.array([[0, IGNORE], [254, 3]], np.int16), tmp_path / "mask.png"
    write_labels(labels, file)
    assert read_raw(file).tolist() == [[0, 255], [254, 3]]
    label_map = LabelMap(tuple(map(str, range(255))), {index: index for index in range(255)})
    assert np.array_equal(load_mask(file, label_map), labels)


def test_writes_16_bits_for_indices_above_254(tmp_path: Path) -> None:
    labels, file = np.array([[0, 255, 299], [1, IGNORE, 65_534]], np.int64), tmp_path / "mask.png"
    write_labels(labels, file, (RED,) * 300)
    with Image.open(file) as mask:
        assert mask.mode == "I;16"
    assert read_raw(file).tolist() == [[0, 255, 299], [1, 65_535, 65_534]]
    for greatest, mode in ((254, "P"), (255, "I;16")):
        write_labels(np.array([[0, greatest]]), file, (RED,) * 300)
        with Image.open(file) as mask:
            assert mask.mode == mode


def test_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mask.png"
    write_labels(halves(), file)
    before = file.read_bytes()

    def fail(image: Image.Image, path: Path, **_: object) -> None:
        path.write_bytes(b"incomplete")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_labels(1 - halves(), file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_overlay_blends_the_image_with_the_class_colors() -> None:
    labels = halves()
    labels[:10] = IGNORE
    shown = draw(GRAY, labels, ("left", "right"), (RED, BLUE))
    assert shown.shape[1] > 40
    assert (shown[:10, :40] == 100).all()
    assert (shown[10:30, :20] == [185, 45, 45]).all()  # 0.45 x 100 + 0.55 x 255
    assert (shown[10:30, 20:40] == [45, 45, 185]).all()


def test_legend_lists_present_classes_by_descending_area() -> None:
    labels = halves(classes=(1, 3))
    labels[:, 15:] = 3
    legend = draw(GRAY, labels, ("a", "b", "c", "d"), (RED, GREEN, BLUE))[:, 40:]
    squares = [tuple(color) for color in legend[[8 + 11, 8 + 24 + 11], 8 + 12].tolist()]
    assert squares == [(128, 128, 0), GREEN]
    assert not any((legend == color).all(2).any() for color in (RED, BLUE))
    for top in (8, 8 + 24):  # text of the entries
        assert (legend[top : top + 24, 8 + 28 :] > 200).all(2).any()


def test_overlay_supports_class_indices_above_255() -> None:
    shown = draw(GRAY, halves(classes=(255, 299)), tuple(map(str, range(300))))
    table = palette(size=300).astype(float)
    assert shown[5, 5].tolist() == (0.45 * 100 + 0.55 * table[255]).round().tolist()
    assert shown[5, 35].tolist() == (0.45 * 100 + 0.55 * table[299]).round().tolist()


@pytest.mark.parametrize("size", [(3000, 1500), (30, 4001), (2000, 100), (2001, 1)])
def test_overlay_sides_are_at_most_2000_pixels(size: tuple[int, int]) -> None:
    height, width = size
    labels = halves(height, width).astype(np.uint8)
    shown = draw(Image.new("RGB", (width, height)), labels, ("a", "b"), (RED, BLUE))
    scale = min(1, 2000 / max(size))
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    assert len(shown) == max(tall, 2 * 24 + 16)
    middle = shown[tall // 2, :wide]
    assert ((middle[:, 0] > 0).sum(), (middle[:, 2] > 0).sum()) == (wide // 2, wide - wide // 2)


def test_counts_labels_of_arrays_and_memory_maps(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(-1, 5, (700, 9))
    expected = [int((labels == index).sum()) for index in range(6)]
    assert count_labels(labels, 6).tolist() == expected
    np.save(tmp_path / "labels.npy", np.maximum(labels, 0).astype(np.uint8))
    expected[0] += int((labels == IGNORE).sum())
    assert count_labels(np.load(tmp_path / "labels.npy", mmap_mode="r"), 6).tolist() == expected


@pytest.fixture
def data(tmp_path: Path) -> SegmentationData:
    return read_segmentation(write_shapes(tmp_path / "data", "voc", {"train": 3}), "train", CLASSES)


def create_evaluation(data: SegmentationData, *values: float | None) -> SegmentationReport:
    scores = SegmentationScores(0.5, 0.5, 0.5, {}, {})
    return SegmentationReport(scores, values, values, data.samples, torch.zeros(3, 3, dtype=torch.long), None)


def predict_background(image: Image.Image) -> Tensor:
    return torch.zeros(image.height, image.width, dtype=torch.long)


def test_mosaics_show_the_worst_and_the_best_images(data: SegmentationData, tmp_path: Path) -> None:
    inputs: list[np.ndarray] = []

    def predict(image: Image.Image) -> Tensor:
        inputs.append(np.asarray(image))
        return predict_background(image)

    write_mosaic(create_evaluation(data, 0.7, 0.2, 0.4), data, predict, tmp_path / "new" / "pictures", count=2)
    images = [np.asarray(load_pair(sample, data.labels)[0]) for sample in data.samples]
    for image, index in zip(inputs, (1, 2, 0, 2), strict=True):
        assert np.array_equal(image, images[index])
    assert sorted(path.name for path in (tmp_path / "new" / "pictures").iterdir()) == ["best.png", "worst.png"]
    worst = pixels(tmp_path / "new" / "pictures" / "worst.png")
    assert np.array_equal(worst[24 : 24 + 64, :80], images[1])
    second_top = 24 + 64 + 8 + 24
    assert np.array_equal(worst[second_top : second_top + 64, :80], images[2])


def test_mosaic_row_shows_image_mask_prediction_and_errors(data: SegmentationData, tmp_path: Path) -> None:
    write_mosaic(create_evaluation(data, 0.7, None, None), data, predict_background, tmp_path, (RED, GREEN, BLUE))
    image, mask = load_pair(data.samples[0], data.labels)
    shown = pixels(tmp_path / "best.png")
    width = (
        int(np.flatnonzero((shown == [46, 46, 52]).all(2).any(0))[0]) // 3
    )  # color of the errors picture, which is the fourth
    original = np.asarray(image).astype(float)
    parts = [shown[24 : 24 + 64, index * width : index * width + 80] for index in range(4)]
    labeled = mask != IGNORE
    colors = np.array([RED, GREEN, BLUE])[np.where(labeled, mask, 0)]
    blended = np.where(labeled[..., None], 0.45 * original + 0.55 * colors, original)
    np.testing.assert_allclose(parts[1], blended, atol=0.51)
    np.testing.assert_allclose(parts[2], 0.45 * original + 0.55 * np.array(RED), atol=0.51)
    assert np.array_equal((parts[3] == [240, 90, 60]).all(2), labeled & (mask != 0))
    assert np.array_equal((parts[3] == [215, 215, 220]).all(2), ~labeled)
    assert np.array_equal((parts[3] == [46, 46, 52]).all(2), mask == 0)
    assert (~labeled).any()


def test_mosaic_legend_lists_only_classes_that_occur(data: SegmentationData, tmp_path: Path) -> None:
    colors = ((9, 99, 199), (9, 199, 99), (199, 9, 99))
    for value, expected in ((0, {0}), (2, {0, 2})):
        for sample in data.samples:
            Image.new("L", (80, 64), value).save(str(sample.mask))
        write_mosaic(create_evaluation(data, 0.1, 0.2, 0.3), data, predict_background, tmp_path, colors)
        shown = pixels(tmp_path / "best.png")
        assert {index for index, color in enumerate(colors) if (shown == color).all(2).any()} == expected


def test_captions_wider_than_their_images_do_not_overlap(data: SegmentationData, tmp_path: Path) -> None:
    write_mosaic(create_evaluation(data, 0.7, None, None), data, predict_background, tmp_path)
    empty = np.flatnonzero((pixels(tmp_path / "worst.png")[:24] == [22, 22, 26]).all((0, 2)))
    gaps = np.split(empty, np.flatnonzero(np.diff(empty) > 1) + 1)
    assert sum(len(gap) >= 8 for gap in gaps) >= 4


def test_reduced_overlay_uses_the_labels_at_pixel_centers() -> None:
    labels = np.zeros((60, 6000), np.uint8)
    labels[1::3, 1::3] = 1
    shown = draw(Image.new("RGB", (6000, 60)), labels, ("a", "b"), (RED, BLUE))
    assert (shown[:20, :2000] == [0, 0, 140]).all()
