import sys
from collections.abc import Sequence
from fractions import Fraction
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
    json_content,
    match_detections,
    score_detections,
    voc07,
)
from sppnet.inference.results import Detections

Box = tuple[float, float, float, float]
HITS = np.array([True, False, True, True, False])
SQUARE = (0, 0, 10, 10)


def sample(*objects: tuple[Box, int, bool]) -> DetectionSample:
    return DetectionSample(
        Path("image.jpg"),
        torch.tensor([box for box, _, _ in objects], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([label for _, label, _ in objects], dtype=torch.long),
        torch.tensor([difficult for _, _, difficult in objects], dtype=torch.bool),
    )


def detections(*rows: tuple[Box, int, float]) -> Detections:
    return Detections(
        torch.tensor([box for box, _, _ in rows], dtype=torch.float32).reshape(-1, 4),
        torch.tensor([score for _, _, score in rows], dtype=torch.float32),
        torch.tensor([label for _, label, _ in rows], dtype=torch.long),
    )


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def devkit(found: Sequence[Detections], samples: Sequence[DetectionSample], label: int) -> tuple[list[bool], int]:
    """One detection after the other: whether it is a hit, without those that are ignored; and the objects' number."""
    rows = [
        (score, image, box)
        for image, one in enumerate(found)
        for box, score, of in zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
        if of == label
    ]
    rows.sort(key=lambda row: -row[0])
    hits: list[bool] = []
    taken: set[tuple[int, int]] = set()
    for _, image, box in rows:
        best, place = -1.0, -1
        for number, (other, of) in enumerate(zip(samples[image].boxes.tolist(), samples[image].labels, strict=True)):
            if of == label and iou(box, other) > best:
                best, place = iou(box, other), number
        if best < 0.5:
            hits.append(False)
        elif not samples[image].difficult[place]:
            hits.append((image, place) not in taken)
            taken.add((image, place))
    objects = sum(int(((one.labels == label) & ~one.difficult).sum()) for one in samples)
    return hits, objects


def coco(found: Sequence[Detections], samples: Sequence[DetectionSample], label: int, threshold: float) -> float | None:
    """Average precision at one overlap, read at 101 recalls: one detection after the other takes its best free object.

    Of objects that overlap it alike it takes the last, and a difficult one only where no other will do.
    """
    rows: list[tuple[float, bool]] = []
    for one, truth in zip(found, samples, strict=True):
        of_class = [number for number, of in enumerate(truth.labels.tolist()) if of == label]
        free = sorted(of_class, key=lambda number: bool(truth.difficult[number]))
        for row in sorted(range(len(one.labels)), key=lambda row: -float(one.scores[row])):
            if one.labels[row] != label:
                continue
            overlaps = {number: iou(one.boxes[row].tolist(), truth.boxes[number].tolist()) for number in free}
            good = [number for number in free if overlaps[number] >= threshold]
            better = [number for number in good if not truth.difficult[number]] or good
            if not better:
                rows.append((float(one.scores[row]), False))
                continue
            chosen = max(reversed(better), key=overlaps.__getitem__)
            free.remove(chosen)
            if not truth.difficult[chosen]:
                rows.append((float(one.scores[row]), True))
    objects = sum(int(((one.labels == label) & ~one.difficult).sum()) for one in samples)
    if not objects:
        return None
    points = precisions([hit for _, hit in sorted(rows, key=lambda row: -row[0])], objects)
    best = [max((p for r, p in points if r >= Fraction(k, 100)), default=Fraction(0)) for k in range(101)]
    return float(sum(best) / 101)


def precisions(hits: list[bool], objects: int) -> list[tuple[Fraction, Fraction]]:
    """Recall and precision after each detection."""
    return [(Fraction(sum(hits[:n]), objects), Fraction(sum(hits[:n]), n)) for n in range(1, len(hits) + 1)]


def eleven_points(hits: list[bool], objects: int) -> float:
    points = precisions(hits, objects)
    best = [max((p for r, p in points if r >= Fraction(k, 10)), default=Fraction(0)) for k in range(11)]
    return float(sum(best) / 11)


def area(hits: list[bool], objects: int) -> float:
    """Under the envelope: from each recall to the next, the best precision at the latter or beyond."""
    total, reached = Fraction(0), Fraction(0)
    points = precisions(hits, objects)
    for recall, _ in points:
        total += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return float(total)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Detections], list[DetectionSample]]:
    """A few images of few objects, with crowded boxes and scores that are often alike."""
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


