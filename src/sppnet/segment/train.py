"""Training of a segmenter from images and masks."""

import dataclasses
import logging
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.backbones.stages import freeze_stages
from sppnet.data.formats.class_tables import CAMVID, CAMVID_COLOURS, read_class_file
from sppnet.data.formats.mask_labels import report_classes
from sppnet.data.formats.masks import IGNORE, LabelMap, PixelCounts, SegmentationSample, count_pixels, load_pair
from sppnet.data.formats.segmentation import SegmentationData, choose_segmentation_split, read_segmentation
from sppnet.data.formats.table import find_validation
from sppnet.data.items import Problems
from sppnet.data.splits import hold_out
from sppnet.errors import ImageError
from sppnet.layers.atrous import auto_rates
from sppnet.layers.norms import SafeBatchNorm2d
from sppnet.segment.batches import MaskBatches
from sppnet.segment.calibrate import calibrate
from sppnet.segment.evaluate import SegmentationReport, evaluate_segmenter
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.segment.options import ClassWeights, SegmentOptions
from sppnet.training.checkpoint import finish_training, open_training
from sppnet.training.init import initialize
from sppnet.training.loop import Objective, fit
from sppnet.training.processes import launch
from sppnet.training.run import TrainingResult, load_run

_logger = logging.getLogger(__name__)


@torch.random.fork_rng(devices=[])
def train_segmenter(
    data: str | Path,
    out: str | Path,
    options: SegmentOptions | None = None,
    *,
    split: str | None = None,
    val: str | Path | None = None,
    resume: bool = False,
    class_file: str | Path | None = None,
    format: str | None = None,
    loggers: Sequence[Any] = (),
) -> TrainingResult:
    """Train a segmenter on images and masks.

    All masks are read before training starts, so that errors are reported early. The run folder contains the model of
    the best epoch (see :func:`sppnet.load`), the options, the metrics of each epoch as JSON Lines and CSV, and until
    training has finished a checkpoint. Resuming an interrupted or killed training gives the same weights as an
    uninterrupted one; resuming a finished one only validates its model.

    Args:
        data: training data, see :func:`sppnet.data.formats.segmentation.read_segmentation`.
        out: run folder; created if missing.
        options: training options; None for the defaults.
        split: split of `data` to train on; None for ``train``, or for all data if there are no splits.
        val: images for validation after each epoch: a split of `data`, or another data set, of which the split ``val``
            or else ``test`` is used. None for the split ``val`` of `data`, or else a tenth of the training images,
            chosen by the seed; ``none`` for no validation.
        resume: whether to continue the training in `out`, if there is one.
        class_file: path of a table of mask values and classes; None: the data set's table, else the layout's.
        format: name of the format of `data`, and of `val`; None to detect it.
        loggers: loggers of Lightning Fabric, which get the metrics of each epoch.

    Returns:
        The result; its scores are ``miou``, ``pixel_accuracy`` and ``mean_accuracy`` after the best epoch, see
        :class:`sppnet.segment.evaluate.SegmentationScores`.

    Raises:
        ValueError: an option or the data set is invalid, no mask can be used, or the run folder is in use.
    """
    started = time.monotonic()
    options = options or SegmentOptions()
    out = Path(out)
    train_split = choose_segmentation_split(data, split, "train", format=format)
    dataset = read_segmentation(data, train_split, ignore=options.ignore, class_file=class_file, format=format)
    train_set = dataset
    val_set: SegmentationData | None = None
    if source := find_validation(data, train_split, val, "segment", format):
        classes, ignore = dataset.classes, options.ignore
        val_set = read_segmentation(*source, classes, ignore, class_file=class_file, format=format)
    elif val is None:
        kept, held_out = hold_out(dataset.samples, options.seed, usable=partial(_has_pixels, dataset.labels))
        train_set = dataclasses.replace(dataset, samples=kept)
        val_set = dataclasses.replace(dataset, samples=held_out, problems=()) if held_out else None
    counts = count_pixels(train_set.samples, train_set.labels)
    samples = _usable(train_set, counts)
    failures, found = list(counts.failures), Problems(counts.problems)
    report_classes(train_set.root, train_set.labels, counts.pixels.tolist(), found)
    if val_set is not None:  # report bad masks before training, not after the first epoch
        val_counts = count_pixels(val_set.samples, val_set.labels)
        _usable(val_set, val_counts)
        failures += val_counts.failures
        pixels = val_counts.pixels.tolist(), counts.pixels.tolist()
        report_classes(val_set.root, val_set.labels, pixels[0], found, trained=pixels[1])
    for problem in found:
        if problem.kind == "empty-class":
            _logger.warning(str(problem))
    options.require_validation(0 if val_set is None else len(val_set.samples))
    torch.manual_seed(options.seed)
    table = tuple(map(tuple, read_class_file(Path(class_file)))) if class_file else ()
    config = segmenter_config(options, train_set.classes, table=table, colours=_class_colors(train_set.labels))
    model = create_segmenter(config, options.weights)
    _check_batches(model, options, len(samples))
    freeze_stages(model.backbone, options.train_stages)
    if options.init is not None:
        initialize(model, options.init, final_layers(model))
    fabric = launch(options, out, options.devices, options.nodes, loggers)
    first = fabric.global_rank == 0
    done = open_training(
        out,
        dataset.root,
        _fingerprint(dataset),
        options,
        resume,
        classes=dataset.classes,
        write=first,
        held_out=len(dataset.samples) - len(train_set.samples),
    )
    if done:
        load_run(model.to(fabric.device), out)
    usable = dataclasses.replace(train_set, samples=samples)
    batches = MaskBatches(
        usable,
        model.backbone,
        options.crop,
        options.batch,
        options.seed,
        options.workers,
        scale=options.scale_range,
        jitter=options.jitter,
        fabric=fabric,
    )
    reports: list[SegmentationReport] = []

    def validate() -> Mapping[str, float] | None:
        if val_set is None:
            return None
        reports.append(evaluate_segmenter(model, val_set, description="validating"))
        failures.extend(reports[-1].failures)
        return _main_scores(reports[-1])

    objective = pixel_objective(class_weights(counts, options.class_weights), options.label_smoothing)
    if done:
        validate()
    finished = done or fit(
        model, batches, options, out, validate, failures, objective, right="pixel_accuracy", fabric=fabric
    )
    if finished and not done and first:
        if val_set is not None:
            calibrate(model, val_set, final_layers(model))
        finish_training(model.cpu().eval(), out)
    problems = train_set.problems + (val_set.problems if val_set else ()) + found.lines()
    unique = {(failure.path, failure.reason): failure for failure in failures}
    scores = _main_scores(reports[-1]) if reports else {}
    if finished and reports:
        by_class = [f"{name} {value:.1%}" for name, value in reports[-1].scores.per_class.items() if value is not None]
        _logger.info(f"IoU of the validation classes: {', '.join(by_class)}")
    return TrainingResult(out, finished, scores, tuple(unique.values()), problems, time.monotonic() - started)


