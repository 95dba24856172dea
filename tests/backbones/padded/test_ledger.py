"""Padded batches: errors for unsupported functions, and in-place writes through other tensors."""

import math
import warnings
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet import PaddingError
from sppnet.backbones.padded.mode import PaddedBatch
from tests.helpers.padded_layers import CHANNELS, Function, Layer, canvas, crop, run


def pad_then_write(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1))
    x.mul_(2)
    return F.avg_pool2d(padded, 3)


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.flip(x, (3,))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
    scripted_shrink = torch.jit.script(nn.Hardshrink())
    scripted_softsign = torch.jit.script(F.softsign)


def flip_below_torch_functions(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.flip(3)


positions = torch.randn(1, CHANNELS, 6, 6, dtype=torch.float64)
eye = torch.eye(6, dtype=torch.float64)
UNSUPPORTED: dict[str, tuple[Function, str]] = {
    "operand by position": (lambda x: x + positions, r"add has an operand of shape \(1, 4, 6, 6\) that may vary by"),
    "operand by column": (lambda x: x * eye[0], r"mul has an operand of shape \(6,\)"),
    "operand by position first": (lambda x: positions.clone().add_(x), "add has an operand"),
    "expanded positions": (lambda x: x + eye[0].expand_as(x), "expand_as expands a tensor that may vary by position"),
    "concatenated positions": (lambda x: torch.cat([x, positions.expand(2, -1, -1, -1)], 1), "cat concatenates"),
    "five dimensions": (lambda x: x * torch.ones(3, 1, 1, 1, 1), "mul has an operand"),
    "unsqueezed": (lambda x: x.unsqueeze(0), "no padding rule for unsqueeze"),
    "shifted": (lambda x: torch.roll(x, 1, 3), "there is no padding rule for roll"),
    "transposed": (lambda x: x.mT, "a map is read through an attribute such as .data"),
    "data": (lambda x: x.data, "a map is read through an attribute"),
    "data of a padded map": (lambda x: F.pad(x, (1, 1)).data, "a map is read through an attribute"),
    "transposed by permute": (lambda x: x.permute(0, 1, 3, 2), r"permute has the order \(0, 1, 3, 2\)"),
    "images permuted": (lambda x: torch.permute(x, dims=(1, 0, 2, 3)), "permute has the order"),
    "flattened": (lambda x: x.flatten(2), "no padding rule for flatten"),
    "viewed": (lambda x: x.view(2, -1), "no padding rule for view"),
    "summed": (lambda x: x.sum((2, 3)), "no padding rule for sum"),
    "einsum": (lambda x: torch.einsum("nchw->nc", x), "no padding rule for einsum"),
    "amax": (lambda x: x.amax((2, 3)), "no padding rule for amax"),
    "global max pool": (lambda x: F.adaptive_max_pool2d(x, 1), "no padding rule for adaptive_max_pool2d"),
    "bins": (lambda x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d has output size 2"),
    "bins of rows": (lambda x: F.adaptive_avg_pool2d(x, (None, 1)), "adaptive_avg_pool2d has output size"),
    "mean of all": (lambda x: x.mean(), "mean reduces dimensions None"),
    "mean of columns": (lambda x: x.mean(3), "mean reduces dimensions 3"),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), "mean reduces dimensions 1"),
    "mean with channels last": (lambda x: x.permute(0, 2, 3, 1).mean((2, 3)), "mean reduces dimensions"),
    "mean along an axis": (lambda x: x.mean(axis=(2, 3)), "mean is called with unsupported arguments"),
    "mean with out": (lambda x: torch.mean(x, (2, 3), out=torch.empty(2, 4).double()), "mean has an out argument"),
    "add with out": (lambda x: torch.add(x, x, out=x.clone()), "add has an out argument"),
    "infinity norm": (lambda x: x.norm(p=math.inf, dim=(2, 3)), "norm of order inf"),
    "norm of channels": (lambda x: x.norm(p=2, dim=1), "norm of order 2 reduces dimensions 1"),
    "softmax": (lambda x: x.softmax(-1), "no padding rule for softmax"),
    "instance norm": (lambda x: F.instance_norm(x), "no padding rule for instance_norm"),
    "layer norm of cells": (lambda x: F.layer_norm(x, (6, 6)), "layer_norm reduces rows or columns"),
    "linear of columns": (lambda x: F.linear(x, eye), "linear is applied along columns"),
    "torch.batch_norm": (
        lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False),
        "batch_norm is not called as F.batch_norm",
    ),
    "batch norm with channels last": (lambda x: F.batch_norm(x.permute(0, 2, 3, 1), None, None, None), "channels-last"),
    "response norm with channels last": (lambda x: F.local_response_norm(x.permute(0, 2, 3, 1), 3), "channels-last"),
    "group norm with channels last": (lambda x: F.group_norm(x.permute(0, 2, 3, 1), 2), "channels-last"),
    "max pool with channels last": (lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), 3), "channels-last"),
    "weight and input": (lambda x: F.conv2d(x, x), "conv2d has more than one map as input"),
    "weight": (lambda x: F.conv2d(positions, x), "a map is used as something other than the input"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), r"pad with mode reflect and amounts \(1, 1"),
    "cropping": (lambda x: F.pad(x, (-1, 0)), r"pad with mode constant and amounts \(-1, 0\)"),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)), "pad with mode constant"),
    "pad before add": (lambda x: F.pad(x, (1, 1)) + 1, "there is no padding rule for add after a pad"),
    "zero pad before max pool": (lambda x: F.max_pool2d(F.pad(x, (1, 1)), 2), "a pad precedes a layer"),
    "pad before ceil_mode": (
        lambda x: F.max_pool2d(F.pad(x, (0, 1), value=-math.inf), 2, ceil_mode=True), "a pad precedes a layer",
    ),
    "pad as output": (lambda x: F.pad(x, (1, 1)), "a map is used as something other"),
    "write after pad": (pad_then_write, "a map is modified after it was padded"),
    "interpolation": (lambda x: F.interpolate(x, scale_factor=2.0), "no padding rule for interpolate"),
    "max pool with indices": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "rule for max_pool2d_with_indices"),
    "some rows": (lambda x: x[:, :, 1:], "indexing selects part of the map or of the batch"),
    "some columns with channels last": (lambda x: x.permute(0, 2, 3, 1)[:, :, 1:], "indexing selects part"),
    "some images": (lambda x: x[:1], "indexing selects part"),
    "one more dimension": (lambda x: x[:, None], "indexing selects part"),
    "concatenated images": (lambda x: torch.cat([x, x]), "cat concatenates along dimension 0"),
    "cat along an axis": (lambda x: torch.cat([x, x], axis=1), "cat is called with unsupported arguments"),  # type: ignore[call-arg]
    "split columns": (lambda x: x.chunk(2, 3)[0], "chunk splits along dimension 3"),
    "split images": (lambda x: x.split(1)[0], "split splits along dimension 0"),
    "maps of different sizes": (lambda x: x + F.avg_pool2d(x, 2), "add combines maps of different images or layouts"),
    "division by a map": (lambda x: 1 + x / (x + 2), "div divides by a map"),
    "map as exponent": (lambda x: torch.pow(2, x), "pow is in-place, or its exponent is not a number"),
    "root in place": (lambda x: x.pow_(0.5), "pow is in-place"),
    "comparison": (lambda x: torch.where(x > 0, x, 0), "no padding rule for gt"),
    "conversion to numpy": (lambda x: x * x.detach().numpy().max(), "no padding rule for numpy"),
    "copy into a tensor": (lambda x: torch.zeros(2, 4, 6, 6).double().copy_(x), "no padding rule for copy"),
    "assignment": (lambda x: positions.clone().index_put_((torch.tensor([0]),), x[:, :1]), "rule for index_put"),
    "aten operator": (lambda x: torch.ops.aten.flip(x, [3]), "no padding rule for flip"),
    "aten overload": (lambda x: torch.ops.aten.relu.default(x), r"no padding rule for relu\.default"),
    "custom autograd function": (Flip.apply, "no padding rule for flip"),
    "script": (scripted_softsign, r"aten\.abs\.default bypasses torch functions"),
    "legacy constructor": (lambda x: torch.DoubleTensor(x), "bypasses torch functions"),
    "scripted layer": (scripted_shrink, "bypasses torch functions"),
    "torch functions disabled": (flip_below_torch_functions, r"aten\.flip\.default bypasses torch functions"),
    "image too small": (lambda x: F.conv2d(x, torch.ones(1, 4, 4, 4).double()), "an image is too small for this"),
}  # fmt: skip


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", UNSUPPORTED)
def test_rejects_unsupported_functions(name: str, grad: bool) -> None:
    function, message = UNSUPPORTED[name]
    sizes = [(6, 6), (4, 3)]
    with torch.set_grad_enabled(grad), pytest.raises(PaddingError, match=message):
        run(Layer(function), canvas(sizes), sizes)


