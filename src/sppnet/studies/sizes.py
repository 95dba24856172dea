"""Comparison of single-size, multi-size and native-size training on your own images (SPP-net, Tables 2 and 3)."""

import csv
import io
import json
import logging
import math
import random
import statistics
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sppnet.classify.evaluate import evaluate_classifier
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.train import sizes_file, train_classifier
from sppnet.data.formats.classification import ClassificationData, Sample
from sppnet.data.resize import Resize
from sppnet.data.sizes import read_sizes
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.io.files import write_json
from sppnet.io.remote import write_text
from sppnet.registry import load_classifier
from sppnet.training.checkpoint import OPTIONS
from sppnet.training.metrics import METRICS
from sppnet.training.processes import require_single_process

_logger = logging.getLogger(__name__)

SCORES = "scores.json"
# Training sizes by name. Native sizes come last because they are the slowest on large photographs.
VARIANTS = {"no-spp": "224", "single": "224", "multi": "180,224", "random": "180-224", "native": "native"}
VIEWS, CROP, FULL, OWN = "10 views", "1 crop", "1 full", "own size"
_TESTS: dict[str, dict[str, Any]] = {
    VIEWS: {"views": "10"},
    CROP: {"resize": "center-crop:224"},
    FULL: {"resize": "shorter-side:256"},
    OWN: {"resize": "native"},
}
_VIEW_SIDE = 224
# Errors in % on ImageNet's validation images: the paper's Table 2, and section 3.1.2 for random sizes.
PAPER_NETS = ("ZF-5", "Convnet*-5", "Overfeat-5", "Overfeat-7")
PAPER_VIEWS: dict[str, dict[str, tuple[float | None, ...]]] = {
    "top1": {
        "no-spp": (35.99, 34.93, 34.13, 32.01),
        "single": (34.98, 34.38, 32.87, 30.36),
        "multi": (34.60, 33.94, 32.26, 29.68),
        "random": (None, None, None, 30.06),
    },
    "top5": {
        "no-spp": (14.76, 13.92, 13.52, 11.97),
        "single": (14.14, 13.54, 12.80, 11.12),
        "multi": (13.64, 13.33, 12.33, 10.95),
        "random": (None, None, None, 10.96),
    },
}
# Table 3: top-1 errors of (1 crop, 1 full image).
PAPER_FULL = {
    "single": {"ZF-5": (38.01, 37.55), "Overfeat-7": (33.18, 32.72)},
    "multi": {"ZF-5": (37.57, 37.07), "Overfeat-7": (32.57, 31.25)},
}


@dataclass(frozen=True)
class RunScores:
    """Results of one training run.

    Attributes:
        top1, top5: errors in %, by test name.
        pixels: number of input pixels in training, over all images and epochs.
        seconds: training time.
        failures: (path, reason) of the images that could not be read.
    """

    top1: dict[str, float]
    top5: dict[str, float]
    pixels: int
    seconds: float
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SizeComparison:
    """Results of :func:`compare_sizes`.

    Attributes:
        runs: results by variant, one per seed.
        epochs: number of epochs of each training run.
        images: number of (training, validation) images.
    """

    runs: dict[str, list[RunScores]]
    epochs: int
    images: tuple[int, int]

    @property
    def failures(self) -> list[ImageError]:
        """Images that could not be read, without duplicates."""
        unique = {path: reason for runs in self.runs.values() for run in runs for path, reason in run.failures}
        return [ImageError(path, reason) for path, reason in unique.items()]


