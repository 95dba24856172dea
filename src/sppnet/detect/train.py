"""From a detection data set to a run folder: proposals, vectors, fine-tuning, SVMs, box regression."""

import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.box_regression import fit_box_regression
from sppnet.boxes import encode
from sppnet.checkpoint import open_training
from sppnet.console import console
from sppnet.data.detection import DetectionData, DetectionSample, choose_split, read_detection
from sppnet.data.images import ImageError
from sppnet.detect import Detector, create_fc
from sppnet.detect_options import DetectOptions
from sppnet.encoder import RegionEncoder
from sppnet.finetune import WindowBatches, positives
from sppnet.loop import fit
from sppnet.mining import fit_detection_svms
from sppnet.predict import Failure
from sppnet.proposals import is_box_file, proposals_of, recall
from sppnet.runs import pick_device, save_run
from sppnet.svm import linear_svc
from sppnet.windows import CropVectors, MapVectors, Windows, WindowVectors, content_digest, label_windows

_NORM_IMAGES, _NORM_WINDOWS = 100, 100
_REGRESSED_EACH, _REGRESSED_MEMORY = 64, 500_000_000


@dataclass(frozen=True)
class DetectTraining:
    """What a training made.

    Attributes:
        run: the run folder.
        finished: False where it was interrupted; `resume` goes on.
        failures: images that could not be read.
        problems: what was left out of the annotations or mended.
        seconds: of each part.
    """

    run: Path
    finished: bool
    failures: tuple[ImageError, ...]
    problems: tuple[str, ...]
    seconds: dict[str, float]


def train_detector(
    data: str | Path,
    out: str | Path,
    options: DetectOptions | None = None,
    *,
    split: str | None = None,
    resume: bool = False,
) -> DetectTraining:
    """Train a detector and write it into a run folder.

    Proposals and vectors are kept in the cache folder as they are made, and fine-tuning has checkpoints: a killed
    training goes on where it stopped.

    Args:
        data: see :func:`sppnet.data.detection.read_detection`.
        out: the run folder; made if need be.
        options: how to train; None for the defaults.
        split: of the data; None for ``train``, or for data without splits.
        resume: go on with the training in `out` if there is one.

    Raises:
        ModuleNotFoundError: a package of an extra is missing.
        ValueError: a wrong option or data set, or a run folder that is in use.
    """
    options = options or DetectOptions()
    out = Path(out)
    if options.method != "fast" and options.scorer == "svm":
        linear_svc("detect")
    seconds: dict[str, float] = {}
    found = read_detection(data, choose_split(data, split, "train", "training"))
    idle = _require_objects(found)
    torch.manual_seed(options.seed)
    backbone = options.create_backbone()
    model = Detector(options.config(found.classes, backbone.stage), backbone)
    model.encoder.to(pick_device(options.device))
    listed = [
        f"{sample.path} {sample.boxes.tolist()} {sample.labels.tolist()} {sample.difficult.tolist()}"
        for sample in found.samples
    ]
    if is_box_file(options.proposals):
        listed.append(content_digest(Path(options.proposals)))
    open_training(out, found.root, listed, options, resume)
    cache = Path(options.cache) if options.cache else out / "cache"
    started = time.monotonic()
    windows, failures = propose_windows(found.samples, len(found.classes), options, cache)
    seconds["proposals"] = time.monotonic() - started
    if options.method == "fast":
        from sppnet.fast import fit_fast

        started = time.monotonic()
        finished = fit_fast(model, windows, options, out, failures)
        seconds["training"] = time.monotonic() - started
    else:
        vectors = window_vectors(model, windows, cache)
        started = time.monotonic()
        failures += vectors.compute("features", mirrored=options.finetune and options.mirror and bool(options.hidden))
        seconds["features"] = time.monotonic() - started
        usable = usable_images(windows, failures)
        finished = fit_detector(model, vectors, usable, options, out, seconds)
    if finished:
        save_run(model.cpu().eval(), out)
    unique = {failure.path: failure for failure in failures}
    return DetectTraining(out, finished, tuple(unique.values()), (*found.problems, *idle), seconds)


def propose_windows(
    samples: Sequence[DetectionSample], num_classes: int, options: DetectOptions, cache: Path
) -> tuple[list[Windows], list[ImageError]]:
    """Windows of every image that can be read, and the errors of the others."""
    paths = [sample.path for sample in samples]
    found = proposals_of(
        paths,
        options.proposals,
        cache / "proposals",
        max_windows=options.windows,
        seconds=options.proposal_seconds,
        workers=options.workers,
    )
    windows, failures = [], []
    for sample, proposals in zip(samples, found, strict=True):
        if isinstance(proposals, Failure):
            failures.append(proposals.error)
        else:
            windows.append(label_windows(sample, proposals.boxes, num_classes))
    pairs = [(one.boxes[one.objects :], one.boxes[: one.objects]) for one in windows]
    if any(len(objects) for _, objects in pairs):
        half = recall([boxes for boxes, _ in pairs], [objects for _, objects in pairs], (0.5,)).fractions[0]
        mean = sum(len(boxes) for boxes, _ in pairs) / len(pairs)
        text = f"{mean:.0f} proposals an image; {100 * half:.1f} % of the objects have one that overlaps by 0.5"
        console.print(text, highlight=False)
    return windows, failures