def test_error_names_the_layer() -> None:
    network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2.0)))
    with pytest.raises(
        PaddingError,
        match=r"^sizes: this network does not support images of different sizes in one batch: there is no padding rule"
        r" for interpolate in 1\.1 \(Upsample\); pass images of one size at a time$",
    ):
        run(network.double(), canvas([(6, 6), (4, 3)]), [(6, 6), (4, 3)])


def write_to_view(x: Tensor) -> Tensor:
    first, _ = x.chunk(2, 1)
    first.add_(1)
    return F.avg_pool2d(x, 3, 1, 1)


def write_to_base(x: Tensor) -> Tensor:
    view = x.permute(0, 2, 3, 1)
    x.add_(1)
    return F.avg_pool2d(view.permute(0, 3, 1, 2), 3, 1, 1)


def write_to_detached(x: Tensor) -> Tensor:
    x.detach().add_(1)
    return F.avg_pool2d(x, 3, 1, 1)


def overflow_to_infinity(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.abs() * x.sigmoid().mul(1e308).mul(1e308), 3, 1, 1).clamp(-1, 1)


@pytest.mark.parametrize("function", [write_to_view, write_to_base, write_to_detached, overflow_to_infinity])
@pytest.mark.parametrize("grad", [False, True])
def test_tracks_writes_through_other_tensors(function: Function, grad: bool) -> None:
    sizes = [(6, 6), (4, 3)]
    x = canvas(sizes)
    with torch.set_grad_enabled(grad):
        out, _ = run(Layer(function), x.clone(), sizes)
    for batched, image in zip(crop(out, sizes), crop(x, sizes), strict=True):
        torch.testing.assert_close(batched, function(image.clone()))


