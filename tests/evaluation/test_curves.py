"""Figures of precision-recall curves."""

import sys
from pathlib import Path

import pytest
from PIL import Image, ImageColor

from sppnet.evaluation.average_precision import score_detections
from sppnet.evaluation.curves import write_curves
from sppnet.inference.drawing import class_colour
from tests.helpers.detection_results import detections, has_color, sample


def tinted_fraction(file: Path, label: int) -> float:
    """Return the fraction of pixels with the color of a class at an opacity of 0.15 on white."""
    color = ImageColor.getrgb(class_colour(label))
    tint = "#{:02x}{:02x}{:02x}".format(*(round(255 - 0.15 * (255 - value)) for value in color))
    with Image.open(file) as picture:
        return float(has_color(picture.convert("RGB"), tint, 2).mean())


def test_writes_a_figure_of_all_classes_and_one_per_class(tmp_path: Path) -> None:
    left, right, background = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0), (50.0, 0.0, 60.0, 10.0)
    samples = [sample(Path("x.jpg"), (left, 0), (right, 0), (left, 1), (left, 2))]
    rows = [(left, 0, 0.9), (background, 0, 0.8), (background, 0, 0.7), (right, 0, 0.6), (left, 1, 0.5)]
    scores = score_detections([detections(*rows)], samples, ["a/b:%", "found", "$x^$", "_absent"])
    folder = tmp_path / "new" / "folder"
    write_curves(scores, folder)
    files = {"pr-curves.png", "pr-curve-a%2fb%3a%25.png", "pr-curve-found.png", "pr-curve-$x^$.png"}
    assert {file.name for file in folder.iterdir()} == files
    # The tinted area under a curve is proportional to the AP.
    whole = tinted_fraction(folder / "pr-curve-found.png", 1)
    assert whole > 0.6
    assert tinted_fraction(folder / "pr-curve-a%2fb%3a%25.png", 0) == pytest.approx(0.75 * whole, rel=0.04)
    assert tinted_fraction(folder / "pr-curve-$x^$.png", 2) == 0


def test_missing_matplotlib_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = (0.0, 0.0, 10.0, 10.0)
    scores = score_detections([detections((box, 0, 0.5))], [sample(Path("x.jpg"), (box, 0))], ["a"])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match=r"curves need the package matplotlib, .* 'detect'"):
        write_curves(scores, tmp_path)
