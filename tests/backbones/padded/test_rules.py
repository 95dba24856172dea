"""Each rule for padded batches against the layer on each image alone, and what must be refused."""

import math
from typing import Any

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.fast_norm import set_fast_norm
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet import PaddingError
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.paper import WithinChannelLRN
from tests.helpers.padded_layers import CHANNELS, Area, Function, Layer, canvas, run

areas = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=3)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
fast = settings(max_examples=30, deadline=None)


def agrees(network: nn.Module, sizes: list[Area], same: bool = False, spare: int = 0) -> bool:
    """Values, areas and the gradients of the images and of all parameters are those of the images one by one.

    A convolution that sees all cells goes before and after, so that what lies outside is neither 0 nor without effect.
    False where it cannot be told: an image is too small for the layer alone, or a dilated maximum saw padding only.
    """
    whole = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 1), network, nn.LazyConv2d(2, 3, padding=1)).double()
    try:
        maps = [whole(one[None, :, :h, :w]) for one, (h, w) in zip(canvas(sizes), sizes, strict=True)]
    except (RuntimeError, ValueError):
        return False
    if not all(one.isfinite().all() for one in maps):
        return False
    x = canvas(sizes, math.nan, spare).requires_grad_()
    images = [one[None, :, :h, :w].detach().clone().requires_grad_() for one, (h, w) in zip(x, sizes, strict=True)]
    maps = [whole(image) for image in images]
    wanted = torch.autograd.grad(sum(one.sin().sum() for one in maps), [*images, *whole.parameters()])
    out, cells = run(whole, x, sizes, same)
    assert cells == tuple(tuple(one.shape[2:]) for one in maps)
    valid = [one[None, :, :h, :w] for one, (h, w) in zip(out, cells, strict=True)]
    torch.testing.assert_close(valid, maps, rtol=1e-9, atol=1e-9)
    got = torch.autograd.grad(sum(one.sin().sum() for one in valid), [x, *whole.parameters()])
    of_x = [one[None, :, :h, :w] for one, (h, w) in zip(got[0], sizes, strict=True)]
    torch.testing.assert_close([*of_x, *got[1:]], list(wanted), rtol=1e-8, atol=1e-8)
    assert got[0].count_nonzero() == sum(one.count_nonzero() for one in of_x)
    with torch.no_grad():
        again, _ = run(whole, x.detach(), sizes, same)
        torch.testing.assert_close([one[None, :, :h, :w] for one, (h, w) in zip(again, cells, strict=True)], maps)
    return True


@fast
@given(areas, pairs, pairs, pairs, pairs, st.booleans(), st.integers(0, 3))
def test_convolution(
    sizes: list[Area], kernel: Area, stride: Area, padding: Area, dilation: Area, depthwise: bool, spare: int
) -> None:
    groups = CHANNELS if depthwise else 1
    assume(agrees(nn.Conv2d(CHANNELS, 8, kernel, stride, padding, dilation, groups), sizes, spare=spare))


@fast
@given(areas, st.sampled_from([1, 3, 5]), pairs, st.sampled_from(["same", "valid"]))
def test_convolution_with_padding_by_name(sizes: list[Area], kernel: int, dilation: Area, padding: str) -> None:
    assume(agrees(nn.Conv2d(CHANNELS, 3, kernel, 1, padding, dilation), sizes))


@fast
@given(areas, pairs, pairs, pairs, pairs, st.booleans(), st.integers(0, 3))
def test_max_pool(
    sizes: list[Area], kernel: Area, stride: Area, padding: Area, dilation: Area, ceil: bool, spare: int
) -> None:
    padding = min(padding[0] - 1, kernel[0] // 2), min(padding[1] - 1, kernel[1] // 2)
    assume(agrees(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), sizes, spare=spare))


