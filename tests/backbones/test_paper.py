import math
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sppnet.backbones.paper import PAPER_NETS, WithinChannelLRN, convnet5, overfeat5, overfeat7, paper_head, zf5

CONV_PARAMETERS = {
    "zf5": [14_208, 614_656, 885_120, 1_327_488, 884_992],
    "convnet5": [34_944, 614_656, 885_120, 1_327_488, 884_992],
    "overfeat5": [14_208, 614_656, 1_180_160, 2_359_808, 2_359_808],
    "overfeat7": [14_208, 614_656, 1_180_160, 2_359_808, 2_359_808, 2_359_808, 2_359_808],
}
# name: (channels, stride, receptive field, offset)
GEOMETRY = {
    "zf5": (256, 16, 139, 20),
    "convnet5": (256, 16, 131, 15),
    "overfeat5": (512, 12, 113, 14),
    "overfeat7": (512, 12, 161, 14),
}
SIDES = {
    "zf5": {180: 10, 192: 11, 208: 12, 224: 13, 256: 15, 480: 29, 640: 39, 688: 42, 864: 53, 1200: 74},
    "convnet5": {224: 13, 180: 11},
    "overfeat5": {224: 18, 180: 14},
    "overfeat7": {224: 18, 180: 14},
}


def meta_network(name: str) -> nn.Sequential:
    with torch.device("meta"):
        return PAPER_NETS[name]()


def shapes_after(net: nn.Sequential, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Return (height, width) after each named child."""
    x = torch.empty(1, 3, height, width, device="meta")
    shapes = {}
    for name, child in net.named_children():
        x = child(x)
        shapes[name] = (x.shape[2], x.shape[3])
    return shapes


def count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def windows(net: nn.Sequential) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (kernel, stride, padding, ceil_mode) for each convolution and pool."""
    for child in net:
        if isinstance(child, nn.Conv2d):
            assert child.kernel_size[0] == child.kernel_size[1]
            assert child.stride[0] == child.stride[1]
            assert child.dilation == (1, 1)
            assert child.padding[0] == child.padding[1]
            yield child.kernel_size[0], child.stride[0], int(child.padding[0]), False
        elif isinstance(child, nn.MaxPool2d):
            assert child.padding == 0
            yield int(child.kernel_size), int(child.stride), 0, bool(child.ceil_mode)  # type: ignore[arg-type]
        else:
            assert isinstance(child, (nn.ReLU, WithinChannelLRN))


def walk_geometry(net: nn.Sequential) -> tuple[int, int, float]:
    """Return stride, receptive field and offset (0-based pixel), computed from the windows alone."""
    stride, field, offset = 1, 1, 0.0
    for kernel, step, padding, _ in windows(net):
        field += (kernel - 1) * stride
        offset += ((kernel - 1) / 2 - padding) * stride
        stride *= step
    return stride, field, offset


def walk_side(net: nn.Sequential, side: int) -> int:
    for kernel, step, padding, rounds_up in windows(net):
        steps = (side + 2 * padding - kernel) / step
        side = 1 + (math.ceil(steps) if rounds_up else math.floor(steps))
    return side


def lrn_reference(x: Tensor, alpha: float, beta: float) -> Tensor:
    n, c, h, w = x.shape
    out = torch.empty_like(x)
    for b in range(n):
        for k in range(c):
            for i in range(h):
                for j in range(w):
                    total = 0.0
                    for y in range(i - 1, i + 2):
                        for z in range(j - 1, j + 2):
                            if 0 <= y < h and 0 <= z < w:
                                total += x[b, k, y, z].item() ** 2
                    out[b, k, i, j] = x[b, k, i, j].item() / (1 + alpha * total / 9) ** beta
    return out


# Within-channel normalization


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from([(5e-5, 0.75), (2.0, 0.5), (0.0, 0.75)]))
def test_within_channel_lrn_matches_loop_reference(h: int, w: int, constants: tuple[float, float]) -> None:
    x = 100 * torch.randn(2, 2, h, w, generator=torch.Generator().manual_seed(h * 7 + w), dtype=torch.float64)
    torch.testing.assert_close(WithinChannelLRN(*constants)(x), lrn_reference(x, *constants))


def test_within_channel_lrn_counts_the_padding() -> None:
    y = WithinChannelLRN(alpha=9.0, beta=1.0)(torch.ones(1, 1, 3, 3, dtype=torch.float64))
    expected = torch.tensor([[5.0, 7.0, 5.0], [7.0, 10.0, 7.0], [5.0, 7.0, 5.0]], dtype=torch.float64)
    torch.testing.assert_close(1 / y[0, 0], expected)


def test_within_channel_lrn_defaults() -> None:
    y = WithinChannelLRN()(torch.full((1, 1, 3, 3), 200.0, dtype=torch.float64))
    assert y[0, 0, 1, 1].item() == pytest.approx(200 / 3**0.75)  # 1 + 5e-5 * 200^2 = 3
    assert str(WithinChannelLRN()) == "WithinChannelLRN(alpha=5e-05, beta=0.75)"


