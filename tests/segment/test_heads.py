from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sppnet.layers.aspp import ASPP
from sppnet.layers.norms import SafeBatchNorm2d
from sppnet.layers.ppm import PyramidPoolingModule
from tests.helpers.tiny_segmenter import HEADS, tiny_segmenter


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.filterwarnings("ignore:ASPP")
def test_all_heads_train_at_batch_size_1(options: dict[str, Any]) -> None:
    model = tiny_segmenter(**options).train()
    for size in ((33, 33), (40, 70)):
        loss = F.cross_entropy(model(torch.randn(1, 3, *size)), torch.zeros(1, *size, dtype=torch.long))
        loss.backward()
        assert loss.isfinite()
        gradients = [parameter.grad for parameter in model.head.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


def test_heads_have_the_modules_of_their_papers() -> None:
    plus, v3, v2, psp = (tiny_segmenter(head=head) for head in ("deeplabv3plus", "deeplabv3", "deeplabv2", "pspnet"))
    assert isinstance(plus.head.context, ASPP)
    assert plus.head.fine is not None
    assert plus.head.fine[0].out_channels == 48  # type: ignore[index]
    assert plus.head.classify[0][0].in_channels == 16 + 48  # type: ignore[index]
    assert [len(plus.head.classify), len(v3.head.classify)] == [3, 1]  # type: ignore[arg-type]
    assert isinstance(v2.head.context, ASPP)
    assert v2.head.context.project is None
    assert isinstance(v2.head.classify, nn.Identity)
    assert isinstance(psp.head.context, nn.Sequential)
    assert isinstance(psp.head.context[0], PyramidPoolingModule)
    assert any(isinstance(layer, SafeBatchNorm2d) for layer in plus.head.modules())
