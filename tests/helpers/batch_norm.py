"""Batch norms with random statistics and weights."""

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def randomize_batch_norms(module: Module) -> Module:
    """Randomize all batch norms of a module in place, and return it in evaluation mode."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias, std=0.1)
    return module.eval()
