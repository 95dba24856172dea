"""From a detection data set to a run folder: proposals, vectors, fine-tuning, SVMs, box regression."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sppnet.data.formats.detection import DetectionData, choose_split, read_detection
from sppnet.detect.classic.fit import fit_detector, propose_windows, window_vectors
from sppnet.detect.classic.windows import (
    content_digest,
    usable_images,
)
from sppnet.detect.model import Detector
from sppnet.detect.options import DetectOptions
from sppnet.detect.proposals import is_box_file
from sppnet.devices import pick_device
from sppnet.errors import ImageError
from sppnet.training.checkpoint import open_training
from sppnet.training.run import save_run
from sppnet.training.svm import linear_svc


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
        data: see :func:`sppnet.data.formats.detection.read_detection`.
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
        from sppnet.detect.classic.fast import fit_fast

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
