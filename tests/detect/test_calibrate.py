"""Calibration of detectors: equal order and average precision, probabilities, and the default threshold."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sppnet
from sppnet.detect.calibrate import calibrate
from sppnet.detect.evaluate import evaluate_detector
from sppnet.detect.options import DEFAULT_MIN_SCORES
from tests.helpers.noisy_detector import annotated_images, noisy_detector


@pytest.mark.parametrize("scorer", ["svm", "softmax"])
def test_scores_become_probabilities_in_the_same_order(scorer: Any, tmp_path: Path) -> None:
    data = annotated_images(tmp_path / "data")
    model = noisy_detector(data, scorer=scorer)
    before = evaluate_detector(model, data)
    assert model.config.min_score == DEFAULT_MIN_SCORES[scorer]
    assert (before.ece is None) == (scorer == "svm")
    calibrate(model, before)
    assert model.config.calibration is not None
    after = evaluate_detector(model, data)
    assert after.scores.to_dict() == before.scores.to_dict()
    for raw, probabilities in zip(before.found, after.found, strict=True):
        assert torch.equal(raw.boxes, probabilities.boxes)
        assert ((probabilities.scores > 0) & (probabilities.scores < 1)).all()
        assert (probabilities.scores.diff() <= 0).all()
    assert after.ece is not None
    assert after.ece < 0.1
    assert after.ece <= (before.ece or 1)
    scores, correct = after.confidence
    assert float(scores.mean()) == pytest.approx(float(correct.double().mean()), abs=0.01)


def test_threshold_is_the_default_of_prediction_and_survives_saving(tmp_path: Path) -> None:
    data = annotated_images(tmp_path / "data")
    model = noisy_detector(data)
    calibrate(model, evaluate_detector(model, data))
    threshold = model.config.threshold
    assert threshold is not None
    assert 0 < threshold < 1
    paths = [sample.path for sample in data.samples]
    every = [result.scores for result in model.predict(paths, min_score=0)]  # type: ignore[union-attr]
    assert sum(map(len, every)) > 0
    sppnet.save(model, tmp_path / "run")
    loaded = sppnet.load(tmp_path / "run")
    assert isinstance(loaded, sppnet.Detector)
    assert loaded.config == model.config
    for scores, result in zip(every, loaded.predict(paths), strict=True):
        assert torch.equal(result.scores, scores[scores >= threshold])  # type: ignore[union-attr]


def test_detections_that_are_all_wrong_keep_their_scores(tmp_path: Path) -> None:
    data = annotated_images(tmp_path / "data")
    model = noisy_detector(data)
    far = tuple(replace(sample, boxes=sample.boxes + 10_000) for sample in data.samples)
    calibrate(model, evaluate_detector(model, replace(data, samples=far)))
    assert model.config.calibration is None
    assert model.config.threshold is None
    assert not model.config.probabilities