def test_eleven_point_average_precision_of_five_detections_and_four_objects() -> None:
    assert voc07(HITS, 4) == pytest.approx(0.613636, abs=1e-6)


def test_area_average_precision_of_five_detections_and_four_objects() -> None:
    assert area_average_precision(HITS, 4) == 0.625


def test_curve_of_five_detections_and_four_objects() -> None:
    found = curve(HITS, 4)
    assert found.recall.tolist() == [0.25, 0.25, 0.5, 0.75, 0.75]
    assert found.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 3 / 4, 3 / 5])
    assert found.envelope().tolist() == pytest.approx([1, 3 / 4, 3 / 4, 3 / 4, 3 / 5])


def test_three_of_ten_objects_reach_recall_three_tenths() -> None:
    assert voc07(np.array([True, True, True]), 10) == pytest.approx(4 / 11)


@settings(max_examples=150, deadline=None)
@given(scenes())
def test_voc_scores_match_the_rule_taken_one_detection_at_a_time(
    scene: tuple[list[Detections], list[DetectionSample]],
) -> None:
    found, samples = scene
    matches = match_detections(found, samples)
    for label in (0, 1):
        hits, objects = devkit(found, samples, label)
        mine = matches.hit[(matches.label == label) & ~matches.ignored]
        assert mine.tolist() == hits
        if objects:
            assert area_average_precision(mine, objects) == pytest.approx(area(hits, objects), abs=1e-12)
            assert voc07(mine, objects) == pytest.approx(eleven_points(hits, objects), abs=1e-12)


def test_matches_name_the_object_and_the_overlap() -> None:
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


def test_an_overlap_of_one_half_is_a_find() -> None:
    scores = score_detections([detections(((0, 0, 10, 5), 0, 0.5))], [sample((SQUARE, 0, False))], ["a"])
    assert scores.ap50 == scores.voc07 == 1
    below = score_detections([detections(((0, 0, 10, 4.9), 0, 0.5))], [sample((SQUARE, 0, False))], ["a"])
    assert below.ap50 == below.voc07 == 0


def test_among_equal_scores_the_earlier_image_goes_first() -> None:
    hit, miss = detections((SQUARE, 0, 0.5)), detections(((50, 50, 60, 60), 0, 0.5))
    samples = [sample((SQUARE, 0, False))] * 2
    assert score_detections([hit, miss], samples, ["a"]).ap50 == 0.5
    assert score_detections([miss, hit], samples, ["a"]).ap50 == 0.25


def test_classes_without_objects_are_left_out_of_means() -> None:
    samples = [sample((SQUARE, 0, False), ((40, 0, 50, 10), 2, True))]
    found = [detections((SQUARE, 0, 0.9), (SQUARE, 1, 0.9), (SQUARE, 2, 0.9))]
    scores = score_detections(found, samples, ["a", "b", "c"])
    assert (scores.ap50, scores.voc07, scores.map) == (1, 1, 1)
    assert list(scores.per_class) == ["a", "b", "c"]
    for name in ("b", "c"):
        of_class = scores.per_class[name]
        assert (of_class.objects, of_class.ap50, of_class.voc07, of_class.ap) == (0, None, None, None)
    assert list(scores.curves) == ["a"]


def test_without_detections_all_scores_are_0() -> None:
    scores = score_detections([detections()], [sample((SQUARE, 0, False))], ["a"])
    assert (scores.ap50, scores.voc07, scores.map) == (0, 0, 0)
    assert len(scores.curves["a"].recall) == 0


def test_coco_averages_over_overlaps() -> None:
    # An overlap of 0.75 is a find at 0.5, 0.55, ..., 0.75: at 6 of the 10.
    scores = score_detections([detections(((0, 0, 10, 7.5), 0, 0.5))], [sample((SQUARE, 0, False))], ["a"])
    assert scores.map == pytest.approx(0.6)


def test_coco_ignores_difficult_objects_once_and_by_plain_overlap() -> None:
    other = (40.0, 0.0, 60.0, 20.0)
    samples = [sample((SQUARE, 0, False), (other, 0, True))]
    good = (SQUARE, 0, 0.5)

    def ap(*rows: tuple[Box, int, float]) -> float:
        return score_detections([detections(*rows, good)], samples, ["a"]).map

    assert ap((other, 0, 0.9)) == 1
    assert ap((other, 0, 0.9), (other, 0, 0.8)) == pytest.approx(0.5)
    assert ap(((45, 5, 50, 10), 0, 0.9)) == pytest.approx(0.5)  # inside, but no find