@fast
@given(areas, pairs, pairs, pairs, st.booleans(), st.booleans(), st.none() | st.integers(1, 9), st.integers(0, 3))
def test_average_pool(
    sizes: list[Area],
    kernel: Area,
    stride: Area,
    padding: Area,
    ceil: bool,
    count: bool,
    divisor: int | None,
    spare: int,
) -> None:
    padding = min(padding[0] - 1, kernel[0] // 2), min(padding[1] - 1, kernel[1] // 2)
    layer = nn.AvgPool2d(kernel, stride, padding, ceil, count, divisor)
    if ceil and count and divisor is None:
        with pytest.raises(PaddingError, match="avg_pool2d rounds up and counts its padding"):
            run(layer, canvas([(9, 9), (8, 7)]), [(9, 9), (8, 7)])
    else:
        assume(agrees(layer, sizes, spare=spare))


@fast
@given(areas, pairs, pairs, pairs, st.sampled_from([Conv2dSame, MaxPool2dSame, AvgPool2dSame]), st.integers(0, 3))
def test_padding_by_tensorflow_s_same_rule(
    sizes: list[Area], kernel: Area, stride: Area, dilation: Area, kind: Any, spare: int
) -> None:
    layer: nn.Module
    if kind is Conv2dSame:
        layer = Conv2dSame(CHANNELS, 3, kernel, stride, 0, dilation)
    elif kind is MaxPool2dSame:
        layer = MaxPool2dSame(kernel, stride, 0, dilation)
    else:
        layer = AvgPool2dSame(kernel, stride)
    assume(agrees(layer, sizes, same=True, spare=spare))


def test_same_padding_and_a_plain_stride_make_one_canvas() -> None:
    """As in a shortcut, on a canvas larger than every image."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shortcut = Conv2dSame(CHANNELS, 4, 3, 2), nn.Conv2d(CHANNELS, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x) + self.shortcut(x)
            return out

    assert agrees(Block(), [(7, 8), (6, 5), (1, 2)], same=True, spare=5)


@fast
@given(areas, st.lists(st.integers(0, 2), min_size=4, max_size=4), st.integers(0, 1))
def test_a_padding_of_fixed_amounts_before_a_convolution(sizes: list[Area], amounts: list[int], own: int) -> None:
    left, right, top, bottom = amounts
    assume(agrees(nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), nn.Conv2d(CHANNELS, 3, 3, 2, own)), sizes))


@fast
@given(areas, st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 3))
def test_group_norm(sizes: list[Area], groups: int, affine: bool, spare: int) -> None:
    assume(agrees(nn.GroupNorm(groups, CHANNELS, eps=1e-3, affine=affine), sizes, spare=spare))


def response_norm(x: Tensor) -> Tensor:
    layer = GlobalResponseNorm(CHANNELS, channels_last=False).to(x.dtype)
    nn.init.constant_(layer.weight, 0.7)
    out: Tensor = layer(x)
    return out


def scale_by_norm(x: Tensor) -> Tensor:
    out: Tensor = x * x.norm(p=2, dim=(2, 3), keepdim=True)
    return out


def channels_last(x: Tensor) -> Tensor:
    x = F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,), eps=1e-2)
    gate = x.mean((1, 2), keepdim=True) + x.norm(p=1, dim=(1, 2), keepdim=True)
    first, second = F.linear(x * gate, torch.eye(CHANNELS, dtype=x.dtype) + 0.3).chunk(2, -1)
    return torch.cat([first, second + 1, second[:, :, :, :1]], -1).permute(0, 3, 1, 2)


def cut_and_joined(x: Tensor) -> Tensor:
    first, second = x.split([1, 3], 1)
    third, fourth = x.chunk(2, dim=1)
    return torch.cat([first + 1, second, fourth.relu(), third[:, :1], x[:, ::2]], dim=1)


FUNCTIONS: dict[str, Function] = {
    "mean": lambda x: x * x.mean((2, 3), keepdim=True),
    "mean over -1 and -2": lambda x: x + x.mean(dim=[-1, -2])[:, :, None, None],
    "adaptive average": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid().expand_as(x),
    "norm": scale_by_norm,
    "global response norm": response_norm,
    "channels last": channels_last,
    "cut and joined": cut_and_joined,
    "constants": lambda x: 1 - (2 * x - 3) / 4 + x**2,
    "roots above 0": lambda x: (1 + x * x) ** -0.75,
    "roots": lambda x: (x.relu() + x.sigmoid()) ** 0.5,
    "lifted zeros": lambda x: F.max_pool2d(x.sigmoid() + F.hardswish(x.clamp(min=0.5)), 2, 1),
    "local response norm": lambda x: F.local_response_norm(x.relu(), 3),
    "within-channel norm": WithinChannelLRN(),
    "in place": lambda x: F.relu(x.clone().add_(1).mul_(2), inplace=True) + 1,
    "bounds by channel": lambda x: x.clamp(max=torch.linspace(-1, 1, CHANNELS, dtype=x.dtype).view(-1, 1, 1)),
    "addcmul": lambda x: torch.addcmul(torch.ones(1, CHANNELS, 1, 1, dtype=x.dtype), x, x, value=0.5),
    "of another's type": lambda x: x * torch.ones(1).type_as(x) + torch.ones(1).to(x),
}


@settings(max_examples=8, deadline=None)
@given(sizes=areas, spare=st.integers(0, 3))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, sizes: list[Area], spare: int) -> None:
    assume(agrees(Layer(FUNCTIONS[name]), sizes, spare=spare))


@pytest.mark.parametrize("name", ["LayerNorm2d", "SqueezeExcite", "EcaModule", "GroupNorm1"])
@pytest.mark.parametrize("fast_norm", [False, True])
def test_layers_of_timm(name: str, fast_norm: bool) -> None:
    layer = getattr(timm.layers, name)(CHANNELS)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    set_fast_norm(fast_norm)  # type: ignore[no-untyped-call]
    try:
        assert agrees(layer, [(5, 9), (8, 3), (1, 1)], spare=1)
    finally:
        set_fast_norm(False)  # type: ignore[no-untyped-call]


def test_roots_of_what_lies_outside_leave_gradients_finite() -> None:
    """Outside it is the bias, -1, whose root is no number; a gradient of 0 times its slope is none either."""
    layer = nn.Conv2d(CHANNELS, CHANNELS, 1)
    nn.init.eye_(layer.weight.data[:, :, 0, 0]).mul_(3)
    nn.init.constant_(layer.bias, -1)  # type: ignore[arg-type]
    sizes = [(3, 4), (2, 2)]
    x = canvas(sizes).float().abs() + 1
    out, _ = run(nn.Sequential(layer, Layer(lambda x: x**0.5)), x, sizes)
    sum(one[:, :h, :w].sum() for one, (h, w) in zip(out, sizes, strict=True)).backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d, nn.GroupNorm])
def test_means_of_sixteen_bit_numbers_stay_within_their_range(dtype: torch.dtype, kind: Any) -> None:
    """The sum of 130 x 90 values of about 30 is 350,000; float16 ends at 65,504."""
    layer = kind(1) if kind is nn.AdaptiveAvgPool2d else nn.GroupNorm(2, CHANNELS).to(dtype)
    x = torch.rand(2, CHANNELS, 130, 97).add(29).to(dtype)
    sizes = [(130, 90), (127, 97)]
    with PaddedBatch(layer, same=False) as batch:
        out = layer(batch.enter(x, sizes))
    assert out.dtype == dtype
    for one, image, (height, width) in zip(out, x, sizes, strict=True):
        alone = layer.float()(image[None, :, :height, :width].float())[0]
        one = one[:, : alone.shape[1], : alone.shape[2]].float()
        torch.testing.assert_close(one, alone, rtol=2e-2, atol=2e-2 if dtype == torch.float16 else 0.1)
