"""The training loop: the same for whole networks and for heads on vectors that were computed before."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sppnet.checkpoint import Progress, load_checkpoint, save_checkpoint
from sppnet.console import console, track
from sppnet.data.images import ImageError
from sppnet.options import LoopOptions
from sppnet.runs import write_text

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

    Returns:
        False where the training was interrupted; the checkpoint then has everything that was done.
    """
    from lightning_fabric import Fabric  # seconds to import, and only training needs it

    fabric = Fabric(accelerator=options.device, devices=1, precision=options.precision, loggers=_loggers(options, out))
    raw = _optimizer(module, options)
    wrapped, optimizer = fabric.setup(module, raw)
    # Only now is the module on its device, and the optimiser's state goes where the module is.
    at = load_checkpoint(out, module, raw)
    total, saved = options.epochs * batches.steps, time.monotonic()
    with _interrupts() as interrupted:
        while at.epoch < options.epochs:
            wrapped.train()
            described = f"epoch {at.epoch + 1}/{options.epochs}"
            since = time.monotonic() - at.seconds
            for x, y, bad in track(batches.epoch(at.epoch, at.step), described, batches.steps, at.step):
                failures.extend(bad)
                step = at.epoch * batches.steps + at.step
                for group in raw.param_groups:
                    group["lr"] = _rate(options, step / total)
                # Dropout draws the same in a resumed step as in an undisturbed one.
                torch.manual_seed(hash((options.seed, step)) % (1 << 63))
                if len(y):
                    loss, hits = objective(wrapped(fabric.to_device(x)), fabric.to_device(y))
                    if not loss.isfinite():
                        where = f"epoch {at.epoch + 1}, batch {at.step + 1}"
                        raise RuntimeError(
                            f"the loss is {float(loss.detach())} in {where}: lower the learning rate, --lr, which is"
                            f" {options.rate}; {out} is as its last checkpoint left it"
                        )
                    optimizer.zero_grad()
                    fabric.backward(loss)
                    optimizer.step()
                    at.seen += len(y)
                    at.correct += hits
                    at.loss += float(loss.detach()) * len(y)
                at.step += 1
                at.seconds = time.monotonic() - since
                stop = interrupted()
                if stop or time.monotonic() - saved > _SAVE_SECONDS:
                    save_checkpoint(out, module, raw, at)
                    saved = time.monotonic()
                if stop:
                    return False
            if not at.seen:
                raise ValueError(f"data: none of the images can be read, the first is {failures[0]}")
            save_checkpoint(out, module, raw, at)
            _log(
                fabric,
                out,
                at,
                batches.side(at.epoch),
                _rate(options, (at.epoch * batches.steps + at.step - 1) / total),
                right,
                validate(),
            )
            at = Progress(epoch=at.epoch + 1)
            save_checkpoint(out, module, raw, at)
            saved = time.monotonic()
            if interrupted() and at.epoch < options.epochs:
                return False
    return True


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


def _loggers(options: LoopOptions, out: Path) -> list[Any]:
    if not options.tensorboard:
        return []
    try:
        import tensorboard  # type: ignore[import-untyped] # noqa: F401
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('TensorBoard events need tensorboard: pip install "sppnet[log]"') from error
    return [TensorBoardLogger(out, name="tensorboard", version="")]


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
