"""Options of the training loop: defaults and checks."""

from pathlib import Path

import pytest

from sppnet.classify.options import ClassifyOptions
from sppnet.segment.options import SegmentOptions
from sppnet.training.options import LoopOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: expected one of adamw, sgd, got 'adam'; did you mean 'adamw'"),
        ({"lr": -1.0}, "lr: expected a number of at least 0, got -1.0"),
        ({"seed": -1}, "seed: expected 0..4294967295, got -1"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"accumulate": 0}, "accumulate: expected at least 1, got 0"),
        ({"ema": 1.0}, r"ema: expected a number in \[0, 1\), got 1.0"),
        ({"label_smoothing": -0.1}, r"label_smoothing: expected a number in \[0, 1\), got -0.1"),
        ({"warmup_epochs": 20.0}, "warmup_epochs: expected less than all 20 epochs, and at least 0, got 20.0"),
        ({"patience": 0}, "patience: expected at least 1, got 0"),
        ({"train_stages": "some"}, "train_stages: expected 0, a number of stages, or all, got 'some'"),
        ({"train_stages": "2", "freeze_backbone": True}, "train_stages: expected 0 with freeze_backbone, got 2"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_wrong_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoopOptions(**values)  # type: ignore[arg-type]


def test_learning_rate_and_weight_decay_default_to_the_optimizer() -> None:
    assert (LoopOptions().rate, LoopOptions().decay) == (3e-4, 5e-2)
    assert (LoopOptions(optimizer="sgd").rate, LoopOptions(optimizer="sgd").decay) == (1e-2, 5e-4)
    assert (LoopOptions(lr=0.0, weight_decay=0.0).rate, LoopOptions(lr=0.0, weight_decay=0.0).decay) == (0, 0)


def test_monitor_is_a_score_of_the_task() -> None:
    for kind in (ClassifyOptions, SegmentOptions):
        assert kind(train_stages="all", monitor=kind.SCORES[1]).monitor == kind.SCORES[1]
        with pytest.raises(ValueError, match=r"monitor: expected one of .*; did you mean"):
            kind(train_stages="all", monitor=kind.SCORES[0][:-1])


@pytest.mark.usefixtures("unchecked")
def test_freeze_backbone_is_another_name_of_stages_zero() -> None:
    assert [kind(freeze_backbone=True).train_stages for kind in (LoopOptions, ClassifyOptions)] == ["0", "0"]
    assert [kind().train_stages for kind in (LoopOptions, ClassifyOptions, SegmentOptions)] == ["all", "0", "all"]
    assert LoopOptions(train_stages=2).train_stages == "2"  # type: ignore[arg-type]


def test_run_to_start_from_is_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert LoopOptions(init="run").init == str(tmp_path / "run")
