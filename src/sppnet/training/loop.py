"""The training loop: the same for whole networks and for heads on vectors that were computed before."""

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

from sppnet.backbones.padded.norm import SharedBatchNorm
from sppnet.console import console, track
from sppnet.errors import ImageError
from sppnet.io.files import write_text
from sppnet.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from sppnet.training.options import LoopOptions
from sppnet.training.processes import gather, launch, refuse_several, total

METRICS = "metrics.jsonl"
_SAVE_SECONDS = 120.0

# From the module's output and the target: the loss to minimise, and how many answers are right (a share of an answer
# counts as such).
Objective = Callable[[Any, Any], tuple[Tensor, float]]


@runtime_checkable
class Batches(Protocol):
    """What is trained on: batch k of epoch e is the same each time it is asked for."""

    steps: int

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Any, Any, list[ImageError]]]:
        """Input, target and unreadable files of each batch of an epoch, from the one numbered `start` on.

        The target has a length, which is the number of answers; nothing is learned from an empty one.
        """

    def side(self, epoch: int) -> int | None:
        """Side of the square images of an epoch; None where there is none."""


def classification(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Cross entropy."""
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
    """Train to the last epoch, from the checkpoint in `out` if there is one.

    Args:
        module: a whole network or a head.
        batches: what it is trained on.
        options: how.
        out: the run folder.
        validate: called after each epoch; its scores go into the metrics.
        failures: files that could not be read are added here.
        objective: what is minimised.
        right: name of the share of right answers in the metrics.
        fabric: of :func:`sppnet.training.processes.launch`; None for one process. On several each has its own part of every
            batch; gradients, batch norm and metrics are those of the whole batch, the first process validates and
            writes.

    Returns:
        False where the training was interrupted; the checkpoint then has everything that was done.
    """
    if fabric is None:
        refuse_several("this training")
        fabric = launch(options, out)
    raw = _optimizer(module, options)
    wrapped, optimizer = fabric.setup(module, raw)
    # Only now is the module on its device, and the optimiser's state goes where the module is.
    at, saved = load_checkpoint(out, module, raw), time.monotonic()
    rank = fabric.global_rank
    if rank > 0:  # what earlier processes had seen together is counted once
        at = Progress(at.epoch, at.step)
    everything = options.epochs * batches.steps
    with _interrupts() as interrupted, _shared_statistics(fabric), _deterministic(options.deterministic):
        while at.epoch < options.epochs:
            wrapped.train()
            described = f"epoch {at.epoch + 1}/{options.epochs}"
            since = time.monotonic() - at.seconds
            for x, y, bad in track(batches.epoch(at.epoch, at.step), described, batches.steps, at.step):
                failures.extend(bad)
                step = at.epoch * batches.steps + at.step
                for group in raw.param_groups:
                    group["lr"] = _rate(options, step / everything)
                # Dropout draws the same in a resumed step as in an undisturbed one, and on each process its own.
                torch.manual_seed(hash((options.seed, step) if not rank else (options.seed, step, rank)) % (1 << 63))
                (answers,) = total(fabric, len(y))
                if answers:
                    loss, hits = _loss(wrapped, objective, fabric.to_device(x), fabric.to_device(y))
                    if not loss.isfinite():
                        where = f"epoch {at.epoch + 1}, batch {at.step + 1}"
                        raise RuntimeError(
                            f"the loss is {float(loss.detach())} in {where}: lower the learning rate, --lr, which is"
                            f" {options.rate}; {out} is as its last checkpoint left it"
                        )
                    optimizer.zero_grad()
                    # Processes average their gradients; the loss is averaged over answers.
                    fabric.backward(loss * (len(y) * fabric.world_size / answers) if fabric.world_size > 1 else loss)
                    optimizer.step()
                    at.seen += len(y)
                    at.correct += hits
                    at.loss += float(loss.detach()) * len(y)
                at.step += 1
                at.seconds = time.monotonic() - since
                late = rank == 0 and time.monotonic() - saved > _SAVE_SECONDS
                stop, save = total(fabric, interrupted(), late)
                if stop or save:
                    _save(fabric, out, module, raw, at)
                    saved = time.monotonic()
                if stop:
                    failures[:] = gather(fabric, failures)
                    return False
            done = _save(fabric, out, module, raw, at)
            if not done.seen:
                first = gather(fabric, failures)[0]
                raise ValueError(f"data: none of the images can be read, the first is {first}")
            if rank == 0:
                rate = _rate(options, (at.epoch * batches.steps + at.step - 1) / everything)
                _log(fabric, out, done, batches.side(at.epoch), rate, right, validate())
            fabric.barrier()
            at = Progress(epoch=at.epoch + 1)
            _save(fabric, out, module, raw, at)
            saved = time.monotonic()
            (stop,) = total(fabric, interrupted())
            if stop and at.epoch < options.epochs:
                failures[:] = gather(fabric, failures)
                return False
    failures[:] = gather(fabric, failures)
    return True


def _loss(wrapped: nn.Module, objective: Objective, x: Any, y: Any) -> tuple[Tensor, float]:
    """Loss and right answers; 0 where this process has no answer, whose part in the exchange must still be played."""
    out = wrapped(*x) if isinstance(x, tuple) else wrapped(x)
    return objective(out, y) if len(y) else (out.sum() * 0, 0)


def _save(fabric: Any, out: Path, module: nn.Module, optimizer: torch.optim.Optimizer, at: Progress) -> Progress:
    """Write a checkpoint from the first process; the progress of all together."""
    seen, correct, loss = total(fabric, at.seen, at.correct, at.loss)
    together = replace(at, seen=int(seen), correct=correct, loss=loss)
    if fabric.global_rank == 0:
        save_checkpoint(out, module, optimizer, together)
    fabric.barrier()
    return together


def _shared_statistics(fabric: Any) -> AbstractContextManager[Any]:
    return SharedBatchNorm() if fabric.world_size > 1 else nullcontext()


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """Only operators that give the same bits each time; one that cannot raises."""
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for; read at its first use
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
    """Learning rate when a share of all steps is done."""
    if options.schedule == "cosine":
        return options.rate * (1 + math.cos(math.pi * done)) / 2
    if options.schedule == "poly":  # DeepLab v2, section 4.1
        return options.rate * math.pow(1 - done, 0.9)
    return options.rate * 0.1 ** ((done >= 0.6) + (done >= 0.85))


def _log(
    fabric: Any, out: Path, at: Progress, side: int | None, lr: float, right: str, val: Mapping[str, float] | None
) -> None:
    """One line of metrics; lines of an epoch that is done again after a kill are replaced."""
    seen = max(at.seen, 1)
    line: dict[str, Any] = {"epoch": at.epoch + 1, "size": side, "lr": lr, "seconds": round(at.seconds, 2)}
    line |= {"train_loss": at.loss / seen, f"train_{right}": at.correct / seen}
    line |= {f"val_{name}": value for name, value in (val or {}).items()}
    path = out / METRICS
    old = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [text for text in old if json.loads(text)["epoch"] <= at.epoch]
    write_text("\n".join([*kept, json.dumps(line)]) + "\n", path)
    fabric.log_dict({name: value for name, value in line.items() if isinstance(value, float)}, step=at.epoch + 1)
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in line.items()}
    console.print("  ".join(f"{name} {value}" for name, value in shown.items() if value is not None), highlight=False)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that the step under way ends; a second one acts at once."""
    seen: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        console.print("stopping after this step; once more stops at once", highlight=False)

    try:
        old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where signals cannot be had
        old = {}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
