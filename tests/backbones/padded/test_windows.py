"""Convolutions, pools and pads on padded batches compared with the same images processed one by one."""

from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.pool2d_same import AvgPool2dSame, MaxPool2dSame
from torch import Tensor, nn

from sppnet import PaddingError
from tests.helpers.padded_layers import CHANNELS, Area, canvas, few_examples, image_sizes, matches_single_images, run

pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@few_examples
@given(image_sizes, pairs, pairs, pairs, pairs, st.booleans(), st.integers(0, 3))
def test_convolution(
    sizes: list[Area], kernel: Area, stride: Area, padding: Area, dilation: Area, depthwise: bool, spare: int
) -> None:
    groups = CHANNELS if depthwise else 1
    assume(matches_single_images(nn.Conv2d(CHANNELS, 8, kernel, stride, padding, dilation, groups), sizes, spare=spare))


@few_examples
@given(image_sizes, st.sampled_from([1, 3, 5]), pairs, st.sampled_from(["same", "valid"]))
def test_convolution_with_named_padding(sizes: list[Area], kernel: int, dilation: Area, padding: str) -> None:
    assume(matches_single_images(nn.Conv2d(CHANNELS, 3, kernel, 1, padding, dilation), sizes))


@few_examples
@given(image_sizes, pairs, pairs, pairs, pairs, st.booleans(), st.integers(0, 3))
def test_max_pool(
    sizes: list[Area], kernel: Area, stride: Area, padding: Area, dilation: Area, ceil: bool, spare: int
) -> None:
    padding = min(padding[0] - 1, kernel[0] // 2), min(padding[1] - 1, kernel[1] // 2)
    assume(matches_single_images(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), sizes, spare=spare))


@few_examples
@given(image_sizes, pairs, pairs, pairs, st.booleans(), st.booleans(), st.none() | st.integers(1, 9), st.integers(0, 3))
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
        with pytest.raises(PaddingError, match="avg_pool2d has both ceil_mode and count_include_pad"):
            run(layer, canvas([(9, 9), (8, 7)]), [(9, 9), (8, 7)])
    else:
        assume(matches_single_images(layer, sizes, spare=spare))


@few_examples
@given(image_sizes, pairs, pairs, pairs, st.sampled_from([Conv2dSame, MaxPool2dSame, AvgPool2dSame]), st.integers(0, 3))
def test_same_padding(sizes: list[Area], kernel: Area, stride: Area, dilation: Area, kind: Any, spare: int) -> None:
    layer: nn.Module
    if kind is Conv2dSame:
        layer = Conv2dSame(CHANNELS, 3, kernel, stride, 0, dilation)
    elif kind is MaxPool2dSame:
        layer = MaxPool2dSame(kernel, stride, 0, dilation)
    else:
        layer = AvgPool2dSame(kernel, stride)
    assume(matches_single_images(layer, sizes, same=True, spare=spare))


def test_same_padding_and_plain_stride_give_equal_map_sizes() -> None:
    """As in a residual block, with padding around every image."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.shortcut = Conv2dSame(CHANNELS, 4, 3, 2), nn.Conv2d(CHANNELS, 4, 1, 2)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x) + self.shortcut(x)
            return out

    assert matches_single_images(Block(), [(7, 8), (6, 5), (1, 2)], same=True, spare=5)


@few_examples
@given(image_sizes, st.lists(st.integers(0, 2), min_size=4, max_size=4), st.integers(0, 1))
def test_fixed_padding_before_convolution(sizes: list[Area], amounts: list[int], own: int) -> None:
    left, right, top, bottom = amounts
    layers = nn.Sequential(nn.ZeroPad2d((left, right, top, bottom)), nn.Conv2d(CHANNELS, 3, 3, 2, own))
    assume(matches_single_images(layers, sizes))
