"""Training of a segmenter, from images and masks to a run folder."""

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
from sppnet.data.formats.masks import (
    IGNORE,
    LabelMap,
    PixelCounts,
    SegmentationSample,
    count_pixels,
)
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
    """What became of a training.

    Attributes:
        run: the run folder.
        finished: False where it was interrupted; it can be resumed.
        scores: on the validation images after the last epoch; None where there are none.
        problems: files of the data set that were left out, and why.
        failures: images and masks that could not be used and were left out.
        seconds: of this call.
    """

    run: Path
    finished: bool
    scores: SegmentationScores | None
    problems: tuple[str, ...]
    failures: tuple[ImageError, ...]
    seconds: float


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

    All masks are read once before the training, so that wrong ones are named at its beginning. The run folder holds
    the model (see :func:`sppnet.load`), the options, the metrics of each epoch as JSON Lines, and a checkpoint. An
    interrupted or killed training, resumed, gives the weights that it would have given undisturbed.

    Args:
        data: see :func:`sppnet.data.formats.segmentation.read_segmentation`.
        out: the run folder; made if need be.
        options: how to train; None for the defaults.
        split: part of `data` to train on; None for ``train``, or all where there are no splits.
        val: another data set for validation after each epoch; None for the split ``val`` of `data`, if there is one.
        class_file: says which value of the masks is which class; None for the data set's own, or the layout's.
        resume: go on with the training in `out` if there is one.

    Raises:
        ValueError: a wrong option or data set, no mask that can be used, or a run folder that is in use.
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
    if val_set is not None:  # wrong masks are told before the training, not after its first epoch
        held_out = count_pixels(val_set.samples, val_set.labels)
        _usable(val_set, held_out)
        failures += held_out.failures
    torch.manual_seed(options.seed)
    table = tuple(map(tuple, read_class_file(Path(class_file)))) if class_file else ()
    config = options.config(train_set.classes, options.ignore or (), table, _colours(train_set.labels))
    model = create_segmenter(config, options.weights)
    open_training(out, train_set.root, _listed(train_set), options, resume)
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
    """Weight of each class in the loss; the mean over all pixels is 1, and a class without pixels has 1.

    Args:
        counts: what the training masks hold.
        kind: ``none``; ``root``: the inverse root of a class's share of the pixels; ``median``: the median of the
            classes' frequencies by the frequency, which is the share among the pixels of images that show the class
            (SegNet, section 3).
    """
    pixels, there = counts.pixels.double(), counts.pixels > 0
    weights = torch.ones(len(pixels), dtype=torch.float64)
    if kind == "root":
        weights[there] = pixels[there].rsqrt()
    elif kind == "median":
        frequency = pixels[there] / counts.shown[there]
        weights[there] = frequency.median() / frequency
    weights[there] *= pixels.sum() / (weights * pixels).sum()
    return weights.float()


def pixel_objective(weights: Float[Tensor, " classes"]) -> Objective:
    """Cross entropy of pixels, averaged by the weights of their classes; pixels with `IGNORE` do not count."""

    def objective(
        logits: Float[Tensor, "n classes h w"], masks: Int[Tensor, "n h w"]
    ) -> tuple[Float[Tensor, ""], float]:
        weight = weights.to(logits)
        pixels = logits.permute(0, 2, 3, 1).flatten(0, 2)  # of maps torch has no deterministic form on a GPU
        loss = F.cross_entropy(pixels, masks.flatten(), weight, ignore_index=IGNORE, reduction="sum")
        counted = masks != IGNORE
        # In a batch of ignored pixels alone the sums are 0, where a mean would be undefined.
        total = weight[masks[counted]].sum().clamp(min=1e-6)
        right = (logits.argmax(1) == masks).sum() / counted.sum().clamp(min=1)
        return loss / total, float(right) * len(masks)

    return objective


def _listed(data: SegmentationData) -> list[str]:
    """All that a training takes from the data set, but for the pixels: a resumed one must find the same."""
    labels = data.labels
    names = [f"{sample.path.relative_to(data.root)} {sample.mask.relative_to(data.root)}" for sample in data.samples]
    ids, colours = sorted(labels.ids.items()), sorted((labels.colours or {}).items())
    return [*names, f"{labels.classes} {ids} {labels.ignore} {colours}"]


def _validation(
    data: str | Path,
    val: str | Path | None,
    train_split: str | None,
    classes: tuple[str, ...],
    ignore: tuple[int, ...] | None,
    class_file: str | Path | None,
) -> SegmentationData | None:
    usual = ("val", "valid", "validation")
    if val is not None:
        split = choose_segmentation_split(val, None, *usual, *SPLITS)
        return read_segmentation(val, split, classes, ignore, class_file=class_file)
    present = {name.lower(): name for name in segmentation_splits(data)}
    names = [present[name] for name in usual if name in present]
    if not names or names[0] == train_split:
        return None
    return read_segmentation(data, names[0], classes, ignore, class_file=class_file)


def _usable(data: SegmentationData, counts: PixelCounts) -> tuple[SegmentationSample, ...]:
    """The samples whose masks can be used; all others are named at once."""
    bad = {failure.path for failure in counts.failures}
    samples = tuple(one for one in data.samples if not bad & {str(one.path), str(one.mask)})
    if not samples or not counts.pixels.any():
        named = "; ".join(str(failure) for failure in counts.failures[:10])
        raise ValueError(f"data: none of the {len(data.samples)} masks of {data.root} can be used: {named}")
    for failure in counts.failures:
        console.print(f"left out: {failure}", highlight=False, soft_wrap=True, markup=False)
    return samples


def _colours(labels: LabelMap) -> tuple[tuple[int, int, int], ...]:
    """RGB of each class where every one has its own, those customary for CamVid's classes; none otherwise."""
    if labels.colours is None and labels.classes == CAMVID:
        return CAMVID_COLOURS
    by_class = {index: colour for colour, index in (labels.colours or {}).items()}
    wanted = range(len(labels.classes))
    return tuple(by_class[index] for index in wanted) if all(index in by_class for index in wanted) else ()
