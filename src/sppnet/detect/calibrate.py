"""Calibration of a trained detector: scores that are probabilities, and the lowest score to report."""

from dataclasses import replace

from sppnet.detect.evaluate import DetectionReport
from sppnet.detect.model import AnyDetector
from sppnet.evaluation.calibration import best_threshold, fit_platt


def calibrate(model: AnyDetector, report: DetectionReport) -> None:
    """Set `calibration` and `threshold` of a detector's configuration, which keeps the order of its scores.

    The threshold has the highest F1 over the detections of all classes.

    Args:
        model: trained detector without a calibration.
        report: its evaluation on images that it was not trained on.
    """
    scores, correct = report.confidence
    fitted = fit_platt(model.margins(scores), correct)
    model.config = replace(model.config, calibration=fitted)
    objects = sum(of_class.objects for of_class in report.scores.per_class.values())
    threshold = best_threshold(model.calibrated(scores), correct, objects)
    model.config = replace(model.config, threshold=threshold)
