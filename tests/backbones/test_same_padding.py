"""Integer SAME padding: equal to timm's, and used in compiled graphs."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.padding import get_same_padding
from torch import Tensor, nn

from sppnet.backbones.same_padding import integer_padding_in_export, integer_padding_when_compiled, same_padding


@given(st.integers(1, 3000), st.integers(1, 11), st.integers(1, 8), st.integers(1, 3))
def test_equals_timm(size: int, kernel: int, stride: int, dilation: int) -> None:
    assert same_padding(size, kernel, stride, dilation) == get_same_padding(size, kernel, stride, dilation)


@torch.inference_mode()
def test_compiles_one_integer_graph_for_all_sizes(unchecked: None) -> None:
    graphs: list[str] = []

    def record(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(module.code)
        return module.forward

    integer_padding_when_compiled()
    integer_padding_when_compiled()  # repeated calls are harmless
    torch.manual_seed(0)
    network = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), Conv2dSame(4, 4, 5, stride=2), Conv2dSame(4, 2, 3, stride=2))
    compiled = torch.compile(network, backend=record, dynamic=True)
    for size in ((40, 30), (41, 57), (97, 131)):
        x = torch.randn(2, 3, *size)
        assert torch.equal(compiled(x), network(x))
    (code,) = graphs
    assert "// 2" in code
    assert "ceil" not in code


def test_export_restores_timm() -> None:
    from timm.layers import padding

    with integer_padding_in_export():
        assert padding.get_same_padding is same_padding
    assert padding.get_same_padding is get_same_padding
