"""Training of a segmenter from images and masks."""

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sppnet.console import console
from sppnet.data.formats.class_tables import CAMVID, CAMVID_COLOURS, read_class_file
from sppnet.data.formats.masks import IGNORE, LabelMap, PixelCounts, SegmentationSample, count_pixels
from sppnet.data.formats.segmentation import (
    SegmentationData,
    choose_segmentation_split,
    read_segmentation,
    segmentation_splits,
)
from sppnet.data.splits import SPLITS
from sppnet.errors import ImageError
from sppnet.segment.batches import MaskBatches
from sppnet.segment.evaluate import SegmentationScores, evaluate_segmenter
from sppnet.segment.model import create_segmenter
from sppnet.segment.options import ClassWeights, SegmentOptions
from sppnet.training.checkpoint import open_training
from sppnet.training.loop import Objective, fit
from sppnet.training.run import save_run


@dataclass(frozen=True)
class SegmentTraining:
    """Result of a training.

    Attributes:
        run: run folder.
        finished: False if the training was interrupted; it can be resumed.
        scores: scores on the validation images after the last epoch; None without validation images.
        problems: files of the data set that were skipped, with the reasons.
        failures: errors of images and masks that could not be used and were skipped.
        seconds: duration of this call.
    """

    run: Path
    finished: bool
    scores: SegmentationScores | None
    problems: tuple[str, ...]
    failures: tuple[ImageError, ...]
    seconds: float


@torch.random.fork_rng(devices=[])
def train_segmenter(
    data: str | Path,
    out: str | Path,
    options: SegmentOptions | None = None,
    *,
    split: str | None = None,
    val: str | Path | None = None,
    class_file: str | Path | None = None,
    resume: bool = False,
) -> SegmentTraining:
    """Train a segmenter on images and masks.

    All masks are read before training starts, so that errors are reported early. The run folder contains the model
    (see :func:`sppnet.load`), the options, the metrics of each epoch as JSON Lines, and a checkpoint. Resuming an
    interrupted or killed training gives the same weights as an uninterrupted one.

    Args:
        data: training data, see :func:`sppnet.data.formats.segmentation.read_segmentation`.
        out: run folder; created if missing.
        options: training options; None for the defaults.
        split: split of `data` to train on; None for ``train``, or for all data if there are no splits.
        val: data set for validation after each epoch; None for the split ``val`` of `data`, if there is one.
        class_file: path of a table of mask values and classes; None: the data set's table, else the layout's.
        resume: whether to continue the training in `out`, if there is one.

    Raises:
        ValueError: an option or the data set is invalid, no mask can be used, or the run folder is in use.
    """
    started = time.monotonic()
    options = options or SegmentOptions()
    out = Path(out)
    train_split = choose_segmentation_split(data, split, "train", "training")
    train_set = read_segmentation(data, train_split, ignore=options.ignore, class_file=class_file)
    val_set = _validation(data, val, train_split, train_set.classes, options.ignore, class_file)
    counts = count_pixels(train_set.samples, train_set.labels)
    samples = _usable(train_set, counts)
    failures = list(counts.failures)
    if val_set is not None:  # report bad masks before training, not after the first epoch
        val_counts = count_pixels(val_set.samples, val_set.labels)
        _usable(val_set, val_counts)
        failures += val_counts.failures
    torch.manual_seed(options.seed)
    table = tuple(map(tuple, read_class_file(Path(class_file)))) if class_file else ()
    config = options.config(train_set.classes, options.ignore or (), table, _class_colors(train_set.labels))
    model = create_segmenter(config, options.weights)
    open_training(out, train_set.root, _fingerprint(train_set), options, resume)
    usable = dataclasses.replace(train_set, samples=samples)
    batches = MaskBatches(
        usable,
        model.backbone,
        options.crop,
        options.batch,
        options.seed,
        options.workers,
        scale=options.scale,
        jitter=options.jitter,
    )
    scores: list[SegmentationScores] = []

    def validate() -> Mapping[str, float] | None:
        if val_set is None:
            return None
        evaluation = evaluate_segmenter(model, val_set, described="validating")
        failures.extend(evaluation.failures)
        scores.append(evaluation.scores)
        return {"miou": evaluation.scores.miou, "pixel_accuracy": evaluation.scores.pixel_accuracy}

    objective = pixel_objective(class_weights(counts, options.class_weights))
    finished = fit(model, batches, options, out, validate, failures, objective, right="pixel_accuracy")
    if finished:
        if val_set is not None and not scores:  # resumed after the last epoch
            validate()
        save_run(model.cpu().eval(), out)
    problems = train_set.problems + (val_set.problems if val_set else ())
    unique = {(failure.path, failure.reason): failure for failure in failures}
    return SegmentTraining(
        out,
        finished,
        scores[-1] if scores else None,
        problems,
        tuple(unique.values()),
        time.monotonic() - started,
    )


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


