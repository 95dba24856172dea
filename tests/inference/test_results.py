"""Results shared by several tasks."""

from sppnet.inference.results import filter_by_score
from tests.helpers.detection_results import detections

ROWS = [((0.0, 0.0, 5.0, 5.0), 1, 0.75), ((1.0, 0.0, 6.0, 5.0), 0, 0.5), ((2.0, 0.0, 7.0, 5.0), 2, 0.25)]


def test_above_keeps_detections_with_at_least_the_score() -> None:
    kept = filter_by_score(detections(*ROWS), 0.5)
    assert kept.boxes.tolist() == [[0, 0, 5, 5], [1, 0, 6, 5]]
    assert kept.scores.tolist() == [0.75, 0.5]
    assert kept.labels.tolist() == [1, 0]


def test_above_may_keep_nothing() -> None:
    kept = filter_by_score(detections(*ROWS), 0.9)
    assert (kept.boxes.shape, kept.scores.shape, kept.labels.shape) == ((0, 4), (0,), (0,))
