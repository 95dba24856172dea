"""Fitting of a detector on window vectors: fc layers, SVMs and box regression."""

import logging
import random
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.data.formats.detection import DetectionSample
from sppnet.detect.classic.box_regression import fit_box_regression
from sppnet.detect.classic.finetune import WindowBatches, positives
from sppnet.detect.classic.mining import fit_detection_svms
from sppnet.detect.classic.vector_scale import mean_square_scale, spread_rows
from sppnet.detect.classic.windows import CropVectors, MapVectors, Windows, WindowVectors, label_windows
from sppnet.detect.model import Detector, create_fc
from sppnet.detect.options import DetectOptions, is_box_file
from sppnet.detect.proposals import iter_proposals
from sppnet.errors import ImageError
from sppnet.evaluation.recall import recall
from sppnet.features.encoder import RegionEncoder
from sppnet.inference.results import Failure
from sppnet.ops.boxes import encode
from sppnet.progress import track
from sppnet.training.loop import fit

_logger = logging.getLogger(__name__)

_NORM_IMAGES, _NORM_WINDOWS = 100, 100  # images, and windows of each, that the norm is measured on
_REGRESSION_WINDOWS, _REGRESSION_MEMORY = 64, 500_000_000  # windows per image, and bytes of all vectors


def propose_windows(
    samples: Sequence[DetectionSample], num_classes: int, options: DetectOptions, cache: Path, fabric: Any = None
) -> tuple[list[Windows], list[ImageError]]:
    """Return the labeled windows of each readable image, and the errors of the others.

    Each process of `fabric` searches its share of the images first, and then reads those of the others from the cache.
    """
    paths = [sample.path for sample in samples]
    propose = partial(
        iter_proposals,
        source=options.proposals,
        folder=cache / "proposals",
        max_windows=options.windows,
        seconds=options.proposal_seconds,
        workers=options.workers,
    )
    if fabric is not None and fabric.world_size > 1 and not is_box_file(options.proposals):
        own = paths[fabric.global_rank :: fabric.world_size]
        deque(track(propose(own), "own proposals", len(own)), maxlen=0)
        fabric.barrier()
    results = propose(paths)
    windows, failures = [], []
    for sample, proposals in zip(samples, track(results, "proposals", len(paths)), strict=True):
        if isinstance(proposals, Failure):
            failures.append(proposals.error)
        else:
            windows.append(label_windows(sample, proposals.boxes, num_classes))
    pairs = [(part.boxes[part.objects :], part.boxes[: part.objects]) for part in windows]
    if any(len(objects) for _, objects in pairs):
        share = recall([boxes for boxes, _ in pairs], [objects for _, objects in pairs], (0.5,)).fractions[0]
        mean = sum(len(boxes) for boxes, _ in pairs) / len(pairs)
        text = f"{mean:.0f} proposals per image; recall at an overlap of 0.5: {100 * share:.1f} %"
        _logger.info(text)
    return windows, failures


def window_vectors(model: Detector, windows: Sequence[Windows], cache: Path) -> WindowVectors:
    """Create the cached source of window vectors for a detector."""
    if isinstance(model.encoder, RegionEncoder):
        return MapVectors(model.encoder, windows, cache)
    return CropVectors(model.encoder, windows, cache)


def fit_detector(
    model: Detector,
    vectors: WindowVectors,
    usable: Sequence[int],
    options: DetectOptions,
    out: Path,
    seconds: dict[str, float],
    *,
    initialized: bool = False,
    fabric: Any = None,
) -> bool:
    """Fit all parts that take window vectors: fc layers, SVMs and box regression.

    Args:
        model: detector; its encoder is not trained.
        vectors: vectors of the training windows.
        usable: indices of the readable images.
        options: training options.
        out: folder for checkpoints of the fine-tuning.
        seconds: durations of the stages; extended here.
        initialized: whether the model has the weights of another run.
        fabric: see :func:`sppnet.training.loop.fit`.

    Returns:
        False if fine-tuning was interrupted.
    """
    if not initialized:
        model.norm.fill_(vector_norm(vectors, usable))
    started = time.monotonic()
    if model.config.hidden and options.finetune:
        network = finetune(model, vectors, usable, options, out, initialized=initialized, fabric=fabric)
        if network is None:
            return False
        model.fc.load_state_dict(network[0].state_dict())
        if model.config.scorer == "softmax":
            model.score.load_state_dict(network[1].state_dict())
        seconds["fine-tuning"] = time.monotonic() - started
    if fabric is not None and fabric.global_rank > 0:  # the first process fits the rest
        return True
    model.cpu().eval()
    if model.config.scorer == "svm":
        started = time.monotonic()
        fit_svms(model, vectors, usable, options.seed)
        seconds["SVMs"] = time.monotonic() - started
    if model.config.regression != "none":
        started = time.monotonic()
        fit_offsets(model, vectors, usable, options.seed)
        seconds["box regression"] = time.monotonic() - started
    return True


