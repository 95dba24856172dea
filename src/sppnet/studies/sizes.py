"""One network trained at one size, at several and at native sizes, on one's own images: the paper's Tables 2 and 3."""

import csv
import io
import json
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
from sppnet.classify.train import SIZES, train_classifier
from sppnet.console import console
from sppnet.data.formats.class_folders import ClassificationData, Sample
from sppnet.data.resize import Resize
from sppnet.data.sizes import read_sizes
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.io.files import write_json, write_text
from sppnet.registry import load_classifier
from sppnet.training.checkpoint import OPTIONS
from sppnet.training.loop import METRICS
from sppnet.training.options import TrainOptions
from sppnet.training.processes import refuse_several

SCORES = "scores.json"
# Training sizes by name. Native sizes come last: they take the longest on large photographs.
VARIANTS = {"no-spp": "224", "single": "224", "multi": "180,224", "random": "180-224", "native": "native"}
VIEWS, CROP, FULL, OWN = "10 views", "1 crop", "1 full", "own size"
_TESTS: dict[str, dict[str, str]] = {
    VIEWS: {"views": "10"},
    CROP: {"resize": "center-crop:224"},
    FULL: {"resize": "shorter-side:256"},
    OWN: {"resize": "native"},
}
_VIEW_SIDE = 224
# Errors in % on the validation images of ImageNet: the paper's Table 2, and section 3.1.2 for sizes that are drawn.
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
class RunFigures:
    """One training, tested.

    Attributes:
        top1, top5: errors in % of each test.
        pixels: that the network saw in training, all images of all epochs.
        seconds: of training.
        failures: (path, reason) of images that could not be read.
    """

    top1: dict[str, float]
    top5: dict[str, float]
    pixels: int
    seconds: float
    failures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class SizeComparison:
    """What was compared.

    Attributes:
        runs: figures of each variant, a seed each.
        epochs: of each training.
        images: (training, validation) images.
    """

    runs: dict[str, list[RunFigures]]
    epochs: int
    images: tuple[int, int]

    @property
    def failures(self) -> list[ImageError]:
        """Images that could not be read, each once."""
        unique = {path: reason for runs in self.runs.values() for run in runs for path, reason in run.failures}
        return [ImageError(path, reason) for path, reason in unique.items()]


def compare_sizes(
    train: ClassificationData, val: ClassificationData, options: TrainOptions, out: Path, seeds: int = 3
) -> SizeComparison:
    """Train the variants with equal options, epochs and seeds, and test each in four ways.

    Each training is a run folder `out`/<variant>-<seed>. A killed comparison goes on where it stopped, also within a
    training; what is finished is read and not done again.

    Args:
        train: images to train on, the same for all variants.
        val: images to test on, labelled with the classes of `train`.
        options: of all trainings but for sizes, and for levels and reduce where there is no SPP; the seeds follow its
            own. At least 2 epochs, so that two sizes in turn are two.
        out: folder of the runs.
        seeds: how often each variant is trained, >= 1.
    """
    if seeds < 1:
        raise ValueError(f"seeds: expected at least 1; got {seeds}")
    if options.epochs < 2:
        raise ValueError(f"epochs: expected at least 2, so that both sizes in turn have one; got {options.epochs}")
    if options.freeze_backbone:
        raise ValueError("freeze_backbone: a frozen backbone learns nothing of sizes; leave it out")
    refuse_several("a comparison of sizes")
    if options.devices * options.nodes > 1:
        raise ValueError(f"devices: a comparison of sizes runs in one process; got {options.devices * options.nodes}")
    out.mkdir(parents=True, exist_ok=True)
    listing = out / "train.csv"
    write_text(_listing(train), listing)
    runs: dict[str, list[RunFigures]] = {}
    for name in VARIANTS:
        for seed in range(options.seed, options.seed + seeds):
            folder = out / f"{name}-{seed}"
            figures = _run_figures(folder, listing, train, val, _variant(options, name, seed))
            runs.setdefault(name, []).append(figures)
            errors = f"top-1 error {figures.top1[VIEWS]:.2f} %, top-5 {figures.top5[VIEWS]:.2f} %"
            console.print(f"{name}, seed {seed}: {errors} with 10 views", highlight=False)
    return SizeComparison(runs, options.epochs, (len(train.samples), len(val.samples)))


