"""Comparison of SPP-net and R-CNN on your own data (SPP-net, Tables 9 and 10): precision, seconds and speed-up."""

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sppnet.backbones.backbone import Backbone, create_backbone
from sppnet.data.formats.detection import DetectionData, DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.classic.fit import finetune, fit_offsets, fit_svms, propose_windows, vector_norm, window_vectors
from sppnet.detect.classic.windows import MapVectors, Windows, WindowVectors, usable_images
from sppnet.detect.model import Detector
from sppnet.detect.options import DetectOptions, is_box_file
from sppnet.detect.proposals import propose
from sppnet.detect.train import describe_data, detector_config
from sppnet.devices import pick_device
from sppnet.evaluation.average_precision import score_detections
from sppnet.features.encoder import PAPER_SCALES, DistinctVectors
from sppnet.inference.results import Detections
from sppnet.progress import track
from sppnet.studies.two_stage import TIMED_IMAGES, median_seconds, now, score_two_stage
from sppnet.training.checkpoint import open_training

_logger = logging.getLogger(__name__)

ROWS = ("pool5", "fc6", "ft fc6", "ft fc7", "ft fc7 bb")
COLUMNS = ("SPP, 1 scale", "SPP, 5 scales", "R-CNN")
# VOC 2007 test: mAP at IoU 0.5 of Table 9 (R-CNN with AlexNet) and Table 10 (with ZF-5), and GPU seconds per image.
PAPER = {
    "pool5": (43.0, 44.9, 44.2),
    "fc6": (42.5, 44.8, 46.2),
    "ft fc6": (52.3, 53.7, 53.1),
    "ft fc7": (54.5, 55.2, 54.2),
    "ft fc7 bb": (58.0, 59.2, 58.5),
}
PAPER_SECONDS = {
    "convolutions": (0.053, 0.293, 14.37),
    "heads": (0.089, 0.089, 0.089),
    "in all": (0.142, 0.382, 14.46),
    "speed-up": (102.0, 38.0, 1.0),
}
_TIMED_CROPS = 64


@dataclass
class DetectorResults:
    """Results of one detector.

    Attributes:
        precision: AP50, averaged over the classes, for each row and seed.
        seconds: median seconds per image, over a few images: ``convolutions`` (with image resizing), ``heads`` (the
            rest) and ``in all`` (their sum).
        sample: number of windows per image on which R-CNN's convolutions are timed before scaling up to all windows;
            None if all windows are timed.
    """

    precision: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sample: int | None = None


@dataclass(frozen=True)
class DetectorComparison:
    """Results of :func:`compare_detectors`.

    Attributes:
        columns: results by detector name.
        two_stage: results of the two-stage detector, whose proposals are its own; its only row is ``two-stage``.
        proposal_seconds: median seconds per image of the proposals of the others; None if they come from a file.
        seeds: number of seeds of fine-tuning and SVMs.
        images: number of (training, test) images.
        windows: mean number of windows per test image.
        problems: error messages of the images that could not be read.
    """

    columns: dict[str, DetectorResults]
    two_stage: DetectorResults
    proposal_seconds: float | None
    seeds: int
    images: tuple[int, int]
    windows: float
    problems: tuple[str, ...]


