"""The training loop, for whole networks and for heads on precomputed vectors."""

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.backbones.padded.norm import SyncBatchNormMode
from sppnet.console import console, track
from sppnet.errors import ImageError
from sppnet.io.files import write_text
from sppnet.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from sppnet.training.options import LoopOptions
from sppnet.training.processes import gather, launch, require_single_process, sum_over_processes

METRICS = "metrics.jsonl"
_SAVE_SECONDS = 120.0

# Function from output and target to the loss to minimize and the number of correct predictions, possibly fractional.
Objective = Callable[[Any, Any], tuple[Tensor, float]]


@runtime_checkable
class Batches(Protocol):
    """Training batches; batch k of epoch e is the same on every call."""

    steps: int

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Any, Any, list[ImageError]]]:
        """Yield (input, target, errors of unreadable files) for each batch of an epoch, from batch `start`.

        A target has one entry per scored prediction; batches with an empty target are skipped.
        """

    def side(self, epoch: int) -> int | None:
        """Return the side of the images of an epoch; None if they are not square and of one size."""


def classification(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Return the cross entropy and the number of correct predictions."""
    return F.cross_entropy(logits, labels), int((logits.argmax(1) == labels).sum())


def fit(
    module: nn.Module,
    batches: Batches,
    options: LoopOptions,
    out: Path,
    validate: Callable[[], Mapping[str, float] | None],
    failures: list[ImageError],
    objective: Objective = classification,
    right: str = "top1",
    fabric: Any = None,
) -> bool:
    """Train to the last epoch, starting from the checkpoint in `out` if there is one.

    Args:
        module: whole network or head.
        batches: training batches.
        options: training options.
        out: run folder.
        validate: function called after each epoch; the scores it returns are added to the metrics.
        failures: list to which files that cannot be read are added.
        objective: function that computes the loss and the number of correct predictions.
        right: name in the metrics for the fraction of correct predictions.
        fabric: result of :func:`sppnet.training.processes.launch`; None for a single process. With several processes,
            each trains on its part of every batch; gradients, batch norm and metrics are those of the whole batch, and
            the first process validates and writes files.

    Returns:
        False if the training was interrupted; the checkpoint then contains all completed steps.
    """
    if fabric is None:
        require_single_process("this training")
        fabric = launch(options, out)
    raw = _optimizer(module, options)
    wrapped, optimizer = fabric.setup(module, raw)
    # Load after setup has moved the module to its device, because the optimizer state follows the module.
    progress, saved = load_checkpoint(out, module, raw), time.monotonic()
    rank = fabric.global_rank
    if rank > 0:  # the first process continues the counts, which are sums over all processes
        progress = Progress(progress.epoch, progress.step)
    total_steps = options.epochs * batches.steps
    with _interrupts() as interrupted, _shared_statistics(fabric), _deterministic(options.deterministic):
        while progress.epoch < options.epochs:
            wrapped.train()
            description = f"epoch {progress.epoch + 1}/{options.epochs}"
            started = time.monotonic() - progress.seconds
            remaining = batches.epoch(progress.epoch, progress.step)
            for x, y, errors in track(remaining, description, batches.steps, progress.step):
                failures.extend(errors)
                step = progress.epoch * batches.steps + progress.step
                for group in raw.param_groups:
                    group["lr"] = _rate(options, step / total_steps)
                # Seed each step, so that dropout is the same after resuming, and differs between processes.
                torch.manual_seed(hash((options.seed, step) if not rank else (options.seed, step, rank)) % (1 << 63))
                (targets,) = sum_over_processes(fabric, len(y))
                if targets:
                    loss, correct = _loss(wrapped, objective, fabric.to_device(x), fabric.to_device(y))
                    if not loss.isfinite():
                        where = f"epoch {progress.epoch + 1}, batch {progress.step + 1}"
                        raise RuntimeError(
                            f"the loss is {float(loss.detach())} in {where}: lower the learning rate (--lr), currently"
                            f" {options.rate}; {out} contains the last checkpoint"
                        )
                    optimizer.zero_grad()
                    # Gradients are averaged over processes, but the loss must be averaged over targets.
                    fabric.backward(loss * (len(y) * fabric.world_size / targets) if fabric.world_size > 1 else loss)
                    optimizer.step()
                    progress.seen += len(y)
                    progress.correct += correct
                    progress.loss += float(loss.detach()) * len(y)
                progress.step += 1
                progress.seconds = time.monotonic() - started
                due = rank == 0 and time.monotonic() - saved > _SAVE_SECONDS
                stop, save = sum_over_processes(fabric, interrupted(), due)
                if stop or save:
                    _save(fabric, out, module, raw, progress)
                    saved = time.monotonic()
                if stop:
                    failures[:] = gather(fabric, failures)
                    return False
            summed = _save(fabric, out, module, raw, progress)
            if not summed.seen:
                first = gather(fabric, failures)[0]
                raise ValueError(f"data: expected a readable image, got none; the first error is {first}")
            if rank == 0:
                rate = _rate(options, (progress.epoch * batches.steps + progress.step - 1) / total_steps)
                _log(fabric, out, summed, batches.side(progress.epoch), rate, right, validate())
            fabric.barrier()
            progress = Progress(epoch=progress.epoch + 1)
            _save(fabric, out, module, raw, progress)
            saved = time.monotonic()
            (stop,) = sum_over_processes(fabric, interrupted())
            if stop and progress.epoch < options.epochs:
                failures[:] = gather(fabric, failures)
                return False
    failures[:] = gather(fabric, failures)
    return True


def _loss(wrapped: nn.Module, objective: Objective, x: Any, y: Any) -> tuple[Tensor, float]:
    """Return loss and correct predictions; zeros without targets, since the process must still exchange gradients."""
    out = wrapped(*x) if isinstance(x, tuple) else wrapped(x)
    return objective(out, y) if len(y) else (out.sum() * 0, 0)


def _save(fabric: Any, out: Path, module: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> Progress:
    """Write a checkpoint in the first process, and return the progress summed over all processes."""
    seen, correct, loss = sum_over_processes(fabric, progress.seen, progress.correct, progress.loss)
    summed = replace(progress, seen=int(seen), correct=correct, loss=loss)
    if fabric.global_rank == 0:
        save_checkpoint(out, module, optimizer, summed)
    fabric.barrier()
    return summed


def _shared_statistics(fabric: Any) -> AbstractContextManager[Any]:
    return SyncBatchNormMode() if fabric.world_size > 1 else nullcontext()


@contextmanager
def _deterministic(enabled: bool) -> Iterator[None]:
    """Allow only deterministic operators; others raise an error."""
    if not enabled:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS, which reads it on first use
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _optimizer(module: nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    if options.optimizer == "sgd":
        return torch.optim.SGD(module.parameters(), options.rate, momentum=0.9, weight_decay=options.decay)
    return torch.optim.AdamW(module.parameters(), options.rate, weight_decay=options.decay)


def _rate(options: LoopOptions, done: float) -> float:
    """Return the learning rate after the fraction `done` of all steps."""
    if options.schedule == "cosine":
        return options.rate * (1 + math.cos(math.pi * done)) / 2
    if options.schedule == "poly":  # DeepLab v2, section 4.1
        return options.rate * math.pow(1 - done, 0.9)
    return options.rate * 0.1 ** ((done >= 0.6) + (done >= 0.85))


def _log(
    fabric: Any, out: Path, progress: Progress, side: int | None, lr: float, right: str, val: Mapping[str, float] | None
) -> None:
    """Write a line of metrics, replacing the lines of epochs that are repeated after a kill."""
    seen = max(progress.seen, 1)
    line: dict[str, Any] = {"epoch": progress.epoch + 1, "size": side, "lr": lr, "seconds": round(progress.seconds, 2)}
    line |= {"train_loss": progress.loss / seen, f"train_{right}": progress.correct / seen}
    line |= {f"val_{name}": value for name, value in (val or {}).items()}
    path = out / METRICS
    previous = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [text for text in previous if json.loads(text)["epoch"] <= progress.epoch]
    write_text("\n".join([*kept, json.dumps(line)]) + "\n", path)
    fabric.log_dict({name: value for name, value in line.items() if isinstance(value, float)}, step=progress.epoch + 1)
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items()}
    console.print("  ".join(f"{name} {value}" for name, value in shown.items() if value is not None), highlight=False)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that the current step finishes; a second one stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if received:
            raise KeyboardInterrupt
        received.append(number)
        console.print("stopping after this step; interrupt again to stop immediately", highlight=False)

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread can set signal handlers
        old = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
