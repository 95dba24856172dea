"""Padding rules compared with the same images processed one by one."""

from typing import Any

import pytest
import timm
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.layers.fast_norm import set_fast_norm
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn
from torch.nn import functional as F

from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.paper import WithinChannelLRN
from tests.helpers.padded_layers import (
    CHANNELS,
    Area,
    Function,
    Layer,
    canvas,
    crop,
    few_examples,
    image_sizes,
    matches_single_images,
    run,
)


@few_examples
@given(image_sizes, st.sampled_from([1, 2, 4]), st.booleans(), st.integers(0, 3))
def test_group_norm(sizes: list[Area], groups: int, affine: bool, spare: int) -> None:
    assume(matches_single_images(nn.GroupNorm(groups, CHANNELS, eps=1e-3, affine=affine), sizes, spare=spare))


def global_response_norm(x: Tensor) -> Tensor:
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


def split_and_concatenated(x: Tensor) -> Tensor:
    first, second = x.split([1, 3], 1)
    third, fourth = x.chunk(2, dim=1)
    return torch.cat([first + 1, second, fourth.relu(), third[:, :1], x[:, ::2]], dim=1)


FUNCTIONS: dict[str, Function] = {
    "mean": lambda x: x * x.mean((2, 3), keepdim=True),
    "mean over -1 and -2": lambda x: x + x.mean(dim=[-1, -2])[:, :, None, None],
    "adaptive average": lambda x: x * F.adaptive_avg_pool2d(x, 1).sigmoid().expand_as(x),
    "norm": scale_by_norm,
    "global response norm": global_response_norm,
    "channels last": channels_last,
    "split and cat": split_and_concatenated,
    "constants": lambda x: 1 - (2 * x - 3) / 4 + x**2,
    "power of positive values": lambda x: (1 + x * x) ** -0.75,
    "square root": lambda x: (x.relu() + x.sigmoid()) ** 0.5,
    "nonzero at 0": lambda x: F.max_pool2d(x.sigmoid() + F.hardswish(x.clamp(min=0.5)), 2, 1),
    "local response norm": lambda x: F.local_response_norm(x.relu(), 3),
    "within-channel norm": WithinChannelLRN(),
    "in place": lambda x: F.relu(x.clone().add_(1).mul_(2), inplace=True) + 1,
    "bounds by channel": lambda x: x.clamp(max=torch.linspace(-1, 1, CHANNELS, dtype=x.dtype).view(-1, 1, 1)),
    "addcmul": lambda x: torch.addcmul(torch.ones(1, CHANNELS, 1, 1, dtype=x.dtype), x, x, value=0.5),
    "dtype of another tensor": lambda x: x * torch.ones(1).type_as(x) + torch.ones(1).to(x),
}


@settings(max_examples=8, deadline=None)
@given(sizes=image_sizes, spare=st.integers(0, 3))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_match_single_images(name: str, sizes: list[Area], spare: int) -> None:
    assume(matches_single_images(Layer(FUNCTIONS[name]), sizes, spare=spare))


@pytest.mark.parametrize("name", ["LayerNorm2d", "SqueezeExcite", "EcaModule", "GroupNorm1"])
@pytest.mark.parametrize("fast_norm", [False, True])
def test_timm_layers_match_single_images(name: str, fast_norm: bool) -> None:
    layer = getattr(timm.layers, name)(CHANNELS)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    set_fast_norm(fast_norm)  # type: ignore[no-untyped-call]
    try:
        assert matches_single_images(layer, [(5, 9), (8, 3), (1, 1)], spare=1)
    finally:
        set_fast_norm(False)  # type: ignore[no-untyped-call]


def test_roots_of_negative_padding_keep_gradients_finite() -> None:
    """The padding has the value of the bias, -1, whose root and derivative are NaN."""
    layer = nn.Conv2d(CHANNELS, CHANNELS, 1)
    nn.init.eye_(layer.weight.data[:, :, 0, 0]).mul_(3)
    nn.init.constant_(layer.bias, -1)  # type: ignore[arg-type]
    sizes = [(3, 4), (2, 2)]
    x = canvas(sizes).float().abs() + 1
    out, _ = run(nn.Sequential(layer, Layer(lambda x: x**0.5)), x, sizes)
    torch.stack([part.sum() for part in crop(out, sizes)]).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [nn.AdaptiveAvgPool2d, nn.GroupNorm])
def test_16_bit_means_do_not_overflow(dtype: torch.dtype, kind: Any) -> None:
    """The sum of 130 x 90 values of about 30 is 350,000; the maximum of float16 is 65,504."""
    layer = kind(1) if kind is nn.AdaptiveAvgPool2d else nn.GroupNorm(2, CHANNELS).to(dtype)
    x = torch.rand(2, CHANNELS, 130, 97).add(29).to(dtype)
    sizes = [(130, 90), (127, 97)]
    with PaddedBatch(layer, same=False) as batch:
        out = layer(batch.enter(x, sizes))
    assert out.dtype == dtype
    for batched, image in zip(out, crop(x, sizes), strict=True):
        single = layer.float()(image.float())[0]
        batched = batched[:, : single.shape[1], : single.shape[2]].float()
        torch.testing.assert_close(batched, single, rtol=2e-2, atol=2e-2 if dtype == torch.float16 else 0.1)
