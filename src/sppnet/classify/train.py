"""Training of a classifier from a folder of images."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import torch

from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.names import PAPER_BACKBONES
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.classify.batches import ImageBatches, VectorBatches, normalizes_single_images
from sppnet.classify.evaluate import Scores, evaluate_classifier, scores_of, top_classes
from sppnet.classify.model import Classifier, create_classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import ClassifyOptions
from sppnet.classify.trained_sides import trained_sides
from sppnet.classify.vectors import Vectors, compute_vectors
from sppnet.data.formats.classification import (
    ClassificationData,
    Sample,
    choose_classification_split,
    read_classification,
)
from sppnet.data.schedule import Schedule
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.ops.bins import bin_edges
from sppnet.ops.levels import parse_levels
from sppnet.training.checkpoint import open_training
from sppnet.training.loop import fit
from sppnet.training.processes import launch
from sppnet.training.run import TrainingResult, save
from sppnet.training.svm import fit_linear_svm, linear_svc

_logger = logging.getLogger(__name__)

_FEW_IMAGES = 50  # per class; with fewer, a frozen backbone was usually more accurate


@dataclass(frozen=True)
class ClassifierTrainingResult(TrainingResult):
    """Result of the training of a classifier.

    Attributes:
        accuracy: scores by set, with keys ``validation images`` and, for a frozen backbone, ``training images``.
    """

    accuracy: dict[str, Scores] = field(default_factory=dict)


@torch.random.fork_rng(devices=[])
def train_classifier(
    data: str | Path,
    out: str | Path,
    options: ClassifyOptions | None = None,
    *,
    split: str | None = None,
    val: str | Path | None = None,
    resume: bool = False,
    format: str | None = None,
) -> ClassifierTrainingResult:
    """Train a classifier on class folders, a folder of splits or a CSV file.

    The run folder contains the model (see :func:`sppnet.load`), the options, the metrics of each epoch as JSON
    Lines, and a checkpoint. Resuming an interrupted or killed training gives the same weights as an uninterrupted one.

    Args:
        data: training data, see :func:`sppnet.data.formats.classification.read_classification`.
        out: run folder; created if missing.
        options: training options; None for the defaults.
        split: split of `data` to train on; None for ``train``, if there are splits.
        val: images for validation after each epoch, in a folder of splits its split ``val`` or else ``test``; None for
            the split ``val`` of `data`, if there is one.
        resume: whether to continue the training in `out`, if there is one.
        format: format of `data` and `val`; None to detect it.

    Raises:
        ModuleNotFoundError: a package of an extra is missing.
        ValueError: an option or the data set is invalid, or the run folder contains another training.
    """
    started = time.monotonic()
    options = options or ClassifyOptions()
    out = Path(out)
    if options.kind == "svm":
        linear_svc()
    split = choose_classification_split(data, split, "train", format=format)
    train_set = read_classification(data, split, format=format)
    val_set = _read_validation(data, split, val, train_set.classes, format)
    val_samples = val_set.samples if val_set else ()
    torch.manual_seed(options.seed)
    config = ClassifierConfig(
        classes=train_set.classes,
        backbone=options.backbone,
        stage=options.stage,
        levels=options.levels,
        reduce=options.reduce,
        rule=options.rule,
        head="fc" if options.kind == "fc" else "linear",
        resize=options.evaluation_size,
        max_pixels=options.max_pixels,
    )
    model = create_classifier(config, options.weights)
    _check_sizes(model, options, len(train_set.samples))
    fabric = None if options.freeze_backbone else launch(options, out, options.devices, options.nodes)
    is_first = fabric is None or fabric.global_rank == 0
    image_lines = [f"{sample.path.name} {sample.label}" for sample in train_set.samples]
    open_training(out, train_set.root, image_lines, options, resume, write=is_first)
    if fabric is None:
        finished, accuracy, failures = _train_head(model, train_set.samples, val_samples, options, out)
    else:
        if not resume:
            _advise(options, train_set)
        finished, accuracy, failures = _train_whole(model, train_set.samples, val_samples, options, out, fabric)
    if finished and is_first:
        cache = None if options.freeze_backbone else sizes_file(options, out)
        sides = trained_sides(train_set.samples, options, model.resize, cache)
        model.config = replace(model.config, trained_sides=sides)
        save(model.cpu().eval(), out)
    unique = {failure.path: failure for failure in failures}
    return ClassifierTrainingResult(
        out,
        finished,
        _metrics(accuracy["validation images"]) if "validation images" in accuracy else {},
        tuple(unique.values()),
        train_set.problems + (val_set.problems if val_set else ()),
        time.monotonic() - started,
        accuracy=accuracy,
    )


Outcome = tuple[bool, dict[str, Scores], list[ImageError]]


def _read_validation(
    data: str | Path, split: str | None, val: str | Path | None, classes: Sequence[str], format: str | None
) -> ClassificationData | None:
    if val is not None:
        val_split = choose_classification_split(val, None, "val", "test", format=format)
        return read_classification(val, val_split, classes, format=format)
    val_split = choose_classification_split(data, None, "val", format=format)
    return None if val_split in (None, split) else read_classification(data, val_split, classes, format=format)


def _advise(options: ClassifyOptions, data: ClassificationData) -> None:
    """Recommend a frozen backbone for pretrained weights and few images."""
    untrained = options.weights == "none" or (options.weights == "auto" and options.backbone in PAPER_BACKBONES)
    images = len(data.samples) / len(data.classes)
    if not untrained and images < _FEW_IMAGES:
        _logger.info(
            f"with {images:.0f} images per class, --freeze-backbone is usually more accurate and much faster than"
            " training the whole network"
        )


def _train_head(
    model: Classifier, samples: Sequence[Sample], val_samples: Sequence[Sample], options: ClassifyOptions, out: Path
) -> Outcome:
    """Compute the vector of each image once, then fit the head on the vectors."""
    folder = _cache_folder(options, out) / "vectors"
    model.to(pick_device(options.device))
    vectors = compute_vectors(model, samples, model.resize, folder, "computing training vectors")
    parts = {"training images": vectors}
    if val_samples:
        label = "computing validation vectors"
        parts["validation images"] = compute_vectors(model, val_samples, model.resize, folder, label)
    failures = [failure for part in parts.values() for failure in part.failures]
    _require_two_classes(vectors.labels.tolist(), failures)
    finished = True
    if options.kind == "svm":
        classes = len(model.config.classes)
        _logger.info("fitting the SVMs")
        layer = fit_linear_svm(vectors.data, vectors.labels, classes, options.svm_c, options.seed)
        model.head.fc = layer
        model.cpu()
    else:
        batches = VectorBatches(vectors.data, vectors.labels, options.batch, options.seed)
        val = parts.get("validation images")
        finished = fit(
            model.head, batches, options, out, lambda: _metrics(_vector_scores(model, val)) if val else None, failures
        )
    return finished, {name: _vector_scores(model, part) for name, part in parts.items()}, failures


def _train_whole(
    model: Classifier,
    samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    options: ClassifyOptions,
    out: Path,
    fabric: Any,
) -> Outcome:
    """Train all weights, on images at the sizes of the schedule."""
    batches = ImageBatches(samples, model.backbone, options, sizes_file(options, out), fabric)
    model.to(memory_format=torch.channels_last)
    if not batches.schedule.sides:
        _logger.info(
            f"{len(batches.samples)} images at native size in {batches.steps} batches per epoch;"
            f" {100 * batches.waste():.1f} % of the pixels are padding"
        )
    failures = list(batches.failures)
    _require_two_classes([sample.label for sample in batches.samples], failures)
    accuracy: dict[str, Scores] = {}

    def validate() -> dict[str, float] | None:
        if not val_samples:
            return None
        report = evaluate_classifier(model, val_samples)
        failures.extend(report.failures)
        accuracy["validation images"] = report.scores
        return _metrics(report.scores)

    finished = fit(model, batches, options, out, validate, failures, fabric=fabric)
    if finished and not accuracy and fabric.global_rank == 0:  # resumed after the last epoch
        validate()
    return finished, accuracy, failures


def _cache_folder(options: ClassifyOptions, out: Path) -> Path:
    return Path(options.cache) if options.cache else out / "cache"


def sizes_file(options: ClassifyOptions, out: Path) -> Path:
    """Return the file that caches the sizes of the training images."""
    return _cache_folder(options, out) / "sizes.json"


def _metrics(scores: Scores) -> dict[str, float]:
    return {"top1": scores.top1, "mean_per_class_accuracy": scores.mean_per_class_accuracy}


def _require_two_classes(labels: Sequence[int], failures: Sequence[ImageError]) -> None:
    if len(set(labels)) < 2:
        errors = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected readable images of at least 2 classes, got {len(set(labels))}; {len(failures)} images"
            f" cannot be used: {errors}"
        )


def _check_sizes(model: Classifier, options: ClassifyOptions, images: int) -> None:
    """Check that the network and the pooling rule support the training sizes, before any file is written.

    On a map with fewer cells than a level has bins, bins would repeat the same cells, and an input smaller than one
    stride would be mostly padding.
    """
    if options.freeze_backbone:
        return
    sides = Schedule.parse(options.sizes).sides
    if not sides:
        _check_padding(model)
        return
    geometry, levels = model.backbone.geometry, parse_levels(options.levels)
    bins = max(map(max, levels))
    smallest = next(side for side in count(max(geometry.stride)) if min(geometry.map_size(side, side)) >= bins)
    if min(sides) < smallest:
        raise ValueError(
            f"sizes: expected at least {smallest} pixels for {options.backbone}, so that its map has a cell for each of"
            f" the {bins} x {bins} bins of the largest level, got {min(sides)}; train at larger sizes or with smaller"
            " levels"
        )
    single_cell = max(geometry.map_size(min(sides), min(sides))) == 1
    if single_cell and normalizes_single_images(model.backbone, images, options.batch):
        raise ValueError(
            "batch: expected batches of at least 2 images, which batch normalization needs on maps of one cell, got"
            f" {options.batch} for {images} images; use larger batches or sizes"
        )
    for side in sides:
        rows, columns = geometry.map_size(side, side)
        for level_rows, level_columns in levels:
            bin_edges(rows, level_rows, options.rule)
            bin_edges(columns, level_columns, options.rule)


def _check_padding(model: Classifier) -> None:
    """Check that the network supports images of different sizes in one batch."""
    height, width = model.backbone.geometry.smallest()
    x = torch.zeros(2, 3, height + 5, width + 7)
    try:
        with evaluation_mode(model), torch.inference_mode():
            model.backbone(x, [(height, width + 7), (height + 5, width)])
    except PaddingError as error:
        raise PaddingError(f"{error}, for example with sizes 180,224 or 180-224") from error


def _vector_scores(model: Classifier, vectors: Vectors) -> Scores:
    with evaluation_mode(model.head), torch.inference_mode():
        logits = [model.head(part.float().to(model.device)).cpu() for part in vectors.data.split(1024)]
    return scores_of(top_classes(torch.cat(logits)), vectors.labels)
