"""Tests of pictures of detections: outlines, labels and mosaics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageColor

from sppnet.detect.pictures import draw_detections, write_mosaic
from sppnet.inference.drawing import class_colour
from sppnet.inference.results import Detections
from tests.helpers.detection_results import Box, detections, has_color, pixels, sample


def test_outline_is_inside_the_box() -> None:
    gray = Image.new("RGB", (300, 200), "grey")
    picture = draw_detections(gray, detections(((100, 60, 180, 120), 1, 0.5)), ["a", "b"])
    rows, columns = np.nonzero(has_color(picture, class_colour(1))[60:])
    assert (rows.min() + 60, rows.max() + 60, columns.min(), columns.max()) == (60, 119, 100, 179)
    assert picture.getpixel((150, 90)) == (128, 128, 128)
    assert pixels(gray).min() == pixels(gray).max() == 128


def test_highest_score_is_on_top_for_any_input_order() -> None:
    rows = [((50, 50, 100, 100), 0, 0.2), ((50, 50, 100, 100), 1, 0.9), ((50, 50, 100, 100), 2, 0.5)]
    blank = Image.new("RGB", (150, 150))
    pictures = [draw_detections(blank, detections(*order), ["a", "b", "c"]) for order in (rows, rows[::-1])]
    assert (pixels(pictures[0]) == pixels(pictures[1])).all()
    assert pictures[0].getpixel((50, 75)) == ImageColor.getrgb(class_colour(1))
    for label in range(3):
        assert has_color(pictures[0], class_colour(label)).sum() > 100


def test_truths_are_drawn_as_white_dashes() -> None:
    truths = torch.tensor([[20.0, 20.0, 120.0, 80.0]])
    picture = draw_detections(Image.new("RGB", (150, 100), "grey"), detections(), [], truths=truths)
    edge = pixels(picture)[20, 20:120, 0]
    assert set(edge.tolist()) == {0, 255}
    assert 0.4 < (edge == 255).mean() < 0.8
    changed = (pixels(picture) != 128).any(axis=2)
    assert changed[20:80, 20:120].sum() == changed.sum() == 2 * 100 + 2 * 58


@settings(max_examples=30, deadline=None)
@given(st.integers(50, 300), st.integers(50, 300), st.data())
def test_labels_stay_inside_the_image(width: int, height: int, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    image, classes = Image.new("RGB", (width, height), "grey"), ["", "", "", "", "wall"]
    middle = (width // 2, height // 2, width // 2 + 1, height // 2 + 1)
    letter_pixels = [
        has_color(draw_detections(image, detections((box, 4, 0.5)), classes), "white", 100).sum()
        for box in ((left, top, right, bottom), middle)
    ]
    assert letter_pixels[0] == letter_pixels[1] > 5


@pytest.mark.parametrize("size", [(60, 45), (200, 150), (4000, 3000)])
def test_font_scales_with_the_image(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "grey")
    box = (size[0] * 0.3, size[1] * 0.5, size[0] * 0.6, size[1] * 0.9)
    picture = draw_detections(image, detections((box, 4, 0.5)), ["", "", "", "", "pottedplant"])
    rows, _ = np.nonzero(has_color(picture, class_colour(4)))
    in_label = rows < size[1] * 0.5 - 1
    height = int(np.ptp(rows[in_label])) + 1
    assert height == pytest.approx({60: 8, 200: 16, 4000: 95}[size[0]], abs=4)


def test_labels_of_equal_boxes_do_not_overlap() -> None:
    rows = [((100.0, 100.0, 200.0, 200.0), label, 0.9 - label / 10) for label in range(5)]
    picture = draw_detections(Image.new("RGB", (400, 300)), detections(*rows), list("abcde"))
    # Only the outline of the highest score is visible; a label has about 700 pixels.
    assert all(has_color(picture, class_colour(label)).sum() > 400 for label in range(5))


def test_mosaics_show_true_positives_false_positives_and_missed_objects(tmp_path: Path) -> None:
    for number, color in enumerate(("maroon", "navy")):
        Image.new("RGB", (200, 120), color).save(tmp_path / f"{number}.png")
    samples = [
        sample(tmp_path / "0.png", ((20, 20, 60, 60), 0), ((150, 20, 190, 60), 0)),
        sample(tmp_path / "1.png", ((20, 20, 60, 60), 1)),
    ]
    results = [
        detections(((22, 20, 62, 60), 0, 0.9), ((20, 22, 60, 62), 0, 0.8)),
        detections(((100, 60, 140, 100), 1, 0.7)),
    ]
    write_mosaic(results, samples, ["a", "b"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "best.jpg") as best, Image.open(tmp_path / "out" / "worst.jpg") as worst:
        assert best.width == worst.width == 1608
        # A heading, and a row for each class with crops.
        assert (best.height, worst.height) == (34 + 238, 34 + 2 * 238)
        tile = best.crop((8, 34, 200, 226))
        assert has_color(tile, "maroon", 40).mean() > 0.8
        assert has_color(tile, class_colour(0), 40).sum() > 300
        assert has_color(tile, "white", 60).sum() > 100
        assert has_color(best.crop((208, 34, 400, 226)), "#16161a", 12).all()
        # First row: duplicate, missed object. Second row: false positive, missed object.
        for row, color in enumerate(("maroon", "navy")):
            for column, outlined in enumerate((True, False)):
                left, top = 8 + 200 * column, 34 + 238 * row
                tile = worst.crop((left, top, left + 192, top + 192))
                assert has_color(tile, color, 40).mean() > 0.8
                assert (has_color(tile, class_colour(row), 40).sum() > 300) == outlined
        assert has_color(worst.crop((408, 34, 1600, 226)), "#16161a", 12).all()


def test_error_row_is_shared_by_false_positives_and_missed_objects(tmp_path: Path) -> None:
    Image.new("RGB", (400, 400), "navy").save(tmp_path / "x.png")
    boxes: list[Box] = [(20.0 * n, 0.0, 20.0 * n + 15, 15.0) for n in range(20)]
    errors = detections(*(((x1, y1 + 200, x2, y2 + 200), 0, 0.5) for x1, y1, x2, y2 in boxes))

    def outlined(result: Detections, *objects: Box) -> list[bool]:
        samples = [sample(tmp_path / "x.png", *((box, 0) for box in objects))]
        write_mosaic([result], samples, ["a"], tmp_path)
        with Image.open(tmp_path / "worst.jpg") as worst:
            tiles = [worst.crop((8 + 200 * n, 34, 200 + 200 * n, 226)) for n in range(8)]
            return [
                has_color(tile, class_colour(0), 40).sum() > 200 for tile in tiles if has_color(tile, "navy", 40).any()
            ]

    assert outlined(errors, *boxes) == [True] * 4 + [False] * 4
    assert outlined(errors, *boxes[:1]) == [True] * 7 + [False]
    assert outlined(detections(), *boxes) == [False] * 8
    assert outlined(detections((boxes[0], 0, 0.5)), boxes[0]) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.data())
@example(1, 1, None)
def test_mosaic_accepts_any_box_in_any_image(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, data: st.DataObject | None
) -> None:
    folder = tmp_path_factory.mktemp("crops")
    Image.new("RGB", (width, height), "navy").save(folder / "x.png")
    x1, y1 = (data.draw(st.floats(0, side - 0.5)) for side in (width, height)) if data else (0.0, 0.0)
    box = (x1, y1, (x1 + width) / 2 + 0.25, (y1 + height) / 2 + 0.25)
    write_mosaic([detections((box, 0, 0.5))], [sample(folder / "x.png", (box, 0))], ["a" * 80], folder)
    with Image.open(folder / "best.jpg") as best:
        assert best.size == (1608, 34 + 238)