def compare_detectors(
    train: DetectionData, test: DetectionData, options: DetectOptions, out: Path, seeds: int = 3
) -> DetectorComparison:
    """Train and score one-scale SPP-net, five-scale SPP-net and R-CNN on the same windows with the same heads.

    The two-stage detector is trained on the same images with its default options.

    Proposals and features are cached, so an interrupted comparison resumes where it stopped, unless the data changed.

    Args:
        train: training images.
        test: test images, with the same classes.
        options: backbone, levels, hidden sizes, proposals, windows, training loop, and the scale of the first column.
        out: folder for checkpoints and, unless `options.cache` is given, the cache.
        seeds: number of repetitions of fine-tuning and SVMs, with seeds `options.seed`, `options.seed` + 1, ...

    Raises:
        ValueError: no readable training or test image has an object, or `out` contains a comparison on other data.
    """
    if options.devices * options.nodes > 1:
        raise ValueError(f"devices: expected 1 for a comparison of detectors, got {options.devices * options.nodes}")
    cache = Path(options.cache) if options.cache else out / "cache"
    config = detector_config(options, train.classes)
    backbone = create_backbone(config.backbone, config.stage, options.weights).to(pick_device(options.device))
    options = replace(options, stage=backbone.stage)
    data = describe_data(train, options)
    windows, errors = propose_windows(train.samples, len(train.classes), options, cache)
    test_windows, test_errors = propose_windows(test.samples, len(train.classes), options, cache)
    errors += test_errors
    for part in (windows, test_windows):
        usable_images(part, errors)  # fail early
    columns = {}
    test_images: list[int] = []
    for name, column_options in zip(COLUMNS, _column_options(options), strict=True):
        model = Detector(detector_config(column_options, train.classes), backbone)
        vectors, test_vectors = (window_vectors(model, part, cache) for part in (windows, test_windows))
        errors += vectors.compute(f"{name}: features") + test_vectors.compute(f"{name}: test features")
        usable, test_images = usable_images(windows, errors), usable_images(test_windows, errors)
        samples = _matching_samples(test.samples, [test_windows[image] for image in test_images])
        column = columns[name] = DetectorResults()
        for seed in range(options.seed, options.seed + seeds):
            folder = out / f"{name}-{seed}".lower().replace(", ", "-").replace(" ", "-")
            seeded = replace(column_options, seed=seed)
            open_training(folder, train.root, data, seeded, resume=True)
            for row, fitted in _fit_rows(seeded, train.classes, backbone, vectors, usable, folder):
                images = track(test_images, row, len(test_images))
                detections = [_detect(fitted, test_vectors, image) for image in images]
                precision = score_detections(detections, samples, train.classes).ap50
                column.precision.setdefault(row, []).append(precision)
                _logger.info(f"{name}, {row}, seed {seed}: AP50 {100 * precision:.1f}")
                model = fitted
        # Time the trained detector, because its scores decide how many windows reach non-maximum suppression.
        column.seconds, column.sample = time_detector(model, test_vectors, test_images)
    two_stage = DetectorResults(*score_two_stage(train, test, options, data, out, cache, seeds))
    counts = [len(test_windows[image].boxes) - test_windows[image].objects for image in test_images]
    problems = tuple({error.path: str(error) for error in errors}.values())
    sizes = (len(usable_images(windows, errors)), len(test_images))
    proposal_seconds = None
    if not is_box_file(options.proposals):
        paths = [test_windows[image].path for image in test_images]
        limits: dict[str, Any] = {"max_windows": options.windows, "seconds": options.proposal_seconds}
        proposal_seconds = median_seconds(paths, lambda image: propose(image, options.proposals, **limits))
    return DetectorComparison(columns, two_stage, proposal_seconds, seeds, sizes, statistics.mean(counts), problems)


