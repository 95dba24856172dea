"""The run folder: weights as safetensors, everything else as JSON; no pickle is ever read."""

import dataclasses
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sppnet.backbones import create_backbone
from sppnet.classify import Classifier, ClassifierConfig, imagenet_classifier
from sppnet.detect import Detector, DetectorConfig
from sppnet.segment import Segmenter, SegmenterConfig, create_segmenter
from sppnet.weights import load_weights

CONFIG, WEIGHTS = "run.json", "model.safetensors"
IMAGENET = "imagenet"
_FORMAT = 1
Model = Classifier | Detector | Segmenter
_TASKS: dict[str, tuple[type[Model], type]] = {
    "classify": (Classifier, ClassifierConfig),
    "detect": (Detector, DetectorConfig),
    "segment": (Segmenter, SegmenterConfig),
}


def save_run(model: Model, folder: str | Path) -> None:
    """Write the model into the folder; what is there is replaced file by file, never half."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    task = next(name for name, (kind, _) in _TASKS.items() if isinstance(model, kind))
    content = {"format": _FORMAT, "task": task, "config": dataclasses.asdict(model.config)}
    write_json(content, folder / CONFIG)


def load(run: str | Path) -> Model:
    """The model of a run folder, in evaluation mode, on the CPU.

    Args:
        run: a folder that training wrote, or ``imagenet`` for the embedded network and its ImageNet head.

    Raises:
        ValueError: not such a folder, or one of another kind or a newer format.
    """
    if str(run) == IMAGENET and not Path(run).exists():
        return imagenet_classifier()
    folder = Path(run)
    task, config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"run: {folder} has no {WEIGHTS}: its training has not finished")
    try:
        with torch.random.fork_rng(devices=[]):  # the weights that are drawn here are replaced at once
            model = _create(task, config)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"run: {folder / CONFIG} does not describe a model of task {task!r}: {error}") from error
    state, _ = read_tensors(folder / WEIGHTS)
    load_weights(model, state, str(folder / WEIGHTS))
    return model.eval()


def load_classifier(run: str | Path) -> Classifier:
    """The classifier of a run folder, as :func:`load`; a model of another task is refused."""
    model = load(run)
    if not isinstance(model, Classifier):
        raise ValueError(f"run: expected a classifier; {run} holds a {type(model).__name__.lower()}")
    return model


def _create(task: str, config: Any) -> Model:
    if task == "segment":
        return create_segmenter(config, None)
    backbone = create_backbone(config.backbone, config.stage, None)
    return Classifier(config, backbone) if task == "classify" else Detector(config, backbone)


def _read_config(folder: Path) -> tuple[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        found = "no such folder" if not folder.is_dir() else f"it has no {CONFIG}"
        raise ValueError(f"run: expected a folder that `sppnet train` wrote, or {IMAGENET!r}; got {folder}: {found}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"run: {file} is not JSON: {error}") from error
    task = content.get("task") if isinstance(content, dict) else None
    if task not in _TASKS:
        known = " or ".join(map(repr, _TASKS))
        raise ValueError(f"run: {folder} is of another kind: expected the task {known}, got {task!r}")
    if content.get("format") != _FORMAT:
        raise ValueError(f"run: {file} has format {content.get('format')!r}; this version reads {_FORMAT}")
    try:
        values = {name: _tuples(value) for name, value in content["config"].items()}
        return task, _TASKS[task][1](**values)
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"run: {file} does not describe a model of task {task!r}: {error}") from error


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def pick_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the accelerator if there is one and the CPU otherwise.

    Raises:
        ValueError: torch knows no such device, or has none here.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} cannot be used here: {str(error).splitlines()[0]}") from error


def write_json(content: Any, path: Path) -> None:
    """Write JSON so that the file is either the old one or the new one, also when the process is killed."""
    write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write text so that the file is either the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def save_tensors(
    tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None, *, shared: bool = False
) -> None:
    """Write safetensors so that the file is either the old one or the new one.

    Args:
        tensors: by name.
        path: of the file.
        metadata: texts that the file carries.
        shared: other workers or runs may write the same file meanwhile, so the part has a name of its own.
    """
    part = path.with_name(f"{path.name}{'.' + uuid.uuid4().hex if shared else ''}.part")
    save_file(tensors, part, metadata)
    umask = os.umask(0)
    os.umask(umask)
    part.chmod(0o666 & ~umask)  # safetensors makes files that nobody else can read
    part.replace(path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Raises:
        ValueError: the file is of another kind or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), dict(metadata)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