def window_vectors(model: Detector, windows: Sequence[Windows], cache: Path) -> WindowVectors:
    """Where the training takes the vectors of windows from."""
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
) -> bool:
    """Fit all that stands on the vectors: fc layers, SVMs, box regression.

    Args:
        model: its encoder stays as it is.
        vectors: of the training windows.
        usable: numbers of the images that can be read.
        options: how.
        out: for checkpoints of the fine-tuning.
        seconds: of each part, added here.

    Returns:
        False where fine-tuning was interrupted.
    """
    model.norm.fill_(vector_norm(vectors, usable))
    started = time.monotonic()
    if model.config.hidden and options.finetune:
        network = finetune(model, vectors, usable, options, out)
        if network is None:
            return False
        model.fc.load_state_dict(network[0].state_dict())
        if model.config.scorer == "softmax":
            model.score.load_state_dict(network[1].state_dict())
        seconds["fine-tuning"] = time.monotonic() - started
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
    model: Detector, vectors: WindowVectors, usable: Sequence[int], options: DetectOptions, out: Path
) -> nn.Sequential | None:
    """fc6 and fc7, trained under a softmax over the classes and the background, and that layer; None if interrupted."""
    classes, hidden = len(model.config.classes), model.config.hidden
    torch.manual_seed(options.seed)
    network = nn.Sequential(create_fc(model.encoder.length, hidden), nn.Linear(hidden[-1], classes + 1))
    batches = WindowBatches(vectors, usable, classes, float(model.norm), options)
    return network.cpu().eval() if fit(network, batches, options, out, lambda: None, []) else None


def fit_svms(model: Detector, vectors: WindowVectors, usable: Sequence[int], seed: int) -> None:
    """Put SVMs on what the fc layers give."""

    def features(number: int, rows: Tensor) -> Tensor:
        x: Tensor = model.fc(vectors.vectors(usable[number], rows).float() * model.norm)
        return x

    with torch.inference_mode():
        windows = [vectors.windows[image] for image in usable]
        model.score = fit_detection_svms(windows, features, len(model.config.classes), seed)


def fit_offsets(model: Detector, vectors: WindowVectors, usable: Sequence[int], seed: int) -> None:
    """Put box regression on the pooled vectors."""
    with torch.inference_mode(), console.status("box regression"):
        x, labels, offsets = _regression_windows(vectors, usable, seed)
        layer = fit_box_regression(x, labels, offsets, len(model.config.classes))
        layer.weight /= model.norm  # the detector's vectors are scaled
        model.offsets = layer


def vector_norm(vectors: WindowVectors, usable: Sequence[int]) -> float:
    """What scales vectors to unit mean square."""
    squares = []
    for image in usable[:_NORM_IMAGES]:
        count = len(vectors.windows[image].boxes)
        rows = torch.linspace(0, count - 1, min(count, _NORM_WINDOWS)).long()
        squares.append(vectors.vectors(image, rows).float().square().mean(1))
    return 1 / max(math.sqrt(float(torch.cat(squares).mean())), 1e-12)


def _regression_windows(
    vectors: WindowVectors, usable: Sequence[int], seed: int
) -> tuple[Float[Tensor, "n d"], Int[Tensor, " n"], Float[Tensor, "n 4"]]:
    """Vectors, labels and offsets of windows that overlap an object by half or more, the objects included."""
    rng = random.Random(f"regression {seed}")  # noqa: S311
    each = max(min(_REGRESSED_EACH, _REGRESSED_MEMORY // (2 * vectors.length * len(usable))), 1)
    x, labels, offsets = [], [], []
    for image in usable:
        windows = vectors.windows[image]
        rows = positives(windows).nonzero()[:, 0].tolist()
        chosen = torch.tensor(rng.sample(rows, min(each, len(rows))), dtype=torch.long)
        x.append(vectors.vectors(image, chosen).half())
        labels.append(windows.labels[chosen])
        offsets.append(encode(windows.boxes[chosen], windows.targets[chosen]))
    return torch.cat(x), torch.cat(labels), torch.cat(offsets)


def usable_images(windows: Sequence[Windows], failures: Sequence[ImageError]) -> list[int]:
    """Numbers of the images that can be read.

    Raises:
        ValueError: none of them has an object.
    """
    bad = {failure.path for failure in failures}
    usable = [number for number, one in enumerate(windows) if str(one.path) not in bad]
    if not any(windows[number].objects for number in usable):
        raise ValueError(f"data: no image with an object can be read; the first of {len(failures)}: {failures[0]}")
    return usable


def _require_objects(data: DetectionData) -> list[str]:
    """A line for each class without objects, which is never found then."""
    counts = torch.zeros(len(data.classes), dtype=torch.long)
    for sample in data.samples:
        counts += torch.bincount(sample.labels[~sample.difficult], minlength=len(data.classes))
    if not counts.any():
        raise ValueError(f"data: {data.root} has no object that is not difficult in {len(data.samples)} images")
    return [
        f"no object of class {name} is in the training images: it will never be found"
        for name, count in zip(data.classes, counts.tolist(), strict=True)
        if not count
    ]