def time_detector(
    model: Detector, vectors: WindowVectors, images: Sequence[int]
) -> tuple[dict[str, float], int | None]:
    """Measure the median seconds per image of the convolutions, of the rest, and in total.

    Args:
        model: trained detector.
        vectors: windows of the images, and R-CNN's vectors of them.
        images: indices of readable images, at least one, of which a few are timed. R-CNN's convolutions run on a sample
            of the windows of an image, and their time is scaled up.

    Returns:
        The seconds by part, and the sample size or None if all windows are timed.
    """
    sample, convolutions, heads = None, [], []
    for number in images[: TIMED_IMAGES + 1]:
        windows = vectors.windows[number]
        image, rows = load_image(windows.path), torch.arange(windows.objects, len(windows.boxes))
        boxes = windows.boxes[rows]
        with torch.inference_mode():
            started = now()
            prepared = model.encoder.prepare(image)
            if model.config.method == "rcnn":
                timed = boxes[:: max(len(boxes) // _TIMED_CROPS, 1)][:_TIMED_CROPS]
                model.encoder.distinct(prepared, timed)  # type: ignore[arg-type]
                convolutions.append((now() - started) * len(boxes) / max(len(timed), 1))
                sample = _TIMED_CROPS
                distinct = DistinctVectors(vectors.vectors(number, rows).float(), torch.arange(len(boxes)))
                started = now()
            else:
                convolutions.append(now() - started)
                started = now()
                distinct = model.encoder.distinct(prepared, boxes)  # type: ignore[arg-type]
            model.read(distinct, boxes, (image.height, image.width))
            heads.append(now() - started)
    # The first image is a warm-up unless it is the only one.
    conv, rest = (statistics.median(part[1:] or part) for part in (convolutions, heads))
    return {"convolutions": conv, "heads": rest, "in all": conv + rest}, sample


def comparison_content(comparison: DetectorComparison) -> dict[str, Any]:
    """Convert a comparison, with the paper's results, to JSON content."""
    rcnn_seconds = comparison.columns["R-CNN"].seconds["in all"]
    columns = {}
    for name, column in comparison.columns.items():
        seconds = column.seconds | {"speed-up": rcnn_seconds / column.seconds["in all"]}
        columns[name] = {"ap50": column.precision, "seconds": seconds, "sample": column.sample}
    return {
        "columns": columns,
        "seeds": comparison.seeds,
        "images": {"train": comparison.images[0], "test": comparison.images[1]},
        "windows": comparison.windows,
        "problems": list(comparison.problems),
        "detectors": _complete_detectors(comparison),
        "verdict": verdict(comparison),
        "paper": {"map_voc07": PAPER, "seconds": PAPER_SECONDS, "columns": list(COLUMNS)},
    }


def verdict(comparison: DetectorComparison) -> str:
    """Compare SPP-net at one scale with R-CNN, both fully trained, in one sentence."""
    spp, rcnn = (comparison.columns[name] for name in ("SPP, 1 scale", "R-CNN"))
    values = [[100 * value for value in column.precision[ROWS[-1]]] for column in (spp, rcnn)]
    means = [statistics.mean(part) for part in values]
    difference = means[0] - means[1]
    if comparison.seeds == 1:
        reliability = "from one seed, so the difference may be chance"
    elif max(map(min, values)) <= min(map(max, values)):
        reliability = f"no clear difference, because the ranges of the {comparison.seeds} seeds overlap"
    else:
        reliability = f"a difference beyond the ranges of the {comparison.seeds} seeds"
    factor = rcnn.seconds["in all"] / spp.seconds["in all"]
    speed = f"{factor:.1f} times as fast" if factor >= 1 else f"{1 / factor:.1f} times as slow"
    return (
        f"On your data, SPP-net at one scale reaches an AP50 of {means[0]:.1f} % and R-CNN of {means[1]:.1f} %"
        f" ({difference:+.1f} points, {reliability}), and SPP-net is {speed} per image."
    )


def _complete_detectors(comparison: DetectorComparison) -> dict[str, Any]:
    """Return precision and seconds, with proposals, of each completely trained detector."""
    detectors: dict[str, Any] = {}
    proposals = comparison.proposal_seconds
    for name, column in comparison.columns.items():
        seconds = {"proposals": proposals, "in all": column.seconds["in all"] + (proposals or 0)}
        detectors[name] = {"ap50": column.precision[ROWS[-1]], "seconds": seconds}
    precision = comparison.two_stage.precision["two-stage"]
    detectors["two-stage"] = {"ap50": precision, "seconds": {"proposals": 0.0} | comparison.two_stage.seconds}
    return detectors


def _column_options(options: DetectOptions) -> tuple[DetectOptions, ...]:
    """Derive the options of each column, without mirror images, which would double R-CNN's passes."""
    plain = replace(options, method="spp", mirror=False)
    return plain, replace(plain, scales=PAPER_SCALES), replace(plain, method="rcnn", scales=DetectOptions.scales)


def _fit_rows(
    options: DetectOptions,
    classes: tuple[str, ...],
    backbone: Backbone,
    vectors: WindowVectors,
    usable: Sequence[int],
    folder: Path,
) -> Iterator[tuple[str, Detector]]:
    """Yield a fitted detector for each row of Table 9; the last three share one fine-tuning."""
    norm = vector_norm(vectors, usable)

    def create(hidden: tuple[int, ...], fc: nn.Module | None = None, regression: bool = False) -> Detector:
        changed = replace(options, hidden=hidden, regression=regression)
        model = Detector(detector_config(changed, classes), backbone)
        model.norm.fill_(norm)
        if fc is not None:
            names = model.fc.state_dict().keys()
            model.fc.load_state_dict({name: tensor for name, tensor in fc.state_dict().items() if name in names})
        fit_svms(model, vectors, usable, options.seed)
        return model

    torch.manual_seed(options.seed)
    yield ROWS[0], create(())
    yield ROWS[1], create(options.hidden[:1])
    template = Detector(detector_config(options, classes), backbone)
    template.norm.fill_(norm)
    tuned = finetune(template, vectors, usable, options, folder)
    if tuned is None:
        raise KeyboardInterrupt
    yield ROWS[2], create(options.hidden[:1], tuned[0])
    model = create(options.hidden, tuned[0], regression=True)
    offsets, model.offsets = model.offsets, None
    yield ROWS[3], model
    model.offsets = offsets
    fit_offsets(model, vectors, usable, options.seed)
    yield ROWS[4], model


def _detect(model: Detector, vectors: WindowVectors, number: int) -> Detections:
    windows = vectors.windows[number]
    rows = torch.arange(windows.objects, len(windows.boxes))
    boxes = windows.boxes[rows]
    with torch.inference_mode():
        if isinstance(vectors, MapVectors):
            maps = vectors.maps(windows.path)
            return model.read(vectors.encoder.distinct(maps, boxes), boxes, maps.size)
        image = load_image(windows.path)
        distinct = DistinctVectors(vectors.vectors(number, rows).float(), torch.arange(len(rows)))
        return model.read(distinct, boxes, (image.height, image.width))


def _matching_samples(samples: Sequence[DetectionSample], windows: Sequence[Windows]) -> list[DetectionSample]:
    """Select the samples that have windows, in the order of the windows."""
    by_path = {sample.path: sample for sample in samples}
    return [by_path[image.path] for image in windows]
