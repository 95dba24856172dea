"""The training loop, for whole networks and for heads on precomputed vectors."""

import json
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.backbones.padded.norm import SyncBatchNormMode
from sppnet.errors import ImageError
from sppnet.io.remote import write_text
from sppnet.progress import track
from sppnet.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from sppnet.training.options import LoopOptions
from sppnet.training.processes import gather, launch, require_single_process, sum_over_processes

_logger = logging.getLogger(__name__)

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
    training = _Training(module, batches, options, out, failures, objective, fabric)
    shared_statistics = SyncBatchNormMode() if fabric.world_size > 1 else nullcontext()
    with _interrupts() as interrupted, shared_statistics, _deterministic(options.deterministic):
        finished = training.run(interrupted, validate, right)
    failures[:] = gather(fabric, failures)
    return finished


@dataclass(eq=False)
class _Training:
    """State of a training run in this process; the fields are arguments of :func:`fit`."""

    module: nn.Module
    batches: Batches
    options: LoopOptions
    out: Path
    failures: list[ImageError]
    objective: Objective
    fabric: Any

    def __post_init__(self) -> None:
        self.raw_optimizer = _optimizer(self.module, self.options)
        self.wrapped, self.optimizer = self.fabric.setup(self.module, self.raw_optimizer)
        # Load after setup has moved the module to its device, because the optimizer state follows the module.
        self.progress, self.saved = load_checkpoint(self.out, self.module, self.raw_optimizer), time.monotonic()
        if self.fabric.global_rank > 0:  # the first process continues the counts, which are sums over all processes
            self.progress = Progress(self.progress.epoch, self.progress.step)

    def run(
        self, interrupted: Callable[[], bool], validate: Callable[[], Mapping[str, float] | None], right: str
    ) -> bool:
        """Run the remaining epochs and return True, or False if interrupted."""
        while self.progress.epoch < self.options.epochs:
            if not self._run_epoch(interrupted):
                return False
            summed = self._save()
            if not summed.seen:
                errors = gather(self.fabric, self.failures)
                reason = f"the first error is {errors[0]}" if errors else "check the annotations"
                raise ValueError(f"data: expected an image with a training target, got none; {reason}")
            if self.fabric.global_rank == 0:
                self._log(summed, right, validate())
            self.fabric.barrier()
            self.progress = Progress(epoch=self.progress.epoch + 1)
            self._save()
            (stop,) = sum_over_processes(self.fabric, interrupted())
            if stop and self.progress.epoch < self.options.epochs:
                return False
        return True

    def _run_epoch(self, interrupted: Callable[[], bool]) -> bool:
        """Train on the remaining batches of the epoch and return True, or save and return False if interrupted."""
        self.wrapped.train()
        progress = self.progress
        started = time.monotonic() - progress.seconds
        description = f"epoch {progress.epoch + 1}/{self.options.epochs}"
        remaining = self.batches.epoch(progress.epoch, progress.step)
        for x, y, errors in track(remaining, description, self.batches.steps, progress.step):
            self.failures.extend(errors)
            self._step(x, y)
            progress.step += 1
            progress.seconds = time.monotonic() - started
            due = self.fabric.global_rank == 0 and time.monotonic() - self.saved > _SAVE_SECONDS
            stop, save = sum_over_processes(self.fabric, interrupted(), due)
            if stop or save:
                self._save()
            if stop:
                return False
        return True

    def _step(self, x: Any, y: Any) -> None:
        """Train on one batch; batches with an empty target in all processes are skipped."""
        fabric, progress = self.fabric, self.progress
        for group in self.raw_optimizer.param_groups:
            group["lr"] = self._rate(progress.step)
        # Seed each step, so that dropout is the same after resuming, and differs between processes.
        seeds = (self.options.seed, progress.epoch * self.batches.steps + progress.step)
        rank = fabric.global_rank
        torch.manual_seed(hash(seeds if not rank else (*seeds, rank)) % (1 << 63))
        (targets,) = sum_over_processes(fabric, len(y))
        if not targets:
            return
        x, y = fabric.to_device(x), fabric.to_device(y)
        out = self.wrapped(*x) if isinstance(x, tuple) else self.wrapped(x)
        # Without targets, the process must still exchange gradients.
        loss, correct = self.objective(out, y) if len(y) else (out.sum() * 0, 0)
        if not loss.isfinite():
            where = f"epoch {progress.epoch + 1}, batch {progress.step + 1}"
            raise RuntimeError(
                f"the loss is {float(loss.detach())} in {where}: lower the learning rate (--lr), currently"
                f" {self.options.rate}; {self.out} contains the last checkpoint"
            )
        self.optimizer.zero_grad()
        # Gradients are averaged over processes, but the loss must be averaged over targets.
        fabric.backward(loss * (len(y) * fabric.world_size / targets) if fabric.world_size > 1 else loss)
        self.optimizer.step()
        progress.seen += len(y)
        progress.correct += correct
        progress.loss += float(loss.detach()) * len(y)

    def _rate(self, step: int) -> float:
        """Return the learning rate in a step of the current epoch."""
        options, steps = self.options, self.batches.steps
        done = (self.progress.epoch * steps + step) / (options.epochs * steps)
        if options.schedule == "cosine":
            return options.rate * (1 + math.cos(math.pi * done)) / 2
        if options.schedule == "poly":  # DeepLab v2, section 4.1
            return options.rate * math.pow(1 - done, 0.9)
        return options.rate * 0.1 ** ((done >= 0.6) + (done >= 0.85))

    def _save(self) -> Progress:
        """Write a checkpoint in the first process, and return the progress summed over all processes."""
        progress = self.progress
        seen, correct, loss = sum_over_processes(self.fabric, progress.seen, progress.correct, progress.loss)
        summed = replace(progress, seen=int(seen), correct=correct, loss=loss)
        if self.fabric.global_rank == 0:
            save_checkpoint(self.out, self.module, self.raw_optimizer, summed)
        self.fabric.barrier()
        self.saved = time.monotonic()
        return summed

    def _log(self, summed: Progress, right: str, scores: Mapping[str, float] | None) -> None:
        """Write a line of metrics, replacing the lines of epochs that are repeated after a kill."""
        epoch, seen = summed.epoch + 1, max(summed.seen, 1)
        line: dict[str, Any] = {"epoch": epoch, "size": self.batches.side(summed.epoch)}
        line |= {"lr": self._rate(summed.step - 1), "seconds": round(summed.seconds, 2)}
        line |= {"train_loss": summed.loss / seen, f"train_{right}": summed.correct / seen}
        line |= {f"val_{name}": value for name, value in (scores or {}).items()}
        path = self.out / METRICS
        previous = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [text for text in previous if json.loads(text)["epoch"] < epoch]
        write_text("\n".join([*kept, json.dumps(line)]) + "\n", path)
        self.fabric.log_dict({name: value for name, value in line.items() if isinstance(value, float)}, step=epoch)
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items()}
        _logger.info("  ".join(f"{name} {value}" for name, value in shown.items() if value is not None))


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


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that the current step finishes; a second one stops at once."""
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if received:
            raise KeyboardInterrupt
        received.append(number)
        _logger.warning("stopping after this step; interrupt again to stop immediately")

    try:
        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # only the main thread can set signal handlers
        old = {}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
