"""Options of the training loop: defaults and checks."""

import pytest

from sppnet.training.options import LoopOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"optimizer": "adam"}, "optimizer: expected one of adamw, sgd, got 'adam'; did you mean 'adamw'"),
        ({"lr": -1.0}, "lr: expected a number of at least 0, got -1.0"),
        ({"seed": -1}, "seed: expected 0..4294967295, got -1"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
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
