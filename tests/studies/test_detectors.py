"""Comparison of SPP-net and R-CNN: data that changed or cannot be read, the JSON content and the measured seconds."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sppnet.backbones.backbone import create_backbone
from sppnet.data.formats.detection import DetectionData, read_detection
from sppnet.detect.classic.fit import propose_windows, window_vectors
from sppnet.detect.classic.windows import label_windows
from sppnet.detect.model import Detector
from sppnet.detect.options import DetectOptions, Method
from sppnet.detect.train import detector_config
from sppnet.studies.detectors import (
    COLUMNS,
    ROWS,
    DetectorComparison,
    DetectorResults,
    compare_detectors,
    comparison_content,
    time_detector,
    verdict,
)
from tests.helpers.detection_data import write_voc
from tests.helpers.two_stage import shorten_comparisons

OPTIONS = DetectOptions(
    backbone="zf5", weights="none", levels=(1,), scales=(96,), hidden=(8, 8), proposals="grid", windows=3, epochs=1,
    steps=2,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    shorten_comparisons(monkeypatch)


@pytest.fixture
def splits(tmp_path: Path) -> tuple[DetectionData, DetectionData]:
    root = write_voc(tmp_path / "data", 3, 3)
    train = read_detection(root, "train")
    return train, read_detection(root, "test", train.classes)


def write_boxes(folder: Path, *splits: DetectionData) -> Path:
    """Write the true boxes, and those of an image that does not exist, to a file."""
    rows = [
        [sample.path.name, *map(str, box)]
        for data in splits
        for sample in data.samples
        for box in sample.boxes.tolist()
    ]
    rows.append(["other.png", "1", "2", "3", "4"])
    (folder / "boxes.csv").write_text("\n".join(map(",".join, [["image", "x1", "y1", "x2", "y2"], *rows])))
    return folder / "boxes.csv"


@pytest.mark.parametrize("source", ["grid", "file"])
def test_unreadable_images_are_problems(
    source: str, splits: tuple[DetectionData, DetectionData], tmp_path: Path
) -> None:
    train, test = splits
    bad = [data.samples[1].path for data in splits]
    for path in bad:
        path.write_bytes(path.read_bytes()[:400])
    options = replace(OPTIONS, proposals="grid" if source == "grid" else str(write_boxes(tmp_path, *splits)))
    comparison = compare_detectors(train, test, options, tmp_path / "out", seeds=1)
    assert comparison.images == (2, 2)
    assert sorted(problem.partition(": ")[0] for problem in comparison.problems) == sorted(map(str, bad))
    assert all(column.precision.keys() == set(ROWS) for column in comparison.columns.values())


def test_rejects_test_images_that_cannot_be_read(splits: tuple[DetectionData, DetectionData], tmp_path: Path) -> None:
    for sample in splits[1].samples:
        sample.path.write_bytes(b"not an image")
    message = r"data: expected a readable image with an object, got none; the first error: .*test0\.png"
    with pytest.raises(ValueError, match=message):
        compare_detectors(*splits, OPTIONS, tmp_path / "out", seeds=1)


def test_rejects_several_processes(splits: tuple[DetectionData, DetectionData], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="devices: expected 1 for a comparison of detectors, got 2"):
        compare_detectors(*splits, replace(OPTIONS, devices=2), tmp_path / "out")


def test_resuming_with_changed_training_data_is_an_error(
    splits: tuple[DetectionData, DetectionData], tmp_path: Path
) -> None:
    """The paths stay the same."""
    train, test = splits
    first = compare_detectors(train, test, OPTIONS, tmp_path / "out", seeds=1)
    again = compare_detectors(train, test, OPTIONS, tmp_path / "out", seeds=1)
    assert [column.precision for column in again.columns.values()] == [
        column.precision for column in first.columns.values()
    ]
    assert again.two_stage.precision == first.two_stage.precision
    moved = tuple(replace(sample, boxes=sample.boxes / 2) for sample in train.samples)
    with pytest.raises(ValueError, match=r"images: expected '3 images, .*', as when the training in .* started"):
        compare_detectors(replace(train, samples=moved), test, OPTIONS, tmp_path / "out", seeds=1)
    os.utime(train.samples[0].path, (0, 0))
    with pytest.raises(ValueError, match=r"images: expected '3 images, .*', as when the training in .* started"):
        compare_detectors(train, test, OPTIONS, tmp_path / "out", seeds=1)


def results(spp: list[float], rcnn: list[float]) -> DetectorComparison:
    values = zip(COLUMNS, (spp, spp, rcnn), (2, 4, 8), strict=True)
    columns = {name: DetectorResults({ROWS[-1]: ap50}, {"in all": total}) for name, ap50, total in values}
    two_stage = DetectorResults({"two-stage": spp}, {"in all": 0.25})
    return DetectorComparison(columns, two_stage, 3.0, len(spp), (3, 2), 20.0, ("a.png: no such file",))


def test_content_has_the_speed_up_over_rcnn_and_the_papers_results() -> None:
    content = comparison_content(results([0.5], [0.5]))
    assert [content["columns"][name]["seconds"]["speed-up"] for name in COLUMNS] == [4, 2, 1]
    assert content["images"] == {"train": 3, "test": 2}
    assert content["problems"] == ["a.png: no such file"]
    assert content["detectors"]["R-CNN"] == {"ap50": [0.5], "seconds": {"proposals": 3.0, "in all": 11.0}}
    assert content["detectors"]["two-stage"] == {"ap50": [0.5], "seconds": {"proposals": 0.0, "in all": 0.25}}
    # The speed-ups printed in the paper follow from its seconds.
    paper = content["paper"]["seconds"]
    assert tuple(round(paper["in all"][-1] / total) for total in paper["in all"]) == paper["speed-up"]


@pytest.mark.parametrize(
    ("spp", "rcnn", "text"),
    [
        ([0.5], [0.25], "(+25.0 points, from one seed, so the difference may be chance)"),
        ([0.5, 0.6], [0.55, 0.65], "(-5.0 points, no clear difference, because the ranges of the 2 seeds overlap)"),
        ([0.5, 0.6], [0.61, 0.65], "(-8.0 points, a difference beyond the ranges of the 2 seeds)"),
    ],
)
def test_verdict_compares_precision_and_speed(spp: list[float], rcnn: list[float], text: str) -> None:
    sentence = verdict(results(spp, rcnn))
    assert text in sentence
    assert sentence.endswith("and SPP-net is 4.0 times as fast per image.")


@pytest.mark.parametrize(("method", "sample"), [("spp", None), ("rcnn", 64)])
def test_only_rcnn_is_timed_on_a_sample_of_windows(
    method: Method, sample: int | None, splits: tuple[DetectionData, DetectionData], tmp_path: Path
) -> None:
    options = replace(OPTIONS, method=method, scales=(688,), hidden=(), windows=70)
    data = splits[1]
    windows, _ = propose_windows(data.samples[:1], len(data.classes), options, tmp_path)
    model = Detector(detector_config(options, data.classes), create_backbone("zf5", weights=None))
    seconds, timed = time_detector(model, window_vectors(model, windows, tmp_path), [0])
    assert timed == sample
    assert seconds["in all"] == pytest.approx(seconds["convolutions"] + seconds["heads"])
    assert min(seconds.values()) > 0
    no_windows = window_vectors(model, [label_windows(data.samples[0], torch.empty(0, 4), 2)], tmp_path)
    assert time_detector(model, no_windows, [0])[0]["in all"] < 60
