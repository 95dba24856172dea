"""Vectors to fit linear heads to, and the logits of fitted heads."""

import torch
from torch import Tensor, nn

from sppnet.classify.network import create_head


def clusters(classes: int, each: int, width: int) -> tuple[Tensor, Tensor]:
    """Return noisy vectors around one random center for each class, and their class indices."""
    centers = torch.rand(classes, width)
    labels = torch.arange(classes).repeat_interleave(each)
    return centers[labels] + 0.15 * torch.randn(len(labels), width), labels


def logits_of(layer: nn.Linear, vectors: Tensor) -> Tensor:
    """Apply a layer as part of the ``linear`` head, which normalizes the vectors."""
    head = create_head("linear", layer.in_features, layer.out_features)
    head.get_submodule("fc").load_state_dict(layer.state_dict())
    logits: Tensor = head(vectors)
    return logits.detach()
