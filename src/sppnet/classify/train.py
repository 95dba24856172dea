"""Training of a classifier from a folder of images."""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.names import PAPER_BACKBONES
from sppnet.backbones.stages import freeze_stages
from sppnet.classify.batches import ImageBatches, VectorBatches, check_sizes
from sppnet.classify.calibrate import calibrate, calibrate_on_images
from sppnet.classify.evaluate import Scores, evaluate_classifier, scores_of, top_classes
from sppnet.classify.model import Classifier
from sppnet.classify.network import ClassifierConfig, default_stages
from sppnet.classify.options import WITHOUT_EPOCHS, ClassifyOptions
from sppnet.classify.trained_sides import trained_sides
from sppnet.classify.vectors import Vectors, compute_vectors
from sppnet.data.formats.classification import (
    ClassificationData,
    Sample,
    choose_classification_split,
    read_classification,
)
from sppnet.data.formats.table import find_validation
from sppnet.data.splits import hold_out
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.training.cache import GIGABYTE
from sppnet.training.checkpoint import finish_training, open_training
from sppnet.training.init import initialize
from sppnet.training.linear import LinearFit
from sppnet.training.loop import Objective, fit
from sppnet.training.optimizer import balanced_weights, classification
from sppnet.training.processes import launch, require_single_process
from sppnet.training.ridge import fit_ridge
from sppnet.training.run import TrainingResult, load_run
from sppnet.training.svm import fit_linear_svm, linear_svc

_logger = logging.getLogger(__name__)

C = TypeVar("C", bound=Classifier)

_FEW_IMAGES = 50  # per class; with fewer, a frozen backbone was usually more accurate


