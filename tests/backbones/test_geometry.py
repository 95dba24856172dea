"""Strides, map sizes and offsets compared with real maps, gradients and manual calculations."""

import functools

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from sppnet.backbones.geometry import Geometry, SizeError, Step, trace_geometry
from sppnet.backbones.paper import PAPER_NETS, WithinChannelLRN, zf5

# Stride, offset for a 224 x 224 image and minimum side, calculated from the layers.
NETS: dict[str, tuple[int, float, int]] = {
    "zf5": (16, 20, 31),
    "convnet5": (16, 15, 19),
    "overfeat5": (12, 14, 19),
    "overfeat7": (12, 14, 19),
    "resnet18": (32, 0, 1),
    "tf_efficientnet_lite0": (32, 31, 1),
    "vgg11_bn": (32, 15.5, 32),
    "mobilenetv2_100": (32, 0, 1),
    "convnext_atto": (32, 15.5, 32),
    "densenet121": (32, 14, 29),
    "regnety_002": (32, 0, 1),
}
SIZES = [(33, 65), (101, 127), (224, 224), (299, 501)]


def forward_features(network: nn.Module, x: Tensor) -> Tensor:
    data: Tensor = network(x) if isinstance(network, nn.Sequential) else network.forward_features(x)  # type: ignore[operator]
    return data


def call(network: nn.Module, x: Tensor) -> Tensor:
    data: Tensor = network(x)
    return data


@functools.cache
def traced(name: str) -> tuple[nn.Module, Geometry]:
    with torch.device("meta"):
        network = PAPER_NETS[name]() if name in PAPER_NETS else timm.create_model(name)
    return network.eval(), trace_geometry(network, forward_features)


def forward_size(name: str, height: int, width: int) -> tuple[int, ...]:
    with torch.no_grad():
        return tuple(forward_features(traced(name)[0], torch.empty(1, 3, height, width, device="meta")).shape[2:])


@pytest.mark.parametrize("name", NETS)
def test_map_size_matches_forward_pass(name: str) -> None:
    geometry = traced(name)[1]
    for height, width in SIZES:
        assert geometry.map_size(height, width) == forward_size(name, height, width)


@pytest.mark.parametrize("name", NETS)
def test_stride_offset_and_smallest_size(name: str) -> None:
    stride, offset, smallest = NETS[name]
    geometry = traced(name)[1]
    assert geometry.stride == (stride, stride)
    assert geometry.offset(224, 224) == (offset, offset)
    assert geometry.smallest() == (smallest, smallest)
    rows, columns = geometry.map_size(299, 331)
    assert geometry.map_size(299 + 2 * stride, 331 + 5 * stride) == (rows + 2, columns + 5)


@pytest.mark.parametrize("name", NETS)
def test_smallest_size_is_the_minimum_of_the_network(name: str) -> None:
    side = NETS[name][2]
    geometry = traced(name)[1]
    assert forward_size(name, side, side + 3) == geometry.map_size(side, side + 3)
    assert min(geometry.map_size(side - 1, 500)) == min(geometry.map_size(500, side - 1)) == 0
    if side > 1:
        with pytest.raises((RuntimeError, ValueError)):
            forward_size(name, side - 1, 500)


@pytest.mark.parametrize(
    ("side", "cells"), [(180, 10), (192, 11), (208, 12), (224, 13), (256, 15), (688, 42), (1200, 74)]
)
def test_zf5_map_sides(side: int, cells: int) -> None:
    geometry = traced("zf5")[1]
    assert geometry.map_size(side, 224) == (cells, 13)
    assert geometry.offset(side, 31) == (20, 20)


def linearize(network: nn.Module) -> nn.Module:
    """Replace max pools by average pools, remove norms and set all weights of a layer to one positive value."""
    for name, child in network.named_children():
        if isinstance(child, nn.MaxPool2d):
            setattr(network, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding, child.ceil_mode))
        elif isinstance(child, nn.BatchNorm2d | WithinChannelLRN):
            setattr(network, name, getattr(child, "act", nn.Identity()))
        else:
            linearize(child)
    for parameter in network.parameters(recurse=False):
        nn.init.constant_(parameter, 1 / parameter[0].numel() if parameter.ndim == 4 else 0)
    return network.eval()


def gradient_center(data: Tensor, x: Tensor, row: int, column: int) -> tuple[float, float]:
    """Return the center of an interior cell's receptive field, which must be symmetric."""
    (gradient,) = torch.autograd.grad(data[0, 0, row, column], x)
    assert gradient.min() >= 0
    centers = []
    for profile in (gradient[0, 0].sum(1), gradient[0, 0].sum(0)):
        pixels = profile.nonzero().flatten()
        first, last = int(pixels[0]), int(pixels[-1])
        assert first > 0, "the receptive field touches the border"
        assert last < len(profile) - 1, "the receptive field touches the border"
        field = profile[first : last + 1]
        torch.testing.assert_close(field, field.flip(0))
        centers.append((first + last) / 2)
    return centers[0], centers[1]


