import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageColor

from sppnet.data.formats.detection import DetectionSample
from sppnet.detect.pictures import draw_detections, write_mosaic
from sppnet.evaluation.average_precision import score_detections
from sppnet.evaluation.curves import write_curves
from sppnet.inference.drawing import class_colour
from sppnet.inference.results import Detections

Box = tuple[float, float, float, float]
# Machado, Oliveira and Fernandes (2009), on linear RGB: normal sight, protanopia, deuteranopia.
SIGHTS = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
)


def detections(*rows: tuple[Box, int, float]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, _, score in rows], dtype=torch.float32),
        torch.tensor([label for _, label, _ in rows], dtype=torch.long),
    )


def sample(path: Path, *objects: tuple[Box, int]) -> DetectionSample:
    return DetectionSample(
        path,
        torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label in objects], dtype=torch.long),
        torch.zeros(len(objects), dtype=torch.bool),
    )


def pixels(image: Image.Image) -> NDArray[np.int_]:
    return np.asarray(image).astype(int)


def shows(image: Image.Image, colour: str, tolerance: int = 0) -> NDArray[np.bool_]:
    """Which pixels have the colour."""
    near: NDArray[np.bool_] = np.abs(pixels(image) - ImageColor.getrgb(colour)) <= tolerance
    return near[..., 0] & near[..., 1] & near[..., 2]


def lab(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1, 1.089], 0.008856)).T
    return np.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), axis=1)