def first_images(data: ClassificationData, count: int | None, seed: int) -> ClassificationData:
    """The first images of each class in a shuffled order, which depends on the seed and the files alone.

    Args:
        data: is left as it is.
        count: images of each class; what has fewer keeps them all. None for all images.
        seed: of the order; the same images come first for every count.
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
    """The figures for JSON, the paper's beside them."""
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


def gain(base: Sequence[float], errors: Sequence[float]) -> list[float]:
    """By how much errors are below those of the base, seed by seed."""
    return [before - after for before, after in zip(base, errors, strict=True)]


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and, on a second line, range of some figures; `sign` of ``+`` shows that of positive ones, too."""
    mean, least, greatest = (f"{value:{sign}.1f}" for value in (statistics.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f"{mean}\n{least} to {greatest}"


def _variant(options: TrainOptions, name: str, seed: int) -> TrainOptions:
    """Without SPP the map's average goes to the head, which is a pyramid of the one level 1."""
    varied = replace(options, sizes=VARIANTS[name], resize=None, seed=seed)
    return replace(varied, levels=(1,), reduce="avg") if name == "no-spp" else varied


def _run_figures(
    folder: Path, listing: Path, train: ClassificationData, val: ClassificationData, options: TrainOptions
) -> RunFigures:
    """The figures of a run folder; what it lacks of training and tests is done."""
    path = folder / SCORES
    # How a training was computed does not change its figures.
    fixed = asdict(replace(options, workers=0, device="auto", cache=None, tensorboard=False))
    of = json.loads(json.dumps({"options": fixed, "train": _named(train.samples), "val": _named(val.samples)}))
    if path.exists() and (stored := json.loads(path.read_text(encoding="utf-8")))["of"] == of:
        told = tuple((name, reason) for name, reason in stored["failures"])
        return RunFigures(stored["top1"], stored["top5"], stored["pixels"], stored["seconds"], told)
    resumed = (folder / OPTIONS).exists()
    console.print(f"{'going on with' if resumed else 'training'} {folder}", highlight=False, markup=False)
    training = train_classifier(listing, folder, options, resume=True)
    if not training.finished:
        raise KeyboardInterrupt
    model = load_classifier(folder).to(pick_device(options.device))
    model.backbone.side = _VIEW_SIDE  # of the views, whatever the side that the weights were made at
    evaluations = {name: evaluate_classifier(model, val.samples, **how) for name, how in _TESTS.items()}
    failures = [*training.failures, *(error for one in evaluations.values() for error in one.failures)]
    pixels, seconds = _pixels_seen(folder, train.samples, options.max_pixels)
    figures = RunFigures(
        {name: 100 * (1 - one.scores.top1) for name, one in evaluations.items()},
        {name: 100 * (1 - one.scores.top5) for name, one in evaluations.items()},
        pixels,
        seconds,
        tuple({error.path: error.reason for error in failures}.items()),
    )
    write_json({"of": of, **asdict(figures)}, path)
    return figures


def _pixels_seen(folder: Path, samples: Sequence[Sample], max_pixels: int) -> tuple[int, float]:
    """Pixels that a training's images had in all epochs, and its seconds."""
    lines = [json.loads(line) for line in (folder / METRICS).read_text(encoding="utf-8").splitlines()]
    seconds = sum(line["seconds"] for line in lines)
    if all(line["size"] for line in lines):
        return sum(line["size"] ** 2 for line in lines) * len(samples), seconds
    native = Resize("native", max_pixels=max_pixels)
    found, _ = read_sizes((sample.path for sample in samples), folder / SIZES)
    areas = {path: math.prod(native.target_size(*size)) for path, size in found.items()}
    return sum(areas.get(sample.path, 0) for sample in samples) * len(lines), seconds


def _listing(data: ClassificationData) -> str:
    """The images as a CSV file that :func:`sppnet.data.formats.class_folders.read_classification` reads."""
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerow(("path", "label"))
    writer.writerows((sample.path.absolute(), data.classes[sample.label]) for sample in data.samples)
    return text.getvalue()


def _named(samples: Sequence[Sample]) -> str:
    """A short name for exactly these files with these labels."""
    text = "\n".join(f"{sample.path.absolute()} {sample.label}" for sample in samples)
    return f"{len(samples)} images, {zlib.crc32(text.encode(errors='surrogateescape')):08x}"
