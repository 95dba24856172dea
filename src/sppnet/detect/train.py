"""Training of a detector on a data set: proposals, window vectors, fine-tuning, SVMs and box regression."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sppnet.data.formats.detection import DetectionData, choose_split, read_detection
from sppnet.detect.classic.fast import fit_fast
from sppnet.detect.classic.fit import fit_detector, propose_windows, window_vectors
from sppnet.detect.classic.windows import content_digest, usable_images
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
    """Result of a training run.

    Attributes:
        run: run folder.
        finished: False if the training was interrupted; continue it with `resume`.
        failures: errors of the unreadable images.
        problems: annotations that were dropped or repaired, and classes without objects.
        seconds: duration of each stage, by name.
    """

    run: Path
    finished: bool
    failures: tuple[ImageError, ...]
    problems: tuple[str, ...]
    seconds: dict[str, float]


@torch.random.fork_rng(devices=[])
def train_detector(
    data: str | Path,
    out: str | Path,
    options: DetectOptions | None = None,
    *,
    split: str | None = None,
    resume: bool = False,
) -> DetectTraining:
    """Train a detector and save it to a run folder.

    Proposals and vectors are cached as they are computed, and fine-tuning writes checkpoints, so that a killed training
    can be resumed.

    Args:
        data: data set, see :func:`sppnet.data.formats.detection.read_detection`.
        out: run folder, created if missing.
        options: training options; None for the defaults.
        split: split of the data; None for ``train``, or for data without splits.
        resume: continue the training in `out`, if there is one.

    Raises:
        ModuleNotFoundError: a package of an extra is missing.
        ValueError: invalid option or data set, or a run folder that is in use.
    """
    options = options or DetectOptions()
    out = Path(out)
    if options.method != "fast" and options.scorer == "svm":
        linear_svc("detect")  # fail early if scikit-learn is missing
    seconds: dict[str, float] = {}
    dataset = read_detection(data, choose_split(data, split, "train", "training"))
    warnings = _check_objects(dataset)
    torch.manual_seed(options.seed)
    backbone = options.create_backbone()
    model = Detector(options.config(dataset.classes, backbone.stage), backbone)
    model.encoder.to(pick_device(options.device))
    fingerprint = [
        f"{sample.path} {sample.boxes.tolist()} {sample.labels.tolist()} {sample.difficult.tolist()}"
        for sample in dataset.samples
    ]
    if is_box_file(options.proposals):
        fingerprint.append(content_digest(Path(options.proposals)))
    open_training(out, dataset.root, fingerprint, options, resume)
    cache = Path(options.cache) if options.cache else out / "cache"
    started = time.monotonic()
    windows, failures = propose_windows(dataset.samples, len(dataset.classes), options, cache)
    seconds["proposals"] = time.monotonic() - started
    if options.method == "fast":
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
    return DetectTraining(out, finished, tuple(unique.values()), (*dataset.problems, *warnings), seconds)


def _check_objects(data: DetectionData) -> list[str]:
    """Return a warning for each class without objects; raise if there are no objects at all."""
    counts = torch.zeros(len(data.classes), dtype=torch.long)
    for sample in data.samples:
        counts += torch.bincount(sample.labels[~sample.difficult], minlength=len(data.classes))
    if not counts.any():
        count = len(data.samples)
        raise ValueError(f"data: expected an object that is not difficult, got none in {count} images of {data.root}")
    return [
        f"class {name} has no objects in the training images and will never be detected"
        for name, count in zip(data.classes, counts.tolist(), strict=True)
        if not count
    ]
