"""Padded batches of whole networks: each image's own answers, in evaluation and in training, or a refusal by name."""

import copy
import json

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sppnet
from sppnet.backbones import Backbone, create_backbone
from sppnet.cli import run
from sppnet.doctor import check_padding
from sppnet.padded.ledger import Ledger, PaddingError
from sppnet.padded.mode import PaddedBatch
from sppnet.padded.norm import valid_batch_norm

FAMILIES = (
    "resnet18", "vgg11_bn", "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_b0", "tf_efficientnet_lite0",
    "convnext_atto", "convnextv2_atto", "regnetx_002", "regnety_002", "zf5",
)  # fmt: skip
MORE = (
    "resnet50d", "resnetv2_50", "vgg16", "mobilenetv3_large_100", "tf_efficientnet_b0", "regnetz_005", "densenet121",
    "nfnet_l0", "inception_v3", "ghostnet_100", "rexnet_100", "resnet50_gn", "ecaresnet26t", "tf_mixnet_s", "overfeat5",
)  # fmt: skip
SIZES = [(61, 77), (48, 90), (80, 35), (77, 64)]


def build(name: str = "test_resnet") -> Backbone:
    torch.manual_seed(0)
    return create_backbone(name, None, "none").eval()


def batch(sizes: list[tuple[int, int]], fill: float = 0.0) -> Tensor:
    x = torch.full((len(sizes), 3, 83, 97), fill)
    for index, (height, width) in enumerate(sizes):
        x[index, :, :height, :width] = torch.randn(3, height, width)
    return x


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_batch_gives_what_each_image_gives_alone(name: str) -> None:
    report = check_padding(name)
    assert report.refused is None
    assert len(set(report.sizes)) == 32
    assert report.difference is not None
    assert report.difference <= 1e-5
    assert report.naive is not None
    assert report.naive > 1e-2  # or the test could not fail


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_more_networks_do_so_too(name: str) -> None:
    assert check_padding(name, images=8).exact


