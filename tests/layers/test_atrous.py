import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import atrous_conv, auto_rates, live_taps

sides = st.integers(1, 24)


@given(rows=sides, columns=sides, rate=st.integers(1, 26), depthwise=st.booleans())
@settings(max_examples=60, deadline=None)
def test_atrous_conv_equals_the_full_convolution(rows: int, columns: int, rate: int, depthwise: bool) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=rate, dilation=rate, groups=4 if depthwise else 1).double()
    x = torch.randn(2, 4, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(atrous_conv(conv, x), conv(x))
    ours = torch.autograd.grad(atrous_conv(conv, x).square().sum(), conv.weight)
    theirs = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(5, 5), (3, 5), (1, 1)])
def test_rate_as_large_as_the_map_reduces_to_a_1x1_convolution(size: tuple[int, int]) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=5, dilation=5)
    x = torch.randn(1, 4, *size)
    torch.testing.assert_close(atrous_conv(conv, x), F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias))


def test_atrous_conv_equals_a_kernel_with_zeros_between_the_taps() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=3, dilation=3, bias=False).double()
    kernel = torch.zeros(2, 2, 7, 7, dtype=torch.float64)
    kernel[:, :, ::3, ::3] = conv.weight.detach()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(atrous_conv(conv, x), F.conv2d(x, kernel, padding=3))


@given(rows=sides, columns=sides, rate=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_live_taps_match_counts_of_a_kernel_of_ones(rows: int, columns: int, rate: int) -> None:
    ones = torch.ones(1, 1, rows, columns)
    counts = F.conv2d(ones, torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)
    taps = live_taps(rate, (rows, columns))
    assert taps.share == pytest.approx(float(counts.mean()) / 9, abs=1e-6)
    assert taps.full == pytest.approx(float(counts.eq(9).float().mean()), abs=1e-6)


def test_live_taps_of_common_map_sizes() -> None:
    assert [round(live_taps(rate, (33, 33)).full, 3) for rate in (6, 12, 18)] == [0.405, 0.074, 0.0]
    assert [round(live_taps(rate, (65, 65)).full, 3) for rate in (6, 12, 18, 24, 36)] == [0.665, 0.398, 0.199, 0.068, 0]
    shares = [round(live_taps(rate, (65, 65)).share, 3) for rate in (6, 12, 18, 24, 36, 64, 65, 90)]
    assert shares == [0.881, 0.769, 0.665, 0.568, 0.398, 0.118, 0.111, 0.111]
    assert [round(live_taps(rate, (28, 28)).share, 2) for rate in (12, 24, 36)] == [0.51, 0.18, 0.11]


def test_auto_rates_follow_the_output_stride() -> None:
    assert auto_rates(16) == (6, 12, 18)
    assert auto_rates(8) == (12, 24, 36)
    assert auto_rates(32) == (3, 6, 9)
    assert auto_rates(8, form="v2") == (6, 12, 18, 24)
    assert ASPP(4, 4, output_stride=8).rates == (12, 24, 36)
    assert ASPP(4, 4, form="v2", output_stride=8).rates == (6, 12, 18, 24)
    assert auto_rates(16, (1, 1)) == (1, 2, 3)
    with pytest.raises(ValueError, match="output_stride: expected at least 1, got 0"):
        auto_rates(0)


@given(rows=st.integers(8, 200), columns=st.integers(8, 200), stride=st.sampled_from([8, 16, 32]))
@settings(max_examples=60, deadline=None)
def test_rates_fitted_to_a_map_keep_half_of_their_taps(rows: int, columns: int, stride: int) -> None:
    rates = auto_rates(stride, (rows, columns))
    assert live_taps(rates[-1], (rows, columns)).share >= 0.5
    assert rates == auto_rates(stride) or live_taps(rates[-1] + 1, (rows, columns)).share < 0.5
    assert rates == ASPP(2, 2, output_stride=stride, map_size=(rows, columns)).rates