@pytest.mark.parametrize(("name", "size", "cell"), [("zf5", (301, 254), (8, 7)), ("resnet18", (481, 500), (8, 7))])
def test_cell_centers_match_gradient(name: str, size: tuple[int, int], cell: tuple[int, int]) -> None:
    network = linearize(zf5() if name == "zf5" else timm.create_model(name))
    geometry = trace_geometry(network, forward_features)
    x = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    data = forward_features(network.double(), x)
    assert tuple(data.shape[2:]) == geometry.map_size(*size)
    expected = [o + s * i for o, s, i in zip(geometry.offset(*size), geometry.stride, cell, strict=True)]
    assert list(gradient_center(data, x, *cell)) == expected


@pytest.mark.parametrize("size", [(224, 193), (161, 190), (200, 182)])
def test_same_padding_cell_centers_match_gradient(size: tuple[int, int]) -> None:
    """The third map of the default network, whose cell centers depend on the image size."""
    network = linearize(timm.create_model("tf_efficientnet_lite0"))

    def third(network: nn.Module, x: Tensor) -> Tensor:
        (data,) = network.forward_intermediates(x, indices=[2], intermediates_only=True, stop_early=True)  # type: ignore[operator]
        return data  # type: ignore[no-any-return]

    geometry = trace_geometry(network, third)
    x = torch.ones(1, 3, *size, dtype=torch.float64, requires_grad=True)
    data = third(network.double(), x)
    assert tuple(data.shape[2:]) == geometry.map_size(*size)
    row, column = (int(cells) // 2 for cells in data.shape[2:])
    expected = geometry.offset(*size)[0] + 8 * row, geometry.offset(*size)[1] + 8 * column
    assert gradient_center(data, x, row, column) == expected


@st.composite
def networks(draw: st.DrawFn) -> nn.Sequential:
    """Up to three convolutions, pools and pads with random windows, strides, padding and dilation."""

    def pair(low: int, high: int) -> tuple[int, int]:
        return draw(st.integers(low, high)), draw(st.integers(low, high))

    layers: list[nn.Module] = [nn.Conv2d(3, 1, 1)]
    for _ in range(draw(st.integers(1, 3))):
        kernel, stride = pair(1, 4), pair(1, 3)
        padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
        kind = draw(st.sampled_from(["convolution", "max", "avg", "pad"]))
        if kind == "convolution":
            layers.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation=pair(1, 2)))
        elif kind == "pad":
            # Not asymmetric by one, which would be SAME padding on an even side.
            layers.append(nn.ZeroPad2d((3, draw(st.sampled_from([0, 1, 5])), 2, 0)))
        else:
            pool = nn.MaxPool2d if kind == "max" else nn.AvgPool2d
            layers.append(pool(kernel, stride, padding, ceil_mode=draw(st.booleans())))
    return nn.Sequential(*layers)


@settings(deadline=None, max_examples=50)
@given(networks(), st.integers(200, 230), st.integers(200, 230), st.integers(1, 40))
def test_random_layer_stacks(network: nn.Sequential, height: int, width: int, small: int) -> None:
    geometry = trace_geometry(network, call)
    x = torch.ones(1, 3, height, width, dtype=torch.float64, requires_grad=True)
    data = linearize(network).double()(x)
    rows, columns = data.shape[2:]
    assert (rows, columns) == geometry.map_size(height, width)
    row, column = rows // 2, columns // 2
    expected = [
        o + s * i for o, s, i in zip(geometry.offset(height, width), geometry.stride, (row, column), strict=True)
    ]
    assert list(gradient_center(data, x, row, column)) == expected
    if min(geometry.map_size(small, small)) > 0:
        small_map = network(torch.ones(1, 3, small, small, dtype=torch.float64))
        assert tuple(small_map.shape[2:]) == geometry.map_size(small, small)


@pytest.mark.parametrize(("side", "cells", "offset"), [(12, 3, 3), (13, 4, 0), (14, 4, 1), (15, 4, 2)])
def test_same_padding_matches_manual_calculation(side: int, cells: int, offset: float) -> None:
    """Side 12: padding (0, 1) and center 1 for 6 cells; then padding (1, 2) and center 1 * 2 pixels for 3 cells."""
    network = nn.Sequential(Conv2dSame(3, 4, 3, stride=2), nn.ReLU(), Conv2dSame(4, 4, 5, stride=2))
    geometry = trace_geometry(network, call)
    assert network(torch.zeros(1, 3, side, 13)).shape[2:] == (cells, 4)
    assert geometry.map_size(side, 13) == (cells, 4)
    assert geometry.offset(side, 13) == (offset, 0)
    assert geometry.smallest() == (1, 1)


