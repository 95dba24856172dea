"""Loading of trained models of all tasks."""

import json
from pathlib import Path
from typing import Any

import torch

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.weights import load_weights
from sppnet.classify.model import Classifier, imagenet_classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.detect.model import Detector, DetectorConfig
from sppnet.io.files import read_tensors
from sppnet.segment.model import Segmenter, SegmenterConfig, create_segmenter
from sppnet.training.run import CONFIG, FORMAT, WEIGHTS

IMAGENET = "imagenet"
Model = Classifier | Detector | Segmenter
_TASKS: dict[str, tuple[type[Model], type]] = {
    ClassifierConfig.task: (Classifier, ClassifierConfig),
    DetectorConfig.task: (Detector, DetectorConfig),
    SegmenterConfig.task: (Segmenter, SegmenterConfig),
}


def load(run: str | Path) -> Model:
    """Load the model of a run folder, in evaluation mode, on the CPU.

    Args:
        run: run folder written by training, or ``imagenet`` for the embedded ImageNet classifier.

    Raises:
        ValueError: not a run folder, or an unknown task or format, or unusable weights.
    """
    if str(run) == IMAGENET and not Path(run).exists():
        return imagenet_classifier()
    folder = Path(run)
    task, config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"run: {folder} has no {WEIGHTS}: its training has not finished")
    try:
        with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced below
            model = _create(task, config)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"run: {folder / CONFIG} does not describe a model of task {task!r}: {error}") from error
    state, _ = read_tensors(folder / WEIGHTS)
    load_weights(model, state, str(folder / WEIGHTS))
    return model.eval()


def load_classifier(run: str | Path) -> Classifier:
    """Load the classifier of a run folder with :func:`load`; a model of another task is a ValueError."""
    model = load(run)
    if not isinstance(model, Classifier):
        raise ValueError(f"run: expected a classifier, got a {type(model).__name__.lower()}: {run}")
    return model


def _create(task: str, config: Any) -> Model:
    if task == "segment":
        return create_segmenter(config, None)
    backbone = create_backbone(config.backbone, config.stage, None)
    return Classifier(config, backbone) if task == "classify" else Detector(config, backbone)


def _read_config(folder: Path) -> tuple[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        reason = "no such folder" if not folder.is_dir() else f"it has no {CONFIG}"
        raise ValueError(f"run: expected a folder written by `sppnet train`, or {IMAGENET!r}, got {folder}; {reason}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"run: {file} is not JSON: {error}") from error
    task = content.get("task") if isinstance(content, dict) else None
    if task not in _TASKS:
        raise ValueError(f"run: expected task {' or '.join(map(repr, _TASKS))} in {file}, got {task!r}")
    if content.get("format") != FORMAT:
        raise ValueError(f"run: expected format {FORMAT} in {file}, got {content.get('format')!r}")
    try:
        values = {name: _tuples(value) for name, value in content["config"].items()}
        return task, _TASKS[task][1](**values)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"run: {file} does not describe a model of task {task!r}: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
