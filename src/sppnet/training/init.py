"""Weights of another run to start a training from."""

import logging
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sppnet.backbones.backbone import Backbone
from sppnet.io.files import read_json, read_tensors
from sppnet.training.run import CONFIG, WEIGHTS

_logger = logging.getLogger(__name__)


def initialize(model: nn.Module, run: str | Path, final: tuple[str, ...]) -> bool:
    """Load the weights of a finished run into a new model.

    From a run of the same task, all weights are loaded; if it has other classes, all except the final layers. From a
    run of another task, only the backbone is loaded; the tensors that its backbone lacks, in later stages, keep their
    weights.

    Args:
        model: model with a configuration.
        run: run folder.
        final: prefixes of the names of the tensors of the final layers.

    Returns:
        Whether the run has the same task.

    Raises:
        ValueError: not a finished run, or one of another architecture; the message names the first differing tensor.
    """
    run, target = Path(run), model.state_dict()
    if not ((run / CONFIG).is_file() and (run / WEIGHTS).is_file()):
        raise ValueError(f"init: expected a finished run, with {CONFIG} and {WEIGHTS}, got {run}")
    content: dict[str, Any] = read_json(run / CONFIG, dict)
    config: Any = model.config
    weights = read_tensors(run / WEIGHTS)[0]
    same_task: bool = content.get("task") == config.task
    if same_task:
        text = f"starting from the weights of {run}"
        if content["config"]["classes"] != list(config.classes):
            weights = {name: tensor for name, tensor in weights.items() if not name.startswith(final)}
            target = {name: tensor for name, tensor in target.items() if not name.startswith(final)}
            text += ", which has other classes, except the final layers"
        names = dict.fromkeys([*target, *weights])
    else:
        prefix = next(f"{name}." for name, module in model.named_modules() if isinstance(module, Backbone))
        weights = {
            f"{prefix}{name.removeprefix('encoder.').removeprefix('backbone.')}": tensor
            for name, tensor in weights.items()
            if name.startswith(("backbone.", "encoder.backbone."))
        }
        target = {name: tensor for name, tensor in target.items() if name.startswith(prefix)}
        names = dict.fromkeys(name for name in target if name in weights) or target
        text = f"starting from the backbone of {run}, a run of the task {content.get('task')}"
        text += f": {len(names)} of {len(target)} tensors"
    _check(target, weights, names, run)
    model.load_state_dict({name: weights[name] for name in names}, strict=False)
    _logger.info(text)
    return same_task


def _check(target: dict[str, Tensor], weights: dict[str, Tensor], names: dict[str, Any], run: Path) -> None:
    for name in names:
        expected, got = (
            f"shape {tuple(part[name].shape)}" if name in part else "no tensor" for part in (target, weights)
        )
        if expected != got:
            raise ValueError(
                f"init: expected {expected} for {name}, got {got} in {run}; start from a run of the same architecture"
            )
