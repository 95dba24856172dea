"""Checkpoints of a training run: one file of tensors and text, replaced atomically."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from sppnet.errors import list_some
from sppnet.io.files import parse_json, read_json, read_tensors, save_tensors, write_json
from sppnet.io.remote import remove_temporary_files
from sppnet.training.options import LoopOptions
from sppnet.training.run import CONFIG, WEIGHTS, save

CHECKPOINT, BEST, LAST, OPTIONS = "checkpoint.safetensors", "best.safetensors", "last.safetensors", "options.json"
_FORMAT = "2"  # files of the first format do not name it; their optimizer has one group of parameters
# Options that a resumed training may change: they do not affect the result, or `train_stages` says the same.
_FREE_OPTIONS = ("workers", "device", "devices", "nodes", "cache", "cache_limit", "tensorboard", "freeze_backbone")


@dataclass
class Progress:
    """Progress of a training run.

    Attributes:
        epoch: current epoch, from 0.
        step: number of batches of this epoch that are done.
        seen, correct, loss: number of targets in these batches, correct predictions for them, and their summed loss.
        seconds: time spent on the epoch so far.
        best: best validation score of the epochs before; None without one.
        best_epoch: number of the epoch with this score, from 1; 0 without one.
    """

    epoch: int = 0
    step: int = 0
    seen: int = 0
    correct: int | float = 0
    loss: float = 0.0
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0


def save_checkpoint(
    folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress, average: nn.Module | None = None
) -> None:
    """Write weights, optimizer state, averages and progress in one file, so that they are always consistent."""
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        states = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{index}.{name}": value for name, value in states.items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_tensors(tensors, folder / CHECKPOINT, {"format": _FORMAT, "progress": json.dumps(asdict(progress))})


def load_checkpoint(
    folder: Path, module: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
) -> Progress:
    """Restore weights, optimizer state and averages from the checkpoint, if there is one, and return the progress.

    Raises:
        ValueError: the file is damaged, was written by an earlier version, or belongs to another network.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    tensors, metadata = read_tensors(path)
    progress = parse_json(metadata.get("progress", ""), Progress, str(path))
    if metadata.get("format") != _FORMAT:
        raise ValueError(
            f"{path} was written by another version of sppnet, whose optimizer differs; train in another folder"
        )
    for prefix, target in (("module.", module), ("average.", average)):
        if target is not None:
            try:
                target.load_state_dict(_part(tensors, prefix))
            except RuntimeError as error:
                raise ValueError(f"checkpoint: {path} belongs to another network: {error}") from error
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "optimizer.").items():
        index, _, key = name.partition(".")
        states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return progress


def save_best(folder: Path, module: nn.Module, epoch: int) -> None:
    """Write the weights of the best epoch so far, with its number."""
    tensors = {name: tensor.contiguous() for name, tensor in module.state_dict().items()}
    save_tensors(tensors, folder / BEST, {"epoch": str(epoch)})


def load_best(folder: Path, module: nn.Module) -> None:
    """Load the weights of the best epoch."""
    module.load_state_dict(read_tensors(folder / BEST)[0])


def saved_epoch(folder: Path) -> int:
    """Return the number of the epoch whose weights :func:`save_best` has written; 0 if there are none."""
    if not (folder / BEST).exists():
        return 0
    with safe_open(folder / BEST, "pt") as file:
        return int(file.metadata()["epoch"])


def finish_training(model: nn.Module, folder: Path, part: str = "") -> None:
    """Save a trained model, and replace the state of its training by the weights of the last epoch.

    ``last.safetensors`` is written only if another epoch was the best. A killed call can be repeated: the checkpoint is
    deleted after the model has been saved.

    Args:
        model: model with the weights of the best epoch.
        folder: run folder.
        part: prefix, in the model, of the tensors of the trained module.
    """
    checkpoint = folder / CHECKPOINT
    if checkpoint.exists():
        tensors, metadata = read_tensors(checkpoint)
        progress = parse_json(metadata["progress"], Progress, str(checkpoint))
        if 0 < progress.best_epoch < progress.epoch:
            last = _part(tensors, "average.") or _part(tensors, "module.")
            state = model.state_dict() | {f"{part}{name}": tensor for name, tensor in last.items()}
            save_tensors({name: tensor.contiguous() for name, tensor in state.items()}, folder / LAST)
    save(model, folder)
    _delete_state(folder)


def open_training(
    out: Path,
    data: Path,
    images: Sequence[str],
    options: LoopOptions,
    resume: bool,
    *,
    classes: Sequence[str] = (),
    write: bool = True,
    held_out: int = 0,
) -> bool:
    """Create the run folder of a training run, or check that it belongs to the same run.

    Args:
        out: run folder.
        data: path of the data set.
        images: one line per image, with everything that training reads from the data set.
        options: training options; they must not change when a run is resumed.
        resume: whether the folder may contain a training run.
        classes: class names.
        write: False for every process except the first, to only check the folder.
        held_out: number of these images that are held out for validation.

    Returns:
        Whether the folder contains the finished run.

    Raises:
        ValueError: the folder contains a training run and `resume` is False, or it contains a different run.
    """
    path = out / OPTIONS
    text = "\n".join(images)
    checksum = f"{len(images)} images, {zlib.crc32(text.encode(errors='surrogateescape')):08x}"
    # Epochs are included because the learning-rate schedule depends on them.
    data_set = {"data": str(data.resolve()), "classes": list(classes), "images": checksum, "held_out": held_out}
    content = json.loads(json.dumps(data_set | asdict(options)))
    finished = (out / WEIGHTS).exists() and (out / CONFIG).exists()
    if (out / CHECKPOINT).exists() or (out / WEIGHTS).exists():
        if not path.exists():
            raise ValueError(f"out: {out} contains a model but no {OPTIONS}; choose another folder")
        if not resume:
            raise ValueError(f"out: {out} already contains a training run; use --resume or choose another folder")
        stored = _stored_content(path, options, content)
        changed = [name for name in content if stored.get(name) != content[name] and name not in _FREE_OPTIONS]
        if changed:
            name = changed[0]
            expected, got = repr(stored.get(name)), repr(content[name])
            if name == "classes" and (differing := set(stored[name]) ^ set(content[name])):
                only = [list_some(sorted(differing.intersection(part[name]))) for part in (stored, content)]
                expected, got = (text or "no other classes" for text in only)
            other = f"start another run with --init {out}" if finished else "choose another folder"
            raise ValueError(
                f"{name}: expected {expected}, as when the training in {out} started, got {got};"
                f" resume with the same options and images, or {other}"
            )
    if write:
        out.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(out)
        if finished:
            _delete_state(out)
        write_json(content, path)
    return finished


def _stored_content(path: Path, options: LoopOptions, content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of the options file; what an earlier version did not write had its default value."""
    stored = read_json(path, dict)
    defaults = json.loads(json.dumps(asdict(type(options)())))
    if "freeze_backbone" in stored:  # of an earlier version, in which this option had no other name
        defaults["train_stages"] = "0" if stored["freeze_backbone"] else "all"
    if "stages" in content:  # earlier versions pooled one map only
        defaults["stages"] = []
    return {"classes": content["classes"], "held_out": 0, **defaults, **stored}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _delete_state(folder: Path) -> None:
    for name in (CHECKPOINT, BEST):
        (folder / name).unlink(missing_ok=True)
