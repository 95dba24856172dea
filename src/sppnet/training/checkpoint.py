"""The state of a training that is under way: one file, replaced as a whole, with nothing in it but tensors and text."""

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from sppnet.io.files import read_tensors, save_tensors, write_json
from sppnet.training.options import LoopOptions
from sppnet.training.run import WEIGHTS

CHECKPOINT, OPTIONS = "checkpoint.safetensors", "options.json"
# What may change between the parts of one training without changing its outcome.
_FREE_OPTIONS = ("workers", "device", "devices", "nodes", "cache", "tensorboard")


@dataclass
class Progress:
    """How far a training has come.

    Attributes:
        epoch: the epoch under way, from 0.
        step: batches of it that are done.
        seen, correct, loss: images of these batches, right answers on them, and their summed loss.
        seconds: spent on the epoch so far.
    """

    epoch: int = 0
    step: int = 0
    seen: int = 0
    correct: float = 0
    loss: float = 0.0
    seconds: float = 0.0


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write weights, optimiser and progress together, so that they never disagree."""
    tensors = {f"module.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        states = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        tensors |= {f"optimizer.{index}.{name}": value.contiguous() for name, value in states.items()}
    save_tensors(tensors, folder / CHECKPOINT, {"progress": json.dumps(asdict(progress))})


def load_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer) -> Progress:
    """Put weights and optimiser back as they were; a fresh start where there is no checkpoint.

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
    return Progress(**json.loads(metadata["progress"]))


def open_training(
    out: Path, data: Path, images: Sequence[str], options: LoopOptions, resume: bool, *, write: bool = True
) -> None:
    """Make the run folder, or make sure that it belongs to the same training.

    Args:
        out: the run folder.
        data: the data set.
        images: a line for each image, with all that training takes from the data set.
        options: of the training; it is resumed only under the same ones.
        resume: whether there may be a training in the folder.
        write: False for all processes of a training but the first, which only look.

    Raises:
        ValueError: there is one and `resume` is False, or it is another one.
    """
    path = out / OPTIONS
    # The number of epochs shapes the learning rates, so it belongs to the training as all options do.
    text = "\n".join(images)
    counted = f"{len(images)} images, {zlib.crc32(text.encode(errors='surrogateescape')):08x}"
    content = json.loads(json.dumps({"data": str(data.resolve()), "images": counted, **asdict(options)}))
    if (out / CHECKPOINT).exists() or (out / WEIGHTS).exists():
        if not path.exists():
            raise ValueError(f"out: {out} holds a model but no {OPTIONS}; name another folder")
        if not resume:
            raise ValueError(f"out: {out} holds a training already; --resume goes on with it, or name another folder")
        try:
            # An option that an earlier version did not have was what it is by default.
            stored = asdict(type(options)()) | dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"out: {path} is damaged ({error}); name another folder") from error
        stored = json.loads(json.dumps(stored))
        unlike = [name for name in content if stored.get(name) != content[name] and name not in _FREE_OPTIONS]
        if unlike:
            name = unlike[0]
            raise ValueError(
                f"out: the training in {out} was begun with {name}={stored.get(name)!r}, now it is {content[name]!r};"
                " a resumed training keeps its options and images; name another folder to begin anew"
            )
    if write:
        out.mkdir(parents=True, exist_ok=True)
        write_json(content, path)