def segmenter_config(options: SegmentOptions, classes: tuple[str, ...], **fields: Any) -> SegmenterConfig:
    """Return the configuration of the segmenter to train; its rates, if not given, fit the crop size.

    Args:
        options: training options.
        classes: class names, in logit order.
        fields: further fields of the configuration.
    """
    rates = options.rates
    if not rates and options.head != "pspnet" and options.context == "aspp":
        cells = tuple(-(-side // options.output_stride) for side in options.crop)
        rates = auto_rates(options.output_stride, cells, "v2" if options.head == "deeplabv2" else "v3")
    names = [field.name for field in dataclasses.fields(SegmenterConfig) if hasattr(options, field.name)]
    shared = {name: getattr(options, name) for name in names} | {"rates": rates, "ignore": options.ignore or ()}
    return SegmenterConfig(classes, **shared, **fields)


def class_weights(counts: PixelCounts, kind: ClassWeights) -> Float[Tensor, " classes"]:
    """Compute the weight of each class in the loss, scaled to a mean of 1 over all pixels; 1 for absent classes.

    Args:
        counts: pixel counts of the training masks.
        kind: ``none``: equal weights; ``root``: the inverse square root of a class's share of the pixels; ``median``:
            the median of all class frequencies divided by the class frequency (SegNet, section 3), where frequencies
            are relative to the images that contain the class.
    """
    pixels, present = counts.pixels.double(), counts.pixels > 0
    weights = torch.ones(len(pixels), dtype=torch.float64)
    if kind == "root":
        weights[present] = pixels[present].rsqrt()
    elif kind == "median":
        frequency = pixels[present] / counts.shown[present]
        weights[present] = frequency.median() / frequency
    weights[present] *= pixels.sum() / (weights * pixels).sum()
    return weights.float()


def final_layers(model: Segmenter) -> tuple[str, ...]:
    """Return the prefixes of the names of the layers whose outputs are classes."""
    if model.config.head == "deeplabv2":
        return ("head.context.",)
    *_, (name, _) = model.named_parameters()
    return (f"{name.rpartition('.')[0]}.",)


def pixel_objective(weights: Float[Tensor, " classes"], smoothing: float = 0) -> Objective:
    """Create the training objective: cross entropy of the pixels that are not `IGNORE`, weighted by class.

    The sum is divided by the number of all pixels, so that the loss does not depend on how a batch is divided among
    processes.
    """

    def objective(
        logits: Float[Tensor, "n classes h w"], masks: Int[Tensor, "n h w"]
    ) -> tuple[Float[Tensor, ""], float]:
        weight = weights.to(logits)
        pixels = logits.permute(0, 2, 3, 1).flatten(0, 2)  # for feature maps, torch has no deterministic CUDA kernel
        settings: dict[str, Any] = {"ignore_index": IGNORE, "reduction": "sum", "label_smoothing": smoothing}
        loss = F.cross_entropy(pixels, masks.flatten(), weight, **settings)
        labeled = masks != IGNORE
        accuracy = (logits.argmax(1) == masks).sum() / labeled.sum().clamp(min=1)
        return loss / masks.numel(), float(accuracy) * len(masks)

    return objective


def _main_scores(report: SegmentationReport) -> dict[str, float]:
    scores = report.scores
    return {"miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy, "mean_accuracy": scores.mean_accuracy}


def _check_batches(model: Segmenter, options: SegmentOptions, images: int) -> None:
    """Check that batch norm gets more than one value per channel, from which it computes a variance."""
    if 1 not in (options.batch, images % options.batch):
        return
    norms = [layer for layer in model.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    cells = model.backbone.geometry.map_size(*options.crop)
    if max(cells) <= 1 and not all(isinstance(layer, SafeBatchNorm2d) for layer in norms):
        raise ValueError(
            f"crop: expected more than one cell of {options.output_stride} x {options.output_stride} pixels, because a"
            f" batch has a single image ({images} images in batches of {options.batch}), got {options.crop}"
        )


def _fingerprint(data: SegmentationData) -> list[str]:
    """List the training inputs other than pixels; they must be unchanged when a training is resumed."""
    labels = data.labels
    prefix = f"{data.root}{os.sep}"  # files of polygon data sets can be outside the root
    pairs = [(str(sample.path), str(sample.mask)) for sample in data.samples]
    names = [f"{path.removeprefix(prefix)} {mask.removeprefix(prefix)}" for path, mask in pairs]
    ids, colors = sorted(labels.ids.items()), sorted((labels.colours or {}).items())
    return [*names, f"{labels.classes} {ids} {labels.ignore} {colors}"]


def _has_pixels(labels: LabelMap, samples: Sequence[SegmentationSample]) -> bool:
    """Return whether an image and its mask can be read and have a pixel that is not ignored."""
    for sample in samples:
        try:
            if (load_pair(sample, labels)[1] != IGNORE).any():
                return True
        except ImageError:
            continue
    return False


def _usable(data: SegmentationData, counts: PixelCounts) -> tuple[SegmentationSample, ...]:
    """Return the samples that can be used, and report the others."""
    bad = {failure.path for failure in counts.failures}
    samples = tuple(sample for sample in data.samples if not bad & {str(sample.path), str(sample.mask)})
    if not samples or not counts.pixels.any():
        reasons = "; ".join(str(failure) for failure in counts.failures[:10])
        raise ValueError(f"data: none of the {len(data.samples)} masks of {data.root} can be used: {reasons}")
    for failure in counts.failures:
        _logger.warning(f"skipped: {failure}")
    return samples


def _class_colors(labels: LabelMap) -> tuple[tuple[int, int, int], ...]:
    """Return the RGB color of each class (usual ones for CamVid), or () if a class has none."""
    if labels.colours is None and labels.classes == CAMVID:
        return CAMVID_COLOURS
    by_class = {index: color for color, index in (labels.colours or {}).items()}
    indices = range(len(labels.classes))
    return tuple(by_class[index] for index in indices) if all(index in by_class for index in indices) else ()
