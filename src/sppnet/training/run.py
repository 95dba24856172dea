"""Run folders: weights as safetensors, everything else as JSON; pickles are never read."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.weights import load_weights
from sppnet.errors import ImageError
from sppnet.io.files import parse_json, read_json, read_tensors, save_tensors, write_json
from sppnet.io.remote import remove_temporary_files

CONFIG, WEIGHTS = "run.json", "model.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class TrainingResult:
    """Result of a training.

    Attributes:
        run: run folder; :func:`sppnet.load` loads the model once the training has finished.
        finished: False if the training was interrupted; continue it with ``resume=True``.
        scores: scores on the validation images, by name, in [0, 1]; empty without validation images.
        failures: errors of images that could not be used.
        problems: other problems of the data set, such as skipped files and dropped annotations.
        seconds: duration of this call.
        stages: duration of each stage in seconds, by name.
    """

    run: Path
    finished: bool
    scores: dict[str, float]
    failures: tuple[ImageError, ...]
    problems: tuple[str, ...]
    seconds: float
    stages: dict[str, float] = field(default_factory=dict)


def save(model: nn.Module, folder: str | Path) -> None:
    """Write a model into a run folder, atomically replacing each existing file; :func:`sppnet.load` reads it.

    Args:
        model: classifier, detector, segmenter or region encoder.
        folder: run folder; created if missing.

    Raises:
        TypeError: another model.
        ValueError: the backbone was created from a module, or with an output stride that the configuration does not
            have.
    """
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "task"):
        raise TypeError(
            f"model: expected a classifier, detector, segmenter or region encoder, got {type(model).__name__}"
        )
    expected = getattr(config, "output_stride", 32)
    for module in model.modules():
        if isinstance(module, Backbone) and not module.named:
            raise ValueError(
                f"backbone: expected a network with a name to rebuild it from, got a module of class {module.name};"
                " create the backbone by name, or save the state_dict of the model"
            )
        if isinstance(module, Backbone) and module.output_stride != expected:
            raise ValueError(
                f"backbone: expected output_stride {expected}, as {config.task} models are loaded, got"
                f" {module.output_stride}; create the backbone without output_stride"
            )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    content = {"format": FORMAT, "task": config.task, "config": dataclasses.asdict(config)}
    write_json(content, folder / CONFIG)


def load_run(model: nn.Module, folder: Path) -> None:
    """Replace configuration and weights of a model by those of a run of the same network."""
    path = folder / CONFIG
    model.config = parse_json(json.dumps(read_json(path, dict)["config"]), type(model.config), str(path))
    load_weights(model, read_tensors(folder / WEIGHTS)[0], str(folder / WEIGHTS))
