"""The two-stage detector in the comparison of detectors, and the measurement of seconds per image."""

import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from sppnet.data.formats.detection import DetectionData
from sppnet.data.images import load_image
from sppnet.data.splits import hold_out
from sppnet.detect.evaluate import evaluate_detector
from sppnet.detect.options import DetectOptions
from sppnet.detect.train import can_be_scored
from sppnet.detect.two_stage.model import TwoStageDetector, create_two_stage
from sppnet.detect.two_stage.options import TwoStageOptions
from sppnet.detect.two_stage.train import fit_two_stage, two_stage_config
from sppnet.training.checkpoint import finish_training, open_training
from sppnet.training.processes import launch
from sppnet.training.run import load_run

_logger = logging.getLogger(__name__)

TIMED_IMAGES = 5


def score_two_stage(
    train: DetectionData,
    test: DetectionData,
    options: DetectOptions,
    lines: list[str],
    out: Path,
    cache: Path,
    seeds: int,
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Train two-stage detectors, of which a tenth of the training images chooses the best epoch, and score them.

    Args:
        train: training images.
        test: test images.
        options: backbone, weights, device and first seed.
        lines: description of the training data, to recognize changed data.
        out: folder of the run folders.
        cache: folder of the feature maps.
        seeds: number of trainings.

    Returns:
        AP50 of each seed and the median seconds per image (``in all``), both by name.
    """
    precision, seconds = list[float](), dict[str, float]()
    for seed in range(options.seed, options.seed + seeds):
        settings = TwoStageOptions(backbone=options.backbone, weights=options.weights, device=options.device, seed=seed)
        model = _train(train, settings, lines, out / f"{settings.method}-{seed}", cache)
        report = evaluate_detector(model, test)
        precision.append(report.scores.ap50)
        _logger.info(f"{settings.method}, seed {seed}: AP50 {100 * report.scores.ap50:.1f}")
        failed = {failure.path for failure in report.failures}
        paths = [part.path for part in test.samples if str(part.path) not in failed]
        seconds = {"in all": median_seconds(paths, model.detect)}
    return {TwoStageOptions.method: precision}, seconds


def _train(data: DetectionData, options: TwoStageOptions, lines: list[str], out: Path, cache: Path) -> TwoStageDetector:
    """Train a detector, or load it if it is complete."""
    torch.manual_seed(options.seed)
    model = create_two_stage(two_stage_config(options, data.classes), options.weights)
    samples, held_out = hold_out(data.samples, options.seed, usable=can_be_scored)
    val = replace(data, samples=held_out) if held_out else None
    fabric = launch(options, out)
    if open_training(out, data.root, lines, options, resume=True):
        load_run(model, out)
    elif fit_two_stage(model, samples, val, options, out, cache, [], fabric, {})[0]:
        finish_training(model.cpu().eval(), out)
    else:
        raise KeyboardInterrupt
    return model.to(fabric.device)


def median_seconds(paths: Sequence[Path], run: Callable[[Image.Image], object]) -> float:
    """Return the median seconds of a function for an image, over a few images, of which the first is a warm-up."""
    seconds = []
    for path in paths[: TIMED_IMAGES + 1]:
        image, started = load_image(path), now()
        run(image)
        seconds.append(now() - started)
    return statistics.median(seconds[1:] or seconds)


def now() -> float:
    """Synchronize the device and return the time in seconds."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
