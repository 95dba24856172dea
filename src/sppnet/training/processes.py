"""One training on several processes: how they are started, and what they tell each other."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sppnet.training.options import LoopOptions

T = TypeVar("T")

# The others wait while the first process scores the validation images.
_PATIENCE = timedelta(hours=24)


def launch(options: LoopOptions, out: Path, devices: int = 1, nodes: int = 1) -> Any:
    """Start the processes of a training, or join those that torchrun has started.

    All of them run the caller's program from its beginning.

    Args:
        options: device, precision and loggers.
        out: the run folder.
        devices: processes on each node, one for each GPU or, on the CPU, any number; 1 under torchrun, which has
            numbers of its own.
        nodes: machines; as `devices`.

    Returns:
        A ``lightning_fabric.Fabric``.

    Raises:
        ValueError: torchrun started other numbers than were asked for.
    """
    from lightning_fabric import Fabric  # seconds to import, and only training needs it
    from lightning_fabric.strategies.ddp import DDPStrategy

    world = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if world is not None:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices * nodes not in (1, world):
            raise ValueError(
                f"devices: torchrun has started {world} processes; leave devices and nodes out; got {devices} * {nodes}"
            )
        devices, nodes = local, world // local
    single = devices * nodes == 1
    fabric = Fabric(
        accelerator=options.device,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if single else DDPStrategy(timeout=_PATIENCE),
        precision=options.precision,
        loggers=_loggers(options, out),
    )
    fabric.launch()
    return fabric


def refuse_several(task: str) -> None:
    """Refuse what torchrun has started for a training that knows nothing of other processes.

    Raises:
        ValueError: this is one of several processes.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"devices: {task} runs in one process; start it without torchrun")


def total(fabric: Any, *values: float) -> list[float]:
    """Sums over all processes of what each of them has."""
    if fabric.world_size == 1:
        return list(values)
    sums: torch.Tensor = fabric.all_reduce(
        torch.tensor(values, dtype=torch.float64, device=fabric.device), reduce_op="sum"
    )
    return sums.tolist()


def gather(fabric: Any, items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of their ranks."""
    if fabric.world_size == 1:
        return list(items)
    parts: list[list[T]] = [[] for _ in range(fabric.world_size)]
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def _loggers(options: LoopOptions, out: Path) -> list[Any]:
    if not options.tensorboard:
        return []
    try:
        import tensorboard  # type: ignore[import-untyped] # noqa: F401
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('TensorBoard events need tensorboard: pip install "sppnet[log]"') from error
    return [TensorBoardLogger(out, name="tensorboard", version="")]
