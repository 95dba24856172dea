"""Training in several processes: launching them, and communication between them."""

import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from sppnet.errors import import_optional
from sppnet.training.options import LoopOptions

T = TypeVar("T")

# The other processes wait while the first one validates.
_TIMEOUT = timedelta(hours=24)


def launch(options: LoopOptions, out: Path, devices: int = 1, nodes: int = 1, loggers: Sequence[Any] = ()) -> Any:
    """Start the processes of a training run, or join those started by torchrun.

    Each process runs the caller's program from the beginning.

    Args:
        options: training options, of which device, precision and tensorboard are used.
        out: run folder.
        devices: number of processes per node: one per GPU, or any number on the CPU; 1 under torchrun, which sets it.
        nodes: number of machines; 1 under torchrun, which sets it.
        loggers: loggers of Lightning Fabric, which get the metrics of each epoch.

    Returns:
        A ``lightning_fabric.Fabric``.

    Raises:
        ValueError: the number of processes differs from that of torchrun.
    """
    world = int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RUN_ID" in os.environ else None
    if world is not None:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        if devices * nodes not in (1, world):
            raise ValueError(
                f"devices: expected {world}, as started by torchrun, got {devices} * {nodes}; omit devices and nodes"
            )
        devices, nodes = local, world // local
    single = devices * nodes == 1
    lightning = import_optional("lightning_fabric", "training runs")
    fabric = lightning.Fabric(
        accelerator=options.device,
        devices=devices,
        num_nodes=nodes,
        strategy="auto" if single else lightning.strategies.DDPStrategy(timeout=_TIMEOUT),
        precision=options.precision,
        loggers=[*_loggers(options, out), *loggers],
    )
    fabric.launch()
    return fabric


def require_single_process(task: str) -> None:
    """Check that this is the only process, for tasks that do not support several.

    Raises:
        ValueError: torchrun has started several processes.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        raise ValueError(f"devices: expected 1 process for {task}, got {world}; start it without torchrun")


def sum_over_processes(fabric: Any, *values: float) -> list[float]:
    """Sum values over all processes."""
    if fabric.world_size == 1:
        return list(values)
    sums: torch.Tensor = fabric.all_reduce(
        torch.tensor(values, dtype=torch.float64, device=fabric.device), reduce_op="sum"
    )
    return sums.tolist()


def gather(fabric: Any, items: Sequence[T]) -> list[T]:
    """Concatenate the items of all processes, in rank order."""
    if fabric.world_size == 1:
        return list(items)
    parts: list[list[T]] = [[] for _ in range(fabric.world_size)]
    dist.all_gather_object(parts, list(items))
    return [item for part in parts for item in part]


def _loggers(options: LoopOptions, out: Path) -> list[Any]:
    if not options.tensorboard:
        return []
    import_optional("tensorboard", "TensorBoard events")
    loggers = import_optional("lightning_fabric.loggers", "training runs")
    return [loggers.TensorBoardLogger(out, name="tensorboard", version="")]
