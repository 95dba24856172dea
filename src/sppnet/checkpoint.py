"""The state of a training that is under way: one file, replaced as a whole, with nothing in it but tensors and text."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.optim import Optimizer

from sppnet.runs import read_tensors, save_tensors

CHECKPOINT = "checkpoint.safetensors"


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
    correct: int = 0
    loss: float = 0.0
    seconds: float = 0.0


def save_checkpoint(folder: Path, module: nn.Module, optimizer: Optimizer, progress: Progress) -> None:
    """Write weights, optimiser and progress together, so that they never disagree."""
    tensors = {f"module.{name}": tensor.contiguous() for name, tensor in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
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
