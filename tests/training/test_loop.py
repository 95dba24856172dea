"""The training loop on a small linear model."""

import json
import math
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning_fabric.loggers.csv_logs import CSVLogger
from torch import Tensor, nn

from sppnet.errors import ImageError
from sppnet.training import loop
from sppnet.training.checkpoint import load_checkpoint
from sppnet.training.loop import fit
from sppnet.training.metrics import write_metrics
from sppnet.training.optimizer import create_optimizer
from sppnet.training.options import LoopOptions
from sppnet.training.processes import launch


class FixedBatches:
    """The same batches in every epoch, with SIGINT sent before the batches listed in `interrupts`."""

    def __init__(self, targets: list[Tensor], interrupts: tuple[int, ...] = ()) -> None:
        self.targets, self.steps, self.interrupts = targets, len(targets), interrupts

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor, list[ImageError]]]:  # noqa: ARG002
        for number in range(start, self.steps):
            for _ in range(self.interrupts.count(number)):
                signal.raise_signal(signal.SIGINT)
            target = self.targets[number]
            yield torch.ones(max(len(target), 1), 2), target, []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        return None


class GivenBatches:
    """The given inputs and targets in every epoch."""

    def __init__(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        self.batches, self.steps = batches, len(batches)

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor, list[ImageError]]]:  # noqa: ARG002
        for x, y in self.batches[start:]:
            yield x, y, []

    def side(self, epoch: int) -> int | None:  # noqa: ARG002
        return None


LABELS = torch.tensor([0, 1, 2])


def options(**values: Any) -> LoopOptions:
    return LoopOptions(**{"epochs": 1, "device": "cpu", **values})


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        ("cosine", [(1 + math.cos(math.pi * epoch / 10)) / 2 for epoch in range(10)]),
        ("step", [1] * 6 + [0.1] * 3 + [0.01]),
        ("poly", [(1 - epoch / 10) ** 0.9 for epoch in range(10)]),
    ],
)
def test_learning_rate_follows_the_schedule(
    schedule: Literal["cosine", "step", "poly"], factors: list[float], tmp_path: Path
) -> None:
    assert fit(
        nn.Linear(2, 3), FixedBatches([LABELS]), options(epochs=10, lr=0.5, schedule=schedule), tmp_path, dict, []
    )
    assert [line["lr"] for line in metrics(tmp_path)] == pytest.approx([0.5 * factor for factor in factors])


def test_metrics_contain_training_and_validation_scores(tmp_path: Path) -> None:
    model = nn.Linear(2, 3)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    assert fit(model, FixedBatches([LABELS]), options(), tmp_path, lambda: {"top1": 0.75}, [])
    (line,) = metrics(tmp_path)
    assert line["train_loss"] == pytest.approx(math.log(3))
    assert line["train_top1"] == pytest.approx(1 / 3)
    assert line["val_top1"] == 0.75


def test_empty_targets_are_skipped(tmp_path: Path) -> None:
    weights = []
    for name, targets in (("a", [LABELS]), ("b", [LABELS, LABELS[:0]])):
        torch.manual_seed(0)
        model = nn.Linear(2, 3)
        (tmp_path / name).mkdir()
        fit(model, FixedBatches(targets), options(schedule="step"), tmp_path / name, dict, [])
        weights.append(model.weight)
        assert metrics(tmp_path / name)[0]["train_loss"] > 0
    assert torch.equal(*weights)


def test_epoch_of_empty_targets_is_an_error(tmp_path: Path) -> None:
    message = "data: expected an image with a training target, got none; check the annotations"
    with pytest.raises(ValueError, match=message):
        fit(nn.Linear(2, 3), FixedBatches([LABELS[:0]]), options(), tmp_path, dict, [])
    failures = [ImageError("a.png", "no such file")]
    with pytest.raises(ValueError, match=r"got none; the first error is a\.png: no such file"):
        fit(nn.Linear(2, 3), FixedBatches([LABELS[:0]]), options(), tmp_path, dict, failures)


def test_diverging_training_raises_an_error(tmp_path: Path) -> None:
    with pytest.raises(
        RuntimeError, match=r"the loss is .* in epoch 1, batch \d, at a learning rate of \S+: lower it \(--lr\)$"
    ):
        fit(nn.Linear(2, 3), FixedBatches([LABELS] * 9), options(lr=1e38, optimizer="sgd"), tmp_path, dict, [])


def test_diverging_training_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    batches = FixedBatches([LABELS] * 9)
    settings = options(epochs=2, lr=1e38, optimizer="sgd")
    assert not fit(nn.Linear(2, 3), FixedBatches([LABELS] * 9, interrupts=(0,)), settings, tmp_path, dict, [])
    for _ in range(2):
        saved = (tmp_path / "checkpoint.safetensors").read_bytes()
        with pytest.raises(RuntimeError, match=rf"\(--lr\); {tmp_path} contains the last checkpoint"):
            fit(nn.Linear(2, 3), batches, settings, tmp_path, dict, [])
        assert (tmp_path / "checkpoint.safetensors").read_bytes() == saved


