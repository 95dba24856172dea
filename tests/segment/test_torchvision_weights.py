import warnings

import pytest
import torch
from torch import nn
from torchvision.models.segmentation import deeplabv3_resnet50

from sppnet.segment.torchvision_weights import from_torchvision


@pytest.fixture(scope="module")
def reference() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.normal_(layer.bias, std=0.1)
    nn.init.normal_(model.classifier[4].weight, std=0.1)
    return model.eval()  # type: ignore[no-any-return]


def test_logits_match_torchvision(reference: nn.Module) -> None:
    model = from_torchvision(reference.state_dict())
    assert model.config.classes[:2] == ("background", "aeroplane")
    for size in ((97, 130), (64, 65)):
        x = torch.randn(1, 3, *size)
        with torch.inference_mode():
            expected = reference(x)["out"]
            assert expected.abs().max() > 0.3
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_rejects_weights_and_classes_that_do_not_fit(reference: nn.Module) -> None:
    state = reference.state_dict()
    with pytest.raises(ValueError, match="classes: expected 21 names, one per class of the network, got 2"):
        from_torchvision(state, ("a", "b"))
    with pytest.raises(ValueError, match="state: expected the tensors of torchvision's deeplabv3_resnet50"):
        from_torchvision({"conv.weight": torch.zeros(1)})
    incomplete = {name: tensor for name, tensor in state.items() if name != "classifier.0.project.0.weight"}
    with pytest.raises(ValueError, match=r"torchvision lacks 1 of .*head\.context\.project\.0\.weight"):
        from_torchvision(incomplete)