@pytest.mark.parametrize(("side", "offset"), [(16, 1), (17, 3), (18, 3), (19, 1)])
def test_same_padding_after_unpadded_layer(side: int, offset: float) -> None:
    """A 256-pixel image gives the second layer an odd side, where SAME padding is symmetric."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), Conv2dSame(4, 4, 3, stride=2))
    geometry = trace_geometry(network, call)
    assert geometry.map_size(side, side) == tuple(network(torch.zeros(1, 3, side, side)).shape[2:])
    assert geometry.offset(side, side) == (offset, offset)


class Branches(nn.Module):
    """A gated sum of two branches, plus a shortcut with other cell centers from which the long gate is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.branches = nn.ModuleList([nn.Conv2d(4, 4, 3, stride=2, padding=1) for _ in range(2)])
        self.shortcut = nn.AvgPool2d(2, 2, ceil_mode=True)
        self.gate = nn.Sequential(*(nn.Conv2d(4, 4, 1) for _ in range(9)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        branches = torch.stack([branch(x) for branch in self.branches], dim=1)
        shortcut = self.shortcut(x)
        gates = self.gate(shortcut.mean((2, 3), keepdim=True)).sigmoid()
        data: Tensor = (branches * gates[:, None]).sum(dim=1) + shortcut
        return data


def test_branch_sums_keep_the_offset_and_gates_do_not_affect_it() -> None:
    geometry = trace_geometry(Branches(), call)
    assert geometry.offset(224, 225) == (0, 0)
    assert len(geometry.vertical.steps) == 2
    assert traced("resnest14d")[1].offset(224, 225) == (0, 0)


def test_tracing_does_not_modify_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    trace_geometry(network, call)
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_reflected_blur_is_traced() -> None:
    geometry = traced("resnetblur18")[1]
    assert (geometry.stride, geometry.offset(224, 225)) == ((32, 32), (0, 0))
    assert geometry.map_size(33, 101) == forward_size("resnetblur18", 33, 101)


class Merge(nn.Module):
    """Patch merging as in Swin: neighboring cells become channels by a reshape, between two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 1, 3, 2, 1), nn.Conv2d(4, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        data: Tensor = self.last(F.pixel_unshuffle(self.stem(x), 2))
        return data


def test_merges_move_cell_centers_and_need_multiples() -> None:
    network = Merge()
    with pytest.raises(SizeError, match="it does not accept an image of 193 x 321"):
        trace_geometry(network, call)
    geometry = trace_geometry(network, call, multiple=4)
    assert (geometry.multiple, geometry.stride) == (4, (4, 4))
    assert [geometry.map_size(side, 4 * side) for side in (1, 4, 5, 8)] == [(1, 1), (1, 4), (2, 5), (2, 8)]
    x = torch.ones(1, 3, 60, 72, dtype=torch.float64, requires_grad=True)
    data = linearize(network).double()(x)
    expected = [offset + 4 * cell for offset, cell in zip(geometry.offset(60, 72), (6, 8), strict=True)]
    assert list(gradient_center(data, x, 6, 8)) == expected


class Attention(nn.Module):
    """Attention to pooled keys and values, as in PVT; its output has the positions of the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        keys = self.pool(x).flatten(2)
        queries = x.flatten(2).transpose(1, 2)
        data = (queries @ keys).softmax(2) @ keys.transpose(1, 2)
        out: Tensor = data.transpose(1, 2).reshape(x.shape)
        return out


def test_attention_keeps_the_positions_of_queries() -> None:
    geometry = trace_geometry(Attention(), call)
    assert (geometry.stride, geometry.offset(100, 101)) == ((2, 2), (0, 0))


def test_rejects_networks_without_a_map() -> None:
    with pytest.raises(ValueError, match=r"its output is not a feature map \(N, C, H, W\) computed from the image"):
        trace_geometry(nn.Sequential(nn.Conv2d(3, 1, 3), nn.Flatten(2)), call)


class Pad(nn.Module):
    """Size-dependent padding that does not follow TensorFlow's SAME rule."""

    def forward(self, x: Tensor) -> Tensor:
        odd = 2 * (x.shape[3] % 2)
        return F.pad(x, (odd, 2 - odd, 1, 1))


def test_rejects_other_size_dependent_padding() -> None:
    with pytest.raises(ValueError, match="padding of a 256 x 256 image is neither fixed nor TensorFlow's SAME"):
        trace_geometry(nn.Sequential(Pad(), nn.Conv2d(3, 1, 3)), call)


def test_ceil_mode_drops_windows_that_start_in_the_padding() -> None:
    step = Step(2, 2, 1, 1, ceil=True)
    pool = nn.MaxPool2d(2, 2, 1, ceil_mode=True)
    assert [step.cells(side) for side in range(1, 20)] == [pool(torch.zeros(1, 1, s, 9)).shape[2] for s in range(1, 20)]