@pytest.mark.parametrize(("parts", "accumulate", "sizes"), [([3, 1, 4, 2, 1, 1], 3, [8, 4]), ([5, 3, 4], 2, [8, 0, 4])])
def test_accumulated_batches_equal_one_large_batch(
    parts: list[int], accumulate: int, sizes: list[int], tmp_path: Path
) -> None:
    """Also in the last step of an epoch, which has fewer batches, and with batches of different sizes."""
    inputs, labels = torch.randn(12, 2), torch.randint(0, 3, (12,))
    weights = []
    for name, lengths, count in (("a", parts, accumulate), ("b", sizes, 1)):
        torch.manual_seed(0)
        model = nn.Linear(2, 3)
        (tmp_path / name).mkdir()
        batches = GivenBatches(list(zip(inputs.split(lengths), labels.split(lengths), strict=True)))
        settings = options(epochs=3, accumulate=count, optimizer="sgd", lr=0.5, label_smoothing=0.1)
        assert fit(model, batches, settings, tmp_path / name, dict, [])
        weights.append(model.weight)
    torch.testing.assert_close(*weights)
    rates = [[line["lr"] for line in metrics(tmp_path / name)] for name in ("a", "b")]
    assert rates[0] == pytest.approx(rates[1])


def scripted(scores: Sequence[float], model: nn.Linear, seen: list[Tensor]) -> Callable[[], dict[str, float]]:
    """Return a validation with the given scores, which keeps the weights that it is called with."""

    def validate() -> dict[str, float]:
        seen.append(model.weight.detach().clone())
        return {"top1": scores[min(len(seen), len(scores)) - 1], "other": float(len(seen))}

    return validate


@pytest.mark.parametrize(
    ("scores", "values", "epochs", "best"),
    [
        ((0.1, 0.5, 0.3, 0.5), {}, 4, 2),
        ((0.1, 0.5, 0.3, 0.5), {"monitor": "other"}, 4, 4),
        ((0.1, 0.5, 0.3, 0.4, 0.9), {"patience": 2}, 4, 2),
        ((0.1, 0.5, 0.3, 0.6), {"patience": 2}, 4, 4),
        ((math.nan, 0.5, math.nan, 0.4), {}, 4, 2),
        ((math.nan,), {"patience": 1}, 1, 1),
    ],
)
def test_best_epoch_is_kept(
    scores: tuple[float, ...], values: dict[str, Any], epochs: int, best: int, tmp_path: Path
) -> None:
    model, seen = nn.Linear(2, 3), list[Tensor]()
    settings = options(epochs=4 if len(scores) < 5 else 5, **values)
    assert fit(model, FixedBatches([LABELS]), settings, tmp_path, scripted(scores, model, seen), [])
    assert len(metrics(tmp_path)) == epochs
    assert torch.equal(model.weight, seen[best - 1])
    assert torch.equal(seen[-1], model.weight), "the last validation scores the result"
    assert len(seen) == epochs + (best < epochs)


def test_best_weights_of_a_killed_training_stay_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if validation is not deterministic, the number of the best epoch is that of the saved weights."""
    model, seen = nn.Linear(2, 3), list[Tensor]()
    settings = options(epochs=3)

    def killed(folder: Path, row: dict[str, Any]) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt
        write_metrics(folder, row)

    monkeypatch.setattr(loop, "write_metrics", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(model, FixedBatches([LABELS]), settings, tmp_path, scripted((0.5, 0.9), model, seen), [])
    monkeypatch.undo()
    resumed = nn.Linear(2, 3)
    assert fit(resumed, FixedBatches([LABELS]), settings, tmp_path, scripted((0.1, 0.05), resumed, []), [])
    assert torch.equal(resumed.weight, seen[1])
    progress = load_checkpoint(tmp_path, model, create_optimizer(model, settings))
    assert (progress.best, progress.best_epoch) == (0.1, 2)


def test_average_of_the_weights_is_validated_and_kept(tmp_path: Path) -> None:
    weights, model, seen = list[Tensor](), nn.Linear(2, 3), list[Tensor]()
    model.register_forward_pre_hook(lambda module, _: weights.append(module.weight.detach().clone()))
    batches = FixedBatches([LABELS] * 6)
    assert fit(model, batches, options(epochs=2, ema=0.6, lr=0.1), tmp_path, scripted((0.5, 0.6), model, seen), [])
    average = weights[1]
    for number, weight in enumerate(weights[2:], 2):  # weights before a step are those after the one before
        decay = min(1 - number ** (-2 / 3), 0.6)
        average = decay * average + (1 - decay) * weight
        if number == 6:
            torch.testing.assert_close(seen[0], average)
    assert torch.equal(model.weight, seen[-1])
    assert not torch.equal(model.weight, weights[-1])


def test_loggers_get_the_metrics_of_each_epoch(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="logs", version="")
    settings = options(epochs=2)
    fabric = launch(settings, tmp_path, loggers=[logger])
    assert fit(nn.Linear(2, 3), FixedBatches([LABELS]), settings, tmp_path, lambda: {"top1": 0.75}, [], fabric=fabric)
    lines = (tmp_path / "logs" / "metrics.csv").read_text().splitlines()
    assert len(lines) == 3
    assert "val_top1" in lines[0]


def test_first_interrupt_saves_a_checkpoint_and_second_stops_at_once(tmp_path: Path) -> None:
    batches, handler = FixedBatches([LABELS] * 3, interrupts=(1,)), signal.getsignal(signal.SIGINT)
    assert not fit(nn.Linear(2, 3), batches, options(), tmp_path, dict, [])
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "metrics.jsonl").exists()
    batches.interrupts = (2, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(nn.Linear(2, 3), batches, options(), tmp_path, dict, [])
    assert signal.getsignal(signal.SIGINT) is handler


def test_writes_tensorboard_events(tmp_path: Path) -> None:
    assert fit(nn.Linear(2, 3), FixedBatches([LABELS]), options(tensorboard=True), tmp_path, dict, [])
    assert list((tmp_path / "tensorboard").glob("events*"))
