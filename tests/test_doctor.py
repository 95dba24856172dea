"""The command `sppnet doctor`: what it prints, how it exits, and that it finds what is wrong."""

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sppnet.cli import run
from sppnet.doctor import BOUND, PaddingReport, check_padding
from sppnet.padded.ledger import Ledger, Valid
from sppnet.padded.mode import PaddedBatch
from sppnet.padded.rules import RULES


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
    monkeypatch.setattr("sppnet.doctor.BOUND", 1e-12)
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
    monkeypatch.setattr("sppnet.doctor._wake", lambda _: None)
    assert check_padding("convnext_atto", stage=0, images=2).exact


@pytest.mark.parametrize(
    ("difference", "exact"), [(None, False), (0.0, True), (1e-5, True), (1.1e-5, False), (math.inf, False)]
)
def test_exact_is_a_difference_of_rounding(difference: float | None, exact: bool) -> None:
    assert PaddingReport("zf5", ((31, 31), (40, 50)), difference).exact is exact
