import re
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.segmentation.deeplabv3 import ASPP as TorchvisionASPP  # noqa: N811

from sppnet.layers.aspp import ASPP
from sppnet.layers.atrous import MIN_LIVE_SHARE
from sppnet.layers.names import Norm
from sppnet.layers.ppm import PyramidPoolingModule
from tests.helpers.batch_norm import randomize_batch_norms


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_conv_weights(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Conv2d))


def test_number_of_parameters() -> None:
    assert count_parameters(ASPP(2048, 256, (6, 12, 18))) == 15_535_104
    assert count_parameters(ASPP(2048, 21, (6, 12, 18, 24), form="v2")) == 1_548_372
    assert count_conv_weights(ASPP(2048, 256, (6,), separable=True).branches[1]) == 542_720
    assert count_conv_weights(ASPP(2048, 256, (6,)).branches[1]) == 4_718_592


@pytest.mark.parametrize("size", [(33, 33), (5, 40), (1, 1), (9, 7)])
def test_v3_equals_torchvision_with_its_weights(size: tuple[int, int]) -> None:
    theirs = randomize_batch_norms(TorchvisionASPP(12, [2, 4, 8], 6))
    ours = ASPP(12, 6, (2, 4, 8))
    # Both state dicts are in the order: branches, image-level branch, projection.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 12, *size)
    torch.testing.assert_close(ours.eval()(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("image_level", [True, False])
def test_v3_is_the_sum_of_the_projected_branches(image_level: bool) -> None:
    """A 1x1 convolution of concatenated branches is the sum of one 1x1 convolution per branch."""
    aspp = randomize_batch_norms(ASPP(8, 4, (1, 3), image_level=image_level))
    assert aspp.project is not None
    x = torch.randn(2, 8, 6, 9)
    branches: list[Tensor] = [branch(x) for branch in aspp.branches]
    if aspp.image is not None:
        branches.append(aspp.image(x.mean((2, 3), keepdim=True)).expand(-1, -1, 6, 9))
    weights = aspp.project[0].weight.split(4, 1)  # type: ignore[operator]
    total = torch.stack([F.conv2d(out, weight) for out, weight in zip(branches, weights, strict=True)]).sum(0)
    torch.testing.assert_close(aspp(x), aspp.project[1:](total), rtol=1e-5, atol=1e-5)


def test_v2_equals_one_convolution_with_sparse_taps() -> None:
    aspp = ASPP(3, 2, (1, 2, 4), form="v2").double()
    kernel = torch.zeros(2, 3, 9, 9, dtype=torch.float64)
    bias = torch.zeros(2, dtype=torch.float64)
    for rate, conv in zip(aspp.rates, aspp.branches, strict=True):
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        positions = [4 - rate, 4, 4 + rate]
        for row in range(3):
            for column in range(3):
                kernel[:, :, positions[row], positions[column]] += conv.weight[:, :, row, column].detach()
        nn.init.normal_(conv.bias)
        bias += conv.bias.detach()
    x = torch.randn(2, 3, 11, 6, dtype=torch.float64)
    torch.testing.assert_close(aspp(x), F.conv2d(x, kernel, bias, padding=4))


def test_v2_initializes_small_weights_and_zero_bias() -> None:
    for conv in ASPP(256, 21, form="v2").branches:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        assert conv.bias.eq(0).all()
        assert 0.0095 < float(conv.weight.detach().std()) < 0.0105


def test_explain_warns_only_of_dead_branches() -> None:
    aspp = ASPP(4, 4, (12, 24, 36))
    with pytest.warns(UserWarning, match=r"28 x 28 cells, rate 24: 18\.4% .*rate 36: 11\.1% .*such as \(4, 8, 12\)"):
        taps = aspp.explain((28, 28))
    assert [branch.rate for branch in taps] == [12, 24, 36]
    assert "rate 36: 11.1% of the taps are live (0.0% of the cells have all nine)" in str(taps[2])
    assert min(branch.share for branch in aspp.explain((65, 65))) > MIN_LIVE_SHARE


def test_training_warns_of_dead_branches_and_evaluation_does_not() -> None:
    aspp = ASPP(4, 4, (6, 12))
    x = torch.randn(2, 4, 10, 10)
    with pytest.warns(UserWarning, match="rate 12: 11.1% of the taps are live"):
        aspp(x)
    aspp.eval()(x)


@pytest.mark.parametrize("norm", ["safe", "group"])
@pytest.mark.parametrize("form", ["v3", "v2"])
@pytest.mark.filterwarnings("ignore:ASPP")
def test_trains_at_batch_size_1(norm: Norm, form: Literal["v3", "v2"]) -> None:
    aspp = ASPP(8, 4, (1, 2), form=form, norm=norm)
    for size in ((1, 1), (3, 5)):
        aspp(torch.randn(1, 8, *size)).square().sum().backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in aspp.parameters())


def test_plain_batch_norm_fails_at_batch_size_1() -> None:
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ASPP(8, 4, (1,), norm="batch")(torch.randn(1, 8, 4, 4))


def test_context_replaces_the_channel_means() -> None:
    aspp = randomize_batch_norms(ASPP(8, 4, (1, 2)))
    whole = torch.randn(1, 8, 12, 12)
    context = ASPP.context_of(whole)
    torch.testing.assert_close(aspp(whole, context), aspp(whole))
    # With the context of the whole map, a tile gives the same values wherever no tap leaves the tile.
    torch.testing.assert_close(aspp(whole[:, :, 2:8, 2:8], context)[:, :, 2:4, 2:4], aspp(whole)[:, :, 4:6, 4:6])
    assert not torch.allclose(aspp(whole[:, :, 2:8, 2:8])[:, :, 2:4, 2:4], aspp(whole)[:, :, 4:6, 4:6])


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda: ASPP(4, 4, (6, 0)), "rates: expected one or more integers >= 1, such as (6, 12, 18), got (6, 0)"),
        (lambda: ASPP(4, 4, ()), "rates: expected one or more integers >= 1"),
        (lambda: ASPP(4, 4, (1.5,)), "such as (6, 12, 18), got (1.5,)"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, 6), "such as (6, 12, 18), got 6"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, form="v2", norm="no"), "norm: expected one of"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4).explain((0, 5)), "size: expected (rows, columns), each >= 1, got (0, 5)"),
        (lambda: ASPP(4, 4, "atuo"), "rates: expected one of auto, got 'atuo'; did you mean 'auto'?"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, form="v4"), "form: expected one of v3, v2, got 'v4'"),  # type: ignore[arg-type]
        (lambda: ASPP(4, 4, form="v2", separable=True), "form: expected 'v3' for separable or dropout, got 'v2'"),
        (lambda: ASPP(4, 4, norm="layer"), "norm: expected one of safe, batch, group, got 'layer'"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_rejects_invalid_options(create: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create()


def test_rejects_context_without_image_level_branch() -> None:
    for aspp in (ASPP(4, 4, (1,), image_level=False), ASPP(4, 4, (1,), form="v2")):
        with pytest.raises(ValueError, match="context: expected None for a module without an image-level branch"):
            aspp.eval()(torch.zeros(1, 4, 3, 3), torch.zeros(1, 4, 1, 1))


@pytest.mark.usefixtures("unchecked")
def test_rejects_context_of_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"context: expected shape \(1, 4, 1, 1\) to match x, got \(3, 4, 1, 1\)"):
        ASPP(4, 4, (1,)).eval()(torch.zeros(1, 4, 3, 3), torch.zeros(3, 4, 1, 1))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit.trace")
def test_module_traced_on_a_small_map_works_on_a_large_one() -> None:
    aspp = randomize_batch_norms(ASPP(8, 4, (6, 12)))
    traced = torch.jit.trace(aspp, torch.randn(1, 8, 6, 6))
    x = torch.randn(1, 8, 30, 31)
    torch.testing.assert_close(traced(x), aspp(x), rtol=1e-5, atol=1e-5)


def test_calls_forward_hooks_of_its_convolutions() -> None:
    aspp = randomize_batch_norms(ASPP(8, 4, (1, 9)))
    assert aspp.project is not None
    x = torch.randn(1, 8, 5, 5)
    expected, called = aspp(x), []
    convs = [aspp.project[0], aspp.branches[2][0]]  # type: ignore[index]
    for conv in convs:
        conv.register_forward_hook(lambda module, *_: called.append(module))
    torch.testing.assert_close(aspp(x), expected, rtol=1e-5, atol=1e-5)
    assert called == convs[::-1]


@pytest.mark.usefixtures("unchecked")
def test_compiles_once_for_all_sizes() -> None:
    torch._dynamo.reset()
    graphs = 0

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        nonlocal graphs
        graphs += 1
        return graph.forward

    module = randomize_batch_norms(nn.Sequential(ASPP(4, 6, (2, 4)), PyramidPoolingModule(6, (1, 2, 3))))
    compiled = torch.compile(module, backend=count, dynamic=True, fullgraph=True)
    for rows, columns in ((9, 12), (31, 7), (5, 6), (64, 33)):
        x = torch.randn(2, 4, rows, columns)
        torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)
    assert graphs == 1