def compare_sizes(
    train: ClassificationData, val: ClassificationData, options: ClassifyOptions, out: Path, seeds: int = 3
) -> SizeComparison:
    """Train the variants with equal options, epochs and seeds, and test each in four ways.

    Each training run is saved to ``out/<variant>-<seed>``. An interrupted comparison resumes where it stopped, even in
    the middle of a run; finished runs are not repeated.

    Args:
        train: training images, the same for all variants.
        val: test images, labeled with the classes of `train`.
        options: options of all runs; variants change the sizes and, without SPP, levels and reduce. At least 2 epochs,
            so that training on alternating sizes uses both.
        out: folder of the runs.
        seeds: number of runs per variant, >= 1, with seeds `options.seed`, `options.seed` + 1, ...
    """
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1, got {seeds}")
    if options.epochs < 2:
        raise ValueError(f"epochs: expected at least 2, one for each alternating size, got {options.epochs}")
    if options.freeze_backbone:
        raise ValueError("freeze_backbone: expected False, got True; a frozen backbone ignores the training size")
    require_single_process("a comparison of sizes")
    if options.devices * options.nodes > 1:
        raise ValueError(f"devices: expected 1 for a comparison of sizes, got {options.devices * options.nodes}")
    out.mkdir(parents=True, exist_ok=True)
    listing = out / "train.csv"
    write_text(_listing(train), listing)
    runs: dict[str, list[RunScores]] = {}
    for name in VARIANTS:
        for seed in range(options.seed, options.seed + seeds):
            folder = out / f"{name}-{seed}"
            figures = _run_figures(folder, listing, train, val, _variant_options(options, name, seed))
            runs.setdefault(name, []).append(figures)
            errors = f"top-1 error {figures.top1[VIEWS]:.2f} %, top-5 {figures.top5[VIEWS]:.2f} %"
            _logger.info(f"{name}, seed {seed}: {errors} with 10 views")
    return SizeComparison(runs, options.epochs, (len(train.samples), len(val.samples)))


def first_images(data: ClassificationData, count: int | None, seed: int) -> ClassificationData:
    """Select the first images of each class in a shuffled order, which depends only on the seed and the files.

    Args:
        data: data set to select from.
        count: maximum number of images per class; None for all images.
        seed: seed of the order. A larger count adds images to those of a smaller one.
    """
    if count is None:
        return data
    order = list(range(len(data.samples)))
    random.Random(f"subset {seed}").shuffle(order)  # noqa: S311
    taken: Counter[int] = Counter()
    chosen = []
    for index in order:
        label = data.samples[index].label
        taken[label] += 1
        if taken[label] <= count:
            chosen.append(index)
    return replace(data, samples=tuple(data.samples[index] for index in sorted(chosen)))


def comparison_content(comparison: SizeComparison) -> dict[str, Any]:
    """Convert a comparison, with the paper's results, to JSON content."""
    variants = {
        name: {
            "sizes": VARIANTS[name],
            "spp": name != "no-spp",
            "top1_error": {test: [run.top1[test] for run in runs] for test in _TESTS},
            "top5_error": {test: [run.top5[test] for run in runs] for test in _TESTS},
            "pixels": [run.pixels for run in runs],
            "seconds": [run.seconds for run in runs],
        }
        for name, runs in comparison.runs.items()
    }
    paper = {"networks": PAPER_NETS, VIEWS: PAPER_VIEWS, "1 crop and 1 full": PAPER_FULL}
    return {
        "variants": variants,
        "seeds": len(next(iter(comparison.runs.values()))),
        "epochs": comparison.epochs,
        "images": {"train": comparison.images[0], "val": comparison.images[1]},
        "paper": paper,
        "failures": [{"path": error.path, "reason": error.reason} for error in comparison.failures],
    }


def verdict(comparison: SizeComparison) -> str:
    """Compare training at two sizes with training at one, with 10 views, in one sentence about the images used."""
    multi, single = ([run.top1[VIEWS] for run in comparison.runs[name]] for name in ("multi", "single"))
    difference = statistics.mean(single) - statistics.mean(multi)
    overlap = max(min(multi), min(single)) <= min(max(multi), max(single))
    spread = f"{len(multi)} seeds, ranges {'overlap' if overlap else 'do not overlap'}"
    conclusion = f"two sizes were {abs(difference):.1f} points {'better' if difference > 0 else 'worse'}"
    if len(multi) == 1:
        spread, conclusion = "one seed", "more seeds are needed to tell whether this difference is measurable"
    elif overlap:
        conclusion = "no measurable difference"
    return (
        f"On your images, training at 180 and 224 pixels had a top-1 error of {statistics.mean(multi):.1f} %, 224 alone"
        f" {statistics.mean(single):.1f} % ({spread}): {conclusion}"
    )


