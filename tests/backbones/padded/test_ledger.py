"""What cannot be exact in a padded batch is refused by name, and nothing that is written elsewhere slips through."""

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
from tests.helpers.padded_layers import CHANNELS, Function, Layer, canvas, run


def pad_then_write(x: Tensor) -> Tensor:
    padded = F.pad(x, (1, 1, 1, 1))
    x.mul_(2)
    return F.avg_pool2d(padded, 3)


class Flip(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        return torch.flip(x, (3,))


with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # scripts are on their way out
    scripted_shrink = torch.jit.script(nn.Hardshrink())
    scripted_softsign = torch.jit.script(F.softsign)


def of_no_torch_function(x: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return x.flip(3)


position = torch.randn(1, CHANNELS, 6, 6, dtype=torch.float64)
eye = torch.eye(6, dtype=torch.float64)
REFUSED: dict[str, tuple[Function, str]] = {
    "a map of positions": (lambda x: x + position, r"add takes a map of \(1, 4, 6, 6\) that does not follow"),
    "a row of positions": (lambda x: x * eye[0], r"mul takes a map of \(6,\) that does not"),
    "positions first": (lambda x: position.clone().add_(x), "add takes a map"),
    "positions spread": (lambda x: x + eye[0].expand_as(x), "expand_as spreads a map"),
    "positions joined": (lambda x: torch.cat([x, position.expand(2, -1, -1, -1)], 1), "cat joins along dimension 1"),
    "five dimensions": (lambda x: x * torch.ones(3, 1, 1, 1, 1), "mul takes a map"),
    "more images": (lambda x: x[:, :1] * 2 if len(x) > 2 else x.unsqueeze(0), "unsqueeze may look"),
    "shifted": (lambda x: torch.roll(x, 1, 3), "roll may look at other cells, and no rule is known for it"),
    "transposed": (lambda x: x.mT, "an attribute of the map is taken for a tensor"),
    "data": (lambda x: x.data, "an attribute of the map"),
    "data of a padded map": (lambda x: F.pad(x, (1, 1)).data, "an attribute of the map"),
    "transposed by a permutation": (lambda x: x.permute(0, 1, 3, 2), r"permute gives the order \(0, 1, 3, 2\)"),
    "images permuted": (lambda x: torch.permute(x, dims=(1, 0, 2, 3)), "permute gives the order"),
    "flattened": (lambda x: x.flatten(2), "flatten may look"),
    "viewed": (lambda x: x.view(2, -1), "view may look"),
    "summed": (lambda x: x.sum((2, 3)), "sum may look"),
    "einsum": (lambda x: torch.einsum("nchw->nc", x), "einsum may look"),
    "greatest": (lambda x: x.amax((2, 3)), "amax may look"),
    "global maximum": (lambda x: F.adaptive_max_pool2d(x, 1), "adaptive_max_pool2d"),
    "bins": (lambda x: F.adaptive_avg_pool2d(x, 2), "adaptive_avg_pool2d makes a map of 2 cells"),
    "bins of rows": (lambda x: F.adaptive_avg_pool2d(x, (None, 1)), "adaptive_avg_pool2d makes a map of"),
    "mean of all": (lambda x: x.mean(), "mean runs over the dimensions None"),
    "mean of columns": (lambda x: x.mean(3), "mean runs over the dimensions 3"),
    "mean of channels": (lambda x: x.mean(1, keepdim=True), "mean runs over the dimensions 1"),
    "mean with channels last": (lambda x: x.permute(0, 2, 3, 1).mean((2, 3)), r"mean runs over the dim"),
    "mean along an axis": (lambda x: x.mean(axis=(2, 3)), "mean is called in a way for which no rule is known"),
    "mean into a tensor": (lambda x: torch.mean(x, (2, 3), out=torch.empty(2, 4).double()), "mean writes into another"),
    "sum into a map": (lambda x: torch.add(x, x, out=x.clone()), "add writes into another tensor"),
    "norm of one": (lambda x: x.norm(p=math.inf, dim=(2, 3)), "norm of order inf"),
    "norm of channels": (lambda x: x.norm(p=2, dim=1), "norm of order 2 runs over the dimensions 1"),
    "softmax": (lambda x: x.softmax(-1), "softmax may look"),
    "instance norm": (lambda x: F.instance_norm(x), "instance_norm may look"),
    "layer norm of cells": (lambda x: F.layer_norm(x, (6, 6)), "layer_norm runs over the cells"),
    "linear of columns": (lambda x: F.linear(x, eye), "linear runs over the columns"),
    "torch's own batch norm": (
        lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False), "batch_norm is torch's inner",
    ),
    "batch norm with channels last": (lambda x: F.batch_norm(x.permute(0, 2, 3, 1), None, None, None), "channels are"),
    "response norm with channels last": (lambda x: F.local_response_norm(x.permute(0, 2, 3, 1), 3), "channels are"),
    "group norm with channels last": (lambda x: F.group_norm(x.permute(0, 2, 3, 1), 2), "channels are last"),
    "convolution with channels last": (lambda x: F.max_pool2d(x.permute(0, 2, 3, 1), 3), "channels are last"),
    "a map as weight": (lambda x: F.conv2d(x, x), "conv2d takes more than one map of the images"),
    "a map as weight of another": (lambda x: F.conv2d(position, x), "a map is taken for something else than the input"),
    "reflection": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), r"pad of mode reflect and amounts \(1, 1, 1, 1\)"),
    "cropping": (lambda x: F.pad(x, (-1, 0)), r"pad of mode constant and amounts \(-1, 0\)"),
    "padded channels": (lambda x: F.pad(x, (0, 0, 0, 0, 0, 2)), "pad of mode constant"),
    "padding left there": (lambda x: F.pad(x, (1, 1)) + 1, "add comes after a padding"),
    "padding of 0 before a maximum": (lambda x: F.max_pool2d(F.pad(x, (1, 1)), 2), "a padding goes before a layer"),
    "padding before rounding up": (
        lambda x: F.max_pool2d(F.pad(x, (0, 1), value=-math.inf), 2, ceil_mode=True), "a padding goes before a layer",
    ),
    "padding as the answer": (lambda x: F.pad(x, (1, 1)), "a map is taken for something else"),
    "written after it was padded": (pad_then_write, "a map is written to after it was padded"),
    "interpolation": (lambda x: F.interpolate(x, scale_factor=2.0), "interpolate may look"),
    "indices of maxima": (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], "max_pool2d_with_indices may look"),
    "a part of the map": (lambda x: x[:, :, 1:], "a part of the map or of the batch is taken"),
    "a part with channels last": (lambda x: x.permute(0, 2, 3, 1)[:, :, 1:], "a part of the map"),
    "some images": (lambda x: x[:1], "a part of the map or of the batch is taken"),
    "one more dimension": (lambda x: x[:, None], "a part of the map"),
    "images joined": (lambda x: torch.cat([x, x]), "cat joins along dimension 0"),
    "joined along an axis": (lambda x: torch.cat([x, x], axis=1), "cat is called in a way for which no rule"),  # type: ignore[call-arg]
    "columns cut": (lambda x: x.chunk(2, 3)[0], "chunk cuts along dimension 3"),
    "images cut": (lambda x: x.split(1)[0], "split cuts along dimension 0"),
    "maps of other sizes": (lambda x: x + F.avg_pool2d(x, 2), "add joins maps of different images or layouts"),
    "divided by a map": (lambda x: 1 + x / (x + 2), "div divides by a map"),
    "a power by a map": (lambda x: torch.pow(2, x), "pow is in place, or its exponent is not a number"),
    "a root in place": (lambda x: x.pow_(0.5), "pow is in place"),
    "compared": (lambda x: torch.where(x > 0, x, 0), "gt may look"),
    "values": (lambda x: x * x.detach().numpy().max(), "numpy may look"),
    "copied into a tensor": (lambda x: torch.zeros(2, 4, 6, 6).double().copy_(x), "copy may look"),
    "set in a tensor": (lambda x: position.clone().index_put_((torch.tensor([0]),), x[:, :1]), "index_put may look"),
    "an inner function": (lambda x: torch.ops.aten.flip(x, [3]), "flip may look"),
    "a kernel": (lambda x: torch.ops.aten.relu.default(x), r"relu\.default may look"),
    "a function of its own": (Flip.apply, "flip may look"),
    "a script": (scripted_softsign, r"aten\.abs\.default is called where it cannot be followed"),
    "an old constructor": (lambda x: torch.DoubleTensor(x), "is called where it cannot be followed"),
    "a scripted layer": (scripted_shrink, "is called where it cannot be followed"),
    "functions hidden": (of_no_torch_function, r"aten\.flip\.default is called where it cannot be followed"),
    "an image too small": (lambda x: F.conv2d(x, torch.ones(1, 4, 4, 4).double()), "an image is too small for this"),
}  # fmt: skip


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_exact_is_refused_by_name(name: str, grad: bool) -> None:
    function, message = REFUSED[name]
    sizes = [(6, 6), (4, 3)]
    with torch.set_grad_enabled(grad), pytest.raises(PaddingError, match=message):
        run(Layer(function), canvas(sizes), sizes)


