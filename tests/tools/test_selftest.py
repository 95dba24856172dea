"""Self-tests of the operators: they pass on this machine, and they detect faulty kernels and faulty compilers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sppnet.ops import reference
from sppnet.ops.cpu import dispatch as cpu
from sppnet.tools import selftest

CPU = torch.device("cpu")


def test_operators_pass_all_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "_DTYPES", (torch.float32, torch.bfloat16))
    results = selftest.check_operators([CPU], iter(selftest.cases()))
    assert [(result.test, result.dtype, result.served, result.cases) for result in results] == [
        ("pyramid_pool", "float32", "CPU kernels", 40),
        ("pyramid_pool", "bfloat16", "CPU kernels", 40),
        ("region_pyramid_pool", "float32", "CPU kernels", 80),
        ("region_pyramid_pool", "bfloat16", "CPU kernels", 80),
    ]
    assert [result.note for result in results] == [""] * 4


def test_detects_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = cpu.backward
    monkeypatch.setattr(selftest, "_DTYPES", (torch.float32,))
    monkeypatch.setattr(cpu, "backward", lambda *arguments: backward(*arguments) * 1.001)
    for result in selftest.check_operators([CPU], iter(selftest.cases()[:6])):
        assert result.wrong == result.cases
        assert "max over 1 x 1 cells" in result.note
        assert "gradients differ by up to " in result.note


def test_detects_a_gradient_routed_to_the_wrong_tied_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient belongs to the first of the tied cells; a kernel that picks the last returns the same vectors."""

    def last(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        vectors, cells = reference.forward(x.flip(2, 3), *arguments)
        return vectors, x.shape[2] * x.shape[3] - 1 - cells if cells.numel() else cells

    ties = torch.ones(2, 3, 6, 6)
    monkeypatch.setattr(selftest, "LEVELS", (1,))
    case = selftest.Case((6, 6), 3, "max", 0)
    expected = selftest._reference(case, ties, ())
    assert selftest._find_problem(case, ties, (), expected) is None
    monkeypatch.setattr(cpu, "forward", last)
    assert (selftest._find_problem(case, ties, (), expected) or "").startswith("gradients differ by")


def test_reports_the_error_of_a_failing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(cpu, "forward", fails)
    result = selftest.check_operators([CPU], iter(selftest.cases()[:1]))[0]
    assert (result.wrong, result.cases) == (2, 2)
    assert result.note.endswith("whole maps, contiguous: RuntimeError: no such instruction")


def test_detects_a_wrong_vector_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "pyramid_pool", lambda x, *_, **__: x.flatten(1))
    result = selftest.check_operators([CPU], iter(selftest.cases()[:1]))[0]
    assert "vectors: expected shape (2, 210), got (2, 3)" in result.note


@pytest.mark.usefixtures("unchecked")
def test_onnx_export_passes() -> None:
    assert selftest.check_onnx() == selftest.Result("ONNX", "cpu", "float32", "", 3)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_compiled_operators_pass() -> None:
    pytest.importorskip("torch._inductor")
    assert selftest.check_compiled(CPU) in (
        selftest.Result("torch.compile", "cpu", "float32", "", 3),
        selftest.Result("torch.compile", "cpu", "float32", "", 0, note="not installed: a C++ compiler"),
    )


def test_detects_a_faulty_build() -> None:
    layer = selftest._Layer()

    def wrong(x: Tensor) -> Tensor:
        return layer(x) + (x.shape[2] == 9)  # type: ignore[no-any-return]

    result = selftest._check_built("torch.compile", CPU, "", lambda: wrong)
    assert (result.cases, result.wrong) == (3, 1)
    assert result.note.startswith("9 x 4 cells (height x width): vectors differ by up to 1;")

    def fails() -> Callable[[Tensor], Tensor]:
        raise OSError("no space left\non the device")

    assert selftest._check_built("ONNX", CPU, "", fails).note == "OSError: no space left"
