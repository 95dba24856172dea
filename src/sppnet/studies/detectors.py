"""SPP-net beside R-CNN on one's own data, as in the paper's Tables 9 and 10: precision, seconds, and the speed-up."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sppnet.backbones.backbone import Backbone
from sppnet.console import console, track
from sppnet.data.formats.detection import DetectionData, DetectionSample
from sppnet.data.images import load_image
from sppnet.detect.classic.fit import (
    finetune,
    fit_offsets,
    fit_svms,
    propose_windows,
    vector_norm,
    window_vectors,
)
from sppnet.detect.classic.windows import (
    MapVectors,
    Windows,
    WindowVectors,
    usable_images,
)
from sppnet.detect.model import Detector
from sppnet.detect.options import DetectOptions
from sppnet.devices import pick_device
from sppnet.evaluation.average_precision import score_detections
from sppnet.features.encoder import PAPER_SCALES, DistinctVectors
from sppnet.inference.results import Detections
from sppnet.training.checkpoint import open_training

ROWS = ("pool5", "fc6", "ft fc6", "ft fc7", "ft fc7 bb")
COLUMNS = ("SPP, 1 scale", "SPP, 5 scales", "R-CNN")
# VOC 2007 test: mean AP at 0.5 of Table 9 (R-CNN with AlexNet) and Table 10 (with ZF-5), and seconds an image on a GPU.
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
_TIMED_IMAGES, _TIMED_CROPS = 5, 64


@dataclass
class Column:
    """One detector's figures.

    Attributes:
        precision: AP50, the mean over the classes, of each row for each seed.
        seconds: of an image, median over a few: for convolutions (with the resizing of the pixels), for all that
            follows, and in all.
        sample: R-CNN's convolutions are timed on so many windows of an image and scaled up to all; None if all ran.
    """

    precision: dict[str, list[float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    sample: int | None = None


@dataclass(frozen=True)
class DetectorComparison:
    """What was compared.

    Attributes:
        columns: figures by name.
        seeds: number of seeds that fine-tuning and SVMs were run with.
        images: (training, test) images that were used.
        windows: mean number of windows of a test image.
        problems: images that could not be read.
    """

    columns: dict[str, Column]
    seeds: int
    images: tuple[int, int]
    windows: float
    problems: tuple[str, ...]


def compare_detectors(
    train: DetectionData, test: DetectionData, options: DetectOptions, out: Path, seeds: int = 3
) -> DetectorComparison:
    """Train and score SPP-net at one scale and at five, and R-CNN, on the same windows with the same heads.

    Proposals and features are kept in the cache, so that a killed comparison goes on where it stopped.

    Args:
        train: images to train on.
        test: images to score on, with the same classes.
        options: backbone, levels, hidden sizes, proposals, windows and the loop; its one scale is that of the first
            column.
        out: folder for checkpoints and, unless `options.cache` is given, the cache.
        seeds: how often fine-tuning and SVMs are repeated, with seeds from `options.seed` on.
    """
    cache = Path(options.cache) if options.cache else out / "cache"
    backbone = options.create_backbone().to(pick_device(options.device))
    windows, failures = propose_windows(train.samples, len(train.classes), options, cache)
    test_windows, test_failures = propose_windows(test.samples, len(train.classes), options, cache)
    samples = _matching(test.samples, test_windows)
    columns = {}
    bad = [*failures, *test_failures]
    for name, one in zip(COLUMNS, _options(options), strict=True):
        model = Detector(one.config(train.classes, backbone.stage), backbone)
        vectors = window_vectors(model, windows, cache)
        held = window_vectors(model, test_windows, cache)
        column = columns[name] = Column()
        column.seconds, column.sample = time_detector(model, test_windows)
        bad += vectors.compute(f"{name}: features")
        bad += held.compute(f"{name}: test features")
        usable = usable_images(windows, bad)
        for seed in range(options.seed, options.seed + seeds):
            folder = out / f"{name}-{seed}".lower().replace(", ", "-").replace(" ", "-")
            seeded = replace(one, seed=seed)
            open_training(folder, train.root, [str(sample.path) for sample in train.samples], seeded, resume=True)
            for row, fitted in _rows(seeded, train.classes, backbone, vectors, usable, folder):
                found = [_find(fitted, held, number) for number in track(range(len(samples)), row, len(samples))]
                precision = score_detections(found, samples, train.classes).ap50
                column.precision.setdefault(row, []).append(precision)
                console.print(f"{name}, {row}, seed {seed}: AP50 {100 * precision:.1f}", highlight=False)
    counts = [len(one.boxes) - one.objects for one in test_windows]
    problems = tuple({error.path: str(error) for error in bad}.values())
    return DetectorComparison(columns, seeds, (len(windows), len(samples)), statistics.mean(counts), problems)


def time_detector(model: Detector, windows: Sequence[Windows]) -> tuple[dict[str, float], int | None]:
    """Median seconds of an image's convolutions, of the rest, and in all.

    Args:
        model: its weights play no part.
        windows: of the images; a few are timed. R-CNN's convolutions run for a sample of the windows and are scaled up.

    Returns:
        The seconds, and the size of the sample; None where all windows ran.
    """
    samples, convolutions, heads = None, [], []
    for one in windows[: _TIMED_IMAGES + 1]:
        image, boxes = load_image(one.path), one.boxes[one.objects :]
        with torch.inference_mode():
            started = _now()
            prepared = model.encoder.prepare(image)
            if model.config.method == "rcnn":
                timed = boxes[:: max(len(boxes) // _TIMED_CROPS, 1)][:_TIMED_CROPS]
                model.encoder.distinct(prepared, timed)  # type: ignore[arg-type]
                convolutions.append((_now() - started) * len(boxes) / len(timed))
                samples = _TIMED_CROPS
                distinct = DistinctVectors(torch.rand(len(boxes), model.encoder.length), torch.arange(len(boxes)))
                started = _now()
            else:
                convolutions.append(_now() - started)
                started = _now()
                distinct = model.encoder.distinct(prepared, boxes)  # type: ignore[arg-type]
            model.read(distinct, boxes, (image.height, image.width))
            heads.append(_now() - started)
    # The first is a warm-up, if there is more than one.
    conv, rest = (statistics.median(part[1:] or part) for part in (convolutions, heads))
    return {"convolutions": conv, "heads": rest, "in all": conv + rest}, samples


def _now() -> float:
    """Seconds, when the device has done all that it was given."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()


