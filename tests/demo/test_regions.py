import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image

from sppnet import Classifier, imagenet_classifier
from sppnet.data.images import load_image
from sppnet.demo import regions
from sppnet.demo.regions import PassTiming, Regions, find_regions, regions_section
from sppnet.demo.run import sample_photographs
from sppnet.detect.proposals import propose
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.results import Detections
from sppnet.ops.boxes import areas
from tests.helpers.html_page import Page


@pytest.fixture(scope="module")
def model() -> Classifier:
    return imagenet_classifier()


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "_SAMPLE", 3)
    monkeypatch.setattr(regions, "_RUNS", 1)


def test_section_has_the_measured_times_and_their_ratios() -> None:
    detections = Detections(
        torch.tensor([[0.0, 0, 9, 9], [5, 5, 9, 9]]), torch.tensor([0.96, 0.75]), torch.tensor([1, 0])
    )
    once, paper = PassTiming(384, 700, 0.1, 0.008, 0.012), PassTiming(688, 1100, 1.2, 0.02, 0.03)
    result = Regions(detections, 1500, False, 0.84, once, paper, 0.04, 64)
    assert result.ratio(once) == pytest.approx(500)
    assert result.ratio(paper) == pytest.approx(48)
    page = Page(regions_section(result, ("<cup>", "ladle"), "a", "data:,"))
    rows = page.texts[page.texts.index("1,500 windows") :]
    assert [text for text in rows if text.strip()][:24] == [
        *("1,500 windows", "384 pixels", "688 pixels"),
        *("distinct windows", "700", "1,100"),
        *("network, once", "100 ms", "1,200 ms"),
        *("pooling all windows", "8 ms", "20 ms"),
        *("classifier on all windows", "12 ms", "30 ms"),
        *("one pass in total", "120 ms", "1,250 ms"),
        *("one pass per window: 1,500 × 40.0 ms", "60.0 s", "60.0 s"),
        *("speedup", "500", "48"),
    ]
    assert "at least 60%: ladle (96%), <cup> (75%)." in page.words()
    assert "Only 64 windows, spread over" in page.words()
    assert "Finding the windows (0.8 s)" in page.words()


def test_section_without_likely_windows() -> None:
    no_detections = Detections(torch.empty(0, 4), torch.empty(0), torch.empty(0, dtype=torch.long))
    timing = PassTiming(384, 1, 0.1, 0.1, 0.1)
    section = regions_section(Regions(no_detections, 1, False, 0.1, timing, timing, 0.1, 1), (), "a", "data:,")
    assert "at least 60%: none." in section


@pytest.mark.usefixtures("_quick")
def test_found_windows_are_likely_and_not_contained_in_better_ones(model: Classifier) -> None:
    if not find_spec("skimage"):
        pytest.skip("needs the extra demo")
    photograph = load_image(sample_photographs()[-1])
    detections = find_regions(model, photograph).found
    labels = [model.config.classes[label] for label in detections.labels.tolist()]
    assert labels[0] == "espresso"
    left, top, right, bottom = detections.boxes[0].tolist()
    assert left < 220 < 360 < right  # the cup
    assert top < 110 < 190 < bottom
    assert 1 <= len(labels) <= 5
    assert detections.scores.min() >= 0.6
    for row, box in enumerate(detections.boxes):
        for better in detections.boxes[:row]:
            shared = torch.cat((torch.maximum(box[:2], better[:2]), torch.minimum(box[2:], better[2:])))
            assert areas(shared) < 0.6 * min(areas(box), areas(better))
    encoder = RegionEncoder(model.backbone, (1,), (384,), reduce="avg")
    with torch.inference_mode():
        alone = model.head(encoder.vectors(encoder.prepare(photograph), detections.boxes)).softmax(1)
    torch.testing.assert_close(alone.max(1).values, detections.scores, rtol=1e-3, atol=1e-4)
    assert alone.argmax(1).tolist() == detections.labels.tolist()


@pytest.mark.usefixtures("_quick")
def test_falls_back_to_grid_windows_without_opencv(model: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    photograph = Image.effect_mandelbrot((90, 60), (-2, -1, 1, 1), 50).convert("RGB")
    result = find_regions(model, photograph)
    assert result.grid
    assert result.windows == len(propose(photograph, "grid", max_windows=2000)) > 1
    section = regions_section(result, model.config.classes, "a", "data:,")
    assert "The windows form a sliding grid; selective search needs OpenCV" in " ".join(section.split())
    assert 'pip install ".[detect]"' in section
