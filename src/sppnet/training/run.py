"""Run folders: weights as safetensors, everything else as JSON; pickles are never read."""

import dataclasses
from pathlib import Path
from typing import Any

from torch import nn

from sppnet.io.files import save_tensors, write_json

CONFIG, WEIGHTS = "run.json", "model.safetensors"
FORMAT = 1


def save_run(model: nn.Module, folder: str | Path) -> None:
    """Write a model into a run folder, atomically replacing each existing file.

    Args:
        model: classifier, detector or segmenter.
        folder: run folder; created if missing.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / WEIGHTS)
    config: Any = model.config
    content = {"format": FORMAT, "task": config.task, "config": dataclasses.asdict(config)}
    write_json(content, folder / CONFIG)