def comparison_content(comparison: DetectorComparison) -> dict[str, Any]:
    """The figures for JSON, the paper's beside them."""
    slow = comparison.columns["R-CNN"].seconds["in all"]
    columns = {}
    for name, column in comparison.columns.items():
        speed = {"speed-up": slow / column.seconds["in all"]}
        columns[name] = {"ap50": column.precision, "seconds": column.seconds | speed, "sample": column.sample}
    return {
        "columns": columns,
        "seeds": comparison.seeds,
        "images": {"train": comparison.images[0], "test": comparison.images[1]},
        "windows": comparison.windows,
        "problems": list(comparison.problems),
        "paper": {"map_voc07": PAPER, "seconds": PAPER_SECONDS, "columns": list(COLUMNS)},
    }


def _options(options: DetectOptions) -> tuple[DetectOptions, ...]:
    """The options of each column; what the paper does not do is left out, and mirror images for R-CNN's sake."""
    plain = replace(options, method="spp", mirror=False)
    return plain, replace(plain, scales=PAPER_SCALES), replace(plain, method="rcnn", scales=DetectOptions.scales)


def _rows(
    options: DetectOptions,
    classes: tuple[str, ...],
    backbone: Backbone,
    vectors: WindowVectors,
    usable: Sequence[int],
    folder: Path,
) -> Iterator[tuple[str, Detector]]:
    """The detectors of Table 9's rows; fine-tuning is done once for three of them."""
    norm = vector_norm(vectors, usable)

    def create(hidden: tuple[int, ...], fc: nn.Module | None = None, regression: bool = False) -> Detector:
        model = Detector(
            replace(options, hidden=hidden, regression=regression).config(classes, backbone.stage), backbone
        )
        model.norm.fill_(norm)
        if fc is not None:
            wanted = model.fc.state_dict().keys()
            model.fc.load_state_dict({name: tensor for name, tensor in fc.state_dict().items() if name in wanted})
        fit_svms(model, vectors, usable, options.seed)
        return model

    torch.manual_seed(options.seed)
    yield ROWS[0], create(())
    yield ROWS[1], create(options.hidden[:1])
    shape = Detector(options.config(classes, backbone.stage), backbone)
    shape.norm.fill_(norm)
    tuned = finetune(shape, vectors, usable, options, folder)
    if tuned is None:
        raise KeyboardInterrupt
    yield ROWS[2], create(options.hidden[:1], tuned[0])
    last = create(options.hidden, tuned[0], regression=True)
    offsets, last.offsets = last.offsets, None
    yield ROWS[3], last
    last.offsets = offsets
    fit_offsets(last, vectors, usable, options.seed)
    yield ROWS[4], last


def _find(model: Detector, held: WindowVectors, number: int) -> Detections:
    windows = held.windows[number]
    rows = torch.arange(windows.objects, len(windows.boxes))
    boxes = windows.boxes[rows]
    with torch.inference_mode():
        if isinstance(held, MapVectors):
            maps = held.maps(windows.path)
            return model.read(held.encoder.distinct(maps, boxes), boxes, maps.size)
        image = load_image(windows.path)
        vectors = held.vectors(number, rows).float()
        return model.read(DistinctVectors(vectors, torch.arange(len(rows))), boxes, (image.height, image.width))


def _matching(samples: Sequence[DetectionSample], windows: Sequence[Windows]) -> list[DetectionSample]:
    """The samples whose images could be read, in the order of their windows."""
    by_path = {sample.path: sample for sample in samples}
    return [by_path[one.path] for one in windows]
