"""The tasks, and loading of the models of run folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sppnet.backbones.weights import load_weights
from sppnet.classify.model import Classifier, create_classifier, imagenet_classifier
from sppnet.classify.network import ClassifierConfig
from sppnet.detect.model import AnyDetector, DetectorConfig, create_detector
from sppnet.detect.two_stage.network import TwoStageConfig
from sppnet.errors import did_you_mean
from sppnet.features.encoder import RegionEncoder, create_region_encoder
from sppnet.features.options import RegionEncoderConfig
from sppnet.io.files import parse_json, read_json, read_tensors
from sppnet.segment.model import Segmenter, create_segmenter
from sppnet.segment.network import SegmenterConfig
from sppnet.training.run import CONFIG, FORMAT, WEIGHTS

IMAGENET = "imagenet"
Model = Classifier | AnyDetector | Segmenter | RegionEncoder


class Task(NamedTuple):
    """A task.

    Attributes:
        noun: name of its models in messages.
        config: class of its configurations.
        create: function that creates a model from a configuration and the weights of its backbone.
    """

    noun: str
    config: type[Any]
    create: Callable[[Any, None], Model]


TASKS = {
    "classify": Task("classifier", ClassifierConfig, create_classifier),
    "detect": Task("detector", DetectorConfig, create_detector),
    "segment": Task("segmenter", SegmenterConfig, create_segmenter),
    "features": Task("region encoder", RegionEncoderConfig, create_region_encoder),
}
_TWO_STAGE = Task("detector", TwoStageConfig, create_detector)


def load(run: str | Path) -> Model:
    """Load the model of a run folder, in evaluation mode, on the CPU.

    Args:
        run: folder written by training or :func:`sppnet.save`, or ``imagenet`` for the embedded ImageNet classifier.

    Raises:
        ValueError: not a run folder, or an unknown task or format, or unusable weights.
    """
    folder = Path(run)
    if str(run) == IMAGENET and not folder.exists():
        return imagenet_classifier()
    file = folder / CONFIG
    if not file.is_file():
        reason = f"it has no {CONFIG}" if folder.is_dir() else "no such folder"
        runs = [path.parent.name for path in folder.absolute().parent.glob(f"*/{CONFIG}")]
        raise ValueError(
            f"run: expected a folder written by `sppnet train`, or {IMAGENET!r}, got {folder}; {reason}"
            f"{did_you_mean(folder.name, [IMAGENET, *runs])}"
        )
    content: dict[str, Any] = read_json(file, dict)
    if content.get("format") != FORMAT:
        given = content.get("format")
        raise ValueError(f"run: expected format {FORMAT} in {file}, got {given}; another version of sppnet wrote it")
    name = str(content.get("task"))
    if name not in TASKS:
        hint = did_you_mean(name, TASKS)
        raise ValueError(f"run: expected one of the tasks {', '.join(TASKS)} in {file}, got {name!r}{hint}")
    fields = content.get("config")
    two_stage = name == "detect" and isinstance(fields, dict) and fields.get("method") == "two-stage"
    task = _TWO_STAGE if two_stage else TASKS[name]
    config: Any = parse_json(json.dumps(fields), task.config, str(file))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(f"run: {folder} has no {WEIGHTS}: its training has not finished")
    try:
        with torch.random.fork_rng(devices=[]):  # the random initial weights are replaced below
            model = task.create(config, None)
    except ValueError as error:
        raise ValueError(f"run: {file} does not describe a {task.noun}: {error}") from error
    load_weights(model, read_tensors(weights)[0], str(weights))
    return model.eval()


def load_classifier(run: str | Path) -> Classifier:
    """Load the classifier of a run folder with :func:`load`; a model of another task is a ValueError."""
    model = load(run)
    if not isinstance(model, Classifier):
        raise ValueError(f"run: expected a classifier, got a {TASKS[model.config.task].noun}: {run}")
    return model