@pytest.mark.parametrize("fill", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("name", ["test_resnet", "tf_efficientnet_lite0", "zf5"])
def test_what_the_padding_holds_changes_nothing(name: str, fill: float) -> None:
    backbone, x = build(name), batch(SIZES)
    other = x.clone()
    for image, (height, width) in zip(other, SIZES, strict=True):
        image[:, height:], image[:, :, width:] = fill, fill
    kept = other.clone()
    with torch.inference_mode():
        features, filled = backbone(x, SIZES), backbone(other, SIZES)
    assert features.sizes is not None
    for index, (rows, columns) in enumerate(features.sizes):
        assert torch.equal(features.data[index, :, :rows, :columns], filled.data[index, :, :rows, :columns])
    torch.testing.assert_close(other, kept, rtol=0, atol=0, equal_nan=True)  # the caller's own


@pytest.mark.parametrize("name", ["test_resnet", "mobilenetv3_small_050", "tf_efficientnet_lite0", "convnextv2_atto"])
def test_training_in_a_larger_canvas_equals_training_on_the_images(name: str) -> None:
    """Outputs, gradients of all weights and of the images, running statistics."""
    backbone = build(name).double().train()
    plain = copy.deepcopy(backbone)
    images = torch.randn(3, 3, 61, 77).double()
    x = torch.full((3, 3, 83, 97), 7.0).double()
    x[:, :, :61, :77] = images
    x.requires_grad_()
    images.requires_grad_()
    features, expected = backbone(x, [(61, 77)] * 3), plain(images).data
    assert features.sizes is not None
    rows, columns = features.sizes[0]
    inside = features.data[:, :, :rows, :columns]
    torch.testing.assert_close(inside, expected)
    weights = torch.randn_like(expected)
    (inside * weights).sum().backward()
    (expected * weights).sum().backward()
    for (label, parameter), other in zip(backbone.named_parameters(), plain.parameters(), strict=True):
        if other.grad is None or parameter.grad is None:  # of a head that is not run
            assert other.grad is parameter.grad, label
        else:
            torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-6, atol=1e-8, msg=label)
    assert x.grad is not None
    assert images.grad is not None
    torch.testing.assert_close(x.grad[:, :, :61, :77], images.grad)
    assert not x.grad[:, :, 61:].any()
    assert not x.grad[:, :, :, 77:].any()
    for buffer, other_buffer in zip(backbone.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(buffer, other_buffer)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_batch_norm_equals_that_of_the_valid_cells_alone(memory: torch.memory_format) -> None:
    areas = [(5, 7), (1, 2), (6, 3)]
    outside = torch.ones(3, 6, 7, dtype=torch.bool)
    for index, (height, width) in enumerate(areas):
        outside[index, :height, :width] = False
    image, row, column = outside.nonzero(as_tuple=True)
    x = (torch.randn(3, 4, 6, 7).double() * 3 + 5).contiguous(memory_format=memory).requires_grad_()
    weight, bias = torch.randn(2, 4).double().unbind()
    weight, bias = weight.requires_grad_(), bias.requires_grad_()
    statistics = [torch.zeros(4).double(), torch.ones(4).double(), torch.zeros(4).double(), torch.ones(4).double()]
    out = valid_batch_norm(x, *statistics[:2], weight, bias, 0.1, 1e-5, (image, row, column))
    rows = x.permute(0, 2, 3, 1)[~outside]
    expected = F.batch_norm(rows, *statistics[2:], weight, bias, True, 0.1, 1e-5)
    torch.testing.assert_close(out.permute(0, 2, 3, 1)[~outside], expected)
    assert not out.permute(0, 2, 3, 1)[outside].any()
    torch.testing.assert_close(statistics[0], statistics[2])
    torch.testing.assert_close(statistics[1], statistics[3])
    weights = torch.randn_like(out)
    found = torch.autograd.grad((out * weights).sum(), (x, weight, bias))
    wanted = torch.autograd.grad((expected * weights.permute(0, 2, 3, 1)[~outside]).sum(), (x, weight, bias))
    torch.testing.assert_close(found, wanted)


def test_one_valid_cell_has_no_variance() -> None:
    outside = (torch.tensor([0]), torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(ValueError, match="x: batch norm in training needs more than 1 valid cell a channel; got 1"):
        valid_batch_norm(torch.ones(1, 2, 1, 2), None, None, None, None, 0.1, 1e-5, outside)


class Odd(nn.Module):
    """A function on a map, in a layer with a name."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)  # type: ignore[operator, no-any-return]


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), "pad"),
        (lambda x: F.interpolate(x, scale_factor=2.0), "interpolate"),
        (lambda x: x.softmax(3), "softmax"),
        (lambda x: x.flatten(2), "flatten"),
        (lambda x: x.mean(1, keepdim=True), "mean"),
        (lambda x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d"),
        (lambda x: x + torch.ones(1, 1, 83, 97), "add"),
        (lambda x: x[:, :, 1:], "part of the map"),
        (lambda x: x.mT, "attribute"),
        (lambda x: torch.einsum("nchw,nchw->nchw", x, x), "einsum"),
        (lambda x: x.flip(2), "flip"),
        (lambda x: x.roll(1, 3), "roll"),
    ],
)
def test_what_looks_elsewhere_is_refused_with_its_layer(function: object, named: str, unchecked: None) -> None:
    network = nn.Sequential(nn.Conv2d(3, 3, 1), Odd(function))
    with PaddedBatch(network, False) as padded, pytest.raises(PaddingError, match=rf"{named}.* in 1 \(Odd\)"):
        network(padded.enter(batch(SIZES), SIZES))


def test_refused_networks_name_the_layer() -> None:
    with pytest.raises(sppnet.PaddingError, match=r"reshape .* in layer1.0.conv2 \(SplitAttn\)"):
        build("resnest14d")(batch(SIZES), SIZES)


def test_doctor_tells_and_exits(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "test_resnet", "--images", "4", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert set(content) >= {"backbone", "sizes", "difference", "worst", "naive", "refused", "exact", "bound"}
    assert content["exact"] is True
    assert run(["doctor", "--backbone", "resnest14d", "--images", "4"]) == 1
    assert "resnest14d: refused." in capsys.readouterr().out
    assert run(["doctor", "--backbone", "resnet_18"]) == 2
    assert run(["doctor", "--backbone", "test_resnet", "--images", "1"]) == 2


def test_doctor_sees_padding_that_is_not_cleared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Ledger, "clear", lambda _, x: x)
    assert run(["doctor", "--backbone", "test_resnet", "--images", "4"]) == 1
    assert "test_resnet: NOT exact" in capsys.readouterr().out