def test_the_layer_that_stands_in_the_way_is_named() -> None:
    network = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2.0)))
    with pytest.raises(
        PaddingError,
        match=r"^sizes: this network cannot take images of different sizes in one batch: interpolate may look at other"
        r" cells, and no rule is known for it in 1\.1 \(Upsample\); give it images of one size at a time$",
    ):
        run(network.double(), canvas([(6, 6), (4, 3)]), [(6, 6), (4, 3)])


def through_a_view(x: Tensor) -> Tensor:
    first, _ = x.chunk(2, 1)
    first.add_(1)
    return F.avg_pool2d(x, 3, 1, 1)


def through_its_base(x: Tensor) -> Tensor:
    view = x.permute(0, 2, 3, 1)
    x.add_(1)
    return F.avg_pool2d(view.permute(0, 3, 1, 2), 3, 1, 1)


def through_detached(x: Tensor) -> Tensor:
    x.detach().add_(1)
    return F.avg_pool2d(x, 3, 1, 1)


def of_infinities(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.abs() * x.sigmoid().mul(1e308).mul(1e308), 3, 1, 1).clamp(-1, 1)


@pytest.mark.parametrize("function", [through_a_view, through_its_base, through_detached, of_infinities])
@pytest.mark.parametrize("grad", [False, True])
def test_what_is_written_through_another_tensor_is_known(function: Function, grad: bool) -> None:
    sizes = [(6, 6), (4, 3)]
    x = canvas(sizes)
    with torch.set_grad_enabled(grad):
        out, _ = run(Layer(function), x.clone(), sizes)
    for one, image, (height, width) in zip(out, x, sizes, strict=True):
        torch.testing.assert_close(one[None, :, :height, :width], function(image[None, :, :height, :width].clone()))


def test_a_map_that_earlier_layers_need_for_their_gradient_is_not_written_to() -> None:
    """Where gradients are switched off for a part of the network."""

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
    for one, gradient, (height, width) in zip(x.detach(), x.grad, sizes, strict=True):
        image = one[None, :, :height, :width].clone().requires_grad_()
        function(image).sum().backward()
        torch.testing.assert_close(gradient[None, :, :height, :width], image.grad)


def test_activations_computed_again_for_the_gradient_are_refused() -> None:
    network = timm.create_model("test_resnet")
    network.set_grad_checkpointing()  # type: ignore[operator]
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(
        PaddingError, match=r"its activations are computed again for the gradient \(grad_checkpointing\)"
    ):
        run(network, x, [(64, 64), (40, 50)])
    with torch.no_grad(), PaddedBatch(network, same=False) as batch:
        network.forward_features(batch.enter(x, [(64, 64), (40, 50)]))  # type: ignore[operator]