def finetune(
    model: Detector,
    vectors: WindowVectors,
    usable: Sequence[int],
    options: DetectOptions,
    out: Path,
    *,
    initialized: bool = False,
    fabric: Any = None,
) -> nn.Sequential | None:
    """Train fc6, fc7 and a softmax layer over classes and background; return them, or None if interrupted.

    If the model is `initialized`, training starts from its layers.
    """
    classes, hidden = len(model.config.classes), model.config.hidden
    torch.manual_seed(options.seed)
    network = nn.Sequential(create_fc(model.encoder.length, hidden), nn.Linear(hidden[-1], classes + 1))
    if initialized:
        network[0].load_state_dict(model.fc.state_dict())
        if model.config.scorer == "softmax":
            network[1].load_state_dict(model.score.state_dict())
    batches = WindowBatches(vectors, usable, classes, float(model.norm), options, fabric)
    finished = fit(network, batches, options, out, lambda: None, [], fabric=fabric)
    return network.cpu().eval() if finished else None


def fit_svms(model: Detector, vectors: WindowVectors, usable: Sequence[int], seed: int) -> None:
    """Fit the detector's SVMs on the outputs of its fc layers."""

    def features(number: int, rows: Tensor) -> Tensor:
        x: Tensor = model.fc(vectors.vectors(usable[number], rows).float() * model.norm)
        return x

    with torch.inference_mode():
        windows = [vectors.windows[image] for image in usable]
        model.score = fit_detection_svms(windows, features, len(model.config.classes), seed)


def fit_offsets(model: Detector, vectors: WindowVectors, usable: Sequence[int], seed: int) -> None:
    """Fit the detector's box regression on the pooled vectors."""
    _logger.info("fitting the box regression")
    with torch.inference_mode():
        x, labels, offsets = _regression_windows(vectors, usable, seed)
        layer = fit_box_regression(x, labels, offsets, len(model.config.classes))
        layer.weight /= model.norm  # the detector applies the layer to normalized vectors
        model.offsets = layer


def vector_norm(vectors: WindowVectors, usable: Sequence[int]) -> float:
    """Return the factor that scales the vectors to unit mean square."""
    images = usable[:_NORM_IMAGES]
    return mean_square_scale(
        vectors.vectors(image, spread_rows(len(vectors.windows[image].boxes), _NORM_WINDOWS)) for image in images
    )


def _regression_windows(
    vectors: WindowVectors, usable: Sequence[int], seed: int
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"], Float[Tensor, "n 4"]]:
    """Draw windows that overlap an object by 0.5 or more; return their vectors, labels and offsets."""
    rng = random.Random(f"regression {seed}")  # noqa: S311
    per_image = max(min(_REGRESSION_WINDOWS, _REGRESSION_MEMORY // (2 * vectors.length * len(usable))), 1)
    x, labels, offsets = [], [], []
    for image in usable:
        windows = vectors.windows[image]
        rows = positives(windows).nonzero()[:, 0].tolist()
        chosen = torch.tensor(rng.sample(rows, min(per_image, len(rows))), dtype=torch.long)
        x.append(vectors.vectors(image, chosen).half())
        labels.append(windows.labels[chosen])
        offsets.append(encode(windows.boxes[chosen], windows.targets[chosen]))
    return torch.cat(x), torch.cat(labels), torch.cat(offsets)
