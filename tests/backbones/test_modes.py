import pytest
import torch
from torch import nn

from sppnet import Classifier, ClassifierConfig, create_backbone
from sppnet.backbones.modes import evaluation_mode


def network() -> nn.Sequential:
    model = nn.Sequential(nn.Dropout(0.5), nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5)))
    model.train()
    model[1][0].eval()  # type: ignore[index]
    return model


def test_evaluation_mode_restores_the_mode_of_each_module() -> None:
    model = network()
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_evaluation_mode_restores_modes_after_an_error() -> None:
    model = network()
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyError), evaluation_mode(model):
        raise KeyError
    assert [module.training for module in model.modules()] == modes


def test_prediction_keeps_the_modes_of_a_partly_frozen_model() -> None:
    model = Classifier(ClassifierConfig(("a", "b"), "zf5", head="fc"), create_backbone("zf5")).train()
    model.backbone.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    image = (255 * torch.rand(160, 130, 3)).byte().numpy()
    first, second = (model.predict(image)[0].score for _ in range(2))
    assert first == second  # no dropout
    assert {name: module.training for name, module in model.named_modules()} == modes
