"""Optimizers, learning rates and the cross entropy."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sppnet.training.options import LoopOptions


def create_optimizer(module: nn.Module, options: LoopOptions) -> torch.optim.Optimizer:
    """Create the optimizer of the trainable parameters; biases and the parameters of norms do not decay."""
    import timm.optim  # takes seconds

    groups = timm.optim.param_groups_weight_decay(module, options.decay)  # type: ignore[attr-defined]
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, options.rate, momentum=0.9)
    return torch.optim.AdamW(groups, options.rate)


def learning_rate(options: LoopOptions, epochs: float, step: float) -> float:
    """Return the learning rate of a step.

    Args:
        options: training options.
        epochs: number of epochs done, with the fraction of the current one.
        step: length of the step in epochs; the last step of the warm-up has the full rate.
    """
    warmup = options.warmup_epochs
    if epochs < warmup:
        return options.rate * min((epochs + step) / warmup, 1)
    done = (epochs - warmup) / (options.epochs - warmup)
    if options.schedule == "cosine":
        return options.rate * (1 + math.cos(math.pi * done)) / 2
    if options.schedule == "poly":  # DeepLab v2, section 4.1
        return options.rate * math.pow(1 - done, 0.9)
    return options.rate * 0.1 ** ((done >= 0.6) + (done >= 0.85))


def classification(
    logits: Float[Tensor, "n c"],
    labels: Int[Tensor, " n"],
    weights: Float[Tensor, " c"] | None = None,
    smoothing: float = 0,
) -> tuple[Float[Tensor, ""], int]:
    """Return the cross entropy and the number of correct predictions.

    Args:
        logits: predictions.
        labels: correct classes.
        weights: weight of each class. The loss is divided by the number of targets, not by their weights, so that it
            does not depend on how a batch is divided.
        smoothing: label smoothing.
    """
    weights = None if weights is None else weights.to(logits)
    losses = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=smoothing)
    return losses.mean(), int((logits.argmax(1) == labels).sum())


def balanced_weights(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, " c"]:
    """Return class weights inversely proportional to the number of samples, with a mean of 1 over all samples.

    Classes without samples have weight 1.
    """
    counts = labels.bincount(minlength=num_classes)
    weights = len(labels) / (counts.clamp(min=1) * counts.count_nonzero())
    return torch.where(counts > 0, weights, 1.0)
