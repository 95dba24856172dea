"""Stages of a backbone, of which the first ones can be frozen."""

from typing import Any

from torch import nn

from sppnet.backbones.backbone import Backbone
from sppnet.backbones.paper import PAPER_NETS


def count_stages(backbone: Backbone) -> int:
    """Return the number of stages: of feature maps up to that of the backbone; 1 for the paper's networks."""
    if backbone.name in PAPER_NETS:
        return 1
    network: Any = backbone.network
    return len(network.feature_info) if backbone.stage is None else backbone.stage + 1


def modules_until(backbone: Backbone, name: str) -> list[nn.Module]:
    """Return the modules of the network up to the one of this name, in the order of execution."""
    modules = list(backbone.network.named_modules())  # which timm lists in this order
    ends = [number for number, (key, _) in enumerate(modules) if key == name or key.startswith(f"{name}.")]
    return [module for _, module in modules[1 : ends[-1] + 1]] if name and ends else []


def freeze_stages(backbone: Backbone, train_stages: str) -> None:
    """Freeze all except the last stages of a backbone: without gradients, and in evaluation mode during training.

    A stage ends with a feature map of :func:`sppnet.backbones.backbone.create_backbone`; the last one also has the
    layers behind the last map.

    Args:
        backbone: backbone, all of which is trainable.
        train_stages: number of stages to train, or ``all``.

    Raises:
        ValueError: there are fewer stages.
    """
    stages = count_stages(backbone)
    trained = stages if train_stages == "all" else int(train_stages)
    if trained > stages:
        raise ValueError(f"train_stages: expected 0 to {stages}, or all, for {backbone.name}, got {trained}")
    if trained == stages:
        return
    network: Any = backbone.network
    if trained:
        backbone.frozen = modules_until(backbone, network.feature_info[stages - trained - 1]["module"])
    else:
        backbone.frozen = list(backbone.network.modules())
    for parameter in network.parameters(recurse=False):  # embeddings of positions and of the class token
        parameter.requires_grad_(False)
    for module in backbone.frozen:
        module.training = False  # not eval(), because modules such as a list of blocks also have trained ones
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
