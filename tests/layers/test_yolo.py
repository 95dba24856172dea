"""YOLO's SPP and SPPF: order of the maps, equality with each other and with plain torch, training, export."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from sppnet.layers.yolo import SPP, SPPF, Order


def pools_only(order: Order) -> SPP:
    """Create the block without its convolutions."""
    module = SPP(2, 4, order=order)
    module.halve = module.join = nn.Sequential()
    return module


@pytest.mark.parametrize(("order", "expected"), [("input-first", [0, 16, 32, 48]), ("darknet", [48, 32, 16, 0])])
def test_order_of_the_maps(order: Order, expected: list[int]) -> None:
    out = pools_only(order)(torch.arange(49.0).reshape(1, 1, 7, 7))
    assert out[0, :, 0, 0].tolist() == expected


def test_channels_are_grouped_by_kernel() -> None:
    x = torch.arange(49.0).reshape(1, 1, 7, 7)
    out = pools_only("input-first")(torch.cat((x, -x), 1))
    assert out[0, :, 3, 3].tolist() == [24, -24, 40, -8, 48, 0, 48, 0]


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from(["input-first", "darknet"]), st.booleans())
def test_sppf_equals_spp_of_its_repeated_windows(height: int, width: int, order: Order, gradient: bool) -> None:
    for kernel, repeats, kernels in ((5, 3, (5, 9, 13)), (3, 3, (3, 5, 7)), (7, 2, (7, 13)), (3, 1, (3,))):
        sppf = SPPF(8, 6, kernel, repeats, order=order).eval().requires_grad_(gradient)
        spp = SPP(8, 6, kernels, order=order).eval()
        spp.load_state_dict(sppf.state_dict())
        x = torch.randn(1, 8, height, width)
        assert sppf.kernels == kernels
        assert torch.equal(sppf(x), spp(x))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(20, 20), (3, 3), (9, 16)])
def test_spp_equals_plain_torch(size: tuple[int, int], training: bool) -> None:
    module = SPP(8, 6).train(training)
    x = torch.randn(2, 8, *size)
    y = F.silu(module.halve[1](module.halve[0](x)))
    y = torch.cat([y, *(F.max_pool2d(y, k, 1, k // 2) for k in (5, 9, 13))], 1)
    expected = F.silu(module.join[1](module.join[0](y)))
    torch.testing.assert_close(module(x), expected)


def test_trains_on_a_single_cell() -> None:
    module, x = SPPF(4, 6), torch.randn(1, 4, 1, 1, requires_grad=True)
    out = module(x)
    assert out.shape == (1, 6, 1, 1)
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_parameters_norm_and_activation() -> None:
    module = SPP(512, 256, activation=lambda: nn.LeakyReLU(0.1), norm="batch")
    assert sum(parameter.numel() for parameter in module.parameters()) == 512 * 256 + 1024 * 256 + 4 * 256
    assert [type(layer) for layer in module.join] == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert isinstance(SPPF(4, 4).halve[2], nn.SiLU)
    assert "kernels=(5, 9, 13), order='input-first'" in repr(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "dark"}, "order: expected one of input-first, darknet, got 'dark'; did you mean 'darknet'"),
        ({"in_channels": 1}, "in_channels: expected at least 2, got 1"),
        ({"kernels": (5, 8)}, r"kernels\[1\]: expected an odd .* got 8.* 7 or 9"),
        ({"norm": "layer"}, "norm: expected one of"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_spp_rejects_invalid_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPP(**{"in_channels": 4, "out_channels": 4, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": 4}, "kernel: expected an odd number of at least 3, got 4; nearest: 3 or 5"),
        ({"kernel": 1}, "kernel: .* got 1; nearest: 3$"),
        ({"kernel": 2}, "kernel: .* got 2; nearest: 3$"),
        ({"repeats": 0}, "repeats: expected at least 1, got 0"),
    ],
)
def test_sppf_rejects_invalid_options(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SPPF(4, 4, **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("unchecked")
def test_only_the_first_size_is_compiled() -> None:
    torch._dynamo.reset()
    module, counter = SPPF(4, 6).eval(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    counts = set()  # torch may compile the first call twice, to turn a number into a tensor
    with torch.no_grad():
        for size in ((7, 9), (20, 31), (13, 40), (2, 3), (30, 30)):
            x = torch.randn(2, 4, *size)
            torch.testing.assert_close(compiled(x), module(x))
            counts.add(counter.frame_count)
    torch._dynamo.reset()
    assert len(counts) == 1


@pytest.mark.parametrize("order", ["input-first", "darknet"])
@pytest.mark.usefixtures("unchecked")
def test_onnx_runs_at_sizes_other_than_the_exported_one(order: Order, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    module, path = SPPF(4, 6, order=order).eval(), tmp_path / "sppf.onnx"
    torch.onnx.export(
        module,
        (torch.randn(2, 4, 9, 11),),
        path,
        dynamo=True,
        input_names=["x"],
        dynamic_shapes=({0: "n", 2: "h", 3: "w"},),
        verbose=False,
        external_data=False,
    )
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for shape in ((1, 4, 20, 20), (3, 4, 7, 31), (1, 4, 1, 1), (2, 4, 3, 3)):
        x = torch.randn(shape)
        (out,) = session.run(None, {"x": x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(out), module(x), rtol=1e-5, atol=1e-6)