def test_within_channel_lrn_does_not_mix_channels() -> None:
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    louder = x.clone()
    louder[:, 1] *= 1000
    torch.testing.assert_close(WithinChannelLRN()(louder)[:, 0], WithinChannelLRN()(x)[:, 0])


def test_within_channel_lrn_gradient() -> None:
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(WithinChannelLRN(alpha=1.0), (x,))


def test_within_channel_lrn_does_not_overflow_float16() -> None:
    x = torch.full((1, 1, 3, 3), 3000.0)
    y = WithinChannelLRN()(x.half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), WithinChannelLRN()(x), rtol=5e-3, atol=0)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_within_channel_lrn_rejects_bad_constants(value: float) -> None:
    with pytest.raises(ValueError, match=r"alpha: expected a finite number of at least 0, got (-1\.0|nan|inf)"):
        WithinChannelLRN(alpha=value)
    with pytest.raises(ValueError, match=r"beta: expected a finite number of at least 0, got (-1\.0|nan|inf)"):
        WithinChannelLRN(beta=value)


# Structure and geometry


def test_paper_nets_lists_all_builders() -> None:
    builders = {"zf5": zf5, "convnet5": convnet5, "overfeat5": overfeat5, "overfeat7": overfeat7}
    assert builders == PAPER_NETS


OVERFEAT5_CHILDREN = "conv1 relu1 pool1 norm1 conv2 relu2 pool2 conv3 relu3 conv4 relu4 conv5 relu5"


@pytest.mark.parametrize(
    ("name", "children"),
    [
        ("zf5", "conv1 relu1 norm1 pool1 conv2 relu2 norm2 pool2 conv3 relu3 conv4 relu4 conv5 relu5"),
        ("convnet5", "conv1 relu1 norm1 conv2 relu2 norm2 pool2 conv3 relu3 pool3 conv4 relu4 conv5 relu5"),
        ("overfeat5", OVERFEAT5_CHILDREN),
        ("overfeat7", OVERFEAT5_CHILDREN + " conv6 relu6 conv7 relu7"),
    ],
)
def test_children_in_order(name: str, children: str) -> None:
    kinds = {"conv": nn.Conv2d, "relu": nn.ReLU, "norm": WithinChannelLRN, "pool": nn.MaxPool2d}
    net = meta_network(name)
    assert [child for child, _ in net.named_children()] == children.split()
    for child, module in net.named_children():
        assert isinstance(module, kinds[child[:4]])


@pytest.mark.parametrize("name", PAPER_NETS)
def test_parameter_counts_per_convolution(name: str) -> None:
    counts = [count_parameters(child) for child in meta_network(name) if isinstance(child, nn.Conv2d)]
    assert counts == CONV_PARAMETERS[name]


@pytest.mark.parametrize(("bins", "total"), [(50, 77_037_672), (30, 56_066_152), (36, 62_357_608)])
def test_zf5_parameter_totals(bins: int, total: int) -> None:
    with torch.device("meta"):
        convs, head = zf5(), paper_head(256 * bins, 1000)
    assert count_parameters(convs) == 3_726_464
    assert count_parameters(convs) + count_parameters(head) == total


@pytest.mark.parametrize("name", PAPER_NETS)
def test_map_sides(name: str) -> None:
    net = meta_network(name)
    for pixels, cells in SIDES[name].items():
        shape = tuple(net(torch.empty(1, 3, pixels, 224, device="meta")).shape)
        assert shape == (1, GEOMETRY[name][0], cells, SIDES[name][224])


@settings(deadline=None, max_examples=40)
@given(st.sampled_from(sorted(PAPER_NETS)), st.integers(64, 1300), st.integers(64, 1300))
def test_map_size_matches_walk_over_windows(name: str, height: int, width: int) -> None:
    net = meta_network(name)
    shape = tuple(net(torch.empty(1, 3, height, width, device="meta")).shape[2:])
    assert shape == (walk_side(net, height), walk_side(net, width))


@pytest.mark.parametrize(
    ("name", "pixels", "expected"),
    [
        ("zf5", 224, {"conv1": 110, "pool1": 55, "conv2": 26, "pool2": 13, "conv5": 13}),
        ("zf5", 180, {"conv1": 88, "pool1": 44, "conv2": 20, "pool2": 10, "conv5": 10}),
        ("convnet5", 224, {"conv1": 55, "conv2": 55, "pool2": 27, "conv3": 27, "pool3": 13, "conv5": 13}),
        ("overfeat7", 224, {"conv1": 109, "pool1": 37, "conv2": 35, "pool2": 18, "conv7": 18}),
    ],
)
def test_intermediate_sides(name: str, pixels: int, expected: dict[str, int]) -> None:
    shapes = shapes_after(meta_network(name), pixels, pixels)
    assert {child: shapes[child] for child in expected} == {child: (side, side) for child, side in expected.items()}


