import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP as TheirASPP  # noqa: N811

from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import LEAST_LIVE, atrous_conv, auto_rates, live_taps
from sppnet.layers.norms import SafeBatchNorm2d, conv_block, create_norm
from sppnet.layers.ppm import PyramidPoolingModule

sides = st.integers(1, 24)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def shaken(module: nn.Module) -> nn.Module:
    """The module in evaluation mode, its batch norms with statistics that differ from those of the beginning."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.uniform_(layer.weight, 0.5, 2.0)
            nn.init.normal_(layer.bias, std=0.1)
    return module.eval()


def test_parameter_counts() -> None:
    assert parameters(ASPP(2048, 256, (6, 12, 18))) == 15_535_104
    assert parameters(ASPP(2048, 21, (6, 12, 18, 24), form="v2")) == 1_548_372
    assert parameters(PyramidPoolingModule(2048)) == 4_198_400
    assert PyramidPoolingModule(2048).out_channels == 4096
    separable = ASPP(2048, 256, (6,), separable=True).branches[1]
    assert sum(layer.weight.numel() for layer in separable.modules() if isinstance(layer, nn.Conv2d)) == 542_720
    dense = ASPP(2048, 256, (6,)).branches[1]
    assert sum(layer.weight.numel() for layer in dense.modules() if isinstance(layer, nn.Conv2d)) == 4_718_592


@pytest.mark.parametrize("size", [(33, 33), (5, 40), (1, 1), (9, 7)])
def test_v3_equals_torchvision_with_its_weights(size: tuple[int, int]) -> None:
    theirs = TheirASPP(12, [2, 4, 8], 6)
    ours = ASPP(12, 6, (2, 4, 8))
    # Both have branches, image level and projection in this order.
    values = list(shaken(theirs).state_dict().values())
    ours.load_state_dict(dict(zip(ours.state_dict(), values, strict=True)))
    x = torch.randn(2, 12, *size)
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image_level", [True, False])
def test_v3_is_the_sum_of_the_projected_branches(image_level: bool) -> None:
    """Concatenation and a 1x1 convolution are a sum of 1x1 convolutions, one a branch."""
    aspp = shaken(ASPP(8, 4, (1, 3), image_level=image_level))
    assert isinstance(aspp, ASPP)
    assert aspp.project is not None
    x = torch.randn(2, 8, 6, 9)
    branches: list[Tensor] = [branch(x) for branch in aspp.branches]
    if aspp.image is not None:
        branches.append(aspp.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, 6, 9))
    weights = aspp.project[0].weight.split(4, 1)  # type: ignore[operator]
    total = torch.stack([F.conv2d(one, weight) for one, weight in zip(branches, weights, strict=True)]).sum(0)
    torch.testing.assert_close(aspp(x), aspp.project[1:](total), rtol=1e-5, atol=1e-5)


def test_v2_is_one_convolution_with_sparse_taps() -> None:
    aspp = ASPP(3, 2, (1, 2, 4), form="v2").double()
    kernel = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    bias = torch.zeros(2, dtype=torch.float64)
    for rate, conv in zip(aspp.rates, aspp.branches, strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        places = [4 - rate, 4, 4 + rate]
        for row in range(3):
            for column in range(3):
                kernel[:, :, places[row], places[column]] += conv.weight[:, :, row, column].detach()
        nn.init.normal_(conv.bias)
        bias += conv.bias.detach()
    x = torch.randn(2, 3, 11, 6, dtype=torch.float64)
    torch.testing.assert_close(aspp(x), F.conv2d(x, kernel, bias, padding=4))


def test_v2_begins_with_small_weights_and_no_bias() -> None:
    for conv in ASPP(256, 21, form="v2").branches:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        assert conv.bias.eq(0).all()
        assert 0.0095 < float(conv.weight.detach().std()) < 0.0105


@given(rows=sides, columns=sides, rate=st.integers(1, 26), separable=st.booleans())
@settings(max_examples=60, deadline=None)
def test_atrous_conv_equals_the_convolution(rows: int, columns: int, rate: int, separable: bool) -> None:
    conv = nn.Conv2d(4, 4, 3, padding=rate, dilation=rate, groups=4 if separable else 1).double()
    x = torch.randn(2, 4, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(atrous_conv(conv, x), conv(x))
    ours = torch.autograd.grad(atrous_conv(conv, x).square().sum(), conv.weight)
    theirs = torch.autograd.grad(conv(x).square().sum(), conv.weight)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("size", [(5, 5), (3, 5), (1, 1)])
def test_a_rate_that_exceeds_the_map_makes_a_1x1_convolution(size: tuple[int, int]) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=5, dilation=5)
    x = torch.randn(1, 4, *size)
    torch.testing.assert_close(atrous_conv(conv, x), F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias))


def test_a_dilated_convolution_is_one_with_zeros_between_its_taps() -> None:
    conv = nn.Conv2d(2, 2, 3, padding=3, dilation=3, bias=False).double()
    kernel = torch.zeros(2, 2, 7, 7, dtype=torch.float64)
    kernel[:, :, ::3, ::3] = conv.weight.detach()
    x = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(atrous_conv(conv, x), F.conv2d(x, kernel, padding=3))


@given(rows=sides, columns=sides, rate=st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_live_taps_are_those_that_a_kernel_of_ones_counts(rows: int, columns: int, rate: int) -> None:
    ones = torch.ones(1, 1, rows, columns)
    counts = F.conv2d(ones, torch.ones(1, 1, 3, 3), padding=rate, dilation=rate)
    taps = live_taps(rate, (rows, columns))
    assert taps.share == pytest.approx(float(counts.mean()) / 9, abs=1e-6)
    assert taps.full == pytest.approx(float(counts.eq(9).float().mean()), abs=1e-6)


def test_live_taps_literal_values() -> None:
    assert [round(live_taps(rate, (33, 33)).full, 3) for rate in (6, 12, 18)] == [0.405, 0.074, 0.0]
    assert [round(live_taps(rate, (65, 65)).full, 3) for rate in (6, 12, 18, 24, 36)] == [0.665, 0.398, 0.199, 0.068, 0]
    shares = [round(live_taps(rate, (65, 65)).share, 3) for rate in (6, 12, 18, 24, 36, 64, 65, 90)]
    assert shares == [0.881, 0.769, 0.665, 0.568, 0.398, 0.118, 0.111, 0.111]
    assert [round(live_taps(rate, (28, 28)).share, 2) for rate in (12, 24, 36)] == [0.51, 0.18, 0.11]


def test_explain_warns_of_dead_branches_and_of_no_others() -> None:
    aspp = ASPP(4, 4, (12, 24, 36))
    with pytest.warns(UserWarning, match=r"28 x 28 cells, rate 24: 18\.4% .*rate 36: 11\.1% .*such as \(4, 8, 12\)"):
        taps = aspp.explain((28, 28))
    assert [one.rate for one in taps] == [12, 24, 36]
    assert "rate 36: 11.1% of the taps are live (0.0% of the cells have all nine)" in str(taps[2])
    assert min(one.share for one in aspp.explain((65, 65))) > LEAST_LIVE


def test_training_warns_of_dead_branches_and_evaluation_does_not() -> None:
    aspp = ASPP(4, 4, (6, 12))
    x = torch.randn(2, 4, 10, 10)
    with pytest.warns(UserWarning, match="rate 12: 11.1% of the taps are live"):
        aspp(x)
    aspp.eval()(x)


def test_auto_rates() -> None:
    assert auto_rates(16) == (6, 12, 18)
    assert auto_rates(8) == (12, 24, 36)
    assert auto_rates(32) == (3, 6, 9)
    assert auto_rates(8, form="v2") == (6, 12, 18, 24)
    assert ASPP(4, 4, output_stride=8).rates == (12, 24, 36)
    assert ASPP(4, 4, form="v2", output_stride=8).rates == (6, 12, 18, 24)
    assert auto_rates(16, (1, 1)) == (1, 2, 3)
    with pytest.raises(ValueError, match="output_stride: expected at least 1; got 0"):
        auto_rates(0)


@given(rows=st.integers(8, 200), columns=st.integers(8, 200), stride=st.sampled_from([8, 16, 32]))
@settings(max_examples=60, deadline=None)
def test_rates_fitted_to_a_map_keep_half_of_their_taps(rows: int, columns: int, stride: int) -> None:
    rates = auto_rates(stride, (rows, columns))
    assert live_taps(rates[-1], (rows, columns)).share >= 0.5
    greater = rates[-1] + 1
    assert rates == auto_rates(stride) or live_taps(greater, (rows, columns)).share < 0.5
    assert rates == ASPP(2, 2, output_stride=stride, map_size=(rows, columns)).rates


@pytest.mark.parametrize("norm", ["safe", "group"])
@pytest.mark.parametrize("form", ["v3", "v2"])
@pytest.mark.filterwarnings("ignore:ASPP")
def test_training_at_batch_1(norm: str, form: str) -> None:
    aspp = ASPP(8, 4, (1, 2), form=form, norm=norm)  # type: ignore[arg-type]
    for size in ((1, 1), (3, 5)):
        aspp(torch.randn(1, 8, *size)).square().sum().backward()
        assert all(one.grad is not None and one.grad.isfinite().all() for one in aspp.parameters())


def test_plain_batch_norm_fails_at_batch_1() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ASPP(8, 4, (1,), norm="batch")(torch.randn(1, 8, 4, 4))


@given(batch=st.integers(1, 3), rows=st.integers(1, 3), columns=st.integers(1, 3), training=st.booleans())
@settings(max_examples=40, deadline=None)
def test_safe_norm_equals_batch_norm_wherever_that_is_defined(
    batch: int, rows: int, columns: int, training: bool
) -> None:
    safe, plain = SafeBatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    shaken(plain)
    safe.load_state_dict(plain.state_dict())
    safe.train(training)
    plain.train(training and batch * rows * columns > 1)
    x = torch.randn(batch, 3, rows, columns, dtype=torch.float64)
    torch.testing.assert_close(safe(x), plain(x))
    torch.testing.assert_close(safe.state_dict(), plain.state_dict())


def test_image_branch_of_aspp_equals_ppm_with_one_bin() -> None:
    aspp, ppm = ASPP(8, 4, (1,)), PyramidPoolingModule(8, (1,), out_channels=4)
    assert aspp.image is not None
    ppm.branches[0].load_state_dict(shaken(aspp.image).state_dict())
    x = torch.randn(2, 8, 5, 7)
    image = aspp.image(aspp.context_of(x)).expand(-1, -1, 5, 7)
    torch.testing.assert_close(ppm.eval()(x), torch.cat([x, image], 1))


def test_context_takes_the_place_of_the_means() -> None:
    aspp = shaken(ASPP(8, 4, (1, 2)))
    whole = torch.randn(1, 8, 12, 12)
    context = ASPP.context_of(whole)
    torch.testing.assert_close(aspp(whole, context), aspp(whole))
    # A tile with the context of the whole gives what the whole gives, where no tap leaves the tile.
    torch.testing.assert_close(aspp(whole[:, :, 2:8, 2:8], context)[:, :, 2:4, 2:4], aspp(whole)[:, :, 4:6, 4:6])
    assert not torch.allclose(aspp(whole[:, :, 2:8, 2:8])[:, :, 2:4, 2:4], aspp(whole)[:, :, 4:6, 4:6])


@pytest.mark.parametrize("reduce", ["avg", "max"])
@given(rows=sides, columns=sides)
@settings(max_examples=30, deadline=None)
def test_ppm_equals_its_definition(reduce: str, rows: int, columns: int) -> None:
    ppm = shaken(PyramidPoolingModule(8, (1, 2, 3, 6), reduce=reduce)).double()  # type: ignore[arg-type]
    assert isinstance(ppm, PyramidPoolingModule)
    x = torch.randn(2, 8, rows, columns, dtype=torch.float64)
    pool = F.adaptive_avg_pool2d if reduce == "avg" else F.adaptive_max_pool2d
    expected = [x]
    for branch, level in zip(ppm.branches, (1, 2, 3, 6), strict=True):
        bins = branch(pool(x, level)).detach().numpy()
        y, z = (np.linspace(0, level - 1, side) if side > 1 else np.zeros(1) for side in (rows, columns))
        spread = np.zeros((2, 2, rows, columns))
        for i, row in enumerate(y):
            for j, column in enumerate(z):
                top, left = min(int(row), max(level - 2, 0)), min(int(column), max(level - 2, 0))
                below, right = min(top + 1, level - 1), min(left + 1, level - 1)
                a, b = row - top, column - left
                spread[:, :, i, j] = (1 - a) * ((1 - b) * bins[..., top, left] + b * bins[..., top, right]) + a * (
                    (1 - b) * bins[..., below, left] + b * bins[..., below, right]
                )
        expected.append(torch.from_numpy(spread))
    torch.testing.assert_close(ppm(x), torch.cat(expected, 1))


def test_ppm_trains_at_batch_1() -> None:
    ppm = PyramidPoolingModule(8)
    ppm(torch.randn(1, 8, 1, 1)).sum().backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in ppm.parameters())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ASPP(4, 4, (6, 0)), "whole numbers of at least 1, such as (6, 12, 18); got (6, 0)"),
        (lambda: ASPP(4, 4, ()), "rates: expected one or more whole numbers of at least 1"),
        (lambda: ASPP(4, 4, (1.5,)), "such as (6, 12, 18); got (1.5,)"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, 6), "such as (6, 12, 18); got 6"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, form="v2", norm="no"), "norm: expected one of"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4).explain((0, 5)), "size: expected (rows, columns) of at least 1 cell; got (0, 5)"),
        (lambda: ASPP(4, 4, "atuo"), "rates: expected one of auto; got 'atuo'; did you mean 'auto'?"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, form="v4"), "form: expected one of v3, v2; got 'v4'"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, form="v2", separable=True), "separable and dropout need form='v3'"),
        (lambda: ASPP(4, 4, norm="layer"), "norm: expected one of safe, batch, group; got 'layer'"),  # type: ignore[arg-type]
        (lambda: PyramidPoolingModule(3), "out_channels: 3 channels give 4 levels no equal share"),
        (lambda: PyramidPoolingModule(8, reduce="sum"), "reduce: expected one of max, avg; got 'sum'"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_options_are_refused(make: object, text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        make()  # type: ignore[operator]


def test_a_context_without_an_image_level_branch_is_refused() -> None:
    for aspp in (ASPP(4, 4, (1,), image_level=False), ASPP(4, 4, (1,), form="v2")):
        with pytest.raises(ValueError, match="context: this module has no image-level branch"):
            aspp.eval()(torch.zeros(1, 4, 3, 3), torch.zeros(1, 4, 1, 1))


@pytest.mark.usefixtures("unchecked")
def test_a_context_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"context: expected \(1, 4, 1, 1\), as of x; got \(3, 4, 1, 1\)"):
        ASPP(4, 4, (1,)).eval()(torch.zeros(1, 4, 3, 3), torch.zeros(3, 4, 1, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_a_trace_of_a_small_map_serves_a_large_one() -> None:
    aspp = shaken(ASPP(8, 4, (6, 12)))
    traced = torch.jit.trace(aspp, torch.randn(1, 8, 6, 6))
    x = torch.randn(1, 8, 30, 31)
    torch.testing.assert_close(traced(x), aspp(x), rtol=1e-5, atol=1e-5)


def test_hooks_of_the_projection_are_called() -> None:
    aspp = shaken(ASPP(8, 4, (1, 9)))
    assert isinstance(aspp, ASPP)
    assert aspp.project is not None
    x = torch.randn(1, 8, 5, 5)
    expected, seen = aspp(x), []
    convs = [aspp.project[0], aspp.branches[2][0]]  # type: ignore[index]
    for conv in convs:
        conv.register_forward_hook(lambda module, *_: seen.append(module))
    torch.testing.assert_close(aspp(x), expected, rtol=1e-5, atol=1e-5)
    assert seen == convs[::-1]


def test_group_norm_has_groups_that_divide_the_channels() -> None:
    groups = {channels: create_norm("group", channels).num_groups for channels in (256, 48, 21, 7, 1)}
    assert groups == {256: 32, 48: 24, 21: 7, 7: 1, 1: 1}


def test_a_separable_block_is_a_depthwise_and_a_pointwise_convolution() -> None:
    block = conv_block(6, 10, 3, rate=2, separable=True)
    convs = [layer for layer in block if isinstance(layer, nn.Conv2d)]
    assert [(conv.groups, conv.kernel_size, conv.dilation) for conv in convs] == [
        (6, (3, 3), (2, 2)),
        (1, (1, 1), (1, 1)),
    ]
    assert [type(layer) for layer in block].count(nn.ReLU) == 2
    assert block(torch.randn(2, 6, 5, 4)).shape == (2, 10, 5, 4)


@pytest.mark.usefixtures("unchecked")
def test_one_graph_serves_all_sizes() -> None:
    torch._dynamo.reset()
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    module = shaken(nn.Sequential(ASPP(4, 6, (2, 4)), PyramidPoolingModule(6, (1, 2, 3)))).eval()
    compiled = torch.compile(module, backend=count, dynamic=True, fullgraph=True)
    for rows, columns in ((9, 12), (31, 7), (5, 6), (64, 33)):
        x = torch.randn(2, 4, rows, columns)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)
    assert graphs == 1
