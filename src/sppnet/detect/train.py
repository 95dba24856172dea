"""Training of a detector on a data set: proposals, window vectors, fine-tuning, SVMs and box regression."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import torch

from sppnet.backbones.networks import stage_of_stride
from sppnet.data.formats.annotations import report_absent
from sppnet.data.formats.detection import DetectionData, DetectionSample, choose_split, read_detection
from sppnet.data.formats.table import find_validation
from sppnet.data.images import load_image
from sppnet.data.items import Problems
from sppnet.data.splits import hold_out
from sppnet.detect.calibrate import calibrate
from sppnet.detect.classic.fast import fit_fast, initialize_head
from sppnet.detect.classic.fit import fit_detector, propose_windows, window_vectors
from sppnet.detect.classic.windows import content_digest, usable_images
from sppnet.detect.evaluate import DetectionReport, evaluate_detector
from sppnet.detect.model import AnyDetector, Detector, DetectorConfig, create_detector
from sppnet.detect.options import DetectOptions, check_processes, is_box_file
from sppnet.detect.two_stage.model import TwoStageDetector
from sppnet.detect.two_stage.network import TwoStageConfig
from sppnet.detect.two_stage.options import TwoStageOptions
from sppnet.detect.two_stage.train import fit_two_stage, two_stage_config
from sppnet.devices import pick_device
from sppnet.errors import ImageError, import_optional
from sppnet.io.remote import file_version
from sppnet.training.checkpoint import finish_training, open_training
from sppnet.training.init import initialize
from sppnet.training.processes import launch
from sppnet.training.run import TrainingResult, load_run
from sppnet.training.svm import linear_svc

_logger = logging.getLogger(__name__)


@torch.random.fork_rng(devices=[])
def train_detector(
    data: str | Path,
    out: str | Path,
    options: DetectOptions | TwoStageOptions | None = None,
    *,
    split: str | None = None,
    val: str | Path | None = None,
    resume: bool = False,
    format: str | None = None,
    loggers: Sequence[Any] = (),
) -> TrainingResult:
    """Train a detector and save it to a run folder.

    Proposals and vectors are cached as they are computed, and fine-tuning writes checkpoints, so that a killed training
    can be resumed; resuming a finished one only validates its model.

    Args:
        data: data set, see :func:`sppnet.data.formats.detection.read_detection`.
        out: run folder, created if missing.
        options: training options; None for the defaults of a two-stage detector.
        split: split of the data; None for ``train``, or for data without splits.
        val: images on which the trained detector is scored: a split of `data`, or another data set, of which the split
            ``val`` or else ``test`` is used. None for the split ``val`` of `data`, or else a tenth of the training
            images, chosen by the seed; ``none`` for no scores.
        resume: continue the training in `out`, if there is one.
        format: format of `data` and `val`; None to detect it.
        loggers: loggers of Lightning Fabric, which get the metrics of each epoch of fine-tuning.

    Returns:
        Result with the scores ``ap50`` and ``map``, and the stages ``proposals``, ``features``, ``fine-tuning``,
        ``SVMs`` and ``box regression``, or ``proposals`` and ``training`` of Fast R-CNN, and ``validation``.

    Raises:
        ModuleNotFoundError: a package of an extra is missing.
        ValueError: invalid option or data set, or a run folder that is in use.
    """
    started = time.monotonic()
    options, out = options or TwoStageOptions(), Path(out)
    if isinstance(options, DetectOptions) and options.method != "fast" and options.scorer == "svm":
        linear_svc()  # fail early if scikit-learn is missing
    split = choose_split(data, split, "train", format=format)
    dataset = read_detection(data, split, format=format)
    samples = dataset.samples
    val_set: DetectionData | None = None
    if source := find_validation(data, split, val, "detect", format):
        val_set = read_detection(*source, dataset.classes, more_classes=True, format=format)
        if not can_be_scored(val_set.samples):
            if val is not None:
                raise ValueError(
                    f"val: expected a readable image with an object that is not difficult, got none in {val_set.root};"
                    " use other images, or --val none"
                )
            _logger.warning(f"no validation: no readable image of the split {source[1]} has an object that is scored")
            val_set = None
    elif val is None:
        samples, held_out = hold_out(samples, options.seed, usable=can_be_scored)
        val_set = replace(dataset, samples=held_out, problems=()) if held_out else None
    if val_set is not None:
        import_optional("faster_coco_eval", "scores of detectors")  # fail early
    absent = Problems()
    report_absent(dataset.root, _absent_classes(replace(dataset, samples=samples)), "object", absent)
    for problem in absent:
        _logger.warning(str(problem))
    problems = [*dataset.problems, *absent.lines()]
    torch.manual_seed(options.seed)
    model: AnyDetector = create_detector(detector_config(options, dataset.classes), options.weights)
    pick_device(options.device)  # fail early
    initialized = False
    if options.init is not None:
        if isinstance(model, Detector):
            initialize_head(model, options.seed)  # for the layers that depend on the classes
        initialized = initialize(model, options.init, ("score.", "offsets.", "region.score."))
    lines, count, classes = describe_data(dataset, options), len(dataset.samples) - len(samples), dataset.classes
    fabric = launch(options, out, options.devices, options.nodes, loggers)
    if isinstance(options, DetectOptions):
        check_processes(options.method, fabric.world_size)
    first = fabric.global_rank == 0
    done = open_training(out, dataset.root, lines, options, resume, classes=classes, write=first, held_out=count)
    cache = Path(options.cache) if options.cache else out / "cache"
    stages: dict[str, float] = {}
    finished, failures = True, list[ImageError]()
    report: DetectionReport | None = None
    if done:
        load_run(model, out)
    elif isinstance(model, TwoStageDetector) and isinstance(options, TwoStageOptions):
        finished, report = fit_two_stage(model, samples, val_set, options, out, cache, failures, fabric, stages)
    elif isinstance(model, Detector) and isinstance(options, DetectOptions):
        finished = _fit_windows(model, samples, options, out, cache, failures, fabric, stages, initialized)
    scores: dict[str, float] = {}
    if finished and first and val_set is not None:
        stage_started = time.monotonic()
        if report is None:
            search: dict[str, Any] = {"cache": cache / "proposals", "workers": options.workers}
            settings = search if isinstance(model, Detector) else {}
            report = evaluate_detector(model.to(fabric.device), val_set, **settings)
        stages["validation"] = time.monotonic() - stage_started
        scores = {"ap50": report.scores.ap50, "map": report.scores.map}
        failures += report.failures
        problems += report.problems
        if not done:
            calibrate(model, report)
    if finished and first and not done:
        finish_training(model.cpu().eval(), out)
    fabric.barrier()
    unique = {failure.path: failure for failure in failures}
    seconds = time.monotonic() - started
    return TrainingResult(out, finished, scores, tuple(unique.values()), tuple(problems), seconds, stages)


def _fit_windows(
    model: Detector,
    samples: Sequence[DetectionSample],
    options: DetectOptions,
    out: Path,
    cache: Path,
    failures: list[ImageError],
    fabric: Any,
    stages: dict[str, float],
    initialized: bool,
) -> bool:
    """Train a window-based detector; return False if interrupted."""
    started = time.monotonic()
    model.encoder.to(fabric.device)
    windows, unreadable = propose_windows(samples, len(model.config.classes), options, cache, fabric)
    failures += unreadable
    stages["proposals"] = time.monotonic() - started
    started = time.monotonic()
    if options.method == "fast":
        finished = fit_fast(model, windows, options, out, failures, initialized=initialized, fabric=fabric)
        stages["training"] = time.monotonic() - started
        return finished
    vectors = window_vectors(model, windows, cache)
    mirrored = options.finetune and options.mirror and bool(options.hidden)
    failures += vectors.compute("features", mirrored=mirrored, fabric=fabric)
    stages["features"] = time.monotonic() - started
    usable = usable_images(windows, failures)
    return fit_detector(model, vectors, usable, options, out, stages, initialized=initialized, fabric=fabric)


@overload
def detector_config(options: DetectOptions, classes: tuple[str, ...]) -> DetectorConfig: ...


@overload
def detector_config(options: TwoStageOptions, classes: tuple[str, ...]) -> TwoStageConfig: ...


def detector_config(
    options: DetectOptions | TwoStageOptions, classes: tuple[str, ...]
) -> DetectorConfig | TwoStageConfig:
    """Return the configuration of the detector to train.

    The backbone of a window-based detector ends at the last map of stride 16 by default.
    """
    if isinstance(options, TwoStageOptions):
        return two_stage_config(options, classes)
    fast = options.method == "fast"
    return DetectorConfig(
        classes=classes,
        method=options.method,
        backbone=options.backbone,
        stage=stage_of_stride(options.backbone, 16) if options.stage is None else options.stage,
        levels=(7,) if fast else options.levels,
        scales=options.scales,
        rule="roi_pool" if fast else options.cell_rule,
        reduce=options.reduce,
        scale_rule=options.scale_rule,
        hidden=options.hidden,
        scorer="softmax" if fast else options.scorer,
        regression="none" if not options.regression else "fc" if fast else "pool",
        proposals=options.proposals,
        windows=options.windows,
        proposal_seconds=options.proposal_seconds,
    )


def describe_data(data: DetectionData, options: DetectOptions | TwoStageOptions) -> list[str]:
    """Return a line for each image with everything that training depends on, to recognize changed data on resuming.

    Names are relative to the data set, so that they do not depend on how its path was typed.
    """
    root = data.root.resolve()
    source = options.proposals if isinstance(options, DetectOptions) else ""
    box_file = content_digest(Path(source)) if is_box_file(source) else ""
    lines = []
    for sample in data.samples:
        name, version = os.path.relpath(sample.path.resolve(), root), file_version(sample.path)
        labels = [data.classes[label] for label in sample.labels.tolist()]
        lines.append(f"{name} {version} {sample.boxes.tolist()} {labels} {sample.difficult.tolist()} {box_file}")
    return lines


def can_be_scored(samples: Sequence[DetectionSample]) -> bool:
    """Return whether an image with an object that is not difficult can be read."""
    for sample in samples:
        if not sample.difficult.all():
            try:
                load_image(sample.path)
            except ImageError:
                continue
            return True
    return False


def _absent_classes(data: DetectionData) -> list[str]:
    """Return the classes without objects; raise if there are no objects at all."""
    counts = torch.zeros(len(data.classes), dtype=torch.long)
    for sample in data.samples:
        counts += torch.bincount(sample.labels[~sample.difficult], minlength=len(data.classes))
    if not counts.any():
        count = len(data.samples)
        raise ValueError(f"data: expected an object that is not difficult, got none in {count} images of {data.root}")
    return [name for name, count in zip(data.classes, counts.tolist(), strict=True) if not count]
