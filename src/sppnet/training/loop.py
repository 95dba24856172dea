"""The training loop, for whole networks and for heads on precomputed vectors."""

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sppnet.backbones.padded.norm import SyncBatchNormMode
from sppnet.errors import ImageError
from sppnet.progress import track
from sppnet.training.checkpoint import (
    BEST,
    CHECKPOINT,
    Progress,
    load_best,
    load_checkpoint,
    save_best,
    save_checkpoint,
    saved_epoch,
)
from sppnet.training.metrics import write_metrics
from sppnet.training.optimizer import classification, create_optimizer, learning_rate
from sppnet.training.options import LoopOptions
from sppnet.training.processes import gather, launch, require_single_process, sum_over_processes

_logger = logging.getLogger(__name__)

_SAVE_SECONDS = 120.0

# Function from output and target to the loss to minimize and the number of correct predictions, possibly fractional.
Objective = Callable[[Any, Any], tuple[Tensor, float]]
# Function that scores the current weights; None without validation images.
Validate = Callable[[], Mapping[str, float] | None]


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


def fit(
    module: nn.Module,
    batches: Batches,
    options: LoopOptions,
    out: Path,
    validate: Validate,
    failures: list[ImageError],
    objective: Objective | None = None,
    right: str = "top1",
    fabric: Any = None,
) -> bool:
    """Train to the last epoch, starting from the checkpoint in `out` if there is one.

    At the end, the module has the weights of the best epoch, or without validation those of the last one, and the last
    call of `validate` was made with these weights. :func:`sppnet.training.checkpoint.finish_training` then saves the
    model and deletes the checkpoint.

    Args:
        module: whole network or head.
        batches: training batches.
        options: training options.
        out: run folder.
        validate: function called after each epoch; the scores it returns are added to the metrics. The best epoch is
            that of the highest `options.monitor`, or else of the highest first score.
        failures: list to which files that cannot be read are added.
        objective: function that computes the loss and the number of correct predictions; None for the cross entropy.
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
    objective = objective or partial(classification, smoothing=options.label_smoothing)
    training = _Training(module, batches, options, out, failures, objective, fabric)
    shared_statistics = SyncBatchNormMode() if fabric.world_size > 1 else nullcontext()
    with _interrupts() as interrupted, shared_statistics, _deterministic(options.deterministic):
        finished = training.run(interrupted, validate, right)
    for logger in fabric.loggers:
        logger.finalize("success" if finished else "aborted")
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
        self.raw_optimizer = create_optimizer(self.module, self.options)
        self.wrapped, self.optimizer = self.fabric.setup(self.module, self.raw_optimizer)
        self.average: Any = None
        if self.options.ema is not None:
            import timm.utils  # takes seconds

            self.average = timm.utils.ModelEmaV3(self.module, self.options.ema, use_warmup=True)  # type: ignore[attr-defined]
        # Load after setup has moved the module to its device, because the optimizer state follows the module.
        average = self.average and self.average.module
        self.progress = load_checkpoint(self.out, self.module, self.raw_optimizer, average)
        if not self.progress.epoch and not self.progress.step:
            (self.out / BEST).unlink(missing_ok=True)
        self.saved, self.validated = time.monotonic(), 0
        if self.fabric.global_rank > 0:  # the first process continues the counts, which are sums over all processes
            progress = self.progress
            self.progress = Progress(progress.epoch, progress.step, best_epoch=progress.best_epoch)

    @property
    def exhausted(self) -> bool:
        """Whether the last epoch is done, or the score has not improved for as long as the options allow."""
        options, progress = self.options, self.progress
        waited = options.patience is not None and progress.epoch - progress.best_epoch >= options.patience
        return waited or progress.epoch >= options.epochs

    def run(self, interrupted: Callable[[], bool], validate: Validate, right: str) -> bool:
        """Run the remaining epochs and return True, or False if interrupted."""
        while not self.exhausted:
            if not self._run_epoch(interrupted):
                return False
            summed = self._save()
            if not summed.seen:
                errors = gather(self.fabric, self.failures)
                reason = f"the first error is {errors[0]}" if errors else "check the annotations"
                raise ValueError(f"data: expected an image with a training target, got none; {reason}")
            self._end_epoch(summed, validate, right)
            (stop,) = sum_over_processes(self.fabric, interrupted())
            if stop and not self.exhausted:
                return False
        self._load_result(validate)
        return True

    def _run_epoch(self, interrupted: Callable[[], bool]) -> bool:
        """Train on the remaining batches of the epoch and return True, or save and return False if interrupted."""
        self.wrapped.train()
        progress = self.progress
        started = time.monotonic() - progress.seconds
        description = f"epoch {progress.epoch + 1}/{self.options.epochs}"
        remaining = self.batches.epoch(progress.epoch, progress.step)
        tracked = track(remaining, description, self.batches.steps, progress.step)
        while group := list(islice(tracked, self.options.accumulate)):
            stop, save = self._step(group, interrupted)
            progress.seconds = time.monotonic() - started
            if stop or save:
                self._save()
            if stop:
                return False
        return True

    def _step(
        self, group: Sequence[tuple[Any, Any, list[ImageError]]], interrupted: Callable[[], bool]
    ) -> tuple[bool, bool]:
        """Make one step of the optimizer, and return whether to stop and whether a checkpoint is due.

        Batches with an empty target in all processes are skipped. A loss that is not finite in one process is an error
        in all of them, because they would wait for each other.
        """
        progress = self.progress
        rate = self._rate(progress.step)
        for parameters in self.raw_optimizer.param_groups:
            parameters["lr"] = rate
        counts = sum_over_processes(self.fabric, *(len(y) for _, y, _ in group))
        last = max((number for number, count in enumerate(counts) if count), default=None)
        self.optimizer.zero_grad()
        losses = [0.0] * len(group)
        for number, (x, y, errors) in enumerate(group):
            self.failures.extend(errors)
            if counts[number]:
                with self.fabric.no_backward_sync(self.wrapped, enabled=number != last):
                    losses[number] = self._add_gradients(x, y, sum(counts))
            progress.step += 1
        due = self.fabric.global_rank == 0 and time.monotonic() - self.saved > _SAVE_SECONDS
        stop, save, *losses = sum_over_processes(self.fabric, interrupted(), due, *losses)
        self._require_finite(losses, rate)
        if last is not None:
            self.optimizer.step()
            if self.average is not None:
                steps, done = (-(-n // self.options.accumulate) for n in (self.batches.steps, progress.step))
                self.average.update(self.module, progress.epoch * steps + done)
        return bool(stop), bool(save)

    def _require_finite(self, losses: Sequence[float], rate: float) -> None:
        for batch, loss in enumerate(losses, self.progress.step - len(losses) + 1):
            if not math.isfinite(loss):
                where = f"epoch {self.progress.epoch + 1}, batch {batch}, at a learning rate of {rate:.3g}"
                saved = f"; {self.out} contains the last checkpoint" if (self.out / CHECKPOINT).exists() else ""
                raise RuntimeError(f"the loss is {loss} in {where}: lower it (--lr){saved}")

    def _add_gradients(self, x: Any, y: Any, targets: float) -> float:
        """Add the gradients of a batch, weighted by its share of the targets of a step, and return its loss."""
        fabric, progress = self.fabric, self.progress
        # Seed each batch, so that dropout is the same after resuming, and differs between processes.
        seeds = (self.options.seed, progress.epoch * self.batches.steps + progress.step)
        rank = fabric.global_rank
        torch.manual_seed(hash(seeds if not rank else (*seeds, rank)) % (1 << 63))
        x, y = fabric.to_device(x), fabric.to_device(y)
        out = self.wrapped(*x) if isinstance(x, tuple) else self.wrapped(x)
        # Without targets, the process must still exchange gradients.
        loss, correct = self.objective(out, y) if len(y) else (sum(part.sum() for part in tree_leaves(out)) * 0, 0)
        # Gradients are averaged over processes, but the loss must be averaged over targets.
        fabric.backward(loss * (len(y) * fabric.world_size / targets))
        progress.seen += len(y)
        progress.correct += correct
        value = float(loss.detach())
        progress.loss += value * len(y)
        return value

    def _end_epoch(self, summed: Progress, validate: Validate, right: str) -> None:
        """Validate in the first process, keep the weights if they are the best so far, and log the metrics."""
        progress, first = self.progress, self.fabric.global_rank == 0
        epoch, best, best_epoch = progress.epoch + 1, progress.best, progress.best_epoch
        if first:
            with self._average_loaded():
                scores = validate()
                if scores:
                    score = scores[self.options.monitor or next(iter(scores))]
                    # Weights that were saved before a kill stay the best, even if validation is not deterministic.
                    better = best is None or score > best or saved_epoch(self.out) == epoch
                    if better and not math.isnan(score):
                        best, best_epoch = score, epoch
                        save_best(self.out, self.module, epoch)
            self.validated = epoch
            self._log(summed, right, scores)
        self.fabric.barrier()
        (shared,) = sum_over_processes(self.fabric, best_epoch if first else 0)
        self.progress = Progress(epoch, best=best, best_epoch=int(shared))
        self._save()

    def _load_result(self, validate: Validate) -> None:
        """Load the weights of the best epoch, and validate them if another epoch was validated last."""
        progress = self.progress
        if 0 < progress.best_epoch < progress.epoch:
            _logger.info(f"the best of {progress.epoch} epochs was epoch {progress.best_epoch}")
            load_best(self.out, self.module)
        elif self.average is not None:
            self.module.load_state_dict(self.average.module.state_dict())
        if self.fabric.global_rank == 0 and self.validated != (progress.best_epoch or progress.epoch):
            validate()

    @contextmanager
    def _average_loaded(self) -> Iterator[None]:
        """Replace the weights of the module by their average, if there is one, during the block."""
        if self.average is None:
            yield
            return
        weights = {name: tensor.clone() for name, tensor in self.module.state_dict().items()}
        self.module.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.module.load_state_dict(weights)

    def _rate(self, step: int) -> float:
        """Return the learning rate in a step of the current epoch, given the number of its first batch."""
        steps = self.batches.steps
        return learning_rate(self.options, self.progress.epoch + step / steps, self.options.accumulate / steps)

    def _save(self) -> Progress:
        """Write a checkpoint in the first process, and return the progress summed over all processes."""
        progress = self.progress
        seen, correct, loss = sum_over_processes(self.fabric, progress.seen, progress.correct, progress.loss)
        summed = replace(progress, seen=int(seen), correct=correct, loss=loss)
        if self.fabric.global_rank == 0:
            average = self.average and self.average.module
            save_checkpoint(self.out, self.module, self.raw_optimizer, summed, average)
        self.fabric.barrier()
        self.saved = time.monotonic()
        return summed

    def _log(self, summed: Progress, right: str, scores: Mapping[str, float] | None) -> None:
        epoch, seen, accumulate = summed.epoch + 1, max(summed.seen, 1), self.options.accumulate
        row: dict[str, Any] = {"epoch": epoch, "size": self.batches.side(summed.epoch)}
        row |= {"lr": self._rate((summed.step - 1) // accumulate * accumulate), "seconds": round(summed.seconds, 2)}
        row |= {"train_loss": summed.loss / seen, f"train_{right}": summed.correct / seen}
        row |= {f"val_{name}": value for name, value in (scores or {}).items()}
        write_metrics(self.out, row)
        self.fabric.log_dict({name: value for name, value in row.items() if isinstance(value, float)}, step=epoch)
        shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
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
