"""Training of a detector on a data set: proposals, window vectors, fine-tuning, SVMs and box regression."""

import os
import time
from pathlib import Path

import torch

from sppnet.backbones.backbone import stage_of_stride
from sppnet.data.formats.detection import DetectionData, choose_split, detection_splits, read_detection
from sppnet.detect.classic.fast import fit_fast
from sppnet.detect.classic.fit import fit_detector, propose_windows, window_vectors
from sppnet.detect.classic.windows import content_digest, usable_images
from sppnet.detect.evaluate import evaluate_detector
from sppnet.detect.model import DetectorConfig, create_detector
from sppnet.detect.options import DetectOptions, is_box_file
from sppnet.devices import pick_device
from sppnet.errors import import_optional
from sppnet.io.remote import file_version
from sppnet.training.checkpoint import open_training
from sppnet.training.run import TrainingResult, save
from sppnet.training.svm import linear_svc


@torch.random.fork_rng(devices=[])
def train_detector(
    data: str | Path,
    out: str | Path,
    options: DetectOptions | None = None,
    *,
    split: str | None = None,
    val: str | Path | None = None,
    resume: bool = False,
    format: str | None = None,
) -> TrainingResult:
    """Train a detector and save it to a run folder.

    Proposals and vectors are cached as they are computed, and fine-tuning writes checkpoints, so that a killed training
    can be resumed.

    Args:
        data: data set, see :func:`sppnet.data.formats.detection.read_detection`.
        out: run folder, created if missing.
        options: training options; None for the defaults.
        split: split of the data; None for ``train``, or for data without splits.
        val: split of `data`, or another data set, on which the trained detector is scored; None for no scores.
        resume: continue the training in `out`, if there is one.
        format: format of `data` and `val`; None to detect it.

    Returns:
        Result with the scores ``ap50`` and ``map``, and the stages ``proposals``, ``features``, ``fine-tuning``,
        ``SVMs`` and ``box regression``, or ``proposals`` and ``training`` of Fast R-CNN, and ``validation``.

    Raises:
        ModuleNotFoundError: a package of an extra is missing.
        ValueError: invalid option or data set, or a run folder that is in use.
    """
    started = time.monotonic()
    options, out = options or DetectOptions(), Path(out)
    if options.method != "fast" and options.scorer == "svm":
        linear_svc()  # fail early if scikit-learn is missing
    dataset = read_detection(data, choose_split(data, split, "train", format=format), format=format)
    problems = [*dataset.problems, *_check_objects(dataset)]
    val_set = None if val is None else _read_validation(data, val, dataset.classes, format)
    torch.manual_seed(options.seed)
    model = create_detector(detector_config(options, dataset.classes), options.weights)
    device = pick_device(options.device)
    model.encoder.to(device)
    open_training(out, dataset.root, describe_data(dataset, options), options, resume)
    cache = Path(options.cache) if options.cache else out / "cache"
    stages: dict[str, float] = {}
    stage_started = time.monotonic()
    windows, failures = propose_windows(dataset.samples, len(dataset.classes), options, cache)
    stages["proposals"] = time.monotonic() - stage_started
    stage_started = time.monotonic()
    if options.method == "fast":
        finished = fit_fast(model, windows, options, out, failures)
        stages["training"] = time.monotonic() - stage_started
    else:
        vectors = window_vectors(model, windows, cache)
        failures += vectors.compute("features", mirrored=options.finetune and options.mirror and bool(options.hidden))
        stages["features"] = time.monotonic() - stage_started
        finished = fit_detector(model, vectors, usable_images(windows, failures), options, out, stages)
    scores: dict[str, float] = {}
    if finished:
        save(model.cpu().eval(), out)
    if finished and val_set is not None:
        stage_started = time.monotonic()
        report = evaluate_detector(model.to(device), val_set, cache=cache / "proposals", workers=options.workers)
        stages["validation"] = time.monotonic() - stage_started
        scores = {"ap50": report.scores.ap50, "map": report.scores.map}
        failures += report.failures
        problems += report.problems
    unique = {failure.path: failure for failure in failures}
    seconds = time.monotonic() - started
    return TrainingResult(out, finished, scores, tuple(unique.values()), tuple(problems), seconds, stages)


def detector_config(options: DetectOptions, classes: tuple[str, ...]) -> DetectorConfig:
    """Return the configuration of the detector to train; its backbone ends at the last map of stride 16 by default."""
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


def describe_data(data: DetectionData, options: DetectOptions) -> list[str]:
    """Return a line for each image with everything that training depends on, to recognize changed data on resuming.

    Names are relative to the data set, so that they do not depend on how its path was typed.
    """
    root = data.root.resolve()
    box_file = content_digest(Path(options.proposals)) if is_box_file(options.proposals) else ""
    lines = []
    for sample in data.samples:
        name, version = os.path.relpath(sample.path.resolve(), root), file_version(sample.path)
        labels = [data.classes[label] for label in sample.labels.tolist()]
        lines.append(f"{name} {version} {sample.boxes.tolist()} {labels} {sample.difficult.tolist()} {box_file}")
    return lines


def _read_validation(data: str | Path, val: str | Path, classes: tuple[str, ...], format: str | None) -> DetectionData:
    import_optional("faster_coco_eval", "scores of detectors")  # fail early
    split = choose_split(data, str(val), format=format)
    if split in detection_splits(data, format):
        return read_detection(data, split, classes, more_classes=True, format=format)
    split = choose_split(val, None, "val", "test", format=format)
    return read_detection(val, split, classes, more_classes=True, format=format)


def _check_objects(data: DetectionData) -> list[str]:
    """Return a warning for each class without objects; raise if there are no objects at all."""
    counts = torch.zeros(len(data.classes), dtype=torch.long)
    for sample in data.samples:
        counts += torch.bincount(sample.labels[~sample.difficult], minlength=len(data.classes))
    if not counts.any():
        count = len(data.samples)
        raise ValueError(f"data: expected an object that is not difficult, got none in {count} images of {data.root}")
    return [
        f"class {name} has no objects in the training images and will never be detected"
        for name, count in zip(data.classes, counts.tolist(), strict=True)
        if not count
    ]
