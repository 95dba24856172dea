"""Parameter groups, learning rates, and the cross entropy."""

import pytest
import torch
from torch import nn

from sppnet.training.optimizer import balanced_weights, classification, create_optimizer, learning_rate
from sppnet.training.options import LoopOptions


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_biases_and_norms_do_not_decay(optimizer: str) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module[0].bias.requires_grad_(False)
    groups = create_optimizer(module, LoopOptions(optimizer=optimizer, weight_decay=0.1)).param_groups  # type: ignore[arg-type]
    decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decays == {id(module[0].weight): 0.1, id(module[1].weight): 0, id(module[1].bias): 0}


def test_rate_rises_linearly_before_the_schedule() -> None:
    options = LoopOptions(epochs=6, lr=0.8, warmup_epochs=2)
    assert [learning_rate(options, step / 2, 0.5) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    plain = LoopOptions(epochs=4, lr=0.8)
    assert [learning_rate(options, 2 + step, 0.5) for step in range(4)] == [
        learning_rate(plain, step, 0.5) for step in range(4)
    ]


def test_balanced_weights_give_each_class_the_same_weight() -> None:
    weights = balanced_weights(torch.tensor([0, 0, 0, 2]), 4)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 1, 2, 1]))


def test_weighted_loss_does_not_depend_on_how_a_batch_is_divided() -> None:
    logits, labels, weights = torch.randn(6, 3), torch.tensor([0, 0, 1, 2, 0, 1]), torch.tensor([0.5, 1.0, 3.0])
    whole, correct = classification(logits, labels, weights, smoothing=0.1)
    parts = [classification(logits[part], labels[part], weights, 0.1) for part in (slice(0, 2), slice(2, 6))]
    torch.testing.assert_close((2 * parts[0][0] + 4 * parts[1][0]) / 6, whole)
    assert sum(part[1] for part in parts) == correct
    expected = nn.functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=0.1) / 6
    torch.testing.assert_close(whole, expected)
