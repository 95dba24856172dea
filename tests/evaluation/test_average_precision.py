"""Average precision against independent implementations of the VOC and COCO rules."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sppnet.data.formats.detection import DetectionSample
from sppnet.evaluation.average_precision import (
    area_average_precision,
    curve,
    match_detections,
    score_detections,
    voc07,
)
from sppnet.inference.results import Detections
from tests.helpers.detection_results import Box, detections
from tests.helpers.slow_average_precision import area, coco, devkit, eleven_points

HITS = np.array([True, False, True, True, False])
SQUARE = (0, 0, 10, 10)


def sample(*objects: tuple[Box, int, bool]) -> DetectionSample:
    return DetectionSample(
        Path("image.jpg"),
        torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label, _ in objects], dtype=torch.long),
        torch.tensor([difficult for _, _, difficult in objects], dtype=torch.bool),
    )


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Detections], list[DetectionSample]]:
    """Draw a few images with a few crowded objects, and detections with frequently equal scores."""
    side = st.integers(1, 6)

    def box() -> Box:
        left, top = draw(st.integers(0, 6)), draw(st.integers(0, 6))
        return left, top, left + draw(side), top + draw(side)

    label, more, score = st.integers(0, 1), st.integers(0, 1), st.sampled_from([-1.5, 0.1, 0.2, 0.7, 0.9])
    found, samples = [], []
    for _ in range(draw(st.integers(1, 3))):
        objects = [(box(), draw(label), draw(st.booleans())) for _ in range(draw(st.integers(0, 4)))]
        rows = [(box(), draw(label), draw(score)) for _ in range(draw(st.integers(0, 3)))]
        near = []
        for left, top, right, bottom in (draw(st.sampled_from(objects))[0] for _ in objects):
            near.append(((left, top, right + draw(more), bottom + draw(more)), draw(label), draw(score)))
        samples.append(sample(*objects))
        found.append(detections(*rows, *near))
    return found, samples


def test_voc07_of_five_detections_and_four_objects() -> None:
    assert voc07(HITS, 4) == pytest.approx(0.613636, abs=1e-6)


def test_area_average_precision_of_five_detections_and_four_objects() -> None:
    assert area_average_precision(HITS, 4) == 0.625


def test_curve_of_five_detections_and_four_objects() -> None:
    points = curve(HITS, 4)
    assert points.recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert points.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert points.envelope().tolist() == pytest.approx([1, 3 / 4, 3 / 4, 3 / 4, 3 / 5])


def test_three_of_ten_objects_reach_a_recall_of_exactly_0_3() -> None:
    assert voc07(np.array([True, True, True]), 10) == pytest.approx(4 / 11)


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_voc_scores_match_a_loop_over_detections(
    scene: tuple[list[Detections], list[DetectionSample]],
) -> None:
    found, samples = scene
    matches = match_detections(found, samples)
    for label in (0, 1):
        hits, objects = devkit(found, samples, label)
        actual = matches.hit[(matches.label == label) & ~matches.ignored]
        assert actual.tolist() == hits
        if objects:
            assert area_average_precision(actual, objects) == pytest.approx(area(hits, objects), abs=1e-12)
            assert voc07(actual, objects) == pytest.approx(eleven_points(hits, objects), abs=1e-12)


def test_matches_contain_object_and_overlap() -> None:
    samples = [sample(), sample(((50, 50, 60, 60), 1, False), (SQUARE, 0, False), ((40, 0, 50, 10), 0, True))]
    found = [
        detections((SQUARE, 0, 0.4)),
        detections(((0, 0, 10, 5), 0, 0.8), (SQUARE, 0, 0.9), ((40, 0, 50, 9), 0, 0.7), (SQUARE, 1, 0.6)),
    ]
    matches = match_detections(found, samples)
    assert matches.score.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.4])
    assert list(zip(matches.image.tolist(), matches.index.tolist(), strict=True)) == [
        (1, 1),
        (1, 0),
        (1, 2),
        (1, 3),
        (0, 0),
    ]
    assert matches.label.tolist() == [0, 0, 0, 1, 0]
    assert matches.overlap.tolist() == pytest.approx([1, 0.5, 0.9, 0, 0])
    assert matches.object.tolist() == [1, 1, 2, 0, -1]
    assert matches.hit.tolist() == [True, False, False, False, False]
    assert matches.ignored.tolist() == [False, False, True, False, False]


def test_overlap_of_exactly_one_half_is_a_match() -> None:
    scores = score_detections([detections(((0, 0, 10, 5), 0, 0.5))], [sample((SQUARE, 0, False))], ["a"])
    assert scores.ap50 == scores.voc07 == 1
    below = score_detections([detections(((0, 0, 10, 4.9), 0, 0.5))], [sample((SQUARE, 0, False))], ["a"])
    assert below.ap50 == below.voc07 == 0


def test_equal_scores_are_ordered_by_image() -> None:
    hit, miss = detections((SQUARE, 0, 0.5)), detections(((50, 50, 60, 60), 0, 0.5))
    samples = [sample((SQUARE, 0, False))] * 2
    assert score_detections([hit, miss], samples, ["a"]).ap50 == 0.5
    assert score_detections([miss, hit], samples, ["a"]).ap50 == 0.25


def test_means_exclude_classes_without_objects() -> None:
    samples = [sample((SQUARE, 0, False), ((40, 0, 50, 10), 2, True))]
    found = [detections((SQUARE, 0, 0.9), (SQUARE, 1, 0.9), (SQUARE, 2, 0.9))]
    scores = score_detections(found, samples, ["a", "b", "c"])
    assert (scores.ap50, scores.voc07, scores.map) == (1, 1, 1)
    assert list(scores.per_class) == ["a", "b", "c"]
    for name in ("b", "c"):
        of_class = scores.per_class[name]
        assert (of_class.objects, of_class.ap50, of_class.voc07, of_class.ap) == (0, None, None, None)
    assert list(scores.curves) == ["a"]


def test_scores_without_detections_are_zero() -> None:
    scores = score_detections([detections()], [sample((SQUARE, 0, False))], ["a"])
    assert (scores.ap50, scores.voc07, scores.map) == (0, 0, 0)
    assert len(scores.curves["a"].recall) == 0


def test_coco_score_averages_over_overlaps() -> None:
    # An overlap of 0.75 matches at 0.5, 0.55, ..., 0.75, 6 of the 10 thresholds.
    scores = score_detections([detections(((0, 0, 10, 7.5), 0, 0.5))], [sample((SQUARE, 0, False))], ["a"])
    assert scores.map == pytest.approx(0.6)


def test_coco_score_ignores_difficult_objects_once_and_by_plain_overlap() -> None:
    other = (40.0, 0.0, 60.0, 20.0)
    samples = [sample((SQUARE, 0, False), (other, 0, True))]
    good = (SQUARE, 0, 0.5)

    def ap(*rows: tuple[Box, int, float]) -> float:
        return score_detections([detections(*rows, good)], samples, ["a"]).map

    assert ap((other, 0, 0.9)) == 1
    assert ap((other, 0, 0.9), (other, 0, 0.8)) == pytest.approx(0.5)
    assert ap(((45, 5, 50, 10), 0, 0.9)) == pytest.approx(0.5)  # inside, but the overlap is too small


def test_coco_score_uses_at_most_100_detections_per_class_and_image() -> None:
    misses = [((50.0 + n, 50.0, 60.0 + n, 60.0), 0, 0.9) for n in range(100)]
    samples = [sample((SQUARE, 0, False))]
    assert score_detections([detections(*misses[:99], (SQUARE, 0, 0.5))], samples, ["a"]).map == pytest.approx(0.01)
    assert score_detections([detections(*misses, (SQUARE, 0, 0.5))], samples, ["a"]).map == 0


def jittered(images: int, classes: int, seed: int) -> tuple[list[Detections], list[DetectionSample]]:
    """Return separate objects, roughly located or missing detections of them, and false detections."""
    rng = np.random.default_rng(seed)
    found, samples = [], []
    for _ in range(images):
        cells = rng.permutation(16)[:10]
        boxes = [np.array([c % 4, c // 4, c % 4, c // 4]) * 100.0 + [10, 10, 80, 80] for c in cells]
        rows = [(box, int(rng.integers(classes))) for box in boxes]
        candidates = [
            (tuple((box + rng.normal(0, 6, 4)).tolist()), label, float(rng.normal(real, 0.7)))
            for real, part in ((1, rows[:7]), (0, [(box, int(rng.integers(classes))) for box, _ in rows]))
            for box, label in part
        ]
        samples.append(sample(*((tuple(box.tolist()), label, False) for box, label in rows[:8])))
        found.append(detections(*candidates))
    return found, samples


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_scores_match_loops_over_detections(
    scene: tuple[list[Detections], list[DetectionSample]],
) -> None:
    found, samples = scene
    assume(any((~truth.difficult).any() for truth in samples))
    scores = score_detections(found, samples, ["a", "b"])
    for label, of_class in enumerate(scores.per_class.values()):
        aps = [coco(found, samples, label, (50 + 5 * step) / 100) for step in range(10)]
        if None in aps:
            assert (of_class.ap50, of_class.voc07, of_class.ap) == (None, None, None)
            continue
        assert of_class.ap == pytest.approx(np.mean(np.array(aps, dtype=float)), abs=1e-9)
        hits, objects = devkit(found, samples, label)
        assert of_class.ap50 == pytest.approx(area(hits, objects), abs=1e-12)
        assert of_class.voc07 == pytest.approx(eleven_points(hits, objects), abs=1e-12)


def test_ap50_is_close_to_the_101_point_precision_of_coco() -> None:
    found, samples = jittered(images=30, classes=3, seed=1)
    scores = score_detections(found, samples, ["a", "b", "c"])
    for label, of_class in enumerate(scores.per_class.values()):
        assert of_class.ap50 is not None
        assert 0.4 < of_class.ap50 < 0.9
        assert of_class.ap50 == pytest.approx(coco(found, samples, label, 0.5), abs=0.01)


@pytest.mark.slow  # torchmetrics takes seconds to import
def test_scores_match_torchmetrics() -> None:
    from torchmetrics.detection import MeanAveragePrecision

    found, samples = jittered(images=40, classes=3, seed=1)
    scores = score_detections(found, samples, ["a", "b", "c"])
    metric = MeanAveragePrecision(backend="faster_coco_eval", class_metrics=True)
    metric.update(
        [{"boxes": output.boxes, "scores": output.scores, "labels": output.labels} for output in found],
        [{"boxes": truth.boxes, "labels": truth.labels} for truth in samples],
    )
    expected: dict[str, Any] = metric.compute()
    assert 0.2 < scores.map < scores.ap50 < 0.9
    assert scores.map == pytest.approx(float(expected["map"]), abs=1e-6)
    aps = [of_class.ap for of_class in scores.per_class.values()]
    assert aps == pytest.approx(expected["map_per_class"].tolist(), abs=1e-6)
    assert scores.ap50 == pytest.approx(float(expected["map_50"]), abs=0.01)


def test_scoring_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    score_detections(*jittered(images=2, classes=2, seed=2), ["a", "b"])
    assert capfd.readouterr() == ("", "")


def test_to_dict_has_all_scores_without_curves() -> None:
    found = [detections((SQUARE, 0, 0.5))]
    scores = score_detections(found, [sample((SQUARE, 0, False))], ["a", "b"])
    assert scores.to_dict() == {
        "images": 1,
        "ap50": 1.0,
        "map": 1.0,
        "voc07": 1.0,
        "per_class": {
            "a": {"objects": 1, "ap50": 1.0, "voc07": 1.0, "ap": 1.0},
            "b": {"objects": 0, "ap50": None, "voc07": None, "ap": None},
        },
    }


def test_rejects_wrong_arguments() -> None:
    samples = [sample((SQUARE, 0, False))]
    with pytest.raises(ValueError, match=r"found: expected one entry per sample \(1\), got 0"):
        score_detections([], samples, ["a"])
    with pytest.raises(ValueError, match=r"found: expected labels 0 to 1, indices of the 2 classes, got 1 to 2 for im"):
        score_detections([detections((SQUARE, 1, 0.5), (SQUARE, 2, 0.5))], samples, ["a", "b"])
    with pytest.raises(ValueError, match=r"samples: expected labels 0 to 0, .*, got -1 to -1 for image.jpg"):
        score_detections([detections()], [sample((SQUARE, -1, False))], ["a"])
    for row in ((SQUARE, 0, float("nan")), ((0, 0, float("inf"), 1), 0, 0.5)):
        with pytest.raises(ValueError, match="found: expected finite boxes and scores, got non-finite values for"):
            score_detections([detections(row)], samples, ["a"])
    with pytest.raises(ValueError, match="samples: expected at least one object that is not difficult"):
        score_detections([detections()], [sample((SQUARE, 0, True))], ["a"])


def test_missing_faster_coco_eval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ModuleNotFoundError, match=r"COCO scores need the package faster_coco_eval, .* 'detect'"):
        score_detections([detections()], [sample((SQUARE, 0, False))], ["a"])