def error_reduction(base: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Compute how far errors are below the baseline errors of the same seed."""
    return [before - after for before, after in zip(base, errors, strict=True)]


def format_range(values: Sequence[float], sign: str = "") -> str:
    """Format the mean and, on a second line, the range of several values; `sign` ``+`` shows plus signs."""
    mean, lowest, highest = (f"{value:{sign}.1f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean}\n{lowest} to {highest}"


def _variant_options(options: ClassifyOptions, name: str, seed: int) -> ClassifyOptions:
    """Derive the options of a variant; without SPP, global average pooling is a pyramid with the single level 1."""
    varied = replace(options, sizes=VARIANTS[name], train_stages="all", resize=None, seed=seed)
    return replace(varied, levels=(1,), reduce="avg") if name == "no-spp" else varied


def _run_figures(
    folder: Path, listing: Path, train: ClassificationData, val: ClassificationData, options: ClassifyOptions
) -> RunScores:
    """Read the results of a run folder; train and test first where they are missing."""
    path = folder / SCORES
    # Stored results stay valid when options change that only affect how they are computed.
    fixed = asdict(replace(options, workers=0, device="auto", cache=None, tensorboard=False))
    inputs = json.loads(json.dumps({"options": fixed, "train": _digest(train.samples), "val": _digest(val.samples)}))
    if path.exists() and (stored := json.loads(path.read_text(encoding="utf-8")))["of"] == inputs:
        unread = tuple((name, reason) for name, reason in stored["failures"])
        return RunScores(stored["top1"], stored["top5"], stored["pixels"], stored["seconds"], unread)
    resumed = (folder / OPTIONS).exists()
    _logger.info(f"{'resuming' if resumed else 'training'} {folder}")
    training = train_classifier(listing, folder, options, val="none", resume=True)
    if not training.finished:
        raise KeyboardInterrupt
    model = load_classifier(folder).to(pick_device(options.device))
    model.backbone.side = _VIEW_SIDE  # views have this side whatever the weights were trained at
    tests = {name: evaluate_classifier(model, val.samples, **kwargs) for name, kwargs in _TESTS.items()}
    failures = [*training.failures, *(error for test in tests.values() for error in test.failures)]
    pixels, seconds = _training_cost(folder, train.samples, options)
    figures = RunScores(
        {name: 100 * (1 - test.scores.top1) for name, test in tests.items()},
        {name: 100 * (1 - test.scores.top5) for name, test in tests.items()},
        pixels,
        seconds,
        tuple({error.path: error.reason for error in failures}.items()),
    )
    write_json({"of": inputs, **asdict(figures)}, path)
    return figures


def _training_cost(folder: Path, samples: Sequence[Sample], options: ClassifyOptions) -> tuple[int, float]:
    """Compute the number of input pixels (over all images and epochs) and the seconds of a training run."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    seconds = sum(line["seconds"] for line in lines)
    if all(line["size"] for line in lines):
        return sum(line["size"] ** 2 for line in lines) * len(samples), seconds
    native = Resize("native", max_pixels=options.max_pixels)
    sizes, _ = read_sizes((sample.path for sample in samples), sizes_file(options, folder))
    areas = {path: math.prod(native.target_size(*size)) for path, size in sizes.items()}
    return sum(areas.get(sample.path, 0) for sample in samples) * len(lines), seconds


def _listing(data: ClassificationData) -> str:
    """Format the samples as CSV for :func:`sppnet.data.formats.classification.read_classification`."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(("path", "label"))
    writer.writerows((sample.path.absolute(), data.classes[sample.label]) for sample in data.samples)
    return text.getvalue()


def _digest(samples: Sequence[Sample]) -> str:
    """Compute a short text that identifies the paths and labels of the samples."""
    text = "\n".join(f"{sample.path.absolute()} {sample.label}" for sample in samples)
    return f"{len(samples)} images, {zlib.crc32(text.encode(errors='surrogateescape')):08x}"