@dataclass(frozen=True)
class ClassifierTrainingResult(TrainingResult):
    """Result of the training of a classifier.

    Attributes:
        accuracy: scores by set, with keys ``validation images`` and, for a frozen backbone, ``training images``.
        classes: class names.
    """

    accuracy: dict[str, Scores] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


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
    loggers: Sequence[Any] = (),
) -> ClassifierTrainingResult:
    """Train a classifier on class folders, a folder of splits or a CSV file.

    The run folder contains the model of the best epoch (see :func:`sppnet.load`), the options, the metrics of each
    epoch as JSON Lines and CSV, and until training has finished a checkpoint. Resuming an interrupted or killed
    training gives the same weights as an uninterrupted one; resuming a finished one only validates its model.

    Args:
        data: training data, see :func:`sppnet.data.formats.classification.read_classification`.
        out: run folder; created if missing.
        options: training options; None for the defaults.
        split: split of `data` to train on; None for ``train``, if there are splits.
        val: images for validation after each epoch: a split of `data`, or other data, in a folder of splits its split
            ``val`` or else ``test``. None for the split ``val`` of `data`, or else a tenth of the training images of
            each class, chosen by the seed; ``none`` for no validation.
        resume: whether to continue the training in `out`, if there is one.
        format: format of `data` and `val`; None to detect it.
        loggers: loggers of Lightning Fabric, which get the metrics of each epoch.

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
    image_lines = [f"{sample.path.name} {sample.label}" for sample in train_set.samples]
    problems = train_set.problems
    val_samples: tuple[Sample, ...] = ()
    if source := find_validation(data, split, val, "classify", format):
        val_set = read_classification(*source, train_set.classes, format=format)
        problems, val_samples = problems + val_set.problems, val_set.samples
    elif val is None:
        samples, val_samples = hold_out(train_set.samples, options.seed, attrgetter("label"))
        train_set = replace(train_set, samples=samples)
    options.require_validation(len(val_samples))
    torch.manual_seed(options.seed)
    model = create_model(options, train_set.classes, Classifier)
    check_sizes(model.backbone, options, len(train_set.samples))
    freeze_stages(model.backbone, options.train_stages)
    if options.init is not None:
        initialize(model, options.init, ("head.fc8." if options.kind == "fc" else "head.",))
    if options.frozen:
        require_single_process("a frozen backbone")
    fabric = launch(options, out, options.devices, options.nodes, loggers)
    done = open_training(
        out,
        train_set.root,
        image_lines,
        options,
        resume,
        classes=train_set.classes,
        write=fabric.global_rank == 0,
        held_out=len(image_lines) - len(train_set.samples),
    )
    if done:
        load_run(model.to(fabric.device), out)
    elif not resume:
        _advise(options, train_set)
    train = _train_head if options.frozen else _train_stages
    finished, accuracy, failures = train(model, train_set.samples, val_samples, options, out, fabric, done)
    if finished and not done and fabric.global_rank == 0:
        cache = None if options.frozen else sizes_file(options, out)
        sides = trained_sides(train_set.samples, options, model.resize, cache)
        model.config = replace(model.config, trained_sides=sides)
        finish_training(model.cpu().eval(), out, "head." if options.frozen else "")
    unique = {failure.path: failure for failure in failures}
    return ClassifierTrainingResult(
        out,
        finished,
        _metrics(accuracy["validation images"]) if "validation images" in accuracy else {},
        tuple(unique.values()),
        problems,
        time.monotonic() - started,
        accuracy=accuracy,
        classes=train_set.classes,
    )


def create_model(options: ClassifyOptions, classes: tuple[str, ...], kind: type[C]) -> C:
    """Create the classifier of a training, with an untrained head.

    Args:
        options: training options.
        classes: class names.
        kind: class of the result.
    """
    backbone = create_backbone(options.backbone, options.stage, options.weights)
    stages = options.stages
    if stages is None:
        stages = default_stages(backbone) if options.frozen else ()
    config = ClassifierConfig(
        classes,
        options.backbone,
        options.stage,
        options.levels,
        options.reduce,
        options.rule,
        "fc" if options.kind == "fc" else "linear",
        options.evaluation_size,
        options.max_pixels,
        stages=tuple(map(backbone.check_stage, stages)),
    )
    return kind(config, backbone)


def fit_head(
    vectors: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classes: int, options: ClassifyOptions
) -> LinearFit:
    """Fit a head that is not trained in epochs, see :func:`fit_ridge` and :func:`fit_linear_svm`."""
    balanced = options.class_weights == "balanced"
    if options.kind == "svm":
        return fit_linear_svm(vectors, labels, classes, options.svm_c, options.seed, balanced=balanced)
    return fit_ridge(vectors, labels, classes, balanced=balanced)


Outcome = tuple[bool, dict[str, Scores], list[ImageError]]


def _advise(options: ClassifyOptions, data: ClassificationData) -> None:
    """Recommend a frozen backbone for pretrained weights and few images, and no frozen backbone for random weights."""
    random_weights = options.weights == "none" or (options.weights == "auto" and options.backbone in PAPER_BACKBONES)
    untrained = random_weights and options.init is None
    images = len(data.samples) / len(data.classes)
    if options.frozen and untrained:
        _logger.warning(
            f"the backbone {options.backbone} is frozen with random weights; use --train-stages all, or pretrained"
            " --weights"
        )
    elif not options.frozen and not untrained and images < _FEW_IMAGES:
        _logger.info(
            f"with {images:.0f} images per class, --freeze-backbone is usually more accurate and much faster than"
            " training the whole network"
        )


def _train_head(
    model: Classifier,
    samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    options: ClassifyOptions,
    out: Path,
    fabric: Any,
    done: bool,
) -> Outcome:
    """Compute the vector of each image once, then fit the head on the vectors."""
    folder = _cache_folder(options, out) / "vectors"
    model.to(pick_device(options.device))
    limit = options.cache_limit * GIGABYTE
    vectors = compute_vectors(model, samples, model.resize, folder, "computing training vectors", limit)
    parts = {"training images": vectors}
    if val_samples:
        label = "computing validation vectors"
        parts["validation images"] = compute_vectors(model, val_samples, model.resize, folder, label, limit)
    failures = [failure for part in parts.values() for failure in part.failures]
    _require_two_classes(vectors.labels.tolist(), failures)
    finished = True
    if options.kind in WITHOUT_EPOCHS and not done:
        _logger.info(f"fitting the head {options.kind}")
        head = fit_head(vectors.data, vectors.labels, len(model.config.classes), options)
        model.head.fc = head.layer
        model.cpu()
        calibrate(model, head.margins, head.labels)
    elif not done:
        batches = VectorBatches(vectors.data, vectors.labels, options.batch, options.seed)
        val = parts.get("validation images")

        def validate() -> dict[str, float] | None:
            return _metrics(_vector_scores(model, val)) if val else None

        objective = _objective(model, options, vectors.labels)
        finished = fit(model.head, batches, options, out, validate, failures, objective, fabric=fabric)
        if finished and val:
            calibrate(model, _vector_logits(model, val), val.labels)
    return finished, {name: _vector_scores(model, part) for name, part in parts.items()}, failures


def _train_stages(
    model: Classifier,
    samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    options: ClassifyOptions,
    out: Path,
    fabric: Any,
    done: bool,
) -> Outcome:
    """Train head and stages of the backbone, on images at the sizes of the schedule."""
    batches = ImageBatches(samples, model.backbone, options, sizes_file(options, out), fabric)
    model.to(memory_format=torch.channels_last)
    if not batches.schedule.sides:
        _logger.info(
            f"{len(batches.samples)} images at native size in {batches.steps} batches per epoch;"
            f" {100 * batches.waste():.1f} % of the pixels are padding"
        )
    failures = list(batches.failures)
    labels = [sample.label for sample in batches.samples]
    _require_two_classes(labels, failures)
    accuracy: dict[str, Scores] = {}

    def validate() -> dict[str, float] | None:
        if not val_samples:
            return None
        report = evaluate_classifier(model, val_samples)
        failures.extend(report.failures)
        accuracy["validation images"] = report.scores
        return _metrics(report.scores)

    if done:
        validate()
    objective = _objective(model, options, torch.tensor(labels))
    finished = done or fit(model, batches, options, out, validate, failures, objective, fabric=fabric)
    if finished and not done and fabric.global_rank == 0:
        calibrate_on_images(model, val_samples)
    return finished, accuracy, failures


def _objective(model: Classifier, options: ClassifyOptions, labels: Int[Tensor, " n"]) -> Objective:
    """Return the training objective: cross entropy with the class weights of the training labels."""
    balanced = options.class_weights == "balanced"
    weights = balanced_weights(labels, len(model.config.classes)) if balanced else None
    return partial(classification, weights=weights, smoothing=options.label_smoothing)


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


def _vector_scores(model: Classifier, vectors: Vectors) -> Scores:
    return scores_of(top_classes(_vector_logits(model, vectors)), vectors.labels)


def _vector_logits(model: Classifier, vectors: Vectors) -> Float[Tensor, "n c"]:
    with evaluation_mode(model.head), torch.inference_mode():
        return torch.cat([model.head(part.float().to(model.device)).cpu() for part in vectors.data.split(1024)])