def pixel_objective(weights: Float[Tensor, " classes"]) -> Objective:
    """Create the training objective: cross entropy of the pixels that are not `IGNORE`, weighted by class."""

    def objective(
        logits: Float[Tensor, "n classes h w"], masks: Int[Tensor, "n h w"]
    ) -> tuple[Float[Tensor, ""], float]:
        weight = weights.to(logits)
        pixels = logits.permute(0, 2, 3, 1).flatten(0, 2)  # for feature maps, torch has no deterministic CUDA kernel
        loss = F.cross_entropy(pixels, masks.flatten(), weight, ignore_index=IGNORE, reduction="sum")
        labeled = masks != IGNORE
        # If all pixels are ignored, the sums are 0, but their mean would be undefined.
        total = weight[masks[labeled]].sum().clamp(min=1e-6)
        accuracy = (logits.argmax(1) == masks).sum() / labeled.sum().clamp(min=1)
        return loss / total, float(accuracy) * len(masks)

    return objective


def _fingerprint(data: SegmentationData) -> list[str]:
    """List the training inputs other than pixels; they must be unchanged when a training is resumed."""
    labels = data.labels
    names = [f"{sample.path.relative_to(data.root)} {sample.mask.relative_to(data.root)}" for sample in data.samples]
    ids, colors = sorted(labels.ids.items()), sorted((labels.colours or {}).items())
    return [*names, f"{labels.classes} {ids} {labels.ignore} {colors}"]


def _validation(
    data: str | Path,
    val: str | Path | None,
    train_split: str | None,
    classes: tuple[str, ...],
    ignore: tuple[int, ...] | None,
    class_file: str | Path | None,
) -> SegmentationData | None:
    names = ("val", "valid", "validation")
    if val is not None:
        split = choose_segmentation_split(val, None, *names, *SPLITS)
        return read_segmentation(val, split, classes, ignore, class_file=class_file)
    splits = {name.lower(): name for name in segmentation_splits(data)}
    found = [splits[name] for name in names if name in splits]
    if not found or found[0] == train_split:
        return None
    return read_segmentation(data, found[0], classes, ignore, class_file=class_file)


def _usable(data: SegmentationData, counts: PixelCounts) -> tuple[SegmentationSample, ...]:
    """Return the samples that can be used, and report the others."""
    bad = {failure.path for failure in counts.failures}
    samples = tuple(sample for sample in data.samples if not bad & {str(sample.path), str(sample.mask)})
    if not samples or not counts.pixels.any():
        reasons = "; ".join(str(failure) for failure in counts.failures[:10])
        raise ValueError(f"data: none of the {len(data.samples)} masks of {data.root} can be used: {reasons}")
    for failure in counts.failures:
        console.print(f"skipped: {failure}", highlight=False, soft_wrap=True, markup=False)
    return samples


def _class_colors(labels: LabelMap) -> tuple[tuple[int, int, int], ...]:
    """Return the RGB color of each class (usual ones for CamVid), or () if a class has none."""
    if labels.colours is None and labels.classes == CAMVID:
        return CAMVID_COLOURS
    by_class = {index: color for color, index in (labels.colours or {}).items()}
    indices = range(len(labels.classes))
    return tuple(by_class[index] for index in indices) if all(index in by_class for index in indices) else ()
