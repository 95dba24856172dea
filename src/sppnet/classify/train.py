"""Training of a classifier from a folder of images."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.padded.ledger import PaddingError
from sppnet.classify.batches import ImageBatches, VectorBatches
from sppnet.classify.evaluate import Scores, evaluate_classifier, scores_of, top_classes
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.classify.options import TrainOptions
from sppnet.classify.trained_sides import trained_sides
from sppnet.classify.vectors import Vectors, compute_vectors
from sppnet.console import console
from sppnet.data.batching import Schedule
from sppnet.data.formats.class_folders import Sample, read_classification
from sppnet.data.splits import find_split
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.ops.bins import bin_edges, parse_levels
from sppnet.training.checkpoint import open_training
from sppnet.training.loop import fit
from sppnet.training.processes import launch
from sppnet.training.run import save_run
from sppnet.training.svm import fit_linear_svm, linear_svc

SIZES = "sizes.json"


@dataclass(frozen=True)
class Training:
    """Result of a training.

    Attributes:
        run: run folder.
        finished: False if the training was interrupted; it can be resumed.
        scores: scores by set, with keys ``validation images`` and, for a frozen backbone, ``training images``.
        failures: errors of images that could not be used and were skipped.
        skipped: files in the data set that are not images.
        seconds: duration of this call.
    """

    run: Path
    finished: bool
    scores: dict[str, Scores]
    failures: tuple[ImageError, ...]
    skipped: tuple[Path, ...]
    seconds: float


@torch.random.fork_rng(devices=[])
def train_classifier(
    data: str | Path,
    out: str | Path,
    options: TrainOptions | None = None,
    *,
    val: str | Path | None = None,
    resume: bool = False,
) -> Training:
    """Train a classifier on class folders, a folder of splits or a CSV file.

    The run folder contains the model (see :func:`sppnet.load`), the options, the metrics of each epoch as JSON
    Lines, and a checkpoint. Resuming an interrupted or killed training gives the same weights as an uninterrupted one.

    Args:
        data: training data, see :func:`sppnet.data.formats.class_folders.read_classification`; a folder of splits must
            contain ``train``.
        out: run folder; created if missing.
        options: training options; None for the defaults.
        val: images for validation after each epoch; None for the split ``val`` of `data`, if there is one.
        resume: whether to continue the training in `out`, if there is one.

    Raises:
        ModuleNotFoundError: a package of an extra is missing.
        ValueError: an option or the data set is invalid, or the run folder contains another training.
    """
    started = time.monotonic()
    options = options or TrainOptions()
    out = Path(out)
    if options.kind == "svm":
        linear_svc("svm")
    train_set = read_classification(data, find_split(data, "train"))
    val_split = find_split(data, "val", "valid", "validation")
    val_samples: tuple[Sample, ...] = ()
    skipped = train_set.skipped
    if val is not None or val_split is not None:
        val_set = read_classification(val or data, None if val else val_split, train_set.classes)
        val_samples, skipped = val_set.samples, skipped + val_set.skipped
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
    model = Classifier(config, create_backbone(options.backbone, options.stage, options.weights))
    _check_sizes(model, options)
    fabric = None if options.freeze_backbone else launch(options, out, options.devices, options.nodes)
    is_first = fabric is None or fabric.global_rank == 0
    image_lines = [f"{sample.path.name} {sample.label}" for sample in train_set.samples]
    open_training(out, train_set.root, image_lines, options, resume, write=is_first)
    if fabric is None:
        finished, scores, failures = _train_head(model, train_set.samples, val_samples, options, out)
    else:
        finished, scores, failures = _train_whole(model, train_set.samples, val_samples, options, out, fabric)
    if finished and is_first:
        cache = None if options.freeze_backbone else _cache_folder(options, out) / SIZES
        sides = trained_sides(train_set.samples, options, model.resize, cache)
        model.config = replace(model.config, trained_sides=sides)
        save_run(model.cpu().eval(), out)
    unique = {failure.path: failure for failure in failures}
    return Training(out, finished, scores, tuple(unique.values()), skipped, time.monotonic() - started)


Outcome = tuple[bool, dict[str, Scores], list[ImageError]]


def _train_head(
    model: Classifier, samples: Sequence[Sample], val_samples: Sequence[Sample], options: TrainOptions, out: Path
) -> Outcome:
    """Compute the vector of each image once, then fit the head on the vectors."""
    folder = Path(options.cache) if options.cache else out / "features"
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
        with console.status("fitting the SVMs"):
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
    options: TrainOptions,
    out: Path,
    fabric: Any,
) -> Outcome:
    """Train all weights, on images at the sizes of the schedule."""
    batches = ImageBatches(samples, model.backbone, options, _cache_folder(options, out) / SIZES, fabric)
    model.to(memory_format=torch.channels_last)
    if not batches.schedule.sides:
        console.print(
            f"{len(batches.samples)} images at native size in {batches.steps} batches per epoch;"
            f" {100 * batches.waste():.1f} % of the pixels are padding",
            highlight=False,
        )
    failures = list(batches.failures)
    _require_two_classes([sample.label for sample in batches.samples], failures)
    scores: dict[str, Scores] = {}

    def validate() -> dict[str, float] | None:
        if not val_samples:
            return None
        evaluation = evaluate_classifier(model, val_samples)
        failures.extend(evaluation.failures)
        scores["validation images"] = evaluation.scores
        return _metrics(evaluation.scores)

    finished = fit(model, batches, options, out, validate, failures, fabric=fabric)
    return finished, scores, failures


def _cache_folder(options: TrainOptions, out: Path) -> Path:
    return Path(options.cache) if options.cache else out


def _metrics(scores: Scores) -> dict[str, float]:
    return {"top1": scores.top1, "mean_per_class_accuracy": scores.mean_per_class_accuracy}


def _require_two_classes(labels: Sequence[int], failures: Sequence[ImageError]) -> None:
    if len(set(labels)) < 2:
        errors = "; ".join(str(failure) for failure in failures[:10])
        raise ValueError(
            f"data: expected readable images of at least 2 classes, got {len(set(labels))}; {len(failures)} images"
            f" cannot be used: {errors}"
        )


def _check_sizes(model: Classifier, options: TrainOptions) -> None:
    """Check that the network and the pooling rule support the training sizes, before any file is written."""
    if options.freeze_backbone:
        return
    if not Schedule.parse(options.sizes).sides:
        _check_padding(model)
    for side in Schedule.parse(options.sizes).sides:
        rows, columns = model.backbone.geometry.map_size(side, side)
        if min(rows, columns) < 1:
            smallest = max(model.backbone.geometry.smallest())
            raise ValueError(f"sizes: expected at least {smallest} pixels for {options.backbone}, got {side}")
        for level_rows, level_columns in parse_levels(options.levels):
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