def test_zf5_needs_ceil_mode() -> None:
    net = meta_network("zf5")
    for child in net:
        if isinstance(child, nn.MaxPool2d):
            child.ceil_mode = False
    assert shapes_after(net, 224, 180)["conv5"] == (12, 9)


@pytest.mark.parametrize("name", PAPER_NETS)
def test_receptive_field_matches_walk_over_windows(name: str) -> None:
    _, stride, field, offset = GEOMETRY[name]
    assert walk_geometry(meta_network(name)) == (stride, field, offset)


@pytest.mark.parametrize("name", PAPER_NETS)
def test_receptive_field_matches_gradient(name: str) -> None:
    # Without normalization and with average pools and positive weights, gradients cannot cancel.
    _, stride, field, offset = GEOMETRY[name]
    net = PAPER_NETS[name]().double()
    for child, module in list(net.named_children()):
        if isinstance(module, WithinChannelLRN):
            setattr(net, child, nn.Identity())
        elif isinstance(module, nn.MaxPool2d):
            setattr(net, child, nn.AvgPool2d(module.kernel_size, module.stride, ceil_mode=module.ceil_mode))
    for parameter in net.parameters():
        nn.init.constant_(parameter, 0.01)
    image = torch.ones(1, 3, 208, 208, dtype=torch.float64, requires_grad=True)
    cell = 104 // stride
    net(image)[0, 0, cell, cell].backward()
    assert image.grad is not None
    reached = image.grad[0, 0] > 0
    start = offset + cell * stride - field // 2
    expected = torch.zeros(208, 208, dtype=torch.bool)
    expected[start : start + field, start : start + field] = True
    assert torch.equal(reached, expected)


# Forward pass


@pytest.mark.parametrize("name", PAPER_NETS)
def test_same_weights_at_180_and_224_pixels(name: str) -> None:
    trained = PAPER_NETS[name]()
    other = PAPER_NETS[name]()
    other.load_state_dict(trained.state_dict())
    with torch.inference_mode():
        for height, width in ((180, 180), (224, 224), (180, 224)):
            image = torch.randn(1, 3, height, width)
            out = other(image)
            assert out.shape == (1, GEOMETRY[name][0], SIDES[name][height], SIDES[name][width])
            assert out.min() >= 0
            torch.testing.assert_close(out, trained(image))


def test_smallest_zf5_input() -> None:
    net = zf5()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 31, 31)).shape == (1, 256, 1, 1)
        with pytest.raises(RuntimeError, match="Output size is too small"):
            net(torch.zeros(1, 3, 30, 31))
        with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
            net(torch.zeros(1, 3, 4, 4))


# Initialization


def check_gaussian(weight: Tensor) -> None:
    assert weight.mean().item() == pytest.approx(0, abs=4e-4)
    assert weight.std().item() == pytest.approx(0.01, rel=0.03)
    inside = (weight.abs() < 0.01).double().mean().item()
    assert inside == pytest.approx(0.6827, abs=0.02)  # 0.577 for a uniform distribution of this deviation


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("zf5", [0, 1, 0, 1, 1]),
        ("convnet5", [0, 1, 0, 1, 1]),
        ("overfeat5", [0, 1, 0, 1, 1]),
        ("overfeat7", [0, 1, 0, 1, 1, 1, 1]),
    ],
)
def test_initialization(name: str, biases: list[int]) -> None:
    torch.manual_seed(0)
    convs = [child for child in PAPER_NETS[name]() if isinstance(child, nn.Conv2d)]
    for conv, bias in zip(convs, biases, strict=True):
        check_gaussian(conv.weight)
        assert conv.bias is not None
        assert torch.equal(conv.bias, torch.full_like(conv.bias, bias))


def test_initialization_uses_the_default_generator() -> None:
    torch.manual_seed(3)
    first = zf5().state_dict()
    second = zf5().state_dict()
    torch.manual_seed(3)
    again = zf5().state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


# Head


def test_paper_head() -> None:
    torch.manual_seed(0)
    head = paper_head(8, 5)
    names = [name for name, _ in head.named_children()]
    assert names == ["fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"]
    layers = [child for child in head if isinstance(child, nn.Linear)]
    assert [(fc.in_features, fc.out_features) for fc in layers] == [(8, 4096), (4096, 4096), (4096, 5)]
    for fc in layers:
        check_gaussian(fc.weight)
        assert torch.equal(fc.bias, torch.ones_like(fc.bias))
    assert [child.p for child in head if isinstance(child, nn.Dropout)] == [0.5, 0.5]
    x = torch.randn(3, 8)
    with torch.inference_mode():
        fc6, fc7, fc8 = layers
        expected = fc8(fc7(fc6(x).clamp(min=0)).clamp(min=0))
        torch.testing.assert_close(head.eval()(x), expected)
        assert head.eval()(x).shape == (3, 5)


def test_paper_head_rejects_empty_layers() -> None:
    with pytest.raises(ValueError, match="in_features: expected at least 1, got 0"):
        paper_head(0, 10)
    with pytest.raises(ValueError, match="num_classes: expected at least 1, got -3"):
        paper_head(10, -3)