def test_coco_counts_a_hundred_detections_of_a_class_in_an_image() -> None:
    misses = [((50.0 + n, 50.0, 60.0 + n, 60.0), 0, 0.9) for n in range(100)]
    samples = [sample((SQUARE, 0, False))]
    assert score_detections([detections(*misses[:99], (SQUARE, 0, 0.5))], samples, ["a"]).map == pytest.approx(0.01)
    assert score_detections([detections(*misses, (SQUARE, 0, 0.5))], samples, ["a"]).map == 0


def jittered(images: int, classes: int, seed: int) -> tuple[list[Detections], list[DetectionSample]]:
    """Objects apart from each other, each found roughly or not, and false detections between them."""
    rng = np.random.default_rng(seed)
    found, samples = [], []
    for _ in range(images):
        cells = rng.permutation(16)[:10]
        boxes = [np.array([c % 4, c // 4, c % 4, c // 4]) * 100.0 + [10, 10, 80, 80] for c in cells]
        rows = [(box, int(rng.integers(classes))) for box in boxes]
        tried = [
            (tuple((box + rng.normal(0, 6, 4)).tolist()), label, float(rng.normal(real, 0.7)))
            for real, part in ((1, rows[:7]), (0, [(box, int(rng.integers(classes))) for box, _ in rows]))
            for box, label in part
        ]
        samples.append(sample(*((tuple(box.tolist()), label, False) for box, label in rows[:8])))
        found.append(detections(*tried))
    return found, samples


@settings(max_examples=30, deadline=None)
@given(scenes())
def test_scores_match_the_rules_taken_one_detection_at_a_time(
    scene: tuple[list[Detections], list[DetectionSample]],
) -> None:
    found, samples = scene
    assume(any((~one.difficult).any() for one in samples))
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


def test_area_is_near_the_101_points_of_coco_at_overlap_one_half() -> None:
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
        [{"boxes": one.boxes, "scores": one.scores, "labels": one.labels} for one in found],
        [{"boxes": one.boxes, "labels": one.labels} for one in samples],
    )
    theirs: dict[str, Any] = metric.compute()
    assert 0.2 < scores.map < scores.ap50 < 0.9
    assert scores.map == pytest.approx(float(theirs["map"]), abs=1e-6)
    assert [one.ap for one in scores.per_class.values()] == pytest.approx(theirs["map_per_class"].tolist(), abs=1e-6)
    assert scores.ap50 == pytest.approx(float(theirs["map_50"]), abs=0.01)


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    score_detections(*jittered(images=2, classes=2, seed=2), ["a", "b"])
    assert capfd.readouterr() == ("", "")


def test_json_content() -> None:
    found = [detections((SQUARE, 0, 0.5))]
    scores = score_detections(found, [sample((SQUARE, 0, False))], ["a", "b"])
    assert json_content(scores) == {
        "images": 1,
        "ap50": 1.0,
        "map": 1.0,
        "voc07": 1.0,
        "per_class": {
            "a": {"objects": 1, "ap50": 1.0, "voc07": 1.0, "ap": 1.0},
            "b": {"objects": 0, "ap50": None, "voc07": None, "ap": None},
        },
    }


def test_wrong_arguments_are_named() -> None:
    samples = [sample((SQUARE, 0, False))]
    with pytest.raises(ValueError, match="found: expected one for each of the 1 samples; got 0"):
        score_detections([], samples, ["a"])
    with pytest.raises(ValueError, match=r"found: expected labels 0 to 1, indices of the 2 classes; got 1 to 2 for im"):
        score_detections([detections((SQUARE, 1, 0.5), (SQUARE, 2, 0.5))], samples, ["a", "b"])
    with pytest.raises(ValueError, match=r"samples: expected labels 0 to 0, .*; got -1 to -1 for image.jpg"):
        score_detections([detections()], [sample((SQUARE, -1, False))], ["a"])
    for row in ((SQUARE, 0, float("nan")), ((0, 0, float("inf"), 1), 0, 0.5)):
        with pytest.raises(ValueError, match="found: expected finite boxes and scores; got others for image"):
            score_detections([detections(row)], samples, ["a"])
    with pytest.raises(ValueError, match="samples: expected at least one object that is not difficult"):
        score_detections([detections()], [sample((SQUARE, 0, True))], ["a"])


def test_a_missing_package_is_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(ModuleNotFoundError, match=r'faster-coco-eval: pip install "sppnet\[detect\]"'):
        score_detections([detections()], [sample((SQUARE, 0, False))], ["a"])
