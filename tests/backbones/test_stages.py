"""Freezing of the first stages of a backbone."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sppnet.backbones.backbone import create_backbone
from sppnet.backbones.modes import evaluation_mode
from sppnet.backbones.stages import count_stages, freeze_stages

NETWORKS = [
    "test_resnet",
    "test_vit",
    "tf_efficientnet_lite0",
    "mobilenetv3_small_050",
    "convnext_atto",
    "densenet121",
    "vgg11",
]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stage", [None, -2])
def test_frozen_are_the_layers_that_the_map_before_the_trained_stages_depends_on(name: str, stage: int | None) -> None:
    backbone = create_backbone(name, stage, None)
    network: Any = backbone.network
    end = network.feature_info[count_stages(backbone) - 3]["module"]
    maps: list[Tensor] = []
    hook = network.get_submodule(end).register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    backbone(torch.randn(2, 3, 64, 64))
    maps[0].square().mean().backward()
    before = {key for key, parameter in network.named_parameters() if parameter.grad is not None}
    network.zero_grad()
    freeze_stages(backbone, "2")
    assert {key for key, parameter in network.named_parameters() if not parameter.requires_grad} == before
    backbone(torch.randn(2, 3, 64, 64)).data.square().mean().backward()
    hook.remove()
    assert not maps[1].requires_grad
    assert any(parameter.grad is not None for parameter in network.parameters())


def test_frozen_modules_stay_in_evaluation_mode() -> None:
    backbone = create_backbone("test_resnet", None, None)
    freeze_stages(backbone, "2")
    statistics = {name: buffer.clone() for name, buffer in backbone.named_buffers()}
    backbone.train()
    with evaluation_mode(backbone):
        assert not any(module.training for module in backbone.modules())
    backbone(torch.randn(2, 3, 64, 64))
    changed = {name for name, buffer in backbone.named_buffers() if not torch.equal(buffer, statistics[name])}
    assert changed
    assert all(name.startswith(("network.layer3", "network.layer4")) for name in changed)
    assert not any(module.training for module in backbone.network.get_submodule("layer2").modules())


@pytest.mark.parametrize(("name", "stages"), [("test_resnet", 5), ("convnext_atto", 4), ("zf5", 1)])
def test_all_stages_or_none(name: str, stages: int) -> None:
    backbone = create_backbone(name, None, None)
    assert count_stages(backbone) == stages
    for value in ("all", str(stages)):
        freeze_stages(backbone, value)
        assert all(parameter.requires_grad for parameter in backbone.parameters())
    with pytest.raises(ValueError, match=f"train_stages: expected 0 to {stages}, or all, for {name}, got {stages + 1}"):
        freeze_stages(backbone, str(stages + 1))
    freeze_stages(backbone, "0")
    backbone.train()
    assert not any(module.training for module in backbone.network.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