def test_keeps_activations_needed_for_gradients() -> None:
    """Padding is not cleared in place, even where gradients are disabled for a part of the network."""

    def function(x: Tensor) -> Tensor:
        x = x.sigmoid()
        with torch.no_grad():
            frozen = F.avg_pool2d(x, 3, 1, 1)
        out: Tensor = x * frozen
        return out[:, :]

    sizes = [(6, 6), (4, 3)]
    x = canvas(sizes).requires_grad_()
    out, _ = run(Layer(function), x, sizes)
    out.sum().backward()
    assert x.grad is not None
    for image, gradient in zip(crop(x.detach(), sizes), crop(x.grad, sizes), strict=True):
        single = image.clone().requires_grad_()
        function(single).sum().backward()
        torch.testing.assert_close(gradient, single.grad)


def test_rejects_gradient_checkpointing_if_gradients_are_enabled() -> None:
    network = timm.create_model("test_resnet")
    network.set_grad_checkpointing()  # type: ignore[operator]
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(PaddingError, match=r"it recomputes activations for the gradient \(grad_checkpointing\)"):
        run(network, x, [(64, 64), (40, 50)])
    with torch.no_grad(), PaddedBatch(network, same=False) as batch:
        network.forward_features(batch.enter(x, [(64, 64), (40, 50)]))  # type: ignore[operator]
