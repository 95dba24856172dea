"""The training loop on a small linear model."""

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from sppnet.errors import ImageError
from sppnet.training.loop import fit
from sppnet.training.options import LoopOptions


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
    with pytest.raises(RuntimeError, match=r"the loss is .* in epoch 1, batch \d: lower the learning rate"):
        fit(nn.Linear(2, 3), FixedBatches([LABELS] * 9), options(lr=1e38, optimizer="sgd"), tmp_path, dict, [])


def test_first_interrupt_saves_a_checkpoint_and_second_stops_at_once(tmp_path: Path) -> None:
    batches = FixedBatches([LABELS] * 3, interrupts=(1,))
    assert not fit(nn.Linear(2, 3), batches, options(), tmp_path, dict, [])
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert not (tmp_path / "metrics.jsonl").exists()
    batches.interrupts = (2, 2)
    with pytest.raises(KeyboardInterrupt):
        fit(nn.Linear(2, 3), batches, options(), tmp_path, dict, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_writes_tensorboard_events(tmp_path: Path) -> None:
    assert fit(nn.Linear(2, 3), FixedBatches([LABELS]), options(tensorboard=True), tmp_path, dict, [])
    assert list((tmp_path / "tensorboard").glob("events*"))
