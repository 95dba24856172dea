"""Checkpoints of a training run: one file of tensors and text, replaced atomically."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from sppnet.io.files import parse_json, read_json, read_tensors, save_tensors, write_json
from sppnet.io.remote import remove_temporary_files
from sppnet.training.options import LoopOptions
from sppnet.training.run import WEIGHTS

CHECKPOINT, OPTIONS = "checkpoint.safetensors", "options.json"
# Options that a resumed training may change, because they do not affect the result.
_FREE_OPTIONS = ("workers", "device", "devices", "nodes", "cache", "tensorboard")


@dataclass
class Progress:
    """Progress of a training run.

    Attributes:
        epoch: current epoch, from 0.
        step: number of batches of this epoch that are done.
        seen, correct, loss: number of targets in these batches, correct predictions for them, and their summed loss.
        seconds: time spent on the epoch so far.
    """

    epoch: int = 0
    step: int = 0
    seen: int = 0
    correct: int | float = 0
    loss: float = 0.0
    seconds: float = 0.0


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write weights, optimizer state and progress in one file, so that they are always consistent."""
    tensors = {f"module.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        states = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in states.items()}
    save_tensors(tensors, folder / CHECKPOINT, {"progress": json.dumps(asdict(progress))})


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer) -> Progress:
    """Restore weights and optimizer state from the checkpoint, if there is one, and return the progress.

    Raises:
        ValueError: the file is damaged or belongs to another network.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return Progress()
    tensors, metadata = read_tensors(path)
    weights = {name.removeprefix("module."): tensor for name, tensor in tensors.items() if name.startswith("module.")}
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"checkpoint: {path} belongs to another network: {error}") from error
    states: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part == "optimizer":
            index, _, key = rest.partition(".")
            states.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})
    return parse_json(metadata.get("progress", ""), Progress, str(path))


def open_training(
    out: Path, data: Path, images: Sequence[str], options: LoopOptions, resume: bool, *, write: bool = True
) -> None:
    """Create the run folder of a training run, or check that it belongs to the same run.

    Args:
        out: run folder.
        data: path of the data set.
        images: one line per image, with everything that training reads from the data set.
        options: training options; they must not change when a run is resumed.
        resume: whether the folder may contain a training run.
        write: False for every process except the first, to only check the folder.

    Raises:
        ValueError: the folder contains a training run and `resume` is False, or it contains a different run.
    """
    path = out / OPTIONS
    text = "\n".join(images)
    checksum = f"{len(images)} images, {zlib.crc32(text.encode(errors='surrogateescape')):08x}"
    # Epochs are included because the learning-rate schedule depends on them.
    content = json.loads(json.dumps({"data": str(data.resolve()), "images": checksum, **asdict(options)}))
    if (out / CHECKPOINT).exists() or (out / WEIGHTS).exists():
        if not path.exists():
            raise ValueError(f"out: {out} contains a model but no {OPTIONS}; choose another folder")
        if not resume:
            raise ValueError(f"out: {out} already contains a training run; use --resume or choose another folder")
        # Options missing from the file of an earlier version had their default values.
        stored = json.loads(json.dumps(asdict(type(options)()))) | read_json(path, dict)
        changed = [name for name in content if stored.get(name) != content[name] and name not in _FREE_OPTIONS]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{name}: expected {stored.get(name)!r}, as when the training in {out} started, got {content[name]!r};"
                " resume with the same options and images, or choose another folder"
            )
    if write:
        out.mkdir(parents=True, exist_ok=True)
        remove_temporary_files(out)
        write_json(content, path)