def test_twenty_colours_differ_for_all_sights() -> None:
    rgb = np.array([ImageColor.getrgb(class_colour(label)) for label in range(20)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for sight in SIGHTS:
        seen = lab((linear @ sight.T).clip(0, 1))
        assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15
    assert class_colour(20) == class_colour(0)


def test_outline_lies_inside_the_edges() -> None:
    grey = Image.new("RGB", (300, 200), "grey")
    picture = draw_detections(grey, detections(((100, 60, 180, 120), 1, 0.5)), ["a", "b"])
    rows, columns = np.nonzero(shows(picture, class_colour(1))[60:])
    assert (rows.min() + 60, rows.max() + 60, columns.min(), columns.max()) == (60, 119, 100, 179)
    assert picture.getpixel((150, 90)) == (128, 128, 128)
    assert pixels(grey).min() == pixels(grey).max() == 128


def test_the_surest_is_on_top_in_any_order() -> None:
    rows = [((50, 50, 100, 100), 0, 0.2), ((50, 50, 100, 100), 1, 0.9), ((50, 50, 100, 100), 2, 0.5)]
    blank = Image.new("RGB", (150, 150))
    pictures = [draw_detections(blank, detections(*order), ["a", "b", "c"]) for order in (rows, rows[::-1])]
    assert (pixels(pictures[0]) == pixels(pictures[1])).all()
    assert pictures[0].getpixel((50, 75)) == ImageColor.getrgb(class_colour(1))
    for label in range(3):
        assert shows(pictures[0], class_colour(label)).sum() > 100


def test_truths_are_dashed_in_white() -> None:
    truths = torch.tensor([[20.0, 20.0, 120.0, 80.0]])
    picture = draw_detections(Image.new("RGB", (150, 100), "grey"), detections(), [], truths=truths)
    edge = pixels(picture)[20, 20:120, 0]
    assert set(edge.tolist()) == {0, 255}
    assert 0.4 < (edge == 255).mean() < 0.8
    changed = (pixels(picture) != 128).any(axis=2)
    assert changed[20:80, 20:120].sum() == changed.sum() == 2 * 100 + 2 * 58


@settings(max_examples=30, deadline=None)
@given(st.integers(50, 300), st.integers(50, 300), st.data())
def test_labels_lie_inside_the_image(width: int, height: int, data: st.DataObject) -> None:
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    image, classes = Image.new("RGB", (width, height), "grey"), ["", "", "", "", "wall"]
    middle = (width // 2, height // 2, width // 2 + 1, height // 2 + 1)
    letters = [
        shows(draw_detections(image, detections((box, 4, 0.5)), classes), "white", 100).sum()
        for box in ((left, top, right, bottom), middle)
    ]
    assert letters[0] == letters[1] > 5


@pytest.mark.parametrize("size", [(60, 45), (200, 150), (4000, 3000)])
def test_letters_grow_with_the_image(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "grey")
    box = (size[0] * 0.3, size[1] * 0.5, size[0] * 0.6, size[1] * 0.9)
    picture = draw_detections(image, detections((box, 4, 0.5)), ["", "", "", "", "pottedplant"])
    rows, _ = np.nonzero(shows(picture, class_colour(4)))
    in_label = rows < size[1] * 0.5 - 1
    high = int(np.ptp(rows[in_label])) + 1
    assert high == pytest.approx({60: 8, 200: 16, 4000: 95}[size[0]], abs=4)


def test_labels_of_equal_boxes_stand_beside_each_other() -> None:
    rows = [((100.0, 100.0, 200.0, 200.0), label, 0.9 - label / 10) for label in range(5)]
    picture = draw_detections(Image.new("RGB", (400, 300)), detections(*rows), list("abcde"))
    # Of all lines only the surest's is seen; a label has about 700 pixels.
    assert all(shows(picture, class_colour(label)).sum() > 400 for label in range(5))


def tinted(file: Path, label: int) -> float:
    """Share of a curve's picture that has the class's colour at 0.15 over white."""
    colour = ImageColor.getrgb(class_colour(label))
    tint = "#{:02x}{:02x}{:02x}".format(*(round(255 - 0.15 * (255 - value)) for value in colour))
    with Image.open(file) as picture:
        return float(shows(picture.convert("RGB"), tint, 2).mean())


def test_curves_of_all_classes_and_of_each(tmp_path: Path) -> None:
    one, two, nothing = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (50.0, 0.0, 60.0, 10.0)
    samples = [sample(Path("x.jpg"), (one, 0), (two, 0), (one, 1), (one, 2))]
    rows = [(one, 0, 0.9), (nothing, 0, 0.8), (nothing, 0, 0.7), (two, 0, 0.6), (one, 1, 0.5)]
    scores = score_detections([detections(*rows)], samples, ["a/b:%", "found", "$x^$", "_absent"])
    folder = tmp_path / "new" / "folder"
    write_curves(scores, folder)
    files = {"pr-curves.png", "pr-curve-a%2fb%3a%25.png", "pr-curve-found.png", "pr-curve-$x^$.png"}
    assert {file.name for file in folder.iterdir()} == files
    # The area under a curve is tinted, and is the AP.
    whole = tinted(folder / "pr-curve-found.png", 1)
    assert whole > 0.6
    assert tinted(folder / "pr-curve-a%2fb%3a%25.png", 0) == pytest.approx(0.75 * whole, rel=0.04)
    assert tinted(folder / "pr-curve-$x^$.png", 2) == 0


def test_mosaics_show_hits_errors_and_missed_objects(tmp_path: Path) -> None:
    for number, colour in enumerate(("maroon", "navy")):
        Image.new("RGB", (200, 120), colour).save(tmp_path / f"{number}.png")
    samples = [
        sample(tmp_path / "0.png", ((20, 20, 60, 60), 0), ((150, 20, 190, 60), 0)),
        sample(tmp_path / "1.png", ((20, 20, 60, 60), 1)),
    ]
    found = [
        detections(((22, 20, 62, 60), 0, 0.9), ((20, 22, 60, 62), 0, 0.8)),
        detections(((100, 60, 140, 100), 1, 0.7)),
    ]
    write_mosaic(found, samples, ["a", "b"], tmp_path / "out")
    with Image.open(tmp_path / "out" / "best.jpg") as best, Image.open(tmp_path / "out" / "worst.jpg") as worst:
        assert best.width == worst.width == 1608
        # A heading, and a row for each class that has something to show.
        assert (best.height, worst.height) == (34 + 238, 34 + 2 * 238)
        tile = best.crop((8, 34, 200, 226))
        assert shows(tile, "maroon", 40).mean() > 0.8
        assert shows(tile, class_colour(0), 40).sum() > 300
        assert shows(tile, "white", 60).sum() > 100
        assert shows(best.crop((208, 34, 400, 226)), "#16161a", 12).all()
        # By rows: found a second time, missed; false, missed.
        for row, colour in enumerate(("maroon", "navy")):
            for column, outlined in enumerate((True, False)):
                left, top = 8 + 200 * column, 34 + 238 * row
                tile = worst.crop((left, top, left + 192, top + 192))
                assert shows(tile, colour, 40).mean() > 0.8
                assert (shows(tile, class_colour(row), 40).sum() > 300) == outlined
        assert shows(worst.crop((408, 34, 1600, 226)), "#16161a", 12).all()


def test_a_row_of_errors_is_half_false_and_half_missed_where_there_are_enough(tmp_path: Path) -> None:
    Image.new("RGB", (400, 400), "navy").save(tmp_path / "x.png")
    boxes: list[Box] = [(20.0 * n, 0.0, 20.0 * n + 15, 15.0) for n in range(20)]
    errors = detections(*(((x1, y1 + 200, x2, y2 + 200), 0, 0.5) for x1, y1, x2, y2 in boxes))

    def outlined(found: Detections, *objects: Box) -> list[bool]:
        samples = [sample(tmp_path / "x.png", *((box, 0) for box in objects))]
        write_mosaic([found], samples, ["a"], tmp_path)
        with Image.open(tmp_path / "worst.jpg") as worst:
            tiles = [worst.crop((8 + 200 * n, 34, 200 + 200 * n, 226)) for n in range(8)]
            return [shows(tile, class_colour(0), 40).sum() > 200 for tile in tiles if shows(tile, "navy", 40).any()]

    assert outlined(errors, *boxes) == [True] * 4 + [False] * 4
    assert outlined(errors, *boxes[:1]) == [True] * 7 + [False]
    assert outlined(detections(), *boxes) == [False] * 8
    assert outlined(detections((boxes[0], 0, 0.5)), boxes[0]) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.data())
@example(1, 1, None)
def test_crops_of_any_box_in_any_image(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, data: st.DataObject | None
) -> None:
    folder = tmp_path_factory.mktemp("crops")
    Image.new("RGB", (width, height), "navy").save(folder / "x.png")
    x1, y1 = (data.draw(st.floats(0, side - 0.5)) for side in (width, height)) if data else (0.0, 0.0)
    box = (x1, y1, (x1 + width) / 2 + 0.25, (y1 + height) / 2 + 0.25)
    write_mosaic([detections((box, 0, 0.5))], [sample(folder / "x.png", (box, 0))], ["a" * 80], folder)
    with Image.open(folder / "best.jpg") as best:
        assert best.size == (1608, 34 + 238)


def test_a_missing_package_is_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    scores = score_detections([detections((box, 0, 0.5))], [sample(Path("x.jpg"), (box, 0))], ["a"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r'curves need matplotlib: pip install "sppnet\[detect\]"'):
        write_curves(scores, tmp_path)
